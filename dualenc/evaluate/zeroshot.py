"""Zero-shot classification: a classifier made of prompts, its scores, and its evaluation on labelled samples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from dualenc.evaluate.metrics import class_ranks, per_class_recall, zero_shot_metrics
from dualenc.evaluate.ranks import Floats, Ints, checked_rows
from dualenc.evaluate.sections import (
    Embedded,
    Example,
    Examples,
    Headline,
    Item,
    Section,
    Share,
    Table,
    TextEncoder,
    check_dim,
    listed,
    pick,
    picture_item,
)
from dualenc.model.names import zero_shot_classifier

TABLE_ROWS = 30  # a longer table of classes shows its best and worst halves of this


def classifier(encoder: TextEncoder, class_names: Sequence[str], templates: Sequence[str]) -> npt.NDArray[np.float32]:
    """One unit row per class, (C, D) float32: `dualenc.model.names.zero_shot_classifier` with this encoder."""
    return zero_shot_classifier(encoder.embed_texts, class_names, templates)


def class_scores(images: npt.ArrayLike, weights: npt.ArrayLike) -> npt.NDArray[np.float32]:
    """Cosine of each image with each class, (N, C) float32. images (N, D) and weights (C, D): unit rows."""
    images, weights = checked_rows(images, "images"), checked_rows(weights, "the classifier")
    return images.astype(np.float32, copy=False) @ weights.astype(np.float32, copy=False).T


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
    class_names: Sequence[str],
    templates: Sequence[str],
    label: str = "label",
    name: str = "zeroshot",
    title: str = "Zero-shot classification",
    examples: int = 3,
    seed: int = 0,
) -> tuple[dict[str, float | int | None], Section]:
    """Flat report and page section: "zeroshot/acc1", "…/acc5", "…/mean_per_class_recall", "…/recall/CLASS", …

    label: the metadata column with each image's class, as a number (0 is the first name) or as a name; images without
    one are left out and counted. name: what the report's keys begin with, so that one report can hold several.
    ValueError: no labels, a label outside the classes, `embedded` of another encoder.
    """
    check_dim(encoder, embedded)
    row, target = labels(embedded, class_names, label)
    scores = class_scores(embedded.images[row], classifier(encoder, class_names, templates))
    rank = class_ranks(scores, target)
    recall, count = per_class_recall(rank, target, len(class_names))
    report: dict[str, float | int | None] = {f"{name}/{key}": v for key, v in zero_shot_metrics(scores, target).items()}
    report |= {
        f"{name}/acc1/chance": 1 / len(class_names),
        f"{name}/mean_per_class_recall/chance": 1 / len(class_names),
    }
    if len(class_names) >= 5:
        report[f"{name}/acc5/chance"] = 5 / len(class_names)
    report |= {f"{name}/images": len(row), f"{name}/unlabelled": len(embedded.images) - len(row)}
    report |= {f"{name}/classes": len(class_names), f"{name}/templates": len(templates)}
    unique = _unique(class_names)
    report |= {f"{name}/recall/{unique[c]}": float(recall[c]) for c in np.flatnonzero(count)}
    picked = pick(rank == 0, examples, seed)
    shown = _examples(embedded, row[picked], scores[picked], target[picked], rank[picked], class_names)
    tables = [_overall(report, name), _by_class(unique, recall, count, _taken_for(scores, target, rank, class_names))]
    return report, Section(
        title=title,
        about=(
            f"{len(row):,} images into {len(class_names):,} classes by their names alone "
            f"({len(templates):,} {'prompt' if len(templates) == 1 else 'prompts'} each): {listed(unique, 12)}."
        ),
        headlines=[
            Headline(
                title, Share(float(report[f"{name}/acc1"] or 0), 1 / len(class_names)), "of images get the right class"
            )
        ],
        tables=tables,
        examples=[shown] if shown.rows else [],
    )


def labels(embedded: Embedded, class_names: Sequence[str], column: str = "label") -> tuple[Ints, Ints]:
    """Rows that have a class in the metadata column, (M,), and its number, (M,). Errors as `evaluate_zeroshot`."""
    if column not in embedded.metadata.column_names:
        raise ValueError(
            f"the data has no column {column!r}, so no right classes; add KEY.cls files or name another column"
        )
    values = embedded.metadata[column].to_pylist()
    row = np.array([i for i, value in enumerate(values) if value is not None], np.int64)
    if len(row) == 0:
        raise ValueError(f"no image has a class in {column!r}, so accuracy cannot be told; add KEY.cls files")
    number = {name: i for i, name in enumerate(class_names)}
    found = [values[i] for i in row]
    target = [number.get(value, -1) if isinstance(value, str) else value for value in found]
    for value, at in zip(found, target, strict=True):
        if not isinstance(at, int) or not 0 <= at < len(class_names):
            raise ValueError(
                f"{column} {value!r} is none of the {len(class_names)} classes (numbers 0..{len(class_names) - 1}, or "
                f"{listed(list(class_names))}); give the class list the labels were made with"
            )
    return row, np.array(target, np.int64)


def _overall(report: dict[str, float | int | None], name: str) -> Table:
    words = {"acc1": "Right at first", "acc5": "Right among five", "mean_per_class_recall": "Mean over classes"}
    rows: list[list[str | Share]] = []
    for key, word in words.items():
        value = report[f"{name}/{key}"]
        if value is not None:
            rows.append([word, Share(float(value), report[f"{name}/{key}/chance"])])
    return Table(["", "Accuracy"], rows, "Ties count as wrong. The tick on a bar is what chance would give.")


def _by_class(names: list[str], recall: Floats, count: Ints, taken_for: list[str]) -> Table:
    order = list(np.flatnonzero(count))
    note = ""
    if len(order) > TABLE_ROWS:
        order = sorted(order, key=lambda c: (-recall[c], c))
        note = (
            f"The {TABLE_ROWS // 2} best and {TABLE_ROWS // 2} worst of {len(order):,} classes; all are in report.json."
        )
        order = order[: TABLE_ROWS // 2] + order[-(TABLE_ROWS // 2) :]
    rows: list[list[str | Share]] = [[names[c], f"{count[c]:,}", Share(float(recall[c])), taken_for[c]] for c in order]
    return Table(["Class", "Images", "Right", "Mistaken for"], rows, note)


def _taken_for(scores: npt.NDArray[np.float32], target: Ints, rank: Ints, names: Sequence[str]) -> list[str]:
    """For each class the wrong one that its images got most often, as "name (times)"; "" where all are right."""
    wrong = scores.copy()
    wrong[np.arange(len(target)), target] = -np.inf  # a tie counts as wrong: the right class is out of the choice
    mistaken: dict[int, Counter[int]] = {}
    for row in np.flatnonzero(rank):
        mistaken.setdefault(int(target[row]), Counter())[int(wrong[row].argmax())] += 1
    most = {c: counter.most_common(1)[0] for c, counter in mistaken.items()}
    return [f"{names[most[c][0]]} ({most[c][1]:,}×)" if c in most else "" for c in range(len(names))]


def _examples(
    embedded: Embedded, row: Ints, scores: npt.NDArray[np.float32], target: Ints, rank: Ints, names: Sequence[str]
) -> Examples:
    rows = []
    for i in range(len(row)):
        right = np.arange(len(names)) == target[i]
        top = np.lexsort((right, -scores[i]))[:3]
        items = [Item(names[c], right=bool(right[c]), note=f"{scores[i, c]:.3f}") for c in top]
        note = "right" if rank[i] == 0 else f"{names[target[i]]}, at place {rank[i] + 1:,}"
        rows.append(Example(picture_item(embedded, int(row[i])), items, bool(rank[i] == 0), note))
    return Examples("Examples", "Drawn at random, right ones before wrong ones; with each class its cosine.", rows)


def _unique(names: Sequence[str]) -> list[str]:
    """Names as report keys; open_clip's ImageNet list has two names twice, which get their number."""
    times = Counter(names)
    return [name if times[name] == 1 else f"{name} ({i})" for i, name in enumerate(names)]
