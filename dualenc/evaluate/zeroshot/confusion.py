"""Which classes are taken for which: the class each image counts as, the pairs most confused, and their picture."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from dualenc.evaluate.page.figure import heat, heat_size, panel
from dualenc.evaluate.ranks import Floats, Ints
from dualenc.evaluate.sections import Panel, Share, Table

MOST_CLASSES = 30  # a picture of more cannot be read: it shows the classes that are confused most
PAIRS = 10  # rows of the table
WRITTEN = 12  # up to so many classes, cells have their number in them


class Pair(NamedTuple):
    """`times` images of class `right` were taken for class `taken`."""

    right: int
    taken: int
    times: int


def predictions(scores: npt.ArrayLike, target: npt.ArrayLike, rank: npt.ArrayLike) -> Ints:
    """The class that each image counts as, (N,): its right one where rank is 0, else the best of the others.

    scores (N, C), target (N,), rank (N,) as `class_ranks` gives it: a tie is a mistake for the class it ties with.

    >>> predictions([[0.9, 0.1], [0.5, 0.5]], [0, 0], [0, 1])
    array([0, 1])
    """
    scores, target, rank = np.asarray(scores), np.asarray(target), np.asarray(rank)
    found = target.astype(np.int64)
    wrong = np.flatnonzero(rank)
    others = scores[wrong].astype(np.result_type(scores, np.float32))  # a copy that can hold -inf
    others[np.arange(len(wrong)), target[wrong]] = -np.inf
    found[wrong] = others.argmax(axis=1)
    return found


def confused_pairs(target: npt.ArrayLike, predicted: npt.ArrayLike) -> list[Pair]:
    """Every pair of different classes that occurs, the most frequent first.

    >>> confused_pairs([0, 0, 1, 2, 2, 2], [0, 1, 1, 0, 0, 1])
    [Pair(right=2, taken=0, times=2), Pair(right=0, taken=1, times=1), Pair(right=2, taken=1, times=1)]
    """
    target, predicted = np.asarray(target, np.int64), np.asarray(predicted, np.int64)
    wrong = target != predicted
    found, times = np.unique(np.column_stack([target[wrong], predicted[wrong]]), axis=0, return_counts=True)
    pairs = [Pair(int(right), int(taken), int(n)) for (right, taken), n in zip(found, times, strict=True)]
    return sorted(pairs, key=lambda pair: (-pair.times, pair))


def most_confused(pairs: Sequence[Pair], most: int = MOST_CLASSES) -> list[int]:
    """At most `most` classes, those of the most frequent pairs, such that confused ones stand beside each other.

    Pairs are counted both ways together. Within the choice, each class is followed by the one that it is most often
    confused with among those left.

    >>> most_confused([Pair(4, 9, 5), Pair(1, 2, 4), Pair(9, 1, 1), Pair(7, 8, 1)], most=4)
    [4, 9, 1, 2]
    """
    both: Counter[tuple[int, int]] = Counter()
    for right, taken, times in pairs:
        both[min(right, taken), max(right, taken)] += times
    chosen: dict[int, None] = {}
    for pair in sorted(both, key=lambda pair: (-both[pair], pair)):
        if len(chosen.keys() | set(pair)) <= most:
            chosen |= dict.fromkeys(pair)
    left = list(chosen)
    order: list[int] = []
    while left:
        nearest = max(left, key=lambda c: both[min(c, order[-1]), max(c, order[-1])]) if order else left[0]
        left.remove(nearest)
        order.append(nearest)
    return order


def shares(target: npt.ArrayLike, predicted: npt.ArrayLike, shown: Sequence[int], classes: int) -> Floats:
    """Of the images of each class in `shown`, the share that was taken for each of them and, last, for any other.

    (S, S + 1); a class without images has a row of NaN.

    >>> shares([0, 0, 1, 2], [0, 2, 1, 2], shown=[1, 0], classes=3)
    array([[1. , 0. , 0. ],
           [0. , 0.5, 0.5]])
    """
    target, predicted = np.asarray(target), np.asarray(predicted)
    place = np.full(classes, len(shown))
    place[list(shown)] = np.arange(len(shown))
    some = place[target] < len(shown)
    cell = place[target[some]] * (len(shown) + 1) + place[predicted[some]]
    times = np.bincount(cell, minlength=len(shown) * (len(shown) + 1)).reshape(len(shown), -1).astype(np.float64)
    total = times.sum(axis=1, keepdims=True)
    return times / np.where(total, total, np.nan)


def confusion_panel(names: Sequence[str], target: npt.ArrayLike, predicted: npt.ArrayLike) -> Panel | None:
    """The confusions as a heat map: all classes in their order up to MOST_CLASSES, else those confused most.

    None where more classes than that are never confused: there is nothing to choose by.
    """
    pairs = confused_pairs(target, predicted)
    every = len(names) <= MOST_CLASSES
    shown = list(range(len(names))) if every else most_confused(pairs)
    if not shown:
        return None
    labels = [names[c] for c in shown]
    columns = labels if every else [*labels, "any other"]
    values = shares(target, predicted, shown, len(names))[:, : len(columns)]
    write = (lambda root: f"{100 * root**2:.0f}" if root >= 0.07 else "") if len(shown) <= WRITTEN else None
    worst = [f"{names[right]} for {names[taken]} {times:,}×" for right, taken, times in pairs[:5]]

    def draw(axes: Any) -> None:
        # The root, so that the few per cent of a confusion are seen beside a diagonal of ninety
        heat(axes, np.sqrt(values), labels, columns, most=1.0, text=write)
        axes.set_ylabel("right class")
        axes.set_xlabel("class chosen")

    return panel(
        "Confusions, % of the right class" if every else f"The {len(shown)} classes confused most",
        f"Rows are right classes, columns the classes chosen, stronger where more of a row's images went. "
        f"{'Most often taken: ' + '; '.join(worst) if worst else 'None was taken for another'}.",
        draw,
        heat_size(*values.shape),
    )


def confusion_table(names: Sequence[str], target: npt.ArrayLike, predicted: npt.ArrayLike) -> Table:
    """The PAIRS most frequent confusions, with the share of the right class's images that they took."""
    target = np.asarray(target)
    pairs = confused_pairs(target, predicted)
    count = np.bincount(target, minlength=len(names))
    rows: list[list[str | Share]] = [
        [names[right], names[taken], f"{times:,}", Share(times / count[right])] for right, taken, times in pairs[:PAIRS]
    ]
    more = f" The {PAIRS} most frequent of {len(pairs):,} pairs." if len(pairs) > PAIRS else ""
    return Table(
        ["Right class", "Taken for", "Images", "Of the class"],
        rows,
        f"A tie counts as taken for the class it ties with.{more}",
    )


def mistaken_for(names: Sequence[str], target: npt.ArrayLike, predicted: npt.ArrayLike) -> list[str]:
    """For each class the wrong one that its images got most often, as "name (times)"; "" where all are right.

    >>> mistaken_for(["cat", "dog"], [0, 0, 1], [0, 1, 1])
    ['dog (1×)', '']
    """
    most: dict[int, Pair] = {}
    for pair in confused_pairs(target, predicted):
        most.setdefault(pair.right, pair)
    return [f"{names[most[c].taken]} ({most[c].times:,}×)" if c in most else "" for c in range(len(names))]
