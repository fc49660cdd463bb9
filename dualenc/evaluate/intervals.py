"""Bootstrap intervals of metrics: clusters are drawn anew, not single queries. Numpy only.

An image's captions succeed and fail together, so five captions of one image are no five independent queries: whole
clusters (an image with all of its captions) are drawn with replacement, and the metric is computed on what was drawn
(Efron & Tibshirani, An Introduction to the Bootstrap, chapters 8 and 13: the percentile interval).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from dualenc.evaluate.ranks import Floats, Ints

TIMES = 1000  # draws
LEVEL = 0.95
_COUNTS = 1 << 20  # counts held at once: 8 MB


class Interval(NamedTuple):
    """Where a metric lies with probability LEVEL, as far as the choice of samples goes."""

    low: float
    high: float


def mean_intervals(
    values: npt.ArrayLike, cluster: npt.ArrayLike | None = None, times: int = TIMES, seed: int = 0
) -> list[Interval]:
    """Interval of the mean of each column of `values`: (Q, M), one row a query, or (Q,) for one column.

    cluster (Q,): any integers; rows with the same one are drawn together. None: every row alone. ValueError for fewer
    than two clusters: one alone says nothing of what others would give.

    >>> mean_intervals([0.0, 1.0, 1.0, 1.0], [7, 7, 8, 8])
    [Interval(low=0.5, high=1.0)]
    """
    values = np.asarray(values, np.float64)
    values = values[:, None] if values.ndim == 1 else values
    number, size = clusters(cluster, len(values))
    sums = np.stack([np.bincount(number, column, minlength=len(size)) for column in values.T], axis=1)  # (C, M)

    def means(counts: Floats) -> Floats:
        return (counts @ sums) / (counts @ size)[:, None]

    return percentile_intervals(means, len(size), times, seed)


def percentile_intervals(
    statistics: Callable[[Floats], Floats], count: int, times: int = TIMES, seed: int = 0
) -> list[Interval]:
    """Interval of each of M statistics. statistics: how often each of `count` clusters was drawn, (b, C) -> (b, M).

    A draw in which a statistic is NaN (a class that was not drawn) is left out of that one's interval; an interval of
    nothing but such draws is NaN.
    """
    drawn = np.concatenate([statistics(counts) for counts in draws(count, times, seed)])
    ends = [(1 - LEVEL) / 2, (1 + LEVEL) / 2]
    kept = [column[~np.isnan(column)] for column in drawn.T]
    return [Interval(*map(float, np.quantile(column, ends) if len(column) else (np.nan, np.nan))) for column in kept]


def draws(count: int, times: int = TIMES, seed: int = 0) -> Iterator[Floats]:
    """How often each cluster is in a draw of `count` of them with replacement: blocks (b, count), `times` rows in all.

    The draws depend on (seed, count) alone, so that two metrics, or two encoders, are compared on the same ones.
    """
    if count < 2:
        raise ValueError(f"{count} independent sample(s); an interval takes two or more, so give more data")
    rng = np.random.default_rng(seed)
    block = max(1, _COUNTS // count)
    for start in range(0, times, block):
        some = [np.bincount(rng.integers(count, size=count), minlength=count) for _ in range(min(block, times - start))]
        yield np.stack(some).astype(np.float64)


def clusters(cluster: npt.ArrayLike | None, rows: int) -> tuple[Ints, Floats]:
    """(Q,) numbers 0 .. C-1 of the rows' clusters, and (C,) rows in each."""
    if cluster is None:
        return np.arange(rows), np.ones(rows)
    number = np.unique(np.asarray(cluster), return_inverse=True)[1].ravel()
    if len(number) != rows:
        raise ValueError(f"{len(number)} clusters for {rows} rows; give one number for each row")
    return number, np.bincount(number).astype(np.float64)
