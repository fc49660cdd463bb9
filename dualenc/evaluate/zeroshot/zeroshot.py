"""Zero-shot classification: a classifier made of prompts, its scores, and its evaluation on labelled samples."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dualenc.evaluate.groups.groups import groups_of
from dualenc.evaluate.intervals import TIMES
from dualenc.evaluate.ranks import Ints, checked_rows, ranks
from dualenc.evaluate.sections import Embedded, Section, TextEncoder, check_dim
from dualenc.evaluate.zeroshot.classifier import classifier
from dualenc.evaluate.zeroshot.labels import holds_lists, label_lists, labels
from dualenc.evaluate.zeroshot.multilabel_section import evaluate_lists
from dualenc.evaluate.zeroshot.numbers import Named, Report, by_groups, judge, zeroshot_report
from dualenc.evaluate.zeroshot.page import check_format, class_table, page, write_classes
from dualenc.evaluate.zeroshot.scale import own_scale
from dualenc.model.names import Classes, class_prompts, first_alike, twins_behind


def class_scores(images: npt.ArrayLike, weights: npt.ArrayLike) -> npt.NDArray[np.float32]:
    """Cosine of each image with each class, (N, C) float32. images (N, D) and weights (C, D): unit rows."""
    images, weights = checked_rows(images, "images"), checked_rows(weights, "the classifier")
    return images.astype(np.float32, copy=False) @ weights.astype(np.float32, copy=False).T


def class_places(images: npt.ArrayLike, weights: npt.ArrayLike, target: Ints, prompts: Sequence[Sequence[str]]) -> Ints:
    """Number of wrong classes that score at least as high as the right one, (N,), exactly, as `ranks` has it.

    images (N, D), weights (C, D): unit rows; target (N,): right classes; prompts: of each class. Ties count against the
    encoder. Only those that the list of classes makes do not: of classes with the same prompts (open_clip's ImageNet
    names hold two such pairs) the first stands before the others, as in an argmax.
    """
    first = first_alike(prompts)
    return ranks(images, np.asarray(weights)[first], list(target[:, None])) - twins_behind(first)[target]


def classify(
    encoder: TextEncoder, class_names: Sequence[str], templates: Sequence[str], images: npt.ArrayLike
) -> tuple[list[str], npt.NDArray[np.float32]]:
    """Each image's best class, and its cosine with every class: N names, (N, C) float32. images (N, D): unit rows.

    For many images, call `classifier` once and `class_scores` per block.
    """
    scores = class_scores(images, classifier(encoder, class_names, templates))
    return [class_names[best] for best in scores.argmax(axis=1)], scores


def evaluate_zeroshot(
    encoder: TextEncoder,
    embedded: Embedded,
    classes: Classes | Sequence[str],
    templates: Sequence[str] | None = None,
    label: str = "label",
    name: str = "zeroshot",
    title: str = "Zero-shot classification",
    examples: int = 3,
    seed: int = 0,
    by: Sequence[str] = (),
    times: int = TIMES,
    per_class: str | Path | None = None,
) -> tuple[Report, Section]:
    """Flat report and page section: "zeroshot/acc1", "…/acc5", "…/mean_per_class_recall", "…/recall/CLASS", …

    classes: names, or `Classes` with prompts of their own; templates: None for the names alone. label: the metadata
    column with each image's class, as a number (0 is the first name) or as a name; images without one are left out and
    counted. Where the column holds lists of classes, average precision takes the place of accuracy
    (`zeroshot_multilabel`). name: what the report's keys begin with, so that one report can hold several.
    by: metadata columns; under "NAME/by/COLUMN/" stand the same metrics by their values. times: bootstrap draws, 0 for
    no intervals. per_class: also write every class's numbers there, .csv or .parquet.
    ValueError: no labels, a label outside the classes, no such column, `embedded` of another encoder.
    """
    check_dim(encoder, embedded)
    classes = classes if isinstance(classes, Classes) else Classes(list(classes))
    prompts = class_prompts(classes, templates)
    named = Named(title, name, classes.names, prompts, None if classes.prompts else len(prompts[0]))
    if per_class is not None:
        check_format(per_class)
    groups = {column: groups_of(embedded.metadata, column) for column in by}  # a wrong name is told before the work
    weights = classifier(encoder, classes, templates)[first_alike(prompts)]
    if holds_lists(embedded.metadata, label):
        row, held = label_lists(embedded, classes.names, label)
        scores, own = class_scores(embedded.images[row], weights), _of_rows(groups, row)
        return evaluate_lists(embedded, named, row, held, scores, own, examples, seed, times, per_class)
    row, target = labels(embedded, classes.names, label)
    images = embedded.images[row]
    rank, scores = class_places(images, weights, target, prompts), class_scores(images, weights)
    if named.duplicates:
        scores = scores[:, first_alike(prompts)]  # products of equal rows differ by rounding
    judged = judge(row, target, scores, rank, own_scale(encoder), seed)
    report, tables = zeroshot_report(judged, named, len(embedded.images), times, seed), []
    for column, group in _of_rows(groups, row).items():
        found, table = by_groups(judged, len(classes.names), group, f"{name}/by/{column}/", times, seed)
        report |= found
        tables.append(table)
    if per_class is not None:
        write_classes(per_class, class_table(judged, named))
    return report, page(embedded, named, judged, report, tables, examples, seed)


def _of_rows(groups: dict[str, list[str | None]], row: Ints) -> dict[str, list[str | None]]:
    return {column: [group[r] for r in row] for column, group in groups.items()}
