"""Calibration of an encoder's class scores: at its own logit scale, and with a temperature fitted; for report and page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from dualenc.evaluate.intervals import TIMES, mean_intervals
from dualenc.evaluate.page.figure import INK, LINES, panel
from dualenc.evaluate.page.words import brackets
from dualenc.evaluate.ranks import Ints
from dualenc.evaluate.sections import Panel, Share, Table
from dualenc.evaluate.zeroshot.calibration import (
    BINS,
    HIGHEST,
    LOWEST,
    Bins,
    Confidence,
    chance_error,
    confidences,
    cross_fitted_scales,
    fitted_scale,
    reliability,
)


class Calibrated(NamedTuple):
    """Calibration before and after a temperature was fitted. `after` is judged on images it was not fitted on."""

    scale: float  # the encoder's own
    fitted: float  # the scale that fits all images: the one to use from now on
    before: Confidence
    after: Confidence
    bins_before: Bins
    bins_after: Bins

    @property
    def temperature(self) -> float:
        """What the encoder's own logits must be divided by: above 1 it was too sure of itself."""
        return self.scale / self.fitted

    @property
    def bound(self) -> str:
        """At which end of the search the temperature lies: `≥` the softest, `≤` the sharpest, "" at neither."""
        return "≥" if self.fitted <= 1.01 * LOWEST else "≤" if self.fitted >= HIGHEST / 1.01 else ""

    @property
    def shown(self) -> str:
        """The temperature as people read it: `1.41`, `15,000`, `≥ 100,000`."""
        digits = f"{self.temperature:.3g}" if self.temperature < 1000 else f"{self.temperature:,.0f}"
        return f"{self.bound} {digits}".strip()

    def report(self, name: str, times: int = TIMES, seed: int = 0) -> dict[str, Any]:
        """Keys NAME/ece, its /chance (perfect calibration's), NAME/nll and NAME/brier with intervals, …_fitted, …"""
        errors = {
            f"{name}/{metric}{end}": values
            for end, found in (("", self.before), ("_fitted", self.after))
            for metric, values in (("nll", found.losses), ("brier", found.squares))
        }
        between = mean_intervals(np.stack([*errors.values()], axis=1), None, times, seed) if times else []
        named = zip(errors, between, strict=False)
        ends = {f"{key}/{end}": at for key, one in named for end, at in one._asdict().items()}
        return {
            f"{name}/logit_scale": self.scale,
            f"{name}/temperature": self.temperature,
            f"{name}/ece": self.bins_before.error,
            f"{name}/ece/chance": chance_error(self.before.top, seed=seed),
            f"{name}/ece_fitted": self.bins_after.error,
            f"{name}/ece_fitted/chance": chance_error(self.after.top, seed=seed),
            f"{name}/ece_bins": BINS,
            **{key: float(values.mean()) for key, values in errors.items()},
            **ends,
        }


def own_scale(encoder: Any) -> float | None:
    """What an encoder multiplies cosines by before a softmax, `model.logit_scale.exp()`; None where it has none."""
    scale = getattr(getattr(encoder, "model", None), "logit_scale", None)
    return None if scale is None else float(scale.detach().exp())


def calibrated(
    scores: npt.NDArray[np.float32], target: Ints, right: npt.ArrayLike, scale: float, seed: int = 0
) -> Calibrated:
    """scores (N, C), target (N,), right (N,) whether the best class is the right one; scale: the encoder's own."""
    scales = cross_fitted_scales(scores, target, scale, seed)
    ends = float(scales.min()), float(scales.max())
    # The loss of all images is the halves' together, and convex, so its minimum lies between theirs
    whole = fitted_scale(scores, target, float(np.sqrt(ends[0] * ends[1])), ends)
    before, after = (confidences(scores, target, some) for some in (scale, scales))
    return Calibrated(scale, whole, before, after, reliability(before.top, right), reliability(after.top, right))


def calibration_table(found: Calibrated, report: Mapping[str, Any], name: str) -> Table:
    """Of what `report(NAME)` gave, both scales."""

    def number(key: str) -> str:
        low, high = report.get(f"{key}/low"), report.get(f"{key}/high")
        return f"{report[key]:.3f}" + ("" if low is None else f" {brackets(f'{low:.3f}', f'{high:.3f}')}")

    def row(what: str, end: str) -> list[str | Share]:
        error = f"{name}/ece{end}"
        share = Share(report[error], report[f"{error}/chance"])
        return [what, share, number(f"{name}/nll{end}"), number(f"{name}/brier{end}")]

    floor = " and ".join(f"{100 * report[f'{name}/ece{end}/chance']:.1f}" for end in ("", "_fitted"))
    end = " The temperature lies at the end of its search: no better one was found inside." if found.bound else ""
    if found.bound == "≥":
        end += " The right class stands out no more than chance has it: equal probabilities fit best."
    elif found.after.nll < 1e-9:
        end += " All images are right, so any sharper temperature fits as well."
    return Table(
        ["Calibration", "ECE", "NLL", "Brier"],
        [
            row(f"As it is (logit scale {found.scale:.1f})", ""),
            row(f"Temperature {found.shown}", "_fitted"),
        ],
        f"Expected calibration error: how far confidence lies from accuracy, over {BINS} bins of equal width; perfect "
        f"calibration would give about {floor} % here. The "
        "temperature has the least negative log-likelihood (NLL); what it gains is measured on two halves of the images, "
        f"each with the temperature of the other. Less is better in all columns.{end}",
        "perfect calibration",
    )


def reliability_panel(found: Calibrated) -> Panel:
    """Accuracy against confidence, a point for each bin that holds images."""
    series = {"as it is": found.bins_before, f"temperature {found.shown}": found.bins_after}

    def draw(axes: Any) -> None:
        axes.plot([0, 100], [0, 100], "-", color=INK, linewidth=1)
        for (label, bins), marker, colour in zip(series.items(), "os", LINES, strict=False):
            some = bins.images > 0
            size = 14 + 130 * bins.images[some] / bins.images.sum()
            x, y = 100 * bins.confidence[some], 100 * bins.accuracy[some]
            axes.plot(x, y, color=colour, linewidth=1.4, label=label)
            axes.scatter(x, y, size, color=colour, marker=marker, linewidths=0, alpha=0.85)
        axes.set_xlim(0, 100)
        axes.set_ylim(0, 104)
        axes.set_xlabel("confidence, %")
        axes.set_ylabel("accuracy, %")
        axes.figure.legend(loc="outside upper left", ncols=2)

    words = [
        f"{label}: mean confidence {_mean(bins.confidence, bins):.1f} %, accuracy {_mean(bins.accuracy, bins):.1f} %, "
        f"expected calibration error {100 * bins.error:.1f} %"
        for label, bins in series.items()
    ]
    return panel(
        "Is it as sure as it is right?",
        "Accuracy against confidence, on the diagonal where they agree. " + "; ".join(words) + ".",
        draw,
    )


def _mean(values: npt.NDArray[np.float64], bins: Bins) -> float:
    some = bins.images > 0
    return float(100 * (values[some] * bins.images[some]).sum() / bins.images.sum())
