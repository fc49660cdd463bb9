"""Searches timed by turns, and what was wanted beside what was measured."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from index_data import K
from timing import progress, seconds

from dualenc.index import Index

THREADS, REPEATS = 2, 7
BATCH, SINGLE = 1000, 100  # queries: one call of all, and one call each
LEAST = 0.2  # seconds that a turn lasts at least, by searching the same batch several times
PAUSE = 0.05  # seconds before a turn, in which the threads of the one before stop spinning


@dataclass(frozen=True)
class Way:
    """One way of searching: `batch` and `single` each search once and return the seconds that it took."""

    batch: Callable[[], float]
    single: Callable[[], float]
    queries: int = BATCH
    singles: int = SINGLE


def way(search: Callable[[np.ndarray], Any], queries: np.ndarray) -> Way:
    """Timed here: `search` takes (Q, D)."""
    alone = queries[:SINGLE]

    def one_by_one() -> None:
        for query in alone:
            search(query[None])

    return Way(lambda: seconds(lambda: search(queries)), lambda: seconds(one_by_one), len(queries), len(alone))


def ours(index: Index, queries: np.ndarray, **named: Any) -> Way:
    """Our index, by `Index.search`."""
    return way(lambda some: index.search(some, K, **named), queries)


def theirs(client: Any, queries: np.ndarray, setting: int | None) -> Way:
    """A peer (index_peers.Client), timed in its own process."""
    alone = queries[:SINGLE].copy()
    single = lambda: client.seconds(alone, K, setting, single=True)  # noqa: E731
    return Way(lambda: client.seconds(queries, K, setting), single, len(queries), len(alone))


def by_turns(ways: Mapping[str, Way], label: str, repeats: int = REPEATS) -> dict[str, dict[str, float]]:
    """{"queries_per_second" in batches, "single_ms"} of each way: medians of `repeats`, forwards and backwards by turns."""
    rounds = {}
    for name, each in ways.items():  # and all are warm
        rounds[name] = int(np.clip(LEAST / max(each.batch(), 1e-6), 1, 50))
        each.single()
    taken: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in ways}
    for repeat in range(repeats):
        progress(f"{label}: {repeat + 1} of {repeats}")
        for name in list(ways) if repeat % 2 == 0 else reversed(ways):
            time.sleep(PAUSE)
            taken[name][0].append(statistics.fmean(ways[name].batch() for _ in range(rounds[name])))
            taken[name][1].append(ways[name].single())
    return {
        name: {
            "queries_per_second": round(ways[name].queries / statistics.median(batches), 1),
            "single_ms": round(statistics.median(singles) / ways[name].singles * 1e3, 4),
        }
        for name, (batches, singles) in taken.items()
    }


def built(source: Any, out: Path, **named: Any) -> tuple[Index, float]:
    """Our index and the seconds that building took: training, tuning, writing, opening."""
    start = time.perf_counter()
    index = Index.build(source, out, **named)
    return index, round(time.perf_counter() - start, 2)


def chosen(index: Index) -> dict[str, Any]:
    """What the builder made, in short, from the manifest; of what `auto` weighed, that which it measured."""
    manifest = index.manifest
    tried = [dict(row) for row in manifest.get("choice") or [] if row["recall"] is not None]
    return {
        "recipe": manifest["recipe"]["name"],
        "build": manifest["recipe"]["build"],
        "search": manifest["search"],
        "recall_reported": manifest["ann_recall"]["value"],
        "bytes": manifest["bytes"],
        **({"tried": tried} if tried else {}),
    }


def goal(what: str, measured: float | None, least: float | None = None, most: float | None = None) -> dict[str, Any]:
    """A figure beside what was wanted of it; None, which could not be measured, is not met."""
    assert (least is None) != (most is None)
    wanted = f">= {least:g}" if least is not None else f"<= {most:g}"
    met = measured is not None and (measured >= least if least is not None else measured <= most)
    return {
        "what": what,
        "wanted": wanted,
        "measured": None if measured is None else float(f"{measured:.4g}"),
        "met": met,
    }


def faster(
    what: str, times: Mapping[str, Mapping[str, float]], one: str, other: str, least: float
) -> list[dict[str, Any]]:
    """Goals: `one` searches at least `least` times as fast as `other`, in batches and query by query."""
    batch = times[one]["queries_per_second"] / times[other]["queries_per_second"]
    single = times[other]["single_ms"] / times[one]["single_ms"]
    return [goal(f"{what}, batches", batch, least=least), goal(f"{what}, single queries", single, least=least)]
