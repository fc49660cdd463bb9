"""Searching among the rows that a `where` leaves: random rows, and rows of a few clusters, which are far from most queries."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import faiss as _faiss
import numpy as np
import pyarrow as pa
from index_data import ROWS, SETS, K, described, recall, reseeded
from index_measure import BATCH, built, by_turns, chosen, goal, ours, way
from timing import progress, seconds

from dualenc.index import Index

faiss: Any = _faiss
TARGET = 0.95
SHARES = (0.5, 0.05, 0.001)
COLUMNS = ("draw", "place")  # uniform; the rank of the row's cluster, so that few clusters hold all that is left
SET = "graded"


def measure(options: Any) -> dict[str, Any]:
    """Each recipe of --filtered on one set."""
    rows = options.rows or ROWS
    clusters, side = SETS[SET]
    clusters = reseeded(clusters, rows / ROWS, options.seed)
    gallery, owner = side.draw(clusters, rows)
    queries = side.draw(clusters, BATCH, stream=1)[0]
    columns = values(owner, options.seed)
    truths = {
        (column, share): truth(queries, gallery, columns[column] < share) for column in COLUMNS for share in SHARES
    }
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        for recipe in options.filtered:
            index, taken = built(
                gallery, Path(folder) / recipe, recipe=recipe, recall=TARGET, metadata=pa.table(columns)
            )
            progress(f"filters: {recipe} built in {taken} s")
            cases = {
                f"{column} {share:g}": filtered(index, queries, column, share, gallery, columns, found, options)
                for (column, share), found in truths.items()
            }
            whole = by_turns({"index": ours(index, queries)}, f"filters, {recipe}", options.repeats)["index"]
            results[recipe] = {"seconds": taken, **chosen(index), "unfiltered": whole, "cases": cases}
    return {
        "data": {"rows": rows, "seed": options.seed, "set": described(SETS[SET])},
        "k": K,
        "recipes": results,
        "goals": [entry for recipe, found in results.items() for entry in goals(recipe, found)],
    }


def values(owner: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """The two columns, both uniform in 0..1 over the rows. owner: (N,) each row's cluster."""
    rng = np.random.default_rng([seed, 7])
    order = np.lexsort((rng.random(len(owner)), rng.permutation(owner.max() + 1)[owner]))
    place = np.empty(len(owner))
    place[order] = (np.arange(len(owner)) + 0.5) / len(owner)
    return {"draw": rng.random(len(owner)), "place": place}


def truth(queries: np.ndarray, gallery: np.ndarray, allowed: np.ndarray) -> np.ndarray:
    """Exact filtered search: (Q, K) row numbers of the best allowed rows; fewer columns where fewer are allowed."""
    rows = np.flatnonzero(allowed)
    _, found = faiss.knn(queries, gallery[rows], min(K, len(rows)), metric=faiss.METRIC_INNER_PRODUCT)
    return rows[found]


def filtered(
    index: Index,
    queries: np.ndarray,
    column: str,
    share: float,
    gallery: np.ndarray,
    columns: dict[str, np.ndarray],
    best: np.ndarray,
    options: Any,
) -> dict[str, Any]:
    """One filter: the first search, which makes the bitmap, apart; then by turns with exact search of the same rows."""
    where = f"{column} < {share:g}"
    first = seconds(lambda: index.search(queries[:1], K, where=where))
    found = index.search(queries, K, where=where)[0]
    assert np.isin(found[found >= 0], np.flatnonzero(columns[column] < share)).all(), "a row that `where` leaves out"
    subset = gallery[columns[column] < share]
    count = min(K, len(subset))
    scan = way(lambda some: faiss.knn(some, subset, count, metric=faiss.METRIC_INNER_PRODUCT), queries)
    ways = {"index": ours(index, queries, where=where), "exact": scan}
    times = by_turns(ways, f"filters, {where}", options.repeats)
    return {
        "where": where,
        "rows_left": len(subset),
        "recall": recall(found, best),
        "first_ms": round(first * 1e3, 3),
        **times["index"],
        "exact_of_gathered_rows": times["exact"],
    }


def goals(recipe: str, found: dict[str, Any]) -> list[dict[str, Any]]:
    """What the issue asks for."""
    return [
        goal(f"{recipe}, {case}: ANN recall@{K}", each["recall"], least=TARGET) for case, each in found["cases"].items()
    ]
