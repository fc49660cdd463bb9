"""What an index is worth, measured: its setting, ANN recall and time. Of one that is being built, or that stands."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np

from dualenc.index.kinds import Kind
from dualenc.index.queries import Queries
from dualenc.index.segment import Segment, search_segments
from dualenc.index.tune import K, OutOfReach, measure_latency, truth, tune
from dualenc.index.vectors import BLOCK, Rows, unit_rows

SEEN = 1.05  # as slow as exact search by more than this counts as slower: below it, times of one run are noise


@dataclass(frozen=True)
class Measured:
    """The search setting that was chosen, and what the manifest says of it."""

    setting: dict[str, int]
    record: dict[str, Any]

    @property
    def latency(self) -> dict[str, Any]:
        """Milliseconds of a query alone and in a batch."""
        return self.record["latency"]

    @property
    def cost(self) -> float:
        """Geometric mean of the two."""
        return math.sqrt(self.latency["single_ms"] * self.latency["batch_ms_per_query"])


class Picked:
    """Some rows of a gallery, by their numbers in it."""

    def __init__(self, rows: Rows, numbers: np.ndarray):
        self._rows, self._numbers, self.dim = rows, numbers, rows.dim

    def __len__(self) -> int:
        return len(self._numbers)

    def blocks(self, rows: int = BLOCK) -> Iterator[np.ndarray]:
        for start in range(0, len(self), rows):
            yield self._rows.take(self._numbers[start : start + rows])

    def take(self, rows: Any) -> np.ndarray:
        return self._rows.take(self._numbers[rows])


def measure(
    kind: Kind, recipe: dict[str, Any], rows: Rows, ids: np.ndarray, queries: Queries, target: float
) -> Measured:
    """Tune a kind that holds all rows but the queries' held-out ones. OutOfReach: it does not reach the target."""
    held = queries.held
    if held is None or kind.total == len(rows):
        inside, originals = ids, rows
    else:
        inside, originals = np.delete(ids, held), Picked(rows, np.delete(np.arange(len(rows)), held))
    segment = Segment(1, kind, inside, np.zeros(0, np.int64), None if kind.exact else originals)
    return measured_search([segment], recipe, rows, ids, queries, target, kind.exact)


def measured_search(
    segments: list[Segment],
    recipe: dict[str, Any],
    gallery: Rows,
    ids: np.ndarray,
    queries: Queries,
    target: float,
    exact: bool,
) -> Measured:
    """Tune and time the search of segments. gallery, ids: what exact search compares, held-out rows included."""

    def search(some: np.ndarray, k: int, setting: dict[str, int]) -> tuple[np.ndarray, np.ndarray]:
        return search_segments(segments, some, k, setting)

    ladders = recipe["search"]
    scores = "exact" if exact or "rerank" in ladders else "approximate"
    if not ladders:
        setting: dict[str, int] = {}
        record: dict[str, Any] = {
            "k": K,
            "target": target,
            "value": 1.0,
            "lower": 1.0,
            "queries": "none: every row is compared",
        }
    else:
        k = min(K, len(gallery) - (0 if queries.held is None else len(queries.held)))
        right = truth(queries.rows, gallery, k, ids, queries.held) if len(queries.rows) else None
        setting, record = tune(search, ladders, queries.rows, right, target, scores == "exact")
        record = {**record, "measured_on": record["queries"], "queries": queries.origin}
    timed = queries.rows if len(queries.rows) else unit_rows(gallery.take(np.arange(min(100, len(gallery)))), "vectors")
    results = "approximate" if ladders else "exact"
    times = measure_latency(search, timed, setting)
    record = {**record, "rows": len(gallery)}
    return Measured(
        setting, {"search": setting, "scores": scores, "results": results, "ann_recall": record, "latency": times}
    )


def refuse_slower_than_exact(measured: Measured, rows: Rows, queries: Queries) -> None:
    """OutOfReach where exact search answers as fast, alone or in batches: then nothing is gained by missing rows."""
    times = exact_times(rows, queries.rows[: measured.latency["batch"]])
    for how in ("single_ms", "batch_ms_per_query"):
        if measured.latency[how] > SEEN * times[how]:
            name = "alone" if how == "single_ms" else "in a batch"
            raise OutOfReach(f"{measured.latency[how]:.3g} ms a query {name}, exact search takes {times[how]:.3g} ms")


def exact_times(rows: Rows, queries: np.ndarray) -> dict[str, float]:
    """What exact search would take on all rows, from its time on one block: it is linear in rows."""
    first = unit_rows(next(iter(rows.blocks())), "vectors")

    def search(some: np.ndarray, k: int, setting: dict[str, int]) -> tuple[np.ndarray, np.ndarray]:
        scores, found = faiss.knn(some, first, min(k, len(first)), metric=faiss.METRIC_INNER_PRODUCT)
        return found, scores

    times = measure_latency(search, queries, {})
    return {how: times[how] * len(rows) / len(first) for how in ("single_ms", "batch_ms_per_query")}
