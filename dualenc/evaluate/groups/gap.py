"""What by-group metrics are made into: report keys, the worst group, the gap and its chance, a table of the page."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from dualenc.evaluate.groups.split import Split, key_of
from dualenc.evaluate.intervals import Interval, percentiles, share_interval
from dualenc.evaluate.page.words import brackets, minus, points
from dualenc.evaluate.ranks import Floats, Ints
from dualenc.evaluate.sections import Share, Table

TABLE_ROWS = 30  # a longer table shows this many, the largest groups
SHUFFLES = 200  # random groupings behind a gap's chance: a mean takes fewer of them than an interval's ends

Report = dict[str, float | int | str | None]


class Measure(NamedTuple):
    """How a metric is shown and compared. share: a fraction 0..1, printed in percent; lower: lower values are better."""

    title: str
    lower: bool = False
    share: bool = True


class Source(NamedTuple):
    """Where values come from. Units are the clusters' parts within one group, 0 .. U-1."""

    value: Callable[[Ints], Floats]  # units (n,), repeated ones count repeatedly -> (M,), NaN where it is undefined
    drawn: Callable[[Ints, int], Floats]  # units (n,), seed -> (times, M) values of n units drawn with replacement


class _Group(NamedTuple):
    """One group: how many independent samples it has, its metrics (M,), and their values in each draw (times, M)."""

    key: str  # its name in the report's keys
    name: str
    size: int
    value: Floats
    drawn: Floats | None


def compare(
    split: Split,
    source: Source,
    metrics: list[str],
    times: int,
    seed: int,
    prefix: str,
    measures: Mapping[str, Measure],
    counted: str = "images",
) -> tuple[Report, Table]:
    """The report's keys (`groups.by_group` says which), and the page's table. counted: what a group's size is of."""
    found = []
    for g, (name, units) in enumerate(zip(split.names, split.members, strict=True)):
        # Another seed for each group: with one for all, groups of equal size would be drawn alike, not independently.
        own_seed = int(np.random.SeedSequence([seed, g]).generate_state(1)[0])
        drawn = source.drawn(units, own_seed) if times and len(units) > 1 else None
        found.append(_Group(key_of(name), name, len(units), source.value(units), drawn))
    shown = [measures.get(metric) or Measure(metric) for metric in metrics]
    compared = [g for g, group in enumerate(found) if group.size > 1]
    gaps = _random_gaps(split, found, compared, source, min(times, SHUFFLES), seed)
    report: Report = {}
    for group in found:
        report[f"{prefix}{group.key}/count"] = group.size
        for m, metric in enumerate(metrics):
            report |= _entries(f"{prefix}{group.key}/{metric}", group.value[m], _between(group, m, shown[m].share))
    for m, metric in enumerate(metrics):
        report |= _gap([found[g] for g in compared], m, prefix, metric, shown[m].lower)
        report |= _chance(f"{prefix}gap/{metric}", report[f"{prefix}gap/{metric}"], gaps[:, m])
    report[f"{prefix}left_out"] = split.left_out
    return report, _table(report, prefix, found, metrics, shown, counted)


def _gap(groups: list[_Group], m: int, prefix: str, metric: str, lower: bool) -> Report:
    groups = [group for group in groups if not np.isnan(group.value[m])]
    if len(groups) < 2:
        return {f"{prefix}{what}/{metric}": None for what in ("worst", "worst_group", "gap")}
    value = np.array([group.value[m] for group in groups])
    order = np.argsort(-value if lower else value, kind="stable")
    worst, best = int(order[0]), int(order[-1])  # of equal groups two different ones
    report: Report = {
        f"{prefix}worst/{metric}": float(value[worst]),
        f"{prefix}worst_group/{metric}": groups[worst].name,
    }
    ends = [groups[g].drawn for g in (best, worst)]
    apart = None if ends[0] is None or ends[1] is None else (ends[0] - ends[1])[:, m] * (-1 if lower else 1)
    between = None if apart is None else percentiles(apart)
    return report | _entries(f"{prefix}gap/{metric}", float(np.ptp(value)), between)


def _between(group: _Group, m: int, share: bool) -> Interval | None:
    if group.drawn is None or np.isnan(group.value[m]):
        return None
    drawn = group.drawn[:, m]
    return share_interval(drawn, float(group.value[m]), group.size) if share else percentiles(drawn)


def _spread(values: Floats) -> Floats:
    """Best less worst of (groups, …), groups without a value left out; NaN where fewer than two have one."""
    kept = ~np.isnan(values)
    spread = np.where(kept, values, -np.inf).max(axis=0) - np.where(kept, values, np.inf).min(axis=0)
    return np.where(kept.sum(axis=0) > 1, spread, np.nan)


def _random_gaps(
    split: Split, found: list[_Group], compared: list[int], source: Source, times: int, seed: int
) -> Floats:
    """(times, M) the gaps when the compared groups' units are dealt out anew at random, sizes kept; none without two.

    Groups that a metric's own gap leaves out, having no value, are left out here.
    """
    if len(compared) < 2:
        return np.empty((0, len(found[0].value)))
    members = [split.members[g] for g in compared]
    missing = np.isnan([found[g].value for g in compared])
    ends = np.cumsum([len(units) for units in members])[:-1]
    rng = np.random.default_rng(seed)

    def shuffled() -> Floats:
        dealt = np.split(rng.permutation(np.concatenate(members)), ends)
        return _spread(np.where(missing, np.nan, [source.value(units) for units in dealt]))

    return np.array([shuffled() for _ in range(times)]).reshape(times, missing.shape[1])


def _chance(key: str, gap: float | int | str | None, random: Floats) -> Report:
    """What random groups give on average, and how often their gap is as large (never 0, as the true groups are one way)."""
    random = random[~np.isnan(random)]
    if not isinstance(gap, float) or not len(random):
        return {}
    far = int((random >= gap - 1e-9 * abs(gap)).sum())
    return {f"{key}/chance": float(random.mean()), f"{key}/p": (1 + far) / (1 + len(random))}


def _entries(key: str, value: float, between: Interval | None) -> Report:
    """A metric's keys: its value, and its interval's ends where it has one."""
    report: Report = {key: _number(value)}
    if between is not None and not np.isnan(between.low):
        report |= {f"{key}/low": between.low, f"{key}/high": between.high}
    return report


def _short(value: float) -> str:
    return minus(f"{value:,.{1 if abs(value) >= 10 else 2 if abs(value) >= 1 else 3}f}")


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _table(
    report: Report, prefix: str, groups: list[_Group], metrics: list[str], shown: list[Measure], counted: str
) -> Table:
    def cell(key: str, measure: Measure, difference: bool = False) -> str | Share:
        value, low, high = (report.get(key + end) for end in ("", "/low", "/high"))
        if not isinstance(value, float):
            return "–"
        between = Interval(low, high) if isinstance(low, float) and isinstance(high, float) else None
        if measure.share:
            return points(value, between) if difference else Share(value, None, between)
        return _short(value) + (f" {brackets(*map(_short, between))}" if between else "")

    def line(what: str, end: str = "", difference: bool = True) -> list[str | Share]:
        pairs = zip(metrics, shown, strict=True)
        return [cell(f"{prefix}{what}/{metric}{end}", measure, difference) for metric, measure in pairs]

    rows: list[list[str | Share]] = [
        [group.name, f"{group.size:,}", *line(group.key, difference=False)] for group in groups[:TABLE_ROWS]
    ]
    if len(groups) > 1:

        def worst(metric: str) -> str:
            alike = not report[f"{prefix}gap/{metric}"]
            return "–" if alike else str(report[f"{prefix}worst_group/{metric}"])

        rows.append(["Worst group", "", *map(worst, metrics)])
        rows.append(["Gap, best less worst", "", *line("gap")])
        if _compared(report, prefix, metrics, "/chance"):
            rows.append(["Gap of random groups", "", *line("gap", "/chance")])
    column = prefix.rstrip("/").rpartition("by/")[2] or "group"
    note = _note(report, prefix, len(groups), metrics, shown, counted)
    return Table([column, counted.capitalize(), *(measure.title for measure in shown)], rows, note)


def _compared(report: Report, prefix: str, metrics: list[str], end: str) -> bool:
    """Whether a metric's gap has a value that ends so."""
    return any(f"{prefix}gap/{metric}{end}" in report for metric in metrics)


def _note(report: Report, prefix: str, groups: int, metrics: list[str], shown: list[Measure], counted: str) -> str:
    said = ["The largest group stands first."] if groups > 1 else []
    if groups > TABLE_ROWS:
        said.append(f"The {TABLE_ROWS} largest of {groups:,} groups; all are in report.json.")
    if _compared(report, prefix, metrics, "/high"):
        said.append(
            "The gap's interval is that of these two groups' difference, as if they had been named beforehand; small groups lie "
            "apart by chance alone, as random groups do."
        )
    p = [(measure.title, report.get(f"{prefix}gap/{metric}/p")) for metric, measure in zip(metrics, shown, strict=True)]
    if told := [f"{title} {value:.3f}" for title, value in p if isinstance(value, float)]:
        said.append(f"p, how often random groups have a gap as large: {', '.join(told)}.")
    if left := report[f"{prefix}left_out"]:
        said.append(f"{counted.capitalize()} without a value, which are left out: {left:,}.")
    return " ".join(said)
