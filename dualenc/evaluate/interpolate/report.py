"""The WiSE-FT curve as report.json and report.html: its figures, its table, and what was chosen on which data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dualenc.evaluate.interpolate.interpolate import Point, Task, best
from dualenc.evaluate.interpolate.plot import name_of, panels
from dualenc.evaluate.page.report import write_report
from dualenc.evaluate.page.words import percent
from dualenc.evaluate.sections import Headline, Section, Share, Table

ENDS = {0.0: "start", 1.0: "tuned"}
CHOSEN_BY = {1: "the score on the new task", 2: "the mean of the scores on the new and the old task"}


def values(points: Sequence[Point], tasks: Sequence[Task]) -> dict[str, Any]:
    """report.json: "best_alpha", "new/data", "alpha/0.5/new/score", "alpha/0.5/new/text_to_image/recall@1", …"""
    chosen = best(points)
    report: dict[str, Any] = {"best_alpha": chosen.alpha, "best_alpha/chosen_by": CHOSEN_BY[len(tasks)]}
    for task in tasks:
        report |= {f"{task.role}/data": task.path, f"{task.role}/metric": task.metric}
    for point in points:
        at = f"alpha/{name_of(point.alpha)}"
        for role, metrics in point.metrics.items():
            report[f"{at}/{role}/score"] = point.scores[role]
            report |= {f"{at}/{role}/{name}": value for name, value in metrics.items()}
        report[f"{at}/mean"] = point.mean
    return report


def write(out: str | Path, points: Sequence[Point], tasks: Sequence[Task], provenance: Mapping[str, Any]) -> Path:
    """Write report.json and report.html into the folder `out`; returns the page's path."""
    title = f"Between two encoders: α = {name_of(best(points).alpha)}"
    return write_report(out, values(points, tasks), [section(points, tasks)], provenance=provenance, title=title)


def section(points: Sequence[Point], tasks: Sequence[Task]) -> Section:
    """The curve's section of the page."""
    chosen = best(points)
    here = f"α\u00a0=\u00a0{name_of(chosen.alpha)}"
    data = " and ".join(dict.fromkeys(task.path for task in tasks))
    headlines = [
        Headline(f"{_title(task)} at {here}", Share(chosen.scores[task.role]), _ends(points, task)) for task in tasks
    ]
    if len(tasks) > 1:
        headlines.append(Headline(f"Mean at {here}", Share(chosen.mean), f"the highest of {len(points)} values of α"))
    return Section(
        title="From the starting to the tuned weights",
        about=(
            "Each point is one encoder, with weights (1 − α) · start + α · tuned. "
            f"Best by {CHOSEN_BY[len(tasks)]}: {here}. "
            f"It was chosen on {data}, so its scores there are those of the luckiest of {len(points)}: what it is worth is "
            "told by data that had no part in the choice."
        ),
        headlines=headlines,
        tables=[_table(points, tasks, chosen)],
        figures=panels(points),
    )


def _table(points: Sequence[Point], tasks: Sequence[Task], chosen: Point) -> Table:
    several = len(tasks) > 1
    columns = ["α", *(_title(task) for task in tasks), *(["Mean"] if several else []), ""]
    rows: list[list[str | Share]] = []
    for point in points:
        values = [*point.scores.values(), *([point.mean] if several else [])]
        marks = [ENDS.get(point.alpha, ""), "best" if point == chosen else ""]
        rows.append([name_of(point.alpha), *map(Share, values), " · ".join(filter(None, marks))])
    return Table(columns, rows, " ".join(f"{_title(task)}: {task.metric} on {task.path}." for task in tasks))


def _title(task: Task) -> str:
    return f"{task.role.capitalize()} task"


def _ends(points: Sequence[Point], task: Task) -> str:
    said = [f"{ENDS[p.alpha]} {percent(p.scores[task.role])}" for p in points if p.alpha in ENDS]
    return "; ".join([task.metric, *said])
