"""Numbers as the page prints them: percent, points, intervals, counts, and where a bar's parts stand."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from dualenc.evaluate.sections import Share, Table

THIN = "\u202f"  # a narrow space that does not break, between a number and its unit
MINUS = "−"
_NUMBER = re.compile(r"[\s\d.,×%+−–()/\[\]…-]*\d[\s\d.,×%+−–()/\[\]…-]*[kMB]?")
_BESIDE = ("low", "high", "chance")  # keys that stand beside another one's value: `acc1/low`


class Bar(NamedTuple):
    """Where a bar's parts stand, in percent of its length."""

    value: float
    band: tuple[float, float] | None  # left end and width of the interval
    chance: float | None


class Value(NamedTuple):
    """A line of the table of all values."""

    key: str
    value: str
    interval: str
    chance: str


def percent(fraction: float | None) -> str:
    """A fraction in percent, with as many digits as it takes not to read 0.

    >>> [percent(value).replace(THIN, " ") for value in (0.706, 1, 0.0002, 0.99999, -0.021, None)]
    ['70.6 %', '100 %', '0.02 %', '99.9 %', '−2.1 %', '–']
    """
    if fraction is None or not math.isfinite(fraction):
        return "–"
    value = 100 * abs(fraction)
    digits = 0 if value in (0, 100) else 1 if value >= 0.095 else 2 if value >= 0.0095 else 4
    text = f"{value:.{digits}f}"
    text = "99.9" if text == "100.0" and value < 100 else text
    return f"{MINUS if fraction < 0 else ''}{text}{THIN}%"


def points(difference: float, between: Sequence[float] | None = None, digits: int = 1) -> str:
    """A difference of fractions in percentage points, and the ends of the interval it lies in.

    >>> points(-0.012), points(0.0302, digits=2)
    ('−1.2 points', '+3.02 points')
    """
    ends = "" if between is None else f" {brackets(*(signed(100 * end, digits) for end in between))}"
    return f"{signed(100 * difference, digits)} points{ends}"


def signed(value: float, digits: int = 1) -> str:
    """A number with its sign, and none where it rounds to 0.

    >>> signed(1234.56), signed(-0.04), signed(-0.04, digits=2)
    ('+1,234.6', '0.0', '−0.04')
    """
    text = f"{value:+,.{digits}f}"
    return minus(text) if float(text.replace(",", "")) else text[1:]


def minus(text: str) -> str:
    """A number's text with the sign that people read as minus, and none where it reads 0.

    >>> minus("-0.04"), minus("-0.00")
    ('−0.04', '0.00')
    """
    return text.replace("-", MINUS if text.strip("-0.,") else "")


def brackets(low: str, high: str) -> str:
    """An interval's ends, which stay in one line."""
    return f"[{low},\u00a0{high}]"


def interval(share: Share) -> str:
    """`[69.1, 72.8]`: the interval's ends in percent; "" where there is none."""
    ends = _ends(share)
    if ends is None:
        return ""
    low, high = (percent(end).removesuffix(f"{THIN}%") for end in ends)
    return brackets(low, high)


def bar(share: Share) -> Bar | None:
    """How a share is drawn; None for what is no fraction 0..1, such as a negative difference.

    >>> bar(Share(0.5, 0.1))
    Bar(value=50.0, band=None, chance=10.0)
    """
    ends = _ends(share)
    parts = [share.value, *(ends or ()), 0.0 if share.chance is None else share.chance]
    if any(part is None or not 0 <= part <= 1 for part in parts):
        return None
    band = None if ends is None else (_place(ends[0]), _place(ends[1] - ends[0]))
    return Bar(_place(share.value), band, None if share.chance is None else _place(share.chance))


def number(value: Any) -> str:
    """A value of report.json as text: counts with separators, fractions with four digits.

    >>> number(25000), number(0.70634), number(None), number("mean")
    ('25,000', '0.7063', '–', 'mean')
    """
    if value is None:
        return "–"
    if isinstance(value, bool | str):
        return str(value)
    if isinstance(value, float):
        return f"{value:,.4f}" if abs(value) >= 0.001 or value == 0 else f"{value:.2e}"
    return f"{value:,}"


def below(table: Table) -> str:
    """What stands below a table: its note, and what the tick on its bars is where they have one.

    >>> below(Table(["", "Right"], [["red", Share(0.5, 0.1)]], "Ties count as wrong."))
    'Ties count as wrong. The tick on a bar is chance.'
    """
    ticks = any(isinstance(cell, Share) and cell.chance is not None for row in table.rows for cell in row)
    return f"{table.note} The tick on a bar is {table.tick}.".strip() if ticks else table.note


def numeric(table: Table) -> list[bool]:
    """Which columns hold nothing but numbers as text, which stand at the right.

    >>> numeric(Table(["Class", "Images"], [["red", "1,200"], ["blue", "–"]]))
    [False, True]
    """
    found = []
    for c in range(len(table.columns)):
        cells = [row[c] for row in table.rows if c < len(row) and row[c] not in ("", "–", None)]
        found.append(bool(cells) and all(isinstance(cell, str) and _NUMBER.fullmatch(cell) for cell in cells))
    return found


def values(report: Mapping[str, Any]) -> list[Value]:
    """All values of a report, in its order; `KEY/low`, `KEY/high` and `KEY/chance` stand in their KEY's line.

    >>> values({"acc1": 0.5, "acc1/low": 0.4, "acc1/high": 0.6})
    [Value(key='acc1', value='0.5000', interval='0.4000 – 0.6000', chance='')]
    """
    lines = []
    for key, value in report.items():
        base, _, end = key.rpartition("/")
        if end in _BESIDE and base in report:
            continue
        low, high, chance = (report.get(f"{key}/{name}") for name in _BESIDE)
        ends = "" if low is None or high is None else f"{number(low)} – {number(high)}"
        lines.append(Value(key, number(value), ends, "" if chance is None else number(chance)))
    return lines


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one level of keys with "/" between.

    >>> flat({"versions": {"torch": "2.13"}, "seed": 0})
    {'versions/torch': '2.13', 'seed': 0}
    """
    out: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            out |= flat(value, f"{prefix}{key}/")
        else:
            out[f"{prefix}{key}"] = value if isinstance(value, str | int | float | None) else str(value)
    return out


def grouped(provenance: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Flat provenance as its own names with their values, each with what stands under it ("versions/torch").

    >>> grouped({"data": "shards", "data/samples": 24, "versions/torch": "2.13"})
    [('data', [('', 'shards'), ('samples', '24')]), ('versions', [('torch', '2.13')])]
    """
    found: dict[str, list[tuple[str, str]]] = {}
    for key, value in provenance.items():
        name, _, under = key.partition("/")
        found.setdefault(name, []).append((under, number(value)))
    return list(found.items())


def nearest(path: str) -> str:
    """The end of a long path, by which people know it.

    >>> nearest("/home/me/dualenc/runs/flickr8k/encoder"), nearest("ViT-B-32:openai")
    ('…/flickr8k/encoder', 'ViT-B-32:openai')
    """
    parts = path.split("/")
    return path if len(parts) <= 3 else "/".join(["…", *parts[-2:]])


def cell(value: Any) -> str:
    """A table's cell that is no share."""
    return value if isinstance(value, str) else number(value)


def _ends(share: Share) -> Sequence[float] | None:
    """The ends of a share's interval; None where one is missing or no number."""
    if share.interval is None or any(end is None or not math.isfinite(end) for end in share.interval):
        return None
    return share.interval


def _place(fraction: float) -> float:
    return round(100 * fraction, 2)
