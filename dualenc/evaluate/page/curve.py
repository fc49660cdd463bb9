"""The training curve as SVG that takes its colours and its font from the page around it."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dualenc.evaluate.page.figure import LINES, legend, panel
from dualenc.evaluate.sections import Panel

MOST_POINTS = 300  # more are averaged in groups: the page stays small and the line readable
MOST_LINES = len(LINES)

Series = tuple[list[float], list[float]]  # steps, values


def panels(curve: str | Path | Iterable[Mapping[str, Any]]) -> list[Panel]:
    """The loss, and the validation scores, against optimizer steps; a panel without data is left out.

    curve: Lightning's metrics.csv, or rows with "step", values whose name holds "loss", and scores (fractions) whose
    name holds "recall@", or a word that begins with "acc". Empty cells are passed over.
    ValueError: a row without a step, a cell that is no number.
    """
    series = read_series(curve)
    losses = {name: points for name, points in series.items() if "loss" in name}
    scores = {name: points for name, points in series.items() if re.search(r"recall@|(^|[/_])acc", name)}
    chosen = sorted(scores, key=_interest)[:MOST_LINES]
    drawn = []
    if losses:
        drawn.append(_panel("Loss", dict(list(losses.items())[:MOST_LINES]), percent=False))
    if chosen:
        drawn.append(_panel("Validation, %", {name: scores[name] for name in chosen}, percent=True))
    return drawn


def read_series(curve: str | Path | Iterable[Mapping[str, Any]]) -> dict[str, Series]:
    """Name -> (steps, values), in order of step, of every column but step and epoch that holds a number.

    NaN and infinity are passed over: a line cannot show them.
    """
    rows = _csv(Path(curve)) if isinstance(curve, str | Path) else curve
    series: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        if row.get("step") in (None, ""):
            raise ValueError(
                "a row of the training curve has no step, so it has no place on the line; give one to each row"
            )
        for name, cell in row.items():
            if name not in ("step", "epoch") and cell not in (None, "") and math.isfinite(value := _number(name, cell)):
                series.setdefault(name, []).append((_number("step", row["step"]), value))
    return {name: tuple(map(list, zip(*sorted(points), strict=True))) for name, points in series.items()}  # type: ignore[misc]


def _number(name: str, cell: Any) -> float:
    try:
        return float(cell)
    except (TypeError, ValueError):
        raise ValueError(
            f"{name} in the training curve is {cell!r}, which is no number; leave that column out"
        ) from None


def _csv(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _interest(name: str) -> tuple[int, str]:
    """What a reader looks for first: text to image R@1 and R@5, image to text R@1, accuracy, then the rest."""
    wanted = ("text_to_image/recall@1", "text_to_image/recall@5", "image_to_text/recall@1", "acc1")
    place = next((i for i, ending in enumerate(wanted) if name.endswith(ending)), len(wanted))
    return place, name


def _panel(title: str, series: Mapping[str, Series], percent: bool) -> Panel:
    def draw(axes: Any) -> None:
        for name, (steps, values) in series.items():
            x, y = thinned(steps), thinned([100 * v for v in values] if percent else values)
            axes.plot(x, y, marker="o" if len(x) < 40 and percent else None, markersize=4, label=_label(name))
        axes.set_xlabel("optimizer steps")
        axes.margins(x=0.02)
        if percent:
            highest = max(100 * max(values) for _, values in series.values())
            axes.set_ylim(0, min(102, max(1.1 * highest, 1)))
        if len(series) > 1:
            legend(axes)

    last = [f"{_label(name)} ends at {_value(values[-1], percent)}" for name, (_, values) in series.items()]
    steps = max(steps[-1] for steps, _ in series.values())
    return panel(title, f"{title} over {steps:,.0f} steps: " + ", ".join(last), draw)


def thinned(values: Sequence[float]) -> list[float]:
    """At most MOST_POINTS values: means of equal groups of neighbours.

    >>> len(thinned(range(1000)))
    250
    """
    size = max(1, -(-len(values) // MOST_POINTS))
    groups = [values[i : i + size] for i in range(0, len(values), size)]
    return [sum(group) / len(group) for group in groups]


def _value(value: float, percent: bool) -> str:
    return f"{100 * value:.1f} %" if percent else f"{value:.3g}"


def _label(name: str) -> str:
    """A metric's name as people say it: "val/text_to_image/recall@1" -> "text → image R@1"."""
    plain = re.sub(r"^val/", "", name).replace("_to_", " → ").replace("/recall@", " R@")
    return re.sub(r"[/_]", " ", plain)
