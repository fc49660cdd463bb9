"""What the probes got right, as numbers: intervals by image, spread over seeds, groups, and how the fits ended."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from dualenc.evaluate.groups.groups import Measure, by_group_of
from dualenc.evaluate.intervals import Interval, percentile_intervals
from dualenc.evaluate.metrics import per_class_recall
from dualenc.evaluate.probe.choice import Choice
from dualenc.evaluate.probe.data import Set, Sets
from dualenc.evaluate.probe.fit import Probe
from dualenc.evaluate.ranks import Floats, Ints
from dualenc.evaluate.sections import Table

METRICS = {"acc1": "Right", "mean_per_class_recall": "Mean over classes"}
ZERO = "probe/zeroshot/"  # the prefix of the zero-shot classifier's values
Report = dict[str, Any]


class Fitted(NamedTuple):
    """A probe, what its strength was chosen from, and which test images it classifies rightly."""

    probe: Probe
    choice: Choice
    right: npt.NDArray[np.bool_]  # (N,)


def numbers(columns: Mapping[str, npt.ArrayLike], target: Ints, classes: int, times: int, seed: int) -> Report:
    """acc1 and mean-per-class recall (over classes that occur) of several ways to classify the same images.

    columns: prefix -> (N,) share of right answers an image, 0 or 1, or a mean over seeds. Beside each value its chance and
    its interval, images drawn anew; where ZERO is among them, "…gain/acc1" is what a way has over it, with
    the interval of that difference on the same draws.
    """
    values = {name: np.asarray(column, np.float64) for name, column in columns.items()}
    zero = values.get(ZERO)
    if zero is not None:
        values |= {f"{name}gain/": column - zero for name, column in values.items() if name != ZERO}
    held = np.stack(list(values.values()), axis=1)  # (N, M)
    order = np.argsort(target, kind="stable")
    first = np.flatnonzero(np.diff(target[order], prepend=-1))  # where each class that occurs begins

    def statistics(counts: Floats) -> Floats:  # (b, N) -> (b, 2 M)
        drawn = counts[:, order]
        size = np.add.reduceat(drawn, first, axis=1)
        recalls = []
        for column in held[order].T:
            share = np.add.reduceat(drawn * column, first, axis=1) / np.maximum(size, 1)
            recalls.append(share.sum(axis=1) / (size > 0).sum(axis=1))
        return np.concatenate([counts @ held / counts.sum(axis=1, keepdims=True), np.stack(recalls, axis=1)], axis=1)

    exact = statistics(np.ones((1, len(target))))[0]
    between: list[Interval | None] = [None] * len(exact)
    if times and len(target) > 1:
        between = list(
            percentile_intervals(statistics, len(target), times, seed, ["gain/" not in name for name in values] * 2)
        )
    report: Report = {}
    keys = [f"{name}{metric}" for metric in ("acc1", "mean_per_class_recall") for name in values]
    for key, value, interval in zip(keys, exact, between, strict=True):
        report[key] = float(value)
        if "gain/" not in key:
            report[f"{key}/chance"] = 1 / classes
        if interval is not None:
            report |= {f"{key}/low": interval.low, f"{key}/high": interval.high}
    return report


def few(some: Sequence[Fitted], target: Ints, classes: int, prefix: str, first: int = 0) -> Report:
    """How a number of shots fared from seed to seed, `first` and the next ones: "…/acc1/seed0" and so on, and their
    standard deviation "…/acc1/std" (of a sample; None for one seed).

    The interval beside the mean (`numbers`) says what other test images would change, this what other shots would.
    """
    accuracies, recalls = [], []
    for each in some:
        recall, _ = per_class_recall(~each.right, target, classes)
        accuracies.append(float(each.right.mean()))
        recalls.append(float(np.nanmean(recall)))
    report: Report = {}
    for name, values in (("acc1", accuracies), ("mean_per_class_recall", recalls)):
        report |= {f"{prefix}{name}/seed{i}": value for i, value in enumerate(values, first)}
        report[f"{prefix}{name}/std"] = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return report | {f"{prefix}strength/seed{i}": 10**each.choice.power for i, each in enumerate(some, first)}


def by_groups(
    right: npt.NDArray[np.bool_], target: Ints, group: Sequence[str | None], prefix: str, times: int, seed: int
) -> tuple[Report, Table]:
    """acc1 and mean-per-class recall, over the classes that occur in a group."""

    def metric(rows: Ints) -> dict[str, float | None]:
        count = np.bincount(target[rows])
        hits = np.bincount(target[rows], right[rows])
        recall = hits[count > 0] / count[count > 0]
        return {"acc1": float(right[rows].mean()), "mean_per_class_recall": float(recall.mean())}

    return by_group_of(
        metric, group, None, times, seed, prefix, {name: Measure(title) for name, title in METRICS.items()}
    )


def counted(found: Sets, data: Sets, pool: Set, unlabelled: Mapping[str, int]) -> Report:
    """How many images and classes there were, and which classes test has not. data, pool: what the strength was chosen on."""
    absent = absent_classes(found)
    sizes = {"classes": len(found.classes), "absent": len(absent), "train": len(data.train.row), "val": len(pool.row)}
    sizes |= {"held_out": int(found.val is None), "images": len(found.test.row)}
    sizes |= {f"unlabelled/{name}": count for name, count in unlabelled.items()}
    return {f"probe/{name}": count for name, count in sizes.items()} | {"probe/absent_names": ", ".join(absent) or None}


def absent_classes(found: Sets) -> list[str]:
    """Classes that train holds and test does not: no metric counts them."""
    return [found.classes[c] for c in np.setdiff1d(np.arange(len(found.classes)), found.test.target)]


def how(full: Fitted) -> Report:
    """How the full probe was fitted: strength, how the fit ended, what each strength gave on the validation rows."""
    probe, choice = full.probe, full.choice
    best = next(each for each in choice.tried if each.power == choice.power)
    return {
        "probe/strength": 10**choice.power,
        "probe/strength/sklearn": probe.strength,
        "probe/gradient": probe.gradient,
        "probe/gradient/share": probe.share,
        "probe/steps": probe.steps,
        "probe/validation/acc1": best.accuracy,
        "probe/validation/loss": best.loss,
    } | {f"probe/validation/acc1/1e{each.power:g}": each.accuracy for each in choice.tried}
