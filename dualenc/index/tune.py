"""The search setting of an index, chosen by measuring: the cheapest that reaches the asked-for ANN recall.

ANN recall@k of a query: the share of exact search's k best rows that the index returns too. A returned row that ties
with the last of them (within 1e-6) counts as well: of equal rows, either is right.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np

from dualenc.index.exact import exact_search
from dualenc.index.kinds import Kind
from dualenc.index.vectors import Rows, as_rows, is_store, unit_rows

K = 10
MOST = 1000  # queries: half choose, half report; at recall 0.95 the standard error of either is about 0.005
TIE = 1e-6


@dataclass(frozen=True)
class Queries:
    """Queries to measure with. own: the row of the gallery that each of them is, when they are its own rows."""

    rows: np.ndarray  # (Q, D) unit float32
    origin: str
    own: np.ndarray | None = None  # (Q,)


def pick_queries(source: Any, gallery: Rows, side: str, given: Any, seed: int = 0) -> Queries:
    """At most 1,000 queries, in random order: the given ones; else the store's other side; else the gallery's rows.

    given: (Q, D) array or open store (its other side; its `side` when that is empty). Queries of the other modality
    lie elsewhere than the gallery, and the gallery's own rows say little about them.
    """
    rng = np.random.default_rng(seed)
    other = "text" if side == "image" else "image"
    rows, origin = None, ""
    if given is not None:
        fits = not is_store(given) or len(given.side(other))
        rows, origin = as_rows(given, other if fits else side, "queries"), "the queries given"
    elif is_store(source) and len(source.side(other)):
        rows, origin = source.side(other), f"the store's {other}s"
    if rows is None:
        own = rng.permutation(len(gallery))[:MOST]
        taken = unit_rows(gallery.take(own), "vectors", numbers=own)
        return Queries(taken, f"the index's own {side} rows, each without itself (no queries were given)", own)
    if rows.dim != gallery.dim:
        raise ValueError(f"queries have D = {rows.dim}, the vectors {gallery.dim}; they come from different encoders")
    if not len(rows):
        raise ValueError("queries are empty; give some, or leave queries out")
    chosen = rng.permutation(len(rows))[:MOST]
    return Queries(unit_rows(rows.take(chosen), "queries", numbers=chosen), origin)


def tune(
    kind: Kind, ids: np.ndarray, gallery: Rows, queries: Queries, knob: str, ladder: list[int], target: float
) -> tuple[int, dict[str, Any]]:
    """(setting, record): the first of `ladder` whose ANN recall@10 is `target` at least, on half of the queries.

    To count, the mean must reach the target by two standard errors: a setting that got there by luck would disappoint
    the next queries; the last, which is all there is, may reach it barely. The record's value is measured on the other
    half. ValueError: no setting reaches the target.
    """
    k = min(K, len(ids) - (queries.own is not None))
    record = {"k": k, "target": target, "queries": queries.origin, "rows": len(ids)}
    if k < 1:
        return ladder[-1], {**record, "value": None, "reason": "one row: there is nothing to find"}
    truth = _truth(ids, gallery, queries, k)
    half = max(1, len(queries.rows) // 2)
    choose, report = np.arange(half), np.arange(half if len(queries.rows) > 1 else 0, len(queries.rows))
    tried: dict[int, float] = {}
    for setting in ladder:
        recall = _recall(kind, ids, queries, truth, k, setting, choose)
        tried[setting] = float(recall.mean())
        if tried[setting] - 2 * float(recall.std()) / len(recall) ** 0.5 >= target:
            break
    if tried[setting] < target:
        raise ValueError(
            f"{kind.name} reaches ANN recall@{k} {tried[setting]:.4f} at best ({knob} {setting}; measured on "
            f"{queries.origin}), below recall={target}; ask for less, or take recipe ivf or flat"
        )
    reported = _recall(kind, ids, queries, truth, k, setting, report)
    counts = {"chosen_on": len(choose), "reported_on": len(report), "held_out": len(queries.rows) > 1}
    return setting, {
        **record,
        "value": round(float(reported.mean()), 4),
        **counts,
        "tried": [{knob: rung, "recall": round(value, 4)} for rung, value in tried.items()],
    }


def measure_latency(kind: Kind, ids: np.ndarray, queries: np.ndarray, setting: int | None) -> dict[str, Any]:
    """Milliseconds for one query alone (median of up to 100) and per query of a batch, k = 10, after a warm-up."""
    kind.search(queries[:10], K, setting, ids)
    single = []
    for query in queries[:100]:
        start = time.perf_counter()
        kind.search(query[None], K, setting, ids)
        single.append(time.perf_counter() - start)
    start = time.perf_counter()
    kind.search(queries, K, setting, ids)
    batch = (time.perf_counter() - start) / len(queries)
    timed = {"single_ms": round(statistics.median(single) * 1e3, 4), "batch_ms_per_query": round(batch * 1e3, 4)}
    return {**timed, "batch": len(queries), "threads": faiss.omp_get_max_threads()}


def _truth(ids: np.ndarray, gallery: Rows, queries: Queries, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Exact search's ids (Q, k) and its last score (Q, 1)."""
    rows, scores = exact_search(queries.rows, gallery, k + (queries.own is not None))
    found, scores = _without(queries.own, ids, ids[rows], scores)
    return found, scores[:, -1:]


def _recall(
    kind: Kind, ids: np.ndarray, queries: Queries, truth: tuple[np.ndarray, np.ndarray], k: int, setting: int, part: Any
) -> np.ndarray:
    """ANN recall@k of each of the queries in `part`."""
    own = None if queries.own is None else queries.own[part]
    found, scores = kind.search(queries.rows[part], k + (own is not None), setting, ids)
    found, scores = _without(own, ids, found, scores)
    right = (found[:, :, None] == truth[0][part][:, None, :]).any(axis=2) | (scores >= truth[1][part] - TIE)
    return np.minimum(right.sum(axis=1), k) / k


def _without(
    own: np.ndarray | None, ids: np.ndarray, found: np.ndarray, scores: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Drop each query's own id from its k + 1 results, or the last result where it is not among them."""
    if own is None:
        return found, scores
    keep = found != ids[own][:, None]
    keep[keep.all(axis=1), -1] = False
    shape = (len(found), found.shape[1] - 1)
    return found[keep].reshape(shape), scores[keep].reshape(shape)
