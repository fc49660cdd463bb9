"""Differences of fractions in words: percentage points with a sign."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

SPACE = "\u00a0"  # does not break: an interval stays on one line


def points(report: Mapping[str, Any], name: str) -> str:
    """The difference that stands under `name` in percentage points, with its interval where there is one.

    >>> points({"d": -0.012, "d/low": -0.02, "d/high": 0.001}, "d").replace(SPACE, " ")
    '−1.2 points [−2.0, +0.1]'
    """
    ends = [report.get(f"{name}/{end}") for end in ("low", "high")]
    inside = "" if None in ends else f" [{f',{SPACE}'.join(signed(100 * end) for end in ends if end is not None)}]"
    return f"{signed(100 * report[name])} points{inside}"


def signed(value: float, digits: int = 1) -> str:
    """A number with its sign, and none where it rounds to 0.

    >>> signed(1234.56), signed(-0.04), signed(-0.04, digits=2)
    ('+1,234.6', '0.0', '−0.04')
    """
    text = f"{value:+,.{digits}f}"
    return text.replace("-", "−") if float(text.replace(",", "")) else text[1:]
