"""Multinomial logistic regression on frozen embeddings, by L-BFGS: the linear probe's one computation.

What is minimised over weights W (C, D) and intercepts b (C,) is scikit-learn's objective, divided by C·n so that it is
a mean (`strength` is its C: the larger, the weaker the regularisation):

    mean over n rows of cross-entropy(softmax(W x + b), y)  +  |W|² / (2 · strength · n)

Intercepts are not regularised. Rows are centred and turned to their principal axes first: the intercepts take up the
mean and the L2 norm does not see a turn, so the optimum is the same; but along the axes the curvature is known well
enough to give each its own step. Embeddings spread over some axes a thousand times as far as over others, and get
there in a fraction of the steps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from dualenc.evaluate.probe.lbfgs import minimise
from dualenc.evaluate.ranks import checked_rows

ROWS = {"cpu": 4096}  # scored at once: 16 MB at 1,000 classes; elsewhere 16 times as many
STEPS = 1000  # at the most, as in CLIP's linear probe (Radford et al. 2021, appendix A.3)
TOLERANCE = 1e-4  # `Probe.share` at which a fit ends
FLAT = 1e-10  # axes with less than this share of the widest one's variance are rounding; their weight stays 0
Tell = Callable[[int, float], None]  # called with (evaluations so far, value of the objective)


class Probe(NamedTuple):
    """A fitted probe, and how the fitting ended."""

    weights: npt.NDArray[np.float32]  # (C, D)
    intercepts: npt.NDArray[np.float32]  # (C,)
    strength: float
    gradient: float  # length of the objective's gradient at the end
    share: float  # the same as a share of the penalty's part of it, which the data's part cancels at the optimum
    steps: int  # of L-BFGS

    def scores(self, rows: npt.ArrayLike) -> npt.NDArray[np.float32]:
        """Logits (N, C) float32 of rows (N, D)."""
        return np.asarray(rows, np.float32) @ self.weights.T + self.intercepts


@dataclass(frozen=True)
class Axes:
    """n rows along their r principal axes, on the device where they are fitted: made once, fitted many times."""

    rows: torch.Tensor  # (n, r): centred and turned
    variance: torch.Tensor  # (r,)
    turn: torch.Tensor  # (D, r): orthonormal columns
    mean: torch.Tensor  # (D,)
    target: torch.Tensor  # (n,) int64
    classes: int


def principal(
    rows: npt.ArrayLike,
    target: npt.ArrayLike,
    classes: int,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Axes:
    """Rows (n, D) and their classes 0 .. C-1, (n,), made ready for `fit`.

    ValueError: NaN, fewer than two classes, a class without a row (nothing would tell where it lies).
    """
    array, target = checked_rows(rows, "the probe's training set"), np.asarray(target)
    if target.shape != (len(array),) or target.min() < 0 or target.max() >= classes:
        raise ValueError(f"{len(array)} rows with classes {target.shape} of {classes}; give each row one from 0 on")
    absent = np.flatnonzero(np.bincount(target, minlength=classes) == 0)
    if classes < 2 or len(absent):
        raise ValueError(
            f"a probe of {classes} classes, {len(absent)} of them without a row to learn from; it takes two classes or "
            "more and a row of each: leave the others out"
        )
    x = torch.from_numpy(np.array(array)).to(device)
    mean = x.mean(dim=0, dtype=torch.float64)
    x = (x - mean).to(dtype)  # in float64, so that rows that lie close together keep what tells them apart
    variance, turn = torch.linalg.eigh(x.T.double() @ x.double() / len(x))  # in increasing order
    kept = variance > FLAT * variance[-1]
    if not kept.any():
        raise ValueError("all rows of the probe's training set are equal, so nothing tells their classes apart")
    turn = turn[:, kept]
    return Axes(
        (x @ turn.to(dtype)).contiguous(),
        variance[kept].to(dtype),
        turn,
        mean,
        torch.as_tensor(target, dtype=torch.int64, device=x.device),
        classes,
    )


def fit(
    axes: Axes,
    strength: float,
    start: torch.Tensor | None = None,
    tolerance: float = TOLERANCE,
    steps: int = STEPS,
    tell: Tell | None = None,
) -> tuple[Probe, torch.Tensor]:
    """The probe at one strength, and its weights along the axes (r + 1, C), from which the next strength may start.

    Ends when what is left of the gradient is `tolerance` times its penalty's part: weights are then off by about that
    share, however weak the penalty. Or after `steps` steps, or where the rows' type (float32) leaves no way down;
    `Probe.share` says how far it came.
    """
    penalty = 1 / (strength * len(axes.rows))
    scale = _scale(axes, penalty)  # (r + 1, 1)
    seen = [0]

    def objective(point: torch.Tensor) -> tuple[float, torch.Tensor]:
        weights = point * scale
        loss, slope = loss_and_slope(axes, weights)
        loss += penalty / 2 * float((weights[:-1].double() ** 2).sum())
        slope[:-1].add_(weights[:-1], alpha=penalty)
        seen[0] += 1
        if tell is not None:
            tell(seen[0], loss)
        return loss, slope * scale

    def lengths(found: torch.Tensor, slope: torch.Tensor) -> tuple[float, float]:
        return float((slope / scale).norm()), penalty * float((found * scale)[:-1].norm())

    def done(point: torch.Tensor, slope: torch.Tensor) -> bool:
        left, part = lengths(point, slope)
        return left <= tolerance * part

    begin = torch.zeros(len(scale), axes.classes).to(axes.rows) if start is None else start / scale
    found = minimise(objective, begin, done, steps)
    weights = found.point * scale
    left, part = lengths(found.point, found.gradient)
    straight = axes.turn @ weights[:-1].double()  # (D, C)
    intercepts = weights[-1].double() - axes.mean @ straight
    arrays = [each.cpu().numpy().astype(np.float32) for each in (straight.T.contiguous(), intercepts)]
    return Probe(arrays[0], arrays[1], strength, left, left / part if part else 0.0, found.steps), weights


def loss_and_slope(axes: Axes, weights: torch.Tensor) -> tuple[float, torch.Tensor]:
    """Mean cross-entropy and its gradient (r + 1, C) at weights (r + 1, C), the last row being the intercepts."""
    slope = torch.zeros_like(weights)
    loss = torch.zeros((), dtype=torch.float64, device=weights.device)
    size = ROWS.get(weights.device.type, 16 * ROWS["cpu"])
    for start in range(0, len(axes.rows), size):
        rows, target = axes.rows[start : start + size], axes.target[start : start + size, None]
        logits = torch.addmm(weights[-1], rows, weights[:-1])  # (b, C)
        logits -= logits.amax(dim=1, keepdim=True)
        own = logits.gather(1, target)
        powers = logits.exp_()
        total = powers.sum(dim=1, keepdim=True)
        loss += (total.log() - own).sum(dtype=torch.float64)
        error = powers.div_(total)  # probabilities
        error.scatter_add_(1, target, torch.full_like(own, -1))
        slope[:-1].addmm_(rows.T, error)
        slope[-1] += error.sum(dim=0)
    return float(loss) / len(axes.rows), slope.div_(len(axes.rows))


def _scale(axes: Axes, penalty: float) -> torch.Tensor:
    """(r + 1, 1): weights are `scale` times the values that are optimised, which makes the curvature there about 1.

    Where all C classes are alike likely, the objective's second derivative along an axis is its variance times
    (1 - 1/C) / C, and the penalty.
    """
    alike = (1 - 1 / axes.classes) / axes.classes
    bend = torch.cat([alike * axes.variance + penalty, axes.variance.new_tensor([alike])])
    return bend.rsqrt()[:, None]
