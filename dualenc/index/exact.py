"""Exact search by streaming blocks: the truth that an index is measured against, in memory that N does not change."""

from __future__ import annotations

from typing import Any

import faiss
import numpy as np

from dualenc.index.vectors import as_queries, as_rows, unit_blocks


def exact_search(
    queries: Any, vectors: Any, k: int, side: str = "image", skip: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The k best rows of `vectors` (array or store) for each query: (Q, k) int64 row numbers, (Q, k) float32 cosines.

    Best first. Fewer than k rows: -1 and -inf at the end. `side` says which side of a store is searched. skip: numbers
    of rows that are not found, in rising order; the others keep their numbers.
    """
    gallery = as_rows(vectors, side)
    queries = as_queries(queries, gallery.dim)
    skip = _row_numbers(skip, len(gallery))
    rows = np.full((len(queries), k), -1, np.int64)
    scores = np.full((len(queries), k), -np.inf, np.float32)
    for first, block in unit_blocks(gallery):
        numbers = _kept(first, len(block), skip)
        kept = block if len(numbers) == len(block) else block[numbers - first]
        found_scores, found = faiss.knn(queries, kept, min(k, len(kept)), metric=faiss.METRIC_INNER_PRODUCT)
        all_rows = np.concatenate([rows, numbers[found]], axis=1)
        all_scores = np.concatenate([scores, found_scores], axis=1)
        order = np.lexsort((all_rows, -all_scores), axis=1)[:, :k]
        rows, scores = np.take_along_axis(all_rows, order, 1), np.take_along_axis(all_scores, order, 1)
    return rows, scores


def _kept(first: int, count: int, skip: np.ndarray) -> np.ndarray:
    """The numbers first .. first + count - 1 without those in `skip`, in order."""
    here = skip[slice(*np.searchsorted(skip, [first, first + count]))]
    return np.delete(np.arange(first, first + count), here - first)


def _row_numbers(skip: np.ndarray | None, count: int) -> np.ndarray:
    numbers = np.zeros(0, np.int64) if skip is None else np.asarray(skip, dtype=np.int64)
    if len(numbers) and (numbers[0] < 0 or numbers[-1] >= count or (np.diff(numbers) <= 0).any()):
        raise ValueError(f"skip holds row numbers from 0 to {count - 1} in rising order, each once; sort them first")
    return numbers
