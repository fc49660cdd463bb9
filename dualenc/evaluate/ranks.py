"""Exact ranks from float32 products, in blocks: the one computation behind every retrieval metric. Numpy only.

How a rank is exact without float64 everywhere: only gallery rows whose float32 score lies within `margin` of the best
relevant row's could change sides by rounding; those are scored again in float64 from their two rows alone. So no
result depends on the block size, on the other rows, or on the number of threads.

Where the time goes: nearly all of it into the products. What follows reads each block of scores while it is in cache,
for both ways if both are asked for, and counts flags eight at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.floating]
Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

MARGIN = 1e-5  # at least so near to the best are scored again; float32 products of unit rows are usually off by 1e-7
BLOCK = 1024  # rows a side: 4 MB of scores, which the passes after the product still find in cache
_LARGEST = 1e30  # product of two rows' lengths: beyond it a float32 score may overflow
_PAIR_VALUES = 1 << 16  # values gathered per step when pairs are scored again: 0.5 MB in float64, stays in cache
_WORDS = 255  # words of eight one-byte counters that can be added before a counter runs over


def ranks(query: npt.ArrayLike, gallery: npt.ArrayLike, relevant: Sequence[npt.ArrayLike], block: int = BLOCK) -> Ints:
    """Rank of every query's best relevant row, counted from 0: (Q,) int64. Arguments and errors as `recall_at_k`.

    The rank is the number of irrelevant rows that score at least as high. Memory: `block` × `block` scores at a time.

    >>> ranks([[1.0, 0.0]], [[1.0, 0.0], [0.6, 0.8], [0.6, 0.8], [0.0, 1.0]], [[1]])
    array([2])
    """
    query, gallery = checked_rows(query, "query"), checked_rows(gallery, "gallery")
    return _ranks(query, gallery, *_relevant_pairs(relevant, len(query), len(gallery)), block)[0]


def ranks_both_ways(
    query: npt.ArrayLike, gallery: npt.ArrayLike, pairs: tuple[Ints, Ints], block: int = BLOCK
) -> tuple[Ints, Ints]:
    """`ranks` of the queries among the gallery, (Q,), and of the gallery's rows among the queries, (G,), from one pass.

    pairs: the query rows and the gallery rows that are right for each other, sorted by query, no pair twice. A row in
    no pair does not ask: its rank is -1; it is a wrong answer for all that ask for others. Either side may be empty.

    >>> ranks_both_ways([[1.0, 0.0], [0.6, 0.8]], [[0.8, 0.6], [0.0, 1.0]], (np.array([0]), np.array([1])))
    (array([ 1, -1]), array([-1,  1]))
    """
    query, gallery = checked_rows(query, "query", empty=True), checked_rows(gallery, "gallery", empty=True)
    rank, back = _ranks(query, gallery, *pairs, block, both=True)
    return rank, back


class _Side(NamedTuple):
    """What the rows of one side ask: (n,) each."""

    best: Floats  # exact score of the best relevant row; minus infinity where there is none
    low: npt.NDArray[np.float32]  # float32 scores below low are surely lower than best
    high: npt.NDArray[np.float32]  # and those above high surely higher
    above: Ints  # irrelevant rows found to score at least as high


def _ranks(query: Array, gallery: Array, owner: Ints, row: Ints, block: int, both: bool = False) -> list[Ints]:
    if query.shape[1] != gallery.shape[1]:
        raise ValueError(f"query rows have {query.shape[1]} values, gallery rows {gallery.shape[1]}; embed both alike")
    if block < 1:
        raise ValueError(f"block is {block}; it must be at least 1 row")
    score = pair_scores(query, gallery, owner, row)
    lengths = _lengths(query), _lengths(gallery)
    off = margin(query.shape[1])
    sides = [_side(owner, score, *lengths, off), _side(row, score, *lengths[::-1], off)][: 1 + both]
    if len(owner):
        _scan(query, gallery, owner, row, block, sides)
    return [np.where(np.isinf(side.best), -1, side.above) for side in sides]


def margin(width: int) -> float:
    """How far a float32 product of unit rows of `width` values may be off, whatever the order of summation.

    >>> margin(64), margin(512)
    (1e-05, 3.0517578125e-05)
    """
    return max(MARGIN, width * 2.0**-24)  # the bound of a sum of as many rounded terms: N. Higham 2002, section 3.1


def _side(asks: Ints, score: Floats, own: Floats, other: Floats, off: float) -> _Side:
    """asks, score (P,): a pair's row on this side, and its exact score. own, other: lengths of both sides' rows. off: of
    unit rows' float32 scores."""
    best = np.full(len(own), -np.inf)
    np.maximum.at(best, asks, score)
    # Rows longer than 1 have larger scores, and larger rounding errors with them.
    scale = np.maximum(1.0, own * other.max(initial=0.0))
    if not scale.max(initial=0.0) < _LARGEST:
        raise ValueError("the embeddings are too large for float32 scores; normalise their rows to length 1 first")
    low, high = (best - off * scale).astype(np.float32), (best + off * scale).astype(np.float32)
    return _Side(best, low, high, np.zeros(len(own), np.int64))


def _scan(query: Array, gallery: Array, owner: Ints, row: Ints, block: int, sides: list[_Side]) -> None:
    """Count, for every row that asks, the irrelevant rows that score at least as high, into its side's `above`."""
    rows, width = min(block, len(query)), min(block, len(gallery))
    products = np.empty(rows * width, np.float32)
    flags = np.empty(rows * (width + 7), np.bool_)
    for q in _blocks(len(query), block):
        mine = slice(*np.searchsorted(owner, [q.start, q.stop]))
        query32 = query[q].astype(np.float32, copy=False)
        for g in _blocks(len(gallery), block):
            shape = q.stop - q.start, g.stop - g.start
            scores = products[: shape[0] * shape[1]].reshape(shape)
            np.matmul(query32, gallery[g].astype(np.float32, copy=False).T, out=scores)
            here = (row[mine] >= g.start) & (row[mine] < g.stop)
            scores[owner[mine][here] - q.start, row[mine][here] - g.start] = -np.inf  # relevant rows are never above
            for axis, (side, part) in enumerate(zip(sides, (q, g), strict=False)):
                i, j = _count(scores, flags, side, part, 1 - axis)
                i, j = i + q.start, j + g.start
                asking = (i, j)[axis]
                exact = pair_scores(query, gallery, i, j) >= side.best[asking]
                side.above[part] += np.bincount(asking[exact] - part.start, minlength=part.stop - part.start)


def _count(
    scores: npt.NDArray[np.float32], flags: npt.NDArray[np.bool_], side: _Side, part: slice, axis: int
) -> tuple[Ints, Ints]:
    """Add what is surely above, and return the places (row, column) in `scores` that float32 cannot tell.

    axis 1: rows ask, and what is right of them is counted; axis 0: columns ask.
    """
    low, high = (np.expand_dims(ends[part], axis) for ends in (side.low, side.high))
    height, width = scores.shape
    padded = width + -width % 8
    mask = flags[: height * padded].reshape(height, padded)
    mask[:, width:] = False
    np.greater_equal(scores, low, out=mask[:, :width])
    possible = _flagged(mask, axis)[: len(side.low[part])]
    np.greater(scores, high, out=mask[:, :width])
    sure = _flagged(mask, axis)[: len(side.low[part])]
    side.above[part] += sure
    unsure = np.flatnonzero(possible != sure)  # few: near ties are rare unless the encoder has collapsed
    near = scores.take(unsure, axis=1 - axis)
    low, high = low.take(unsure, axis=1 - axis), high.take(unsure, axis=1 - axis)
    i, j = np.nonzero((near >= low) & (near <= high))
    return (unsure[i], j) if axis else (i, unsure[j])


def _flagged(mask: npt.NDArray[np.bool_], axis: int) -> Ints:
    """mask.sum(axis) of a mask whose rows are whole words of eight flags: added word by word, eight counts at once."""
    words = mask.view(np.uint64)  # (rows, columns / 8)
    count = np.zeros(mask.shape[1 - axis], np.int64)
    for part in _blocks(words.shape[axis], _WORDS):
        if axis:
            count += np.add.reduce(words[:, part], axis=1).view(np.uint8).reshape(-1, 8).sum(axis=1, dtype=np.int64)
        else:
            count += np.add.reduce(words[part], axis=0).view(np.uint8)
    return count


def pair_scores(a: npt.ArrayLike, b: npt.ArrayLike, i: npt.ArrayLike, j: npt.ArrayLike) -> Floats:
    """Dot products of the rows a[i] and b[j], pair by pair, in float64: (P,). Each depends on its two rows alone.

    >>> pair_scores([[1.0, 0.0], [0.6, 0.8]], [[0.0, 1.0]], [0, 1], [0, 0])
    array([0. , 0.8])
    """
    a, b, i, j = np.asarray(a), np.asarray(b), np.asarray(i), np.asarray(j)
    out = np.empty(len(i), np.float64)
    for part in _blocks(len(i), max(1, _PAIR_VALUES // a.shape[1])):
        # A sum over each contiguous row, not a matrix product: BLAS picks the order of summation by shape and threads.
        out[part] = (a[i[part]].astype(np.float64) * b[j[part]]).sum(axis=1)
    return out


def checked_rows(rows: npt.ArrayLike, name: str, empty: bool = False) -> Array:
    """`rows` as a float array (N, D), its type kept; ValueError names it when it is empty, flat or not finite."""
    array = np.asarray(rows)
    if not np.issubdtype(array.dtype, np.floating):
        array = array.astype(np.float64)
    if array.ndim != 2 or array.shape[1] == 0 or (len(array) == 0 and not empty):
        raise ValueError(f"{name} has the shape {array.shape}; it must be (rows, values per row), neither of them 0")
    bad = sum(int((~np.isfinite(array[part])).any(axis=1).sum()) for part in _blocks(len(array), 4096))
    if bad:
        raise ValueError(
            f"{bad} of {len(array)} rows of {name} hold NaN or infinity: they have no rank; embed them again"
        )
    return array


def _relevant_pairs(relevant: Sequence[npt.ArrayLike], queries: int, gallery: int) -> tuple[Ints, Ints]:
    """Every (query, relevant gallery row) once, sorted by query: two int64 arrays of one length."""
    if len(relevant) != queries:
        raise ValueError(f"relevant has {len(relevant)} entries for {queries} queries; give one list of rows per query")
    lists = [np.atleast_1d(np.asarray(list(rows) if isinstance(rows, set) else rows)) for rows in relevant]
    counts = np.array([rows.size for rows in lists])
    if not counts.all():
        raise ValueError(
            f"query {int(np.argmin(counts))} has no relevant gallery row, so it can never hit; leave it out"
        )
    for query, rows in enumerate(lists):
        if rows.ndim != 1 or rows.dtype.kind not in "iu":
            raise ValueError(
                f"relevant[{query}] holds {rows.dtype} {rows.shape}; give a list of gallery rows (integers)"
            )
    row = np.concatenate(lists).astype(np.int64)
    if row.min() < 0 or row.max() >= gallery:
        raise ValueError(f"relevant rows span {row.min()}..{row.max()}, but the gallery has rows 0..{gallery - 1}")
    pair = np.unique(np.repeat(np.arange(queries), counts) * gallery + row)  # a row given twice is one row
    return pair // gallery, pair % gallery


def _lengths(rows: Array) -> Floats:
    every = np.arange(len(rows))
    return np.sqrt(pair_scores(rows, rows, every, every))


def _blocks(size: int, block: int) -> Iterator[slice]:
    for start in range(0, size, block):
        yield slice(start, min(start + block, size))
