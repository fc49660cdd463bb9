"""Exact ranks from float32 products, in blocks: the one computation behind every retrieval metric. Numpy only.

How a rank is exact without float64 everywhere: only gallery rows whose float32 score lies within 1e-5 of the best
relevant row's could change sides by rounding; those are scored again in float64 from their two rows alone. So no
result depends on the block size, on the other rows, or on the number of threads.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.floating]
Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

MARGIN = 1e-5  # float32 products of unit rows are off by about 1e-6 at the most, whatever the order of summation
_LARGEST = 1e30  # product of two rows' lengths: beyond it a float32 score may overflow
_PAIR_VALUES = 1 << 16  # values gathered per step when pairs are scored again: 0.5 MB in float64, stays in cache


def ranks(query: npt.ArrayLike, gallery: npt.ArrayLike, relevant: Sequence[npt.ArrayLike], block: int = 2048) -> Ints:
    """Rank of every query's best relevant row, counted from 0: (Q,) int64. Arguments and errors as `recall_at_k`.

    The rank is the number of irrelevant rows that score at least as high. Memory: `block` × `block` scores at a time.

    >>> ranks([[1.0, 0.0]], [[1.0, 0.0], [0.6, 0.8], [0.6, 0.8], [0.0, 1.0]], [[1]])
    array([2])
    """
    query, gallery = checked_rows(query, "query"), checked_rows(gallery, "gallery")
    if query.shape[1] != gallery.shape[1]:
        raise ValueError(f"query rows have {query.shape[1]} values, gallery rows {gallery.shape[1]}; embed both alike")
    if block < 1:
        raise ValueError(f"block is {block}; it must be at least 1 row")
    owner, row = _relevant_pairs(relevant, len(query), len(gallery))
    starts = np.searchsorted(owner, np.arange(len(query)))
    best = np.maximum.reduceat(pair_scores(query, gallery, owner, row), starts)  # (Q,) float64
    # Rows longer than 1 have larger scores, and larger rounding errors with them.
    margin = MARGIN * np.maximum(1.0, _lengths(query) * _lengths(gallery).max())
    if not margin.max() < MARGIN * _LARGEST:
        raise ValueError("the embeddings are too large for float32 scores; normalise their rows to length 1 first")
    above = np.zeros(len(query), np.int64)
    gallery32 = gallery.astype(np.float32, copy=False)
    for q in _blocks(len(query), block):
        mine = slice(*np.searchsorted(owner, [q.start, q.stop]))
        query32 = query[q].astype(np.float32, copy=False)
        low, high = (best - margin)[q, None].astype(np.float32), (best + margin)[q, None].astype(np.float32)
        for g in _blocks(len(gallery), block):
            scores = query32 @ gallery32[g].T  # (block, block) float32
            here = (row[mine] >= g.start) & (row[mine] < g.stop)
            scores[owner[mine][here] - q.start, row[mine][here] - g.start] = -np.inf  # relevant rows are never above
            unsure = scores >= low
            sure = scores > high
            above[q] += sure.sum(axis=1)
            i, j = np.nonzero(unsure ^ sure)
            exact = pair_scores(query, gallery, i + q.start, j + g.start)
            above[q] += np.bincount(i[exact >= best[q][i]], minlength=q.stop - q.start)
    return above


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
