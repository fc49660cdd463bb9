"""L-BFGS for a smooth convex function, in torch: a few steps are remembered, so that no Hessian is ever held.

Nocedal & Wright, Numerical Optimization, algorithms 7.4 and 7.5. torch.optim.LBFGS has the same steps, but fixed
bounds (a curvature of 1e-10, a step of 1e-9) that end it early on an objective that is a mean over many rows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

HISTORY = 20  # steps remembered
ENOUGH, STEEP = 0.9, 0.5  # a step is taken when the slope along it has gone from -1 to between -ENOUGH and STEEP
NOISE = 1e-6  # relative: a value that seems larger by less may be rounding
TRIES = 20  # of a step's length
Evaluate = Callable[[torch.Tensor], tuple[float, torch.Tensor]]  # point -> value, gradient
Done = Callable[[torch.Tensor, torch.Tensor], bool]  # point, gradient


class Minimum(NamedTuple):
    point: torch.Tensor
    value: float
    gradient: torch.Tensor
    steps: int


def minimise(evaluate: Evaluate, point: torch.Tensor, done: Done, steps: int) -> Minimum:
    """Follow `evaluate` down from `point` until `done(point, gradient)`, for `steps` steps at the most.

    Ends before that where no step goes down any more, which is as far as the point's precision goes. The function must
    be convex and should be scaled so that its curvature is about 1 in all directions: the first step is tried at 1.

    >>> minimise(lambda x: (float((x**2).sum()), 2 * x), torch.ones(2), lambda x, g: bool(g.norm() < 1e-6), 50).value
    0.0
    """
    value, gradient = evaluate(point)
    moves: list[tuple[torch.Tensor, torch.Tensor, float]] = []
    taken = 0
    while taken < steps and not done(point, gradient):
        direction = _direction(gradient, moves)
        slope = _dot(gradient, direction)
        found = _search(evaluate, point, direction, value, slope) if slope < 0 else None
        if found is None:
            break
        new, value, next_gradient = found
        change, turn = new - point, next_gradient - gradient
        bend = _dot(change, turn)
        if bend > 0:  # else rounding has eaten it
            moves = [*moves, (change, turn, 1 / bend)][-HISTORY:]
        point, gradient, taken = new, next_gradient, taken + 1
    return Minimum(point, value, gradient, taken)


def _direction(gradient: torch.Tensor, moves: list[tuple[torch.Tensor, torch.Tensor, float]]) -> torch.Tensor:
    """Minus the gradient times the inverse Hessian that the last moves suggest: the two-loop recursion."""
    direction = -gradient
    shares = []
    for change, turn, inverse in reversed(moves):
        shares.append(inverse * _dot(change, direction))
        direction = direction.add(turn, alpha=-shares[-1])
    if moves:
        _, turn, inverse = moves[-1]
        direction = direction * (1 / (inverse * _dot(turn, turn)))
    for (change, turn, inverse), share in zip(moves, reversed(shares), strict=True):
        direction = direction.add(change, alpha=share - inverse * _dot(turn, direction))
    return direction


def _search(
    evaluate: Evaluate, point: torch.Tensor, direction: torch.Tensor, value: float, slope: float
) -> tuple[torch.Tensor, float, torch.Tensor] | None:
    """(point, value, gradient) after a step of a good length; None where there is none.

    Doubles the length while the way still falls steeply, halves the bracket once it rises. Along a line a convex
    function's slope only grows, so the slope alone tells on which side the minimum lies; it is far less hurt by
    rounding than the difference of two values.
    """
    low, high, length = 0.0, float("inf"), 1.0
    for _ in range(TRIES):
        new = point.add(direction, alpha=length)
        there, gradient = evaluate(new)
        along = _dot(gradient, direction)
        above = not there <= value + NOISE * abs(value)  # NaN and infinity too
        if above or along > -STEEP * slope:
            high = length
        elif along < ENOUGH * slope:
            low = length
        else:
            return new, there, gradient
        length = (low + high) / 2 if high < float("inf") else 2 * length
    return None


def _dot(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(torch.dot(a.reshape(-1), b.reshape(-1)))
