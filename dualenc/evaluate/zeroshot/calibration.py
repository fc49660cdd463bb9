"""Are the scores probabilities: expected calibration error, and the temperature that makes it small. Numpy only.

A softmax of an image's cosines times a logit scale gives its classes probabilities; the encoder has a scale of its own,
which was trained on batches of captions and not on these classes. Calibrated means: of the images whose best class got
70 %, 70 % are right. Temperature scaling (Guo, Pleiss, Sun & Weinberger 2017, On Calibration of Modern Neural Networks)
multiplies all logits by one number, which changes no image's order of classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from dualenc.evaluate.ranks import Array, Floats, Ints

BINS = 15  # of equal width, as in the paper
LOWEST, HIGHEST = 1e-3, 1e5  # logit scales that a fit may end at: equal probabilities, and none but 0 and 1
_VALUES = 1 << 20  # scores in float64 at once: 8 MB
_DRAWS = 200  # behind the mean of `chance_error`
_STEPS = 60
_ENOUGH = 1e-13  # nats


class Confidence(NamedTuple):
    """What a logit scale makes of scores: of each image, (N,)."""

    top: Floats  # the highest probability
    losses: Floats  # negative log-likelihood of the right class, in nats
    squares: Floats  # squared distance of the probabilities from the truth, 0..2 (Brier 1950)

    @property
    def nll(self) -> float:
        return float(self.losses.mean())

    @property
    def brier(self) -> float:
        return float(self.squares.mean())


class Bins(NamedTuple):
    """A reliability diagram: images in each bin, their mean confidence and their accuracy (NaN in an empty bin)."""

    images: Ints
    confidence: Floats
    accuracy: Floats

    @property
    def error(self) -> float:
        """Expected calibration error: the mean distance of confidence and accuracy, each bin by its images."""
        some = self.images > 0
        gap = np.abs(self.accuracy[some] - self.confidence[some])
        return float((self.images[some] * gap).sum() / self.images.sum())


def reliability(confidence: npt.ArrayLike, right: npt.ArrayLike, bins: int = BINS) -> Bins:
    """Images by confidence, in `bins` bins of equal width: bin m of M holds ((m-1)/M, m/M], and 0 is in the first.

    confidence (N,): probability of the class that was chosen, 0..1. right (N,): whether it was the right one.
    ValueError: NaN or values outside 0..1, no rows, shapes that do not fit, no bin.

    >>> reliability([0.9, 0.9, 0.5], [True, False, True], bins=2).error  # |1 - 0.5| / 3 + |0.5 - 0.9| · 2 / 3
    0.43333333333333335
    """
    confidence, right = np.asarray(confidence, np.float64), np.asarray(right, np.float64)
    if confidence.ndim != 1 or not len(confidence) or right.shape != confidence.shape or bins < 1:
        raise ValueError(
            f"confidence {confidence.shape}, right {right.shape} and {bins} bins: give one of each for every image, and "
            "one bin or more"
        )
    if not ((confidence >= 0) & (confidence <= 1)).all():
        raise ValueError("a confidence is NaN or outside 0..1, so it is no probability; give softmax outputs")
    number = np.searchsorted(np.arange(1, bins) / bins, confidence, side="left")
    count = np.bincount(number, minlength=bins)
    sums = [np.bincount(number, values, minlength=bins) for values in (confidence, right)]
    with np.errstate(invalid="ignore"):
        return Bins(count, sums[0] / count, sums[1] / count)


def expected_calibration_error(confidence: npt.ArrayLike, right: npt.ArrayLike, bins: int = BINS) -> float:
    """`reliability(...).error`; calibrated is what `chance_error` gives. No bootstrap interval: drawing again adds to a
    distance.

    >>> expected_calibration_error([0.8, 0.8, 0.8, 0.8], [True, True, True, False])
    0.050000000000000044
    """
    return reliability(confidence, right, bins).error


def chance_error(confidence: npt.ArrayLike, bins: int = BINS, seed: int = 0) -> float:
    """Expected calibration error of perfect calibration, in the mean: of answers right as often as confidence (N,) says.

    Not 0, for a bin of few images is seldom right in just its share of them.

    >>> round(chance_error([0.5] * 400), 2)
    0.02
    """
    confidence, rng = np.asarray(confidence, np.float64), np.random.default_rng(seed)
    drawn = (rng.random(len(confidence)) < confidence for _ in range(_DRAWS))
    return float(np.mean([reliability(confidence, right, bins).error for right in drawn]))


def confidences(scores: npt.ArrayLike, target: npt.ArrayLike, scale: npt.ArrayLike) -> Confidence:
    """Probabilities softmax(scale · scores), scored. scores (N, C), target (N,), scale: one, or (N,) one each.

    >>> confidences([[1.0, 1.0]], [0], 10.0)
    Confidence(top=array([0.5]), losses=array([0.69314718]), squares=array([0.5]))
    """
    scores, target = np.asarray(scores), np.asarray(target)
    scales = np.broadcast_to(np.asarray(scale, np.float64), len(scores))
    top, losses, squares = np.empty(len(scores)), np.empty(len(scores)), np.empty(len(scores))
    for part in _blocks(scores):
        logits = scores[part].astype(np.float64) * scales[part, None]
        logits -= logits.max(axis=1, keepdims=True)
        own = np.take_along_axis(logits, target[part, None], axis=1)[:, 0]
        powers = np.exp(logits, out=logits)
        total = powers.sum(axis=1)
        top[part], losses[part] = 1 / total, np.log(total) - own
        squares[part] = (powers**2).sum(axis=1) / total**2 + 1 - 2 * np.exp(own) / total
    return Confidence(top, losses, squares)


def fitted_scale(
    scores: npt.ArrayLike, target: npt.ArrayLike, start: float = 100.0, between: tuple[float, float] = (LOWEST, HIGHEST)
) -> float:
    """The logit scale with the least negative log-likelihood, to about 1e-6 of itself, within `between`.

    The loss is convex in the scale. Where the right class does not stand out at all, the least is at the lowest scale;
    where it always wins, the loss falls for ever, and the scale is one from which it falls by less than 1e-13.
    Newton's method, kept between the ends by bisection; start: a guess. ValueError: no rows.
    """
    scores, target = np.asarray(scores), np.asarray(target)
    if not len(scores):
        raise ValueError("no image to fit a temperature on; give two labelled images or more")
    low, high = sorted(between)
    at = float(np.clip(start, low, high))
    for _ in range(_STEPS):
        slope, curvature = _slope(scores, target, at)
        if slope**2 <= 2 * _ENOUGH * curvature or not slope:  # Newton's decrement: what there is left to gain
            break
        low, high = (at, high) if slope < 0 else (low, at)
        # Far from the minimum the slope is flat, and Newton's step too short or too long: four times at the most
        step = -slope / curvature if curvature else -np.sign(slope) * np.inf
        ahead = float(np.clip(at + step, max(low, at / 4), min(high, at * 4)))
        if not low < ahead < high and ahead not in between:
            ahead = float(np.sqrt(low * high))
        if ahead == at:
            break
        at = ahead
    return at


def cross_fitted_scales(scores: npt.ArrayLike, target: npt.ArrayLike, start: float = 100.0, seed: int = 0) -> Floats:
    """(N,): for each image the scale fitted on the half of the images that it is not in; halves drawn by `seed`.

    A temperature judged on the images it was fitted on looks better than it is. ValueError below two images.
    """
    scores, target = np.asarray(scores), np.asarray(target)
    if len(scores) < 2:
        raise ValueError(f"{len(scores)} image(s) make no two halves; give two labelled images or more")
    first = np.zeros(len(scores), bool)
    first[np.random.default_rng(seed).permutation(len(scores))[: len(scores) // 2]] = True
    on_first, on_second = (fitted_scale(scores[half], target[half], start) for half in (first, ~first))
    return np.where(first, on_second, on_first)


def _slope(scores: Array, target: Ints, scale: float) -> tuple[float, float]:
    """First and second derivative by the scale of the mean loss: E[x] - x_target, and Var[x], under the softmax."""
    slope = curvature = 0.0
    for part in _blocks(scores):
        some = scores[part].astype(np.float64)
        own = np.take_along_axis(some, target[part, None], axis=1)
        some -= own  # the right class at 0: the slope is then a mean alone, without cancellation
        powers = np.exp(scale * (some - some.max(axis=1, keepdims=True)))
        powers /= powers.sum(axis=1, keepdims=True)
        mean = np.einsum("nc,nc->n", powers, some)
        slope += float(mean.sum())
        curvature += float((np.einsum("nc,nc,nc->n", powers, some, some) - mean**2).sum())
    return slope / len(scores), max(0.0, curvature / len(scores))


def _blocks(scores: Array) -> Iterator[slice]:
    rows = max(1, _VALUES // scores.shape[1])
    for start in range(0, len(scores), rows):
        yield slice(start, start + rows)
