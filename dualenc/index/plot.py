"""What an index's settings cost and find, as a picture: ANN recall against time per query."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from dualenc.files import whole_file
from dualenc.index.budget import in_words

FORMATS = (".png", ".svg")
LINE, MARK, INK, GRID = "#2f6fb0", "#c4501b", "#444444", "#dddddd"


def plot_curve(manifest: dict[str, Any], out: str | Path) -> None:
    """Draw the curve that tuning measured, the chosen setting and the target: PNG or SVG by `out`'s suffix.

    manifest: an index's. The file is written whole or not at all. ValueError: another suffix, or no curve.
    """
    out = Path(out)
    if out.suffix.lower() not in FORMATS:
        raise ValueError(f"{out} ends in {out.suffix or 'no suffix'}; name the picture .png or .svg")
    record = manifest["ann_recall"]
    if not record.get("curve"):
        raise ValueError("the index has no measured curve to draw; `dualenc index tune` measures it, given queries")
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"svg.hashsalt": "dualenc", "font.size": 11, "text.parse_math": False}):
        figure = Figure(figsize=(8, 5), layout="constrained")
        _draw(figure.add_subplot(), manifest, record)
        kind = out.suffix[1:].lower()
        dated: Any = {"metadata": {"Date": None}} if kind == "svg" else {}  # the same curve gives the same file
        with whole_file(out) as partial:
            figure.savefig(partial, format=kind, dpi=150, facecolor="white", **dated)


def _draw(axes: Any, manifest: dict[str, Any], record: dict[str, Any]) -> None:
    points = record["curve"]
    times, recalls = [point["ms"] for point in points], [point["recall"] for point in points]
    axes.plot(times, recalls, "o-", color=LINE, linewidth=2, markersize=5, zorder=3)
    chosen = next((point for point in points if point["setting"] == manifest["search"]), None)
    if chosen is not None:
        label = f"chosen: {in_words(chosen['setting']) or 'nothing to set'}"
        axes.plot(chosen["ms"], chosen["recall"], "o", color=MARK, markersize=11, label=label, zorder=4)
    if record.get("target") is not None:
        axes.axhline(record["target"], color=MARK, linestyle="--", linewidth=1.2, label=f"target {record['target']:g}")
    _scale(axes, times, [*recalls, record.get("target") or 1.0])
    _label(axes, points, chosen)
    axes.set_xlabel("ms per query, in a batch", color=INK)
    axes.set_ylabel(f"ANN recall@{record['k']}", color=INK)
    axes.set_title(_title(manifest, record), fontsize=11, color=INK, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GRID)
    axes.tick_params(which="both", colors=INK, length=0)
    axes.grid(True, color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    if axes.get_legend_handles_labels()[0]:
        axes.figure.legend(loc="outside lower right", ncols=2, frameon=False, labelcolor=INK)


def _scale(axes: Any, times: list[float], heights: list[float]) -> None:
    """Times by their ratios, a factor of ten at least, with room for labels at the right; recall up to 1."""
    from matplotlib.ticker import FuncFormatter, LogLocator

    first, last = min(times), max(times)
    wide = max(last / first, 10.0) ** 0.08
    middle = math.sqrt(10 / (last / first)) if last < 10 * first else 1.0
    axes.set_xscale("log")
    axes.set_xlim(first / middle / wide, last * middle * wide**2)
    steps = (1, 2, 5) if last < 100 * first else (1,)
    axes.xaxis.set_major_locator(LogLocator(subs=steps, numticks=50))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.6g}"))
    axes.minorticks_off()
    low = min(heights)
    room = max(1 - low, 0.01)
    axes.set_ylim(low - 0.14 * room, 1 + 0.06 * room)


def _label(axes: Any, points: list[dict[str, Any]], chosen: dict[str, Any] | None) -> None:
    """Name each setting under its point, where there is room: the chosen one stands in the legend."""
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()

    def at(point: dict[str, Any]) -> tuple[float, float]:  # as shares of the axes
        return math.log(point["ms"] / left) / math.log(right / left), (point["recall"] - low) / (high - low)

    taken = [] if chosen is None else [at(chosen)]
    style = {"xytext": (6, -6), "textcoords": "offset points", "va": "top", "fontsize": 8.5, "color": INK}
    box = {"facecolor": "white", "edgecolor": "none", "pad": 0.8, "alpha": 0.85}
    for point in points:
        x, y = at(point)
        if all(abs(x - a) > 0.11 or abs(y - b) > 0.08 for a, b in taken):
            text = "\n".join(f"{knob} {value}" for knob, value in point["setting"].items())
            axes.annotate(text, (point["ms"], point["recall"]), bbox=box, zorder=2.5, **style)
            taken.append((x, y))


def _title(manifest: dict[str, Any], record: dict[str, Any]) -> str:
    recipe = manifest["recipe"].get("name") or manifest["recipe"]["build"]["kind"]
    first = f"{recipe}: {record.get('rows', manifest['rows']):,} rows × {manifest['dim']}"
    return f"{first}\nmeasured on {record['measured_on']:,} queries: {record['queries']}"
