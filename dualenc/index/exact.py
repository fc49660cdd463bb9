"""Exact search by streaming blocks: the truth that an index is measured against, in memory that N does not change."""

from __future__ import annotations

from typing import Any

import faiss
import numpy as np

from dualenc.index.vectors import as_queries, as_rows, unit_blocks


def exact_search(queries: Any, vectors: Any, k: int, side: str = "image") -> tuple[np.ndarray, np.ndarray]:
    """The k best rows of `vectors` (array or store) for each query: (Q, k) int64 row numbers, (Q, k) float32 cosines.

    Best first. Fewer than k rows: -1 and -inf at the end. `side` says which side of a store is searched.
    """
    gallery = as_rows(vectors, side)
    queries = as_queries(queries, gallery.dim)
    rows = np.full((len(queries), k), -1, np.int64)
    scores = np.full((len(queries), k), -np.inf, np.float32)
    for first, block in unit_blocks(gallery):
        found_scores, found = faiss.knn(queries, block, min(k, len(block)), metric=faiss.METRIC_INNER_PRODUCT)
        all_rows = np.concatenate([rows, found.astype(np.int64) + first], axis=1)
        all_scores = np.concatenate([scores, found_scores], axis=1)
        order = np.lexsort((all_rows, -all_scores), axis=1)[:, :k]
        rows, scores = np.take_along_axis(all_rows, order, 1), np.take_along_axis(all_scores, order, 1)
    return rows, scores
