"""How well each image and caption fit, compared with how well they fit everybody else's: one pass each, never N x T scores.

The cosine alone depends on the encoder, on how common an image is and on how plain a caption is. So it is also given in
standard deviations of what other pairs score: of this image with the captions of all other images, of this caption with
all other images, and the mean of both (the s-norm of speaker verification: Shum et al., "Unsupervised Speaker Adaptation
based on the Cosine Similarity", Odyssey 2010, after the z- and t-norm of Auckenthaler et al. 2000). Mean and variance over
all others follow from the sum and the second moment of their rows, so they are exact, at the cost of N + T products with a
D x D matrix, with no sample and no number of neighbours to choose.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from dualenc.evaluate.ranks import Floats, Ints, pair_scores
from dualenc.index.vectors import Rows, unit_blocks, unit_rows

PIECE = 8192  # rows handled at once in float64
FLAT = 1e-12  # variance of cosines up to which all others score the same: nothing is relative to that


class Moments(NamedTuple):
    """What is kept of many rows: how many, their sum (D,) and the sum of their outer products (D, D), in float64."""

    rows: int
    total: Floats
    square: Floats


def relative_scores(images: Rows, texts: Rows, image_row: npt.ArrayLike) -> tuple[Floats, Floats]:
    """Of each pair (image image_row[t], text t) its cosine, and that relative to other pairs: (T,), (T,) float64.

    images (N, D), texts (T, D): unit within 5e-3, read by the block. "Others" are the texts of all other images, and all
    other images; the relative score is NaN where there are fewer than two, or they all score the same. ValueError: an
    image_row outside 0 .. N-1, rows that are not unit.
    """
    row = np.asarray(image_row, np.int64)
    if row.shape != (len(texts),) or (len(row) and not 0 <= row.min() <= row.max() < len(images)):
        raise ValueError(
            f"image_row has the shape {row.shape} for {len(texts)} texts and {len(images)} images; embed anew"
        )
    score = pair_cosines(images, texts, row)
    count, total, square = (_sums(row, values, len(images)) for values in (np.ones(len(row)), score, score**2))
    of_image = others(images, moments(texts), count, total, square)
    of_text = others(texts, moments(images), np.ones(len(row)), score, score**2)
    from_image = (score - of_image[0][row]) / of_image[1][row]
    from_text = (score - of_text[0]) / of_text[1]
    return score, (from_image + from_text) / 2


def pair_cosines(images: Rows, texts: Rows, image_row: Ints) -> Floats:
    """(T,) float64: the cosine of text t and image image_row[t]; each depends on its two rows alone."""
    found = np.empty(len(image_row))
    for first, block in unit_blocks(texts, "texts"):
        distinct, place = np.unique(image_row[first : first + len(block)], return_inverse=True)
        mine = unit_rows(images.take(distinct), "images", numbers=distinct)
        found[first : first + len(block)] = pair_scores(block, mine, np.arange(len(block)), place.ravel())
    return found


def moments(rows: Rows) -> Moments:
    """Count, sum and second moment of all rows."""
    total, square = np.zeros(rows.dim), np.zeros((rows.dim, rows.dim))
    for _, piece in _pieces(rows):
        total += piece.sum(axis=0)
        square += piece.T @ piece
    return Moments(len(rows), total, square)


def others(
    rows: Rows, there: Moments, own: Floats | Ints, own_sum: Floats, own_square: Floats
) -> tuple[Floats, Floats]:
    """Mean and standard deviation of each row's cosines with the rows that `there` is of, less its own: (n,), (n,).

    own (n,): how many of those are the row's own; own_sum, own_square: the sums of its cosines with them, and of their
    squares. The deviation is NaN below two others, and where they all score the same.

    >>> from dualenc.index.vectors import Array
    >>> there = moments(Array(np.eye(2)))
    >>> others(Array(np.array([[1.0, 0.0]])), there, *np.zeros((3, 1)))  # cosines 1 and 0
    (array([0.5]), array([0.5]))
    """
    total, square = np.empty(len(rows)), np.empty(len(rows))
    for here, piece in _pieces(rows):
        total[here] = piece @ there.total
        square[here] = ((piece @ there.square) * piece).sum(axis=1)
    count = there.rows - own
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = (total - own_sum) / count
        variance = (square - own_square) / count - mean**2
        spread: Floats = np.sqrt(np.where(variance > FLAT, variance, np.nan))
    return mean, spread


def _sums(row: Ints, values: Floats, images: int) -> Floats:
    return np.bincount(row, values, images).astype(np.float64)


def _pieces(rows: Rows) -> Iterator[tuple[slice, Floats]]:
    for first, block in unit_blocks(rows):
        for start in range(0, len(block), PIECE):
            piece = block[start : start + PIECE].astype(np.float64)
            yield slice(first + start, first + start + len(piece)), piece


def percentile(values: npt.ArrayLike) -> Floats:
    """Share of all values (NaN aside) that are smaller than each: (n,), 0 <= p < 1; NaN for NaN.

    >>> percentile([0.3, 0.1, 0.3, float("nan"), 0.9])
    array([0.25, 0.  , 0.25,  nan, 0.75])
    """
    values = np.asarray(values, np.float64)
    known = np.sort(values[~np.isnan(values)])
    below = np.searchsorted(known, values) / max(1, len(known))
    return np.where(np.isnan(values), np.nan, below)
