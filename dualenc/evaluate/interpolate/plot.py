"""The WiSE-FT curve as SVG: each task over α, and one task against the other (Wortsman et al. 2022, figure 1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dualenc.evaluate.interpolate.interpolate import Point, best
from dualenc.evaluate.page.figure import INK, LINES, STYLES, legend, panel
from dualenc.evaluate.sections import Panel

MOST_LABELS = 11  # points that have their α beside them; of more, every second, third, … has
SIZE = (4.8, 3.4)  # inches


def name_of(alpha: float) -> str:
    """An alpha as text that gives it back, without the zeros that nobody writes.

    >>> name_of(0.0), name_of(0.1), name_of(1 / 3)
    ('0', '0.1', '0.3333333333333333')
    """
    short = f"{alpha:g}"
    return short if float(short) == alpha else repr(alpha)


def panels(points: Sequence[Point]) -> list[Panel]:
    """The scores over α and, where there are two tasks, the new against the old."""
    drawn = [_over_alpha(points)]
    if len(points[0].scores) > 1:
        drawn.append(_against(points))
    return drawn


def _over_alpha(points: Sequence[Point]) -> Panel:
    chosen, x = best(points), [point.alpha for point in points]
    series = {f"{role} task": [100 * point.scores[role] for point in points] for role in points[0].scores}
    if len(series) > 1:
        series["mean"] = [100 * point.mean for point in points]

    def draw(axes: Any) -> None:
        axes.axvline(chosen.alpha, color=INK, linewidth=1, linestyle=":", zorder=1)
        for i, (name, y) in enumerate(series.items()):
            axes.plot(x, y, STYLES[i], color=LINES[i], marker="o", markersize=4, label=name, zorder=3)
        axes.set_xlabel("α: 0 the starting weights, 1 the tuned ones")
        axes.margins(x=0.04, y=0.12)
        if len(series) > 1:
            legend(axes, columns=3)

    at = ", ".join(f"{name} {y[points.index(chosen)]:.1f} %" for name, y in series.items())
    words = f"Scores at {len(points)} values of α; the best is {name_of(chosen.alpha)}, with {at}"
    return panel("Score over α, %", words, draw, SIZE)


def _against(points: Sequence[Point]) -> Panel:
    chosen = best(points)
    x, y = ([100 * point.scores[role] for point in points] for role in ("old", "new"))
    at, every = points.index(chosen), -(-len(points) // MOST_LABELS)

    def draw(axes: Any) -> None:
        axes.plot(x, y, marker="o", markersize=5, zorder=3)
        axes.plot(x[at], y[at], "*", color=LINES[1], markersize=15, zorder=4)
        for i, point in enumerate(points):
            if i % every == 0 or point in (chosen, points[-1]):
                text = f"α = {name_of(point.alpha)}" if i == 0 or point == chosen else name_of(point.alpha)
                axes.annotate(text, (x[i], y[i]), (6, 5), textcoords="offset points", fontsize=9, annotation_clip=False)
        axes.set_xlabel("old task, %")
        axes.set_ylabel("new task, %")
        axes.margins(0.12)

    words = "New task against old task along α: " + "; ".join(
        f"{name_of(point.alpha)}: new {b:.1f} %, old {a:.1f} %" for point, a, b in zip(points, x, y, strict=True)
    )
    return panel("New task against old task, %", words, draw, SIZE)
