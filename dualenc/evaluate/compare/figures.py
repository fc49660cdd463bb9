"""Two encoders drawn: their differences with intervals, and Recall@K at every K."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dualenc.evaluate.compare.compare import WAYS, Outcome, Report
from dualenc.evaluate.compare.differences import points
from dualenc.evaluate.page.figure import INK, legend, panel
from dualenc.evaluate.ranks import Floats, Ints
from dualenc.evaluate.sections import Panel

PLACES = 60  # values of K on a line


def differences(report: Report, outcomes: Sequence[Outcome]) -> Panel:
    """Each metric's difference in points, its interval, and a line at none."""
    keys = [f"difference/{outcome.key}" for outcome in outcomes]

    def draw(axes: Any) -> None:
        value = np.array([100 * report[key] for key in keys])
        ends = np.array([[100 * report[f"{key}/{end}"] for end in ("low", "high")] for key in keys])
        place = np.arange(len(keys))
        axes.errorbar(value, place, xerr=np.abs(ends.T - value), fmt="o", capsize=4)
        axes.axvline(0, linestyle="--", linewidth=1.2, color=INK)
        axes.set_yticks(place, [outcome.title for outcome in outcomes])
        axes.set_ylim(len(keys) - 0.5, -0.5)  # the first one at the top
        axes.set_xlabel("B less A, points")

    said = "; ".join(f"{outcome.title} {points(report, key)}" for outcome, key in zip(outcomes, keys, strict=True))
    return panel("Differences with 95 % intervals", f"B less A: {said}", draw, (4.8, max(3.0, 0.9 + 0.32 * len(keys))))


def recall_curves(a: Ints, b: Ints, gallery: int, way: str) -> Panel:
    """Recall@K of both encoders at every K, from their ranks of one way (Q,)."""
    ks = np.unique(np.geomspace(1, gallery, PLACES).round().astype(np.int64))
    lines = {"A": recalls(a, ks), "B": recalls(b, ks)}

    def draw(axes: Any) -> None:
        for name, recall in lines.items():
            axes.plot(ks, 100 * recall, label=name)
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(lambda k, _: f"{k:,.0f}")
        axes.set_xlabel("K")
        axes.set_ylim(0, 102)
        legend(axes)

    middle = int(ks[len(ks) // 2])
    said = ", ".join(f"{100 * recall[len(ks) // 2]:.1f} % for {name}" for name, recall in lines.items())
    return panel(f"{WAYS[way]}: Recall@K, %", f"Recall@K from K = 1 to {gallery:,}; at {middle:,} it is {said}", draw)


def recalls(rank: Ints, ks: Ints) -> Floats:
    """Recall at each of `ks`, which rise: (K,).

    >>> recalls(np.array([0, 0, 3]), np.array([1, 3, 4]))
    array([0.66666667, 0.66666667, 1.        ])
    """
    return np.searchsorted(np.sort(rank), ks) / len(rank)
