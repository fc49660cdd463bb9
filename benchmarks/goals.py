"""Records of several parts, each with goals: what was wanted and what was measured, as tables."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


def table(record: dict[str, Any], parts: Iterable[str]) -> str:
    """Some parts, for people at a terminal."""
    rows = [
        (f"{part}: {each['what']}", each["wanted"], measured(each), "" if each["met"] else "   MISSED")
        for part in parts
        for each in record[part]["results"]["goals"]
    ]
    width = max((len(what) for what, *_ in rows), default=0)
    lines = [f"{'':<{width}}{'wanted':>12}{'measured':>12}"]
    return "\n".join(
        [*lines, *(f"{what:<{width}}{wanted:>12}{value:>12}{missed}" for what, wanted, value, missed in rows)]
    )


def markdown(record: dict[str, Any], parts: Iterable[str]) -> str:
    """Those of the parts that are recorded, for benchmarks/README.md."""
    lines = ["| | wanted | measured |", "|---|---|---|"]
    for part in (name for name in parts if name in record):
        for each in record[part]["results"]["goals"]:
            wanted = each["wanted"].replace(">=", "≥").replace("<=", "≤")
            missed = "" if each["met"] else " **missed**"
            lines.append(f"| {part}: {each['what']} | {wanted} | {measured(each)}{missed} |")
    notes = [f"`{each['command']}` on {each['date']}, {each['machine']['processor']}" for each in record.values()]
    return "\n".join([*lines, "", f"Measured by {'; '.join(dict.fromkeys(notes))}."]) + "\n"


def measured(goal: dict[str, Any]) -> str:
    """A goal's figure; "-" where there is none."""
    return "-" if goal["measured"] is None else f"{goal['measured']:g}"
