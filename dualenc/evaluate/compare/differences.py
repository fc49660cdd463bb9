"""A report's differences of fractions in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dualenc.evaluate.page import words


def points(report: Mapping[str, Any], name: str) -> str:
    """The difference that stands under `name` in percentage points, with its interval where there is one.

    >>> points({"d": 0.025}, "d")
    '+2.5 points'
    """
    low, high = (report.get(f"{name}/{end}") for end in ("low", "high"))
    return words.points(report[name], None if low is None or high is None else (low, high))
