"""Bootstrap intervals of recall@k, mean and median rank: an image is drawn together with all its captions. Numpy only."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from dualenc.evaluate.intervals import TIMES, Interval, clusters, percentile_intervals
from dualenc.evaluate.ranks import Floats, Ints

_DEVIATIONS = 8  # standard deviations of a draw's median that the window is wide, to either side
_GATHERED = 1 << 20  # weights gathered at once: 8 MB


def rank_intervals(
    ranks: Mapping[str, npt.ArrayLike],
    cluster: Mapping[str, npt.ArrayLike],
    ks: Sequence[int],
    times: int = TIMES,
    seed: int = 0,
) -> dict[str, Interval]:
    """95 % intervals of what `rank_metrics` gives, for every way: {"text_to_image/recall@1": Interval, …}.

    ranks: way -> (Q,) counted from 0; cluster: way -> (Q,) integers, equal where queries are drawn together. All ways
    must have the same clusters (an image's row): each draw is one choice of images, for every metric. None of it where
    there are fewer than two clusters, or times is 0. ValueError: clusters that differ from way to way.

    >>> found = rank_intervals({"way": [0, 0, 4, 4]}, {"way": [0, 0, 1, 1]}, ks=(1,))
    >>> found["way/recall@1"], found["way/median_rank"]
    (Interval(low=0.0, high=1.0), Interval(low=1.0, high=5.0))
    """
    names, statistics, seen = [], [], set()
    for way, rank in ranks.items():
        number, size = clusters(cluster[way], len(np.asarray(rank)))
        seen.add(np.unique(cluster[way]).tobytes())
        names += [*(f"{way}/recall@{k}" for k in ks), f"{way}/mean_rank", f"{way}/median_rank"]
        statistics += [_means(np.asarray(rank), number, size, ks), drawn_medians(np.asarray(rank) + 1, number, size)]
    if len(seen) > 1:
        raise ValueError("the ways have other clusters each; give the same images for all of them")
    if not times or not statistics or len(size) < 2:
        return {}
    drawn = percentile_intervals(
        lambda counts: np.concatenate([one(counts) for one in statistics], axis=1),
        len(size),
        times,
        seed,
        shares=[*[True] * len(ks), False, False] * len(ranks),
    )
    return dict(zip(names, drawn, strict=True))


def _means(rank: Ints, number: Ints, size: Floats, ks: Sequence[int]) -> Callable[[Floats], Floats]:
    """How often each cluster was drawn, (b, C) -> (b, len(ks) + 1): recall@k and the mean rank, from 1."""
    columns = [*(rank < k for k in ks), rank + 1.0]
    sums = np.stack([np.bincount(number, column, minlength=len(size)) for column in columns], axis=1)
    return lambda counts: (counts @ sums) / (counts @ size)[:, None]


def drawn_medians(rank: Ints | Floats, number: Ints, size: Floats) -> Callable[[Floats], Floats]:
    """How often each cluster was drawn, (b, C) -> (b, 1): the median of `rank` (Q,) over all queries drawn.

    number (Q,): each query's cluster, 0 .. C-1; size (C,): queries in each.

    Only queries near the middle are looked at one by one: what lies below a window is counted by cluster, and a draw
    whose median should lie outside it gets a window twice as wide.
    """
    order = np.argsort(rank, kind="stable")
    rank, number = rank[order], number[order]
    # The rows below the middle vary from draw to draw about as a sum over clusters of at most their whole size does.
    width = int(_DEVIATIONS * 0.5 * np.sqrt((size**2).sum())) + 8

    def medians(counts: Floats) -> Floats:
        step = max(1, _GATHERED // min(len(rank), 2 * width))
        parts = [counts[start : start + step] for start in range(0, len(counts), step)]
        return np.concatenate([_weighted_medians(rank, number, size, part, width) for part in parts])[:, None]

    return medians


def _weighted_medians(rank: Ints | Floats, number: Ints, size: Floats, counts: Floats, width: int) -> Floats:
    """(b,) medians of `rank` (Q,), sorted, where query i counts counts[:, number[i]] times (`np.median`'s mean of two).

    >>> _weighted_medians(np.array([3, 5, 9]), np.arange(3), np.ones(3), np.array([[1.0, 1, 1], [2, 0, 2]]), width=1)
    array([5., 6.])
    """
    middle = len(rank) // 2
    start, stop = max(0, middle - width), min(len(rank), middle + width)
    below = counts @ np.bincount(number[:start], minlength=len(size))  # (b,) drawn queries before the window
    upto = below[:, None] + np.cumsum(counts[:, number[start:stop]], axis=1)  # (b, window)
    total = counts @ size
    places = [(total - 1) // 2, total // 2]  # of the two middle ones, from 0
    if ((places[0] < below) | (places[1] >= upto[:, -1])).any():
        return _weighted_medians(rank, number, size, counts, 2 * width)
    found = [rank[start + (upto <= place[:, None]).sum(axis=1)] for place in places]
    return (found[0] + found[1]) / 2
