"""Bootstrap intervals of metrics: clusters are drawn anew, not single queries. Numpy only.

An image's captions succeed and fail together, so five captions of one image are no five independent queries: whole
clusters (an image with all of its captions) are drawn with replacement, and the metric is computed on what was drawn
(Efron & Tibshirani, An Introduction to the Bootstrap, chapters 8 and 13: the percentile interval). Near 0 and 1, or of few
samples, it is too narrow for shares, which `share_interval` mends.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from dualenc.evaluate.ranks import Floats, Ints

TIMES = 1000  # draws
LEVEL = 0.95
NORMAL = 1.959964  # the 97.5th percentile of the standard normal distribution
_COUNTS = 1 << 20  # counts held at once: 8 MB
_ALIKE = 1e-20  # variance of draws that differ by rounding alone


class Interval(NamedTuple):
    """A confidence interval: one made so holds the value that all such samples would give in LEVEL of repetitions.

    A repetition draws the queries anew, by image; the gallery, and what the encoder was trained on, stay the same.
    """

    low: float
    high: float


def mean_intervals(
    values: npt.ArrayLike,
    cluster: npt.ArrayLike | None = None,
    times: int = TIMES,
    seed: int = 0,
    shares: npt.ArrayLike = False,
) -> list[Interval]:
    """Interval of the mean of each column of `values`: (Q, M), one row a query, or (Q,) for one column.

    cluster (Q,): any integers; rows with the same one are drawn together. None: every row alone. shares: as
    `percentile_intervals`, for columns of 0 and 1. ValueError for fewer than two clusters: one alone says nothing of what
    others would give.

    >>> mean_intervals([0.0, 1.0, 1.0, 1.0], [7, 7, 8, 8])
    [Interval(low=0.5, high=1.0)]
    """
    values = np.asarray(values, np.float64)
    values = values[:, None] if values.ndim == 1 else values
    number, size = clusters(cluster, len(values))
    sums = np.stack([np.bincount(number, column, minlength=len(size)) for column in values.T], axis=1)  # (C, M)

    def means(counts: Floats) -> Floats:
        return (counts @ sums) / (counts @ size)[:, None]

    return percentile_intervals(means, len(size), times, seed, shares)


def percentile_intervals(
    statistics: Callable[[Floats], Floats],
    count: int,
    times: int = TIMES,
    seed: int = 0,
    shares: npt.ArrayLike = False,
) -> list[Interval]:
    """Interval of each of M statistics. statistics: how often each of `count` clusters was drawn, (b, C) -> (b, M).

    shares: whether each statistic is a share (of queries that hit), (M,), or all of them; those get `share_interval`.
    A draw in which a statistic is NaN (a class that was not drawn) is left out of that one's interval; an interval of
    nothing but such draws is NaN.
    """
    drawn = np.concatenate([statistics(counts) for counts in draws(count, times, seed)])
    values = statistics(np.ones((1, count)))[0]
    columns = zip(drawn.T, values, np.broadcast_to(shares, len(values)), strict=True)
    return [share_interval(some, value, count) if share else percentiles(some) for some, value, share in columns]


def share_interval(drawn: Floats, value: float, count: int) -> Interval:
    """Interval of a share 0..1 by its draws, (times,), widened to Wilson's. value: the share; count: clusters.

    Draws of three hits are three hits, so the percentiles of a share near 0 or 1 miss what others would give. Wilson's
    interval (1927) does not. Its n is the effective one, value (1 - value) / variance, as surveys have it (Korn & Graubard
    1998, Confidence intervals for proportions with small expected number of positive counts): the draws' variance tells
    how much five captions of one image are worth. Where all draws are alike, n is the number of clusters.

    >>> share_interval(np.ones(1000), 1.0, 3)
    Interval(low=0.43850..., high=1.0)
    """
    value, drawn = np.clip(value, 0, 1), np.clip(drawn, 0, 1)  # a mean of shares may round beyond
    low, high = percentiles(drawn)
    variance = np.nanvar(drawn) if not np.isnan(low) else np.nan
    n = value * (1 - value) / variance if variance > _ALIKE else count
    own_low, own_high = wilson(value * n, n)
    return Interval(float(np.fmin(low, own_low)), float(np.fmax(high, own_high)))


def wilson(right: npt.ArrayLike, count: npt.ArrayLike) -> tuple[Floats, Floats]:
    """Ends of the 95 % interval of right / count (Wilson 1927), arrays of one shape; 0 and 1 where count is 0.

    >>> [round(float(end[0]), 3) for end in wilson([2], [2])]
    [0.342, 1.0]
    """
    known = np.asarray(count) > 0
    n = np.where(known, count, 1)
    share, z2 = np.asarray(right) / n, NORMAL**2
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = NORMAL / (1 + z2 / n) * np.sqrt(share * (1 - share) / n + z2 / (4 * n**2))
    return np.where(known, np.maximum(middle - half, 0), 0.0), np.where(known, np.minimum(middle + half, 1), 1.0)


def percentiles(drawn: Floats) -> Interval:
    """The middle LEVEL of a statistic's draws, (times,), those that are NaN left out; NaN where all are."""
    kept = drawn[~np.isnan(drawn)]
    ends = [(1 - LEVEL) / 2, (1 + LEVEL) / 2]
    return Interval(*map(float, np.quantile(kept, ends) if len(kept) else (np.nan, np.nan)))


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
