"""Who an evaluation fails: metrics by group, the worst group, and the gap between best and worst, with intervals.

A group is a value of a metadata column. Its samples are drawn anew among themselves (a stratified bootstrap: groups
keep their sizes), whole clusters at a time, as in `intervals.py`: an image stays together with its captions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from dualenc.evaluate.groups.gap import Measure, Report, Source, compare
from dualenc.evaluate.groups.split import MOST_GROUPS, Split, groups_of
from dualenc.evaluate.intervals import TIMES, draws
from dualenc.evaluate.rank_intervals import drawn_medians
from dualenc.evaluate.ranks import Floats, Ints
from dualenc.evaluate.sections import Table

__all__ = ["MOST_GROUPS", "Measure", "Report", "by_group", "by_group_of", "groups_of"]


def by_group(
    values: Mapping[str, npt.ArrayLike],
    group: Sequence[str | None],
    cluster: npt.ArrayLike | None = None,
    times: int = TIMES,
    seed: int = 0,
    prefix: str = "by/",
    measures: Mapping[str, Measure] | None = None,
    medians: Mapping[str, npt.ArrayLike] | None = None,
    counted: str = "images",
) -> tuple[Report, Table]:
    """Report and table by group of metrics that are means over queries, or medians.

    values: metric -> (Q,) one number a query; group: Q names, None where a query has none (left out and counted);
    cluster (Q,): integers, equal where queries are drawn together (the image's row). times: bootstrap draws, 0 for no
    intervals. prefix: "by/COLUMN/". measures: how metrics are shown; without one, as a share where higher is better.
    medians: metric -> (Q,) numbers of which the median is taken. counted: what clusters are, for people.

    GROUP is the value as keys hold it (`split.key_of`): "day/night" is "day%2Fnight", as "/" parts a key, and "gap" is
    "gap (group)"; the page shows the value itself.
    Under `prefix`: "GROUP/METRIC" (+ "/low", "/high": 95 %), "GROUP/count" (clusters), "worst_group/METRIC" (its
    value, not its key), "worst/METRIC" (its metric), "gap/METRIC" (best less worst, ≥ 0; + "/low", "/high", "/chance", "/p")
    and "left_out" (clusters without a group). Groups of one cluster have no interval and are neither best nor worst.

    The gap is biased upwards: the best and the worst of several noisy means lie farther apart than the true ones. Its
    interval is that of these two groups' difference, as if they had been named beforehand, and so it leaves the choice
    out. Compare the gap with "gap/METRIC/chance": the mean gap of random groups of the same sizes;
    "gap/METRIC/p" is the share of such groups, and the true ones, whose gap is at least as large.

    ValueError: no group at all, more than MOST_GROUPS, lengths that differ, a value that is not finite.

    >>> report, _ = by_group({"recall@1": [1, 1, 0, 1, 0, 0]}, ["a", "a", "a", "b", "b", None], times=0)
    >>> [report[key] for key in ("by/a/recall@1", "by/b/recall@1", "by/worst_group/recall@1", "by/gap/recall@1")]
    [0.6666666666666666, 0.5, 'b', 0.16666666666666663]
    """
    means = len(values)
    values = {**values, **(medians or {})}
    columns = np.stack([np.asarray(column, np.float64) for column in values.values()], axis=1)  # (Q, M)
    if columns.shape[0] != len(group) or not np.isfinite(columns).all():
        raise ValueError(
            f"{columns.shape[0]} values for {len(group)} groups, {int((~np.isfinite(columns)).sum())} of them NaN or "
            "infinite; give one finite value and one group a query"
        )
    split = Split.of(group, cluster)
    return compare(
        split, _source(split, columns, means, times), list(values), times, seed, prefix, measures or {}, counted
    )


def _source(split: Split, columns: Floats, means: int, times: int) -> Source:
    """Means of the first `means` columns of (Q, M) values, and medians of the others, of any of the split's units."""
    sums = np.stack([np.bincount(split.unit, c, minlength=split.units) for c in columns[split.row, :means].T], axis=1)
    size = np.bincount(split.unit, minlength=split.units).astype(np.float64)
    order = np.argsort(split.unit, kind="stable")
    places = columns[split.row[order], means:]  # (R, medians) by unit
    first, count = np.cumsum(size).astype(np.int64) - size.astype(np.int64), size.astype(np.int64)

    def places_of(units: Ints) -> Floats:
        start = np.repeat(first[units] - np.cumsum(count[units]) + count[units], count[units])
        return places[start + np.arange(len(start))]

    def value(units: Ints) -> Floats:
        middle = np.median(places_of(units), axis=0) if places.shape[1] else ()
        return np.concatenate([sums[units].sum(axis=0) / size[units].sum(), middle])

    def drawn(units: Ints, own_seed: int) -> Floats:
        s, n = sums[units], size[units]
        number = np.repeat(np.arange(len(units)), count[units])
        middles = [drawn_medians(column, number, n) for column in places_of(units).T]

        def metrics(counts: Floats) -> Floats:
            return np.concatenate(
                [(counts @ s) / (counts @ n)[:, None], *(middle(counts) for middle in middles)], axis=1
            )

        return np.concatenate([metrics(counts) for counts in draws(len(n), times, own_seed)])

    return Source(value, drawn)


def by_group_of(
    metric: Callable[[Ints], Mapping[str, float | None]],
    group: Sequence[str | None],
    cluster: npt.ArrayLike | None = None,
    times: int = TIMES,
    seed: int = 0,
    prefix: str = "by/",
    measures: Mapping[str, Measure] | None = None,
) -> tuple[Report, Table]:
    """As `by_group`, for metrics that are no means over queries (mean-per-class recall, mAP, a median rank).

    metric: row numbers (n,), a row drawn twice given twice -> the same names each time, None where one is undefined
    (a draw without it is left out of its interval). It is called times + SHUFFLES times for each group.

    >>> ranks = np.array([1, 1, 9, 4, 6])
    >>> report, _ = by_group_of(lambda rows: {"median": float(np.median(ranks[rows]))}, [*"aaabb"], times=0,
    ...                         measures={"median": Measure("Median rank", lower=True, share=False)})
    >>> report["by/a/median"], report["by/worst_group/median"], report["by/gap/median"]
    (1.0, 'b', 4.0)
    """
    split = Split.of(group, cluster)
    order = np.argsort(split.unit, kind="stable")
    rows = np.split(split.row[order], np.cumsum(np.bincount(split.unit, minlength=split.units))[:-1])  # U arrays
    names = list(metric(split.row))

    def value(units: Ints) -> Floats:
        found = metric(np.concatenate([rows[unit] for unit in units]))
        return np.array([found[name] for name in names], np.float64)  # None becomes NaN

    def drawn(units: Ints, own_seed: int) -> Floats:
        every = (row for counts in draws(len(units), times, own_seed) for row in counts.astype(np.int64))
        return np.stack([value(np.repeat(units, counts)) for counts in every])

    return compare(split, Source(value, drawn), names, times, seed, prefix, measures or {})
