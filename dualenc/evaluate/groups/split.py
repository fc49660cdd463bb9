"""A metadata column as groups, and the rows of an evaluation cut along it."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from dualenc.evaluate.intervals import clusters
from dualenc.evaluate.ranks import Ints
from dualenc.evaluate.sections import listed

MOST_GROUPS = 1000  # more: not a group but nearly a name, such as a file's; each would hold a few samples
MOST_REALS = 20  # different real numbers that are groups of their own
PARTS = 4  # groups that more are cut into
_TAKEN = re.compile(r"(worst|worst_group|gap|left_out)( \(group\))*")  # the report's own words where a group's name is


def groups_of(table: pa.Table, column: str, cut: bool = True) -> list[str | None]:
    """A metadata column's values as names of groups, None where there is none (null, NaN, empty text).

    cut: a column of real numbers with more than MOST_REALS values is cut into PARTS groups of about one size.
    ValueError: no such column (it lists those there are), no value, or values that are neither text, number nor truth.

    >>> groups_of(pa.table({"n": [1, None, 2], "x": [0.5, 2.0, None]}), "x")
    ['0.5', '2', None]
    """
    if column not in table.column_names:
        raise ValueError(
            f"the data has no column {column!r} to group by; it has {', '.join(table.column_names)} (of KEY.json's fields "
            "those that hold lists, objects or nothing but null make none: write text, a number or true/false)"
        )
    names = _real_names(table, column, cut) if pa.types.is_floating(table[column].type) else _names(table, column)
    _refuse_empty(names, f"column {column!r}")
    return names


def _refuse_empty(names: Sequence[str | None], what: str) -> None:
    if all(name is None for name in names):
        raise ValueError(
            f"{what} is empty in all {len(names):,} samples, so there is nothing to group by; name another column"
        )


def check_groups(table: pa.Table, columns: Sequence[str]) -> None:
    """ValueError where samples cannot be grouped by one of these columns."""
    for column in columns:
        Split.of(groups_of(table, column), None)


def _real_names(table: pa.Table, column: str, cut: bool) -> list[str | None]:
    real = table[column].to_numpy()  # of its own precision, null as NaN
    if cut and len(np.unique(real[np.isfinite(real)])) > MOST_REALS:
        return _parts(real)
    return [_real_name(value) for value in real]


def _names(table: pa.Table, column: str) -> list[str | None]:
    return [_name(value, column) for value in table[column].to_pylist()]


def _parts(real: npt.NDArray[np.floating]) -> list[str | None]:
    """Each number's part, such as "0.25 to 0.5": quantiles are the ends, the upper one belongs to the next part."""
    ends = np.unique(np.quantile(real[np.isfinite(real)], np.linspace(0, 1, PARTS + 1)))
    place = np.clip(np.searchsorted(ends, real, side="right") - 1, 0, len(ends) - 2)
    names = [f"{low:.4g} to {high:.4g}" for low, high in itertools.pairwise(ends)]
    return [names[p] if np.isfinite(value) else None for p, value in zip(place, real, strict=True)]


def _real_name(value: np.floating[Any]) -> str | None:
    """A name for each value and no other: the shortest digits that give it, whole numbers as such."""
    if np.isnan(value):
        return None
    return f"{int(value)}" if value.is_integer() else str(value)


def _name(value: Any, column: str) -> str | None:
    if value is None or value == "":
        return None
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str | int):
        return str(value)
    raise ValueError(
        f"column {column!r} holds {type(value).__name__} values, which are no groups; name a column of text, numbers or "
        "true/false"
    )


def key_of(name: str) -> str:
    """A group's name where it is one part of a report's key, parted by "/": each name has a key and no other name has it.

    "/" is written %2F, and so % is %25 (`urllib.parse.unquote` gives both back); the report's own words get " (group)".

    >>> key_of("day/night"), key_of("5 %"), key_of("gap")
    ('day%2Fnight', '5 %25', 'gap (group)')
    """
    return f"{name} (group)" if _TAKEN.fullmatch(name) else name.replace("%", "%25").replace("/", "%2F")


class Split(NamedTuple):
    """Rows that have a group, cut into units: a cluster's rows within one group."""

    names: list[str]  # groups, the largest first
    members: list[Ints]  # each group's units
    row: Ints  # (R,) the rows that have a group
    unit: Ints  # (R,) their units
    units: int
    left_out: int  # clusters without a group

    @classmethod
    def of(cls, group: Sequence[str | None], cluster: npt.ArrayLike | None) -> Split:
        _refuse_empty(group, "the column")
        number, _ = clusters(cluster, len(group))
        row = np.array([i for i, name in enumerate(group) if name is not None], np.int64)
        names = sorted({name for name in group if name is not None})
        if len(names) > MOST_GROUPS:
            raise ValueError(
                f"{len(names):,} groups of {len(row):,} samples ({listed(names, 3)}): above {MOST_GROUPS:,} they say little; "
                "name a column with fewer values"
            )
        place = {name: i for i, name in enumerate(names)}
        of_row = np.array([place[str(group[i])] for i in row], np.int64)
        pair, unit = np.unique(of_row * (int(number.max()) + 1) + number[row], return_inverse=True)
        of_unit = pair // (int(number.max()) + 1)
        members = [np.flatnonzero(of_unit == g) for g in range(len(names))]
        order = sorted(range(len(names)), key=lambda g: (-len(members[g]), names[g]))
        left = len(np.unique(number[np.setdiff1d(np.arange(len(group)), row)]))
        return cls([names[g] for g in order], [members[g] for g in order], row, unit.ravel(), len(pair), left)
