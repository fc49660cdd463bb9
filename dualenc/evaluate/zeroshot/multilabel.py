"""Average precision where an image may hold several classes, and its bootstrap intervals. Numpy only.

Per class, images are sorted by its score, best first; average precision is the mean, over the images that hold the
class, of the precision among all down to that one (CLIP_benchmark's and scikit-learn's, where no two scores are equal).
Ties count against the model: of equal scores the images that do not hold the class stand first.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from dualenc.evaluate.intervals import TIMES, Interval, percentile_intervals
from dualenc.evaluate.ranks import Array, Floats, Ints

LEAST_TIMES = 100  # draws, where 1,000 would take long
_AFFORDABLE = 2_000_000_000  # images × classes × draws: about ten seconds on one core
_AT_ONCE = 1 << 18  # weights summed at once: 1 MB, which stays in cache

Mask = npt.NDArray[np.bool_]


def average_precision_per_class(scores: npt.ArrayLike, positive: npt.ArrayLike) -> Floats:
    """Average precision of each class, (C,), NaN where no image holds it. Its mean over the others is mAP.

    scores (N, C): higher is better, any scale. positive (N, C) bool: image n holds class c.
    ValueError: NaN, no rows, no positive at all, shapes that do not fit.

    Positives at places 1 and 3 of the first class; the second ties an image that holds it with one that does not:

    >>> average_precision_per_class([[0.9, 0.5], [0.8, 0.5], [0.7, 0.1]], [[1, 1], [0, 0], [1, 0]])
    array([0.83333333, 0.5       ])
    """
    scores, positive = checked(scores, positive)
    found = np.full(scores.shape[1], np.nan)
    for c in np.flatnonzero(positive.any(axis=0)):
        held = positive[_order(scores[:, c], positive[:, c]), c]
        place = np.flatnonzero(held) + 1  # from 1
        found[c] = (np.arange(1, len(place) + 1) / place).mean()
    return found


def chance_precision(positives: npt.ArrayLike, images: int) -> Floats:
    """Average precision that a random order gives in the mean, (C,): positives (C,) of `images`; NaN where there is none.

    At place k, of N, one of R positives has a precision of (1 + (k - 1) (R - 1) / (N - 1)) / k in the mean. That is more
    than the share of positives, the more so the rarer the class.

    >>> chance_precision([1, 2, 0], images=2)  # first or second: (1 + 1/2) / 2
    array([0.75, 1.  ,  nan])
    """
    positives = np.asarray(positives)
    harmonic = (1 / np.arange(1, images + 1)).sum()
    chance = (harmonic + (positives - 1) / max(1, images - 1) * (images - harmonic)) / images
    return np.where(positives > 0, chance, np.nan)


def precision_intervals(
    scores: npt.ArrayLike, positive: npt.ArrayLike, times: int | None = None, seed: int = 0
) -> list[Interval]:
    """Intervals of mAP and, behind it, of each class's average precision: C + 1 of them, images drawn anew.

    times: `affordable_times` unless given. NaN where a class has no positive. ValueError below two images.
    """
    scores, positive = checked(scores, positive)
    precisions = drawn_precisions(scores, positive)

    def statistics(counts: Floats) -> Floats:
        each = precisions(counts)
        return np.column_stack([mean_precision(each), each])

    return percentile_intervals(statistics, len(scores), times or affordable_times(*scores.shape), seed)


def drawn_precisions(scores: Array, positive: Mask) -> Callable[[npt.ArrayLike], Floats]:
    """A function: how often each image was drawn, (b, N) -> average precision of each class in that draw, (b, C).

    Every class is sorted once; a draw's weights are summed in that order. A positive's precision is that among the
    drawn images above it and itself, once; it enters the mean as often as it was drawn. Were its copies counted beside
    itself, a class with few positives would look better in every draw than it is: its copies stand together on top.
    """
    orders = [_order(scores[:, c], positive[:, c]) for c in range(scores.shape[1])]
    places = [np.flatnonzero(positive[order, c]) for c, order in enumerate(orders)]

    def precisions(counts: npt.ArrayLike) -> Floats:
        counts = np.asarray(counts)
        out = np.full((len(counts), len(orders)), np.nan)
        block = max(1, _AT_ONCE // len(scores))
        for start in range(0, len(counts), block):
            drawn = counts[start : start + block].T.astype(np.int32)  # (N, b): an image's weights lie together
            for c in range(len(orders)):
                if len(places[c]):
                    out[start : start + block, c] = _precision(drawn, orders[c], places[c])
        return out

    return precisions


def _precision(drawn: npt.NDArray[np.int32], order: Ints, place: Ints) -> Floats:
    """One class's average precision in each of b draws, (b,); NaN where no positive of it was drawn."""
    weight = drawn[order[place]]  # (P, b)
    # Sums of the weights from after one positive down to the next, that one included
    between = np.add.reduceat(drawn.take(order[: place[-1] + 1], axis=0), np.r_[0, place[:-1] + 1], axis=0)
    above, true = (np.cumsum(some, axis=0) - weight for some in (between, weight))  # (P, b) drawn above each positive
    total = weight.sum(axis=0)
    with np.errstate(invalid="ignore"):
        return (weight * (true + 1) / (above + 1)).sum(axis=0) / np.where(total, total, np.nan)


def precisions_among(scores: npt.ArrayLike, positive: npt.ArrayLike) -> Callable[[Ints], Floats]:
    """A function: different rows (n,) -> each class's average precision among them alone, (C,), NaN without a positive.

    As `average_precision_per_class` of those rows, sooner: every class is sorted once, in 4 bytes an image and class.
    """
    scores, positive = checked(scores, positive)
    place = np.empty(scores.shape[::-1], np.int32)  # (C, N) where each image stands in each class's order
    for c in range(len(place)):
        place[c, _order(scores[:, c], positive[:, c])] = np.arange(len(scores), dtype=np.int32)

    def precisions(rows: Ints) -> Floats:
        out = np.full(len(place), np.nan)
        for c in np.flatnonzero(positive[rows].any(axis=0)):
            some = place[c, rows]
            held = np.sort(some[positive[rows, c]])
            out[c] = (np.arange(1, len(held) + 1) / (np.searchsorted(np.sort(some), held) + 1)).mean()
        return out

    return precisions


def mean_precision(values: Floats) -> Floats:
    """mAP of each draw: (b, C) -> (b,), over the classes that have a value; NaN where none has."""
    some = ~np.isnan(values)
    count = some.sum(axis=1)
    return np.where(some, values, 0.0).sum(axis=1) / np.where(count, count, np.nan)


def affordable_times(rows: int, classes: int) -> int:
    """Draws for the intervals: 1,000 where that takes seconds, fewer above 2·10⁹ (image, class, draw) triples.

    >>> affordable_times(5_000, 80), affordable_times(40_000, 500)
    (1000, 100)
    """
    return int(np.clip(_AFFORDABLE // max(1, rows * classes), LEAST_TIMES, TIMES))


def checked(scores: npt.ArrayLike, positive: npt.ArrayLike) -> tuple[Array, Mask]:
    scores, held = np.asarray(scores), np.asarray(positive).astype(bool)
    if scores.ndim != 2 or not scores.size or held.shape != scores.shape:
        raise ValueError(
            f"scores have the shape {scores.shape}, positive {held.shape}; both must be (images, classes), neither of them 0"
        )
    if np.isnan(scores).any():
        raise ValueError("the scores hold NaN, so no order can be told; check the embeddings")
    if not held.any():
        raise ValueError("no image holds any of the classes, so there is no precision; check the labels")
    return scores, held


def _order(scores: Array, held: Mask) -> Ints:
    return np.lexsort((held, -scores))  # by score, best first; of equal ones those that do not hold the class first
