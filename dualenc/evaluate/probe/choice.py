"""How strongly a probe is regularised: chosen on validation rows, as CLIP's linear probe does.

Radford et al. 2021, appendix A.3: strengths two decades apart, then nearer and nearer to the best one, up to eight
steps a decade. Here each fit starts from its neighbour's weights, from the strongest penalty to the weakest, and the way
ends once two fits in a row were worse than the best: the weakest penalties are the slowest to fit and seldom chosen.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch

from dualenc.evaluate.metrics import class_ranks
from dualenc.evaluate.probe.data import Set
from dualenc.evaluate.probe.fit import Axes, Probe, Tell, fit

GRID = (-6.0, -4.0, -2.0, 0.0, 2.0, 4.0, 6.0)  # powers of ten
HALVES = (1.0, 0.5, 0.25, 0.125)  # of a decade
WORSE = 2  # fits in a row that end the way
ROUGH, STEPS = 1e-2, 200  # a fit that is only compared with others
FITS = len(GRID) + 2 * len(HALVES)  # at the most


class Tried(NamedTuple):
    """One strength on the validation rows."""

    power: float  # the strength's power of ten, on rows scaled to a mean variance of 1
    accuracy: float
    loss: float  # mean cross-entropy

    @property
    def order(self) -> tuple[float, float, float]:
        """The best is the greatest: by accuracy, then by loss, then the stronger penalty."""
        return self.accuracy, -self.loss, -self.power


class Choice(NamedTuple):
    power: float  # of ten, of C on rows scaled to a mean variance of 1
    tried: list[Tried]  # in order of power
    start: torch.Tensor  # the chosen one's weights along the axes


def choose(axes: Axes, val: Set, tell: Tell | None = None, fitted: Callable[[], None] | None = None) -> Choice:
    """The strength whose probe, fitted on `axes`, is the most accurate on `val`. fitted: called after each fit.

    Ties go to the lower cross-entropy, then to the stronger penalty.
    """
    found: dict[float, Tried] = {}
    weights: dict[float, torch.Tensor] = {}

    def attempt(power: float) -> None:
        nearest = min(weights, key=lambda other: abs(other - power), default=None)
        start = None if nearest is None else weights[nearest]
        probe, weights[power] = fit(axes, 10**power / spread(axes), start, ROUGH, STEPS, tell)
        found[power] = Tried(power, *_judged(probe, val))
        if fitted is not None:
            fitted()

    def best() -> float:
        return max(found.values(), key=lambda tried: tried.order).power

    for power in GRID:
        attempt(power)
        if power - best() >= WORSE * (GRID[1] - GRID[0]):
            break
    for half in HALVES:
        centre = best()
        for power in (centre - half, centre + half):
            if GRID[0] <= power <= GRID[-1] and power not in found:
                attempt(power)
    chosen = best()
    return Choice(chosen, [found[power] for power in sorted(found)], weights[chosen])


def spread(axes: Axes) -> float:
    """The mean variance of the rows' D values. Strengths are counted on rows scaled to a mean variance of 1, so that they
    mean the same for every encoder: C there is C / spread on the rows as they are."""
    return float(axes.variance.sum()) / len(axes.mean)


def _judged(probe: Probe, val: Set) -> tuple[float, float]:
    """Accuracy and mean cross-entropy on validation rows."""
    logits = probe.scores(val.rows)
    logits -= logits.max(axis=1, keepdims=True)
    own = np.take_along_axis(logits, val.target[:, None], axis=1)[:, 0]
    loss = float((np.log(np.exp(logits).sum(axis=1, dtype=np.float64)) - own).mean())
    return float((class_ranks(logits, val.target) == 0).mean()), loss
