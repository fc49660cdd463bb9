"""Figures for the page: inline SVG that takes its colours and its font from the page around it, light or dark.

`draw` gets matplotlib axes whose lines, words and grid are in the page's colours already: `axes.plot(x, y, label=…)`
is enough. The colours below are stand-ins, which become CSS variables once the SVG is written.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from dualenc.evaluate.sections import Panel, Share

INK, GRID = "#010203", "#040506"  # words and axes (the page's --quiet), lines behind them (--rule)
TEXT, PAPER = "#010207", "#010208"  # full contrast (--ink), and what lies under a figure (--card)
ACCENT, RIGHT, WRONG = "#010209", "#01020a", "#01020b"
LINES = ["#0a0b01", "#0a0b02", "#0a0b03", "#0a0b04"]
STYLES = ["-", "--", "-.", ":"]  # lines differ by more than their colour
WIDE = 6.0  # inches: a wider figure takes a row of its own, and scrolls in its card on a phone
MOST_CELLS = 10_000  # of a heat map: more would make the page slow, and no one could read it
_VARIABLES = {colour: f"--line-{i + 1}" for i, colour in enumerate(LINES)}
_VARIABLES |= {INK: "--quiet", GRID: "--rule", TEXT: "--ink", PAPER: "--card"}
_VARIABLES |= {ACCENT: "--accent", RIGHT: "--right", WRONG: "--wrong"}


def panel(title: str, words: str, draw: Callable[[Any], None], size: tuple[float, float] = (4.8, 3.0)) -> Panel:
    """One figure: `draw(axes)` draws it. words: what it says, for those who cannot see it. size: inches (72 CSS pixels
    each at full width); wider than WIDE, the figure stands alone in its row."""
    import matplotlib
    from cycler import cycler
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    settings: Any = {
        "svg.fonttype": "none",
        "svg.hashsalt": title,
        "font.size": 11,
        "text.parse_math": False,
        "text.color": INK,
        "axes.labelcolor": INK,
        "axes.edgecolor": GRID,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.prop_cycle": cycler(color=LINES, linestyle=STYLES),
        "grid.color": GRID,
        "grid.linewidth": 0.8,
        "xtick.labelcolor": INK,
        "ytick.labelcolor": INK,
        "xtick.major.size": 0,
        "ytick.major.size": 0,
        "xtick.minor.size": 0,
        "ytick.minor.size": 0,
        "lines.linewidth": 2,
        "legend.frameon": False,
        "legend.labelcolor": INK,
        "legend.handlelength": 2.4,
    }
    data = io.StringIO()
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")  # the reader's browser has the letters
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        draw(axes)
        _plain_powers(axes)
        figure.savefig(data, format="svg", transparent=True, metadata={"Date": None})
    return Panel(title, _inline(data.getvalue(), wide=size[0] > WIDE), words)


def legend(axes: Any, columns: int = 2) -> None:
    """The names of the lines above the axes, where they cover nothing."""
    axes.figure.legend(loc="outside upper left", ncols=columns)


def bars(axes: Any, names: Sequence[str], shares: Sequence[Share]) -> None:
    """Horizontal bars in percent, the first name on top, each with its interval and its number; chance as a tick.

    A good height is 0.8 + 0.34 inches a bar.
    """
    place = np.arange(len(names))
    axes.barh(place, [100 * share.value for share in shares], height=0.62, color=ACCENT)
    for y, share in enumerate(shares):
        end = share.value
        if share.interval is not None:
            end = max(end, share.interval.high)
            axes.plot([100 * at for at in share.interval], [y, y], "-", color=TEXT, linewidth=1.6, marker="|")
        if share.chance is not None:
            axes.plot([100 * share.chance] * 2, [y - 0.42, y + 0.42], "-", color=INK, linewidth=1.4)
        axes.text(100 * end + 1.5, y, f"{100 * share.value:.1f}", va="center", color=TEXT, fontsize=10)
    axes.set_yticks(place, [_short(name) for name in names])
    axes.set_ylim(len(names) - 0.45, -0.55)
    axes.set_xlim(0, 112)  # room for the number of a full bar
    axes.set_xticks(range(0, 101, 25))
    axes.grid(False, axis="y")
    axes.spines[["left", "bottom"]].set_visible(False)


def histograms(axes: Any, values: Mapping[str, npt.ArrayLike], bins: int = 40) -> None:
    """Histograms over each other on the same bins: one to four of them, as counts."""
    arrays = {name: np.asarray(some, np.float64) for name, some in values.items()}
    if len(arrays) > len(LINES):
        raise ValueError(f"{len(arrays)} histograms over each other; {len(LINES)} can be told apart")
    edges = np.histogram_bin_edges(np.concatenate(list(arrays.values())), bins)
    for i, (name, some) in enumerate(arrays.items()):
        counts = np.histogram(some, edges)[0]
        axes.stairs(counts, edges, fill=True, color=LINES[i], alpha=0.28)
        axes.stairs(counts, edges, color=LINES[i], linestyle=STYLES[i], linewidth=1.6, label=name)
    axes.set_ylim(0, None)
    axes.margins(x=0)
    if len(arrays) > 1:
        legend(axes)


def heat(
    axes: Any,
    values: npt.ArrayLike,
    rows: Sequence[str],
    columns: Sequence[str],
    most: float | None = None,
    text: Callable[[float], str] | None = None,
) -> None:
    """A heat map: cell (r, c) is the stronger the nearer values[r, c] is to `most` (default: the greatest of them).

    values (R, C), 0 or more; NaN leaves a cell empty. text: what to write into a cell (None: nothing). Long names are
    cut. ValueError above MOST_CELLS: show the rows that matter. `heat_size` says how large the figure should be.
    """
    values = np.asarray(values, np.float64)
    if values.size > MOST_CELLS:
        raise ValueError(
            f"a heat map of {values.shape[0]:,} x {values.shape[1]:,} cells cannot be read; choose some of the rows"
        )
    from matplotlib.patches import Rectangle

    most = most or max(float(np.nanmax(values, initial=0.0)), 1e-12)
    for (r, c), value in np.ndenumerate(values):
        strength = 0.0 if np.isnan(value) else min(max(value / most, 0.0), 1.0)
        if strength > 0:
            cell = Rectangle((c - 0.48, r - 0.48), 0.96, 0.96, alpha=round(0.06 + 0.94 * strength, 3))
            cell.set(facecolor=ACCENT, edgecolor="none", clip_on=False)
            axes.add_patch(cell)
        if text is not None and not np.isnan(value):
            colour = PAPER if strength > 0.6 else TEXT
            axes.text(c, r, text(float(value)), ha="center", va="center", color=colour, fontsize=9)
    upright = max(map(len, columns), default=0) > 3
    axes.set_xticks(range(len(columns)), [_short(name) for name in columns], rotation=90 if upright else 0)
    axes.set_yticks(range(len(rows)), [_short(name) for name in rows])
    axes.tick_params(labelsize=9)
    axes.set_xlim(-0.5, len(columns) - 0.5)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.grid(False)
    axes.spines[:].set_visible(False)


def heat_size(rows: int, columns: int) -> tuple[float, float]:
    """Inches for a heat map of that many cells with names beside it: a quarter to a half inch a cell."""
    cell = 0.5 if max(rows, columns) <= 12 else 0.36 if max(rows, columns) <= 20 else 0.25
    return max(4.8, 1.6 + cell * columns), max(3.0, 1.6 + cell * rows)


def count(value: float) -> str:
    """A count, short where it is large: 151,277,313 parameters are 151.3 M.

    >>> count(151_277_313), count(12_800_000_000), count(204_000), count(500)
    ('151.3 M', '12.8 B', '204 k', '500')
    """
    for least, size, unit in ((1e9, 1e9, "B"), (1e6, 1e6, "M"), (1e4, 1e3, "k")):
        if value >= least:
            return f"{value / size:,.1f}".removesuffix(".0") + f" {unit}"
    return f"{value:,.0f}" if value >= 1 else f"{value:g}"


def _plain_powers(axes: Any) -> None:
    """Ticks of logarithmic axes as plain numbers: matplotlib's own are formulas, which an SVG with text cannot hold."""
    from matplotlib.ticker import FuncFormatter, LogFormatter, LogLocator, NullFormatter

    for axis in (axes.xaxis, axes.yaxis):
        if axis.get_scale() == "log" and isinstance(axis.get_major_formatter(), LogFormatter):
            low, high = sorted(axis.get_view_interval())
            axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 200 * low else (1,)))
            axis.set_major_formatter(FuncFormatter(lambda value, _: count(value)))
            axis.set_minor_formatter(NullFormatter())


def _short(name: str, most: int = 22) -> str:
    """A name for an axis: its beginning, and a sign that there is more.

    >>> _short("red fox"), _short("a very long name of a class")
    ('red fox', 'a very long name of a…')
    """
    return name if len(name) <= most else name[: most - 1].rstrip() + "…"


def _inline(svg: str, wide: bool) -> str:
    """matplotlib's SVG without its file header and fixed size, its stand-in colours as CSS variables."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", svg)  # the page's own font
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)  # nothing refers to these, and two figures would share them
    svg = svg.replace("<svg", '<svg class="wide"', 1) if wide else svg
    return re.sub("#[0-9a-f]{6}", lambda found: _variable(found[0]), svg)


def _variable(colour: str) -> str:
    return f"var({_VARIABLES[colour]})" if colour in _VARIABLES else colour
