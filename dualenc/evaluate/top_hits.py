"""The best hits of every query, exactly, in blocks: the order that ranks are counted in. Numpy only.

As in `ranks.py`, float32 products only choose the candidates: whatever could be among the first is scored again in
float64 from its two rows alone, so that the order depends on no block. Of equal scores the wrong row stands first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from dualenc.evaluate.ranks import Array, Floats, Ints, checked_rows, margin, pair_scores

BLOCK = 2048  # query and gallery rows whose scores are held at once


class Hits(NamedTuple):
    """The first `top` gallery rows of each of Q queries, best first."""

    rows: Ints  # (Q, top)
    scores: Floats  # (Q, top), as `pair_scores` gives them
    right: npt.NDArray[np.bool_]  # (Q, top)


def top_hits(
    query: npt.ArrayLike, gallery: npt.ArrayLike, relevant: Sequence[npt.ArrayLike], top: int = 10, block: int = BLOCK
) -> Hits:
    """The `top` best gallery rows of each query (all rows where there are fewer). Of equal scores the wrong one first,
    then the one with the lower number.

    query (Q, D), gallery (G, D); relevant[i]: the gallery rows that are right for query i. Memory: `block` × `block`
    scores at a time, and the result. ValueError: NaN, no rows, a `top` below 1.

    >>> top_hits([[1.0, 0.0]], [[0.0, 1.0], [1.0, 0.0], [1.0, 0.0]], [[1]], top=2)
    Hits(rows=array([[2, 1]]), scores=array([[1., 1.]]), right=array([[False,  True]]))
    """
    query, gallery = checked_rows(query, "query"), checked_rows(gallery, "gallery")
    if top < 1:
        raise ValueError(f"top is {top}; ask for 1 hit or more for each query")
    top = min(top, len(gallery))
    pairs = relevant_codes(relevant, len(gallery))
    hits = Hits(
        np.empty((len(query), top), np.int64), np.empty((len(query), top)), np.empty((len(query), top), np.bool_)
    )
    gallery32 = gallery.astype(np.float32, copy=False)
    longest = float(np.sqrt(np.einsum("ij,ij->i", gallery32, gallery32, dtype=np.float64)).max())
    for start in range(0, len(query), block):
        some = slice(start, min(start + block, len(query)))
        rows, scores = _some_hits(query[some], gallery, gallery32, longest, pairs, start, top, block)
        hits.rows[some], hits.scores[some] = rows, scores
    hits.right[:] = is_right(np.arange(len(query))[:, None], hits.rows, pairs, len(gallery))
    return hits


def relevant_codes(relevant: Sequence[npt.ArrayLike], gallery: int) -> Ints:
    """Sorted numbers query × `gallery` + row, one for each right pair: what `is_right` looks in."""
    counts = [len(np.atleast_1d(rows)) for rows in relevant]
    row = np.concatenate([np.atleast_1d(np.asarray(rows, np.int64)) for rows in relevant])
    return np.unique(np.repeat(np.arange(len(relevant)), counts) * gallery + row)


def is_right(query: Ints, row: Ints, codes: Ints, gallery: int) -> npt.NDArray[np.bool_]:
    """Whether each pair of a query and a gallery row is a right one; the shapes broadcast."""
    wanted = np.asarray(query * gallery + row)
    place = np.minimum(np.searchsorted(codes, wanted), len(codes) - 1)
    return codes[place] == wanted


def _some_hits(
    query: Array, gallery: Array, gallery32: Array, longest: float, pairs: Ints, first: int, top: int, block: int
) -> tuple[Ints, Floats]:
    """(q, top) rows and scores of queries first .. first + q - 1, over the gallery by blocks."""
    query32 = query.astype(np.float32, copy=False)
    lengths = np.sqrt(np.einsum("ij,ij->i", query32, query32, dtype=np.float64))
    off = (margin(query.shape[1]) * np.maximum(1.0, lengths * longest))[
        :, None
    ]  # (q, 1) how far a float32 score may be off
    rows, scores = np.full((len(query), top), -1, np.int64), np.full((len(query), top), -np.inf)
    for start in range(0, len(gallery), block):
        rough = query32 @ gallery32[start : start + block].T  # (q, block) float32
        least = scores[:, -1:] - off
        if start == 0 and rough.shape[1] > top:  # nothing was found yet: the top-th best here is a bound
            here = np.partition(rough, rough.shape[1] - top, axis=1)[:, rough.shape[1] - top, None]
            least = here - 2 * off
        i, j = np.nonzero(rough >= least.astype(np.float32))
        row = j + start
        rows, scores = _merged(rows, scores, i, row, pair_scores(query, gallery, i, row), pairs, first, len(gallery))
    return rows, scores


def _merged(
    rows: Ints, scores: Floats, i: Ints, row: Ints, score: Floats, pairs: Ints, first: int, gallery: int
) -> tuple[Ints, Floats]:
    """The best of what is there, rows and scores (q, top), and of new candidates: query i has `row` with `score`."""
    queries, top = rows.shape
    i = np.concatenate([np.repeat(np.arange(queries), top), i])
    row, score = np.concatenate([rows.ravel(), row]), np.concatenate([scores.ravel(), score])
    right = is_right(i + first, row, pairs, gallery) & (row >= 0)
    order = np.lexsort((row, right, -score, i))
    place = np.arange(len(order)) - np.searchsorted(i[order], np.arange(queries))[i[order]]
    kept = order[place < top]  # every query has at least `top` candidates: those that were there
    return row[kept].reshape(queries, top), score[kept].reshape(queries, top)
