"""The numbers of a zero-shot evaluation where each image has one right class: accuracy, its intervals, and by group."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from dualenc.evaluate.groups.gap import Measure, Source, compare
from dualenc.evaluate.groups.split import Split
from dualenc.evaluate.intervals import TIMES, Interval, draws, percentile_intervals
from dualenc.evaluate.metrics import class_metrics, per_class_recall
from dualenc.evaluate.ranks import Floats, Ints
from dualenc.evaluate.sections import Table
from dualenc.evaluate.zeroshot.confusion import predictions
from dualenc.evaluate.zeroshot.scale import Calibrated, calibrated
from dualenc.model.names import first_alike

WORDS = {"acc1": "Right at first", "acc5": "Right among five", "mean_per_class_recall": "Mean over classes"}
ERRORS = {"nll": "NLL", "brier": "Brier"}
Report = dict[str, Any]


@dataclass(frozen=True)
class Named:
    """What is evaluated: its title on the page, what its report keys begin with, its classes and their prompts."""

    title: str
    key: str
    classes: Sequence[str]
    prompts: Sequence[Sequence[str]]  # of each class
    templates: int | None  # None where classes have prompts of their own

    @cached_property
    def unique(self) -> list[str]:
        """Class names as report keys; open_clip's ImageNet list has two names twice, which get their number."""
        times = Counter(self.classes)
        return [name if times[name] == 1 else f"{name} ({i})" for i, name in enumerate(self.classes)]

    @cached_property
    def duplicates(self) -> list[int]:
        """Classes with the prompts of one before them, which are never chosen."""
        return [c for c, first in enumerate(first_alike(self.prompts)) if first != c]

    def counts(self) -> Report:
        sizes = {f"{self.key}/classes": len(self.classes), f"{self.key}/prompts": sum(map(len, self.prompts))}
        return sizes if self.templates is None else sizes | {f"{self.key}/templates": self.templates}

    def about(self) -> str:
        """`into 8 classes by their names alone (18 prompts each)`"""
        few, most = min(map(len, self.prompts)), max(map(len, self.prompts))
        each = f"{few:,}" if few == most else f"{few:,} to {most:,}"
        how = "by prompts of their own" if self.templates is None else "by their names" + " alone" * (most == 1)
        return f"into {len(self.classes):,} classes {how} ({each} {'prompt' if most == 1 else 'prompts'} each)"


class Judged(NamedTuple):
    """What each labelled image got."""

    row: Ints  # (N,) rows of the metadata
    target: Ints  # (N,) right classes
    scores: npt.NDArray[np.float32]  # (N, C) cosines
    rank: Ints  # (N,) wrong classes that stand before the right one
    predicted: Ints  # (N,) the class each counts as
    calibration: Calibrated | None  # None where the encoder has no logit scale, or there is one image


def judge(
    row: Ints, target: Ints, scores: npt.NDArray[np.float32], rank: Ints, scale: float | None, seed: int = 0
) -> Judged:
    some = None if scale is None or len(row) < 2 else calibrated(scores, target, rank == 0, scale, seed)
    return Judged(row, target, scores, rank, predictions(scores, target, rank), some)


def zeroshot_report(judged: Judged, named: Named, images: int, times: int = TIMES, seed: int = 0) -> Report:
    """The flat report of one label an image; `images` counts those without a label too."""
    name, classes = named.key, len(named.classes)
    values = class_metrics(judged.rank, judged.target, classes)
    between = accuracy_intervals(judged.rank, judged.target, times, seed) if times and len(judged.row) > 1 else {}
    chance = {"acc1": 1 / classes, "acc5": min(1.0, 5 / classes), "mean_per_class_recall": 1 / classes}
    report: Report = {}
    for key, value in values.items():
        report[f"{name}/{key}"] = value
        if value is not None:
            report |= {f"{name}/{key}/chance": chance[key]}
            report |= {f"{name}/{key}/{end}": at for end, at in between[key]._asdict().items()} if between else {}
    recall, count = per_class_recall(judged.rank, judged.target, classes)
    absent = [named.unique[c] for c in np.flatnonzero(count == 0)]
    report |= {f"{name}/images": len(judged.row), f"{name}/unlabelled": images - len(judged.row)}
    report |= named.counts() | {f"{name}/absent": len(absent), f"{name}/absent_names": ", ".join(absent) or None}
    report[f"{name}/duplicate_classes"] = len(named.duplicates)
    report |= {} if judged.calibration is None else judged.calibration.report(name, times, seed)
    return report | {f"{name}/recall/{named.unique[c]}": float(recall[c]) for c in np.flatnonzero(count)}


def accuracy_intervals(rank: Ints, target: Ints, times: int = TIMES, seed: int = 0) -> dict[str, Interval]:
    """Bootstrap intervals of acc1, acc5 and mean-per-class recall, images drawn anew: rank (N,), target (N,)."""
    drawn = percentile_intervals(drawn_accuracies(rank, target), len(rank), times, seed, shares=True)
    return dict(zip(WORDS, drawn, strict=True))


def drawn_accuracies(rank: Ints, target: Ints) -> Callable[[Floats], Floats]:
    """A function: how often each image was drawn, (b, N) -> acc1, acc5 and mean-per-class recall in that draw, (b, 3).

    A draw's mean-per-class recall is over the classes that it holds. Images are sorted by class, so that a class's
    counts are sums of neighbours: 1,000 draws of 50,000 images in 1,000 classes take seconds.
    """
    order = np.argsort(target, kind="stable")
    first = np.flatnonzero(np.diff(target[order], prepend=-1))  # where each class that occurs begins
    right, right5 = (rank[order] < 1).astype(np.float64), (rank < 5).astype(np.float64)

    def accuracies(counts: Floats) -> Floats:
        drawn = counts[:, order]
        size = np.add.reduceat(drawn, first, axis=1)  # (b, classes)
        hits = np.add.reduceat(drawn * right, first, axis=1)
        total = size.sum(axis=1)
        recall = np.divide(hits, size, out=np.zeros_like(hits), where=size > 0).sum(axis=1) / (size > 0).sum(axis=1)
        return np.column_stack([hits.sum(axis=1) / total, counts @ right5 / total, recall])

    return accuracies


def unit_rows(split: Split) -> Ints:
    """The row of each unit, (U,), of a split whose units are single rows."""
    return split.row[np.argsort(split.unit)]


def by_groups(
    judged: Judged, classes: int, group: Sequence[str | None], prefix: str, times: int = TIMES, seed: int = 0
) -> tuple[Report, Table]:
    """acc1, acc5 (five classes or more), mean-per-class recall and, with the encoder's own scale, NLL and Brier by group.

    group: (N,) names, None for images without one. A group's mean-per-class recall is over the classes that occur in it.
    The calibration error is left out: it grows as images get fewer, so small groups would look worse than they are.
    """
    split = Split.of(group, None)
    row_of = unit_rows(split)
    shown = [i for i, key in enumerate(WORDS) if key != "acc5" or classes >= 5]

    scored = judged.calibration.before if judged.calibration else None
    errors = np.empty((len(judged.rank), 0)) if scored is None else np.stack([scored.losses, scored.squares], axis=1)

    def drawn_values(units: Ints) -> Callable[[Floats], Floats]:
        rows = row_of[units]
        accuracies = drawn_accuracies(judged.rank[rows], judged.target[rows])

        def values(counts: Floats) -> Floats:
            means = counts @ errors[rows] / counts.sum(axis=1, keepdims=True)
            return np.column_stack([accuracies(counts)[:, shown], means])

        return values

    def value(units: Ints) -> Floats:
        return drawn_values(units)(np.ones((1, len(units))))[0]

    def drawn(units: Ints, own_seed: int) -> Floats:
        some = drawn_values(units)
        return np.concatenate([some(counts) for counts in draws(len(units), times, own_seed)])

    names = [list(WORDS)[i] for i in shown] + ([] if scored is None else list(ERRORS))
    measures = {key: Measure(word) for key, word in WORDS.items()}
    measures |= {key: Measure(word, lower=True, share=False) for key, word in ERRORS.items()}
    return compare(split, Source(value, drawn), names, times, seed, prefix, measures)
