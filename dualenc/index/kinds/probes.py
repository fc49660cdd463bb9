"""Which inverted lists to read when a filter leaves only some of the rows."""

from __future__ import annotations

import numpy as np

AT_ONCE = 1024  # queries whose products with all centroids are held at once
SPARE = 4  # lists looked at per list that would do if all held as many rows: most queries then need no second look


def lists_with_rows(
    queries: np.ndarray, centroids: np.ndarray, counts: np.ndarray, first: float, wanted: float
) -> tuple[np.ndarray, np.ndarray]:
    """For each query (Q, D) the nearest lists that hold `wanted` allowed rows between them, less those that hold `first`.

    centroids: (L, D); counts: (L,) allowed rows in each list. Lists without any are passed over: a filter that leaves out
    a query's own surroundings sends it on to what is left, as far as needed. Returns the lists (Q, P) int64, -1 where
    there are fewer, and their inner products with the query (Q, P) float32.
    """
    inside = np.flatnonzero(counts)
    few = max(1, min(len(inside), int(np.ceil(SPARE * wanted / max(counts[inside].mean(), 1e-9)))))
    parts = []
    for start in range(0, len(queries), AT_ONCE):
        products = queries[start : start + AT_ONCE] @ centroids[inside].T  # (q, lists with rows)
        parts.append(_nearest(products, counts[inside], first, wanted, few))
    width = max(part[0].shape[1] for part in parts)
    assigned = np.full((len(queries), width), -1, np.int64)
    scores = np.zeros((len(queries), width), np.float32)
    for start, (chosen, products) in zip(range(0, len(queries), AT_ONCE), parts, strict=True):
        place = np.s_[start : start + len(chosen), : chosen.shape[1]]
        assigned[place] = np.where(chosen >= 0, inside[chosen], -1)
        scores[place] = products
    return assigned, scores


def _nearest(
    products: np.ndarray, counts: np.ndarray, first: float, wanted: float, few: int
) -> tuple[np.ndarray, np.ndarray]:
    """Columns with the highest products, those that hold rows `first` to `wanted`, -1 elsewhere; and their products."""
    if few < products.shape[1]:
        order = np.argpartition(-products, few - 1, axis=1)[:, :few]
        if (counts[order].sum(axis=1) < wanted).any():
            return _nearest(products, counts, first, wanted, products.shape[1])
        within = np.argsort(-np.take_along_axis(products, order, 1), axis=1)
        order = np.take_along_axis(order, within, 1)
    else:
        order = np.argsort(-products, axis=1)
    before = np.cumsum(counts[order], axis=1) - counts[order]
    needed = (first <= before) & (before < wanted)
    used = np.flatnonzero(needed.any(axis=0))
    span = slice(used[0], used[-1] + 1) if len(used) else slice(0, 1)
    order, needed = order[:, span], needed[:, span]
    return np.where(needed, order, -1), np.take_along_axis(products, order, 1)
