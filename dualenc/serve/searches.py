"""Searches: quick ones at once, others of the same index and settings together; what takes long goes another way.

Handing a search to a thread and back takes longer than a quick search where many ask, as each side waits for Python's lock
in turn. So quick ones are done on the event loop itself, together with those of the same round of it.
"""

from __future__ import annotations

import asyncio
import time
import weakref
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np

from dualenc.serve import threads
from dualenc.serve.gather import Gather
from dualenc.serve.lanes import Lane, to_its_end
from dualenc.serve.observe import hit, miss, stage
from dualenc.serve.problems import Problem

# searches that go together, fewer than the 20 from which FAISS's scores depend on how many; and seconds that they may take
BATCH, BUDGET = 16, 0.002
QUICK, SHALLOW = 0.0005, 100  # seconds, as measured, and hits, up to which a search is done on the event loop
NEWS = 0.1  # how much the last search counts in what one is expected to take
DEEP = 2000  # hits from which on a search is not quick
PATIENCE = 10.0  # seconds that a filter waits for those before it
Key = tuple[Any, int, str | None, int, float | None, str | None, int]  # index, and what `Index.page` takes
Hits = tuple[np.ndarray, np.ndarray]  # ids (n,) int64 and scores (n,) float32, best first


class Searches:
    """A lane for each index, and the pool for what takes long: deep pages, groups, filters that are new."""

    def __init__(self, names: list[str], plan: threads.Plan, run: Callable[..., Awaitable[Any]]):
        """run: calls a function in the pool."""
        self._lanes = {
            name: Lane(f"search {name}", self._timed, BATCH, plan.search, BUDGET, threads.search_alone)
            for name in names
        }
        self._quick = Gather("quick search", self._by_key, BATCH, BUDGET, quiet=0)
        self._run = run
        # by index (a generation): seconds that a plain search takes, about; and whose turn it is to prepare a filter
        self._cost: weakref.WeakKeyDictionary[Any, float] = weakref.WeakKeyDictionary()
        self._turns: weakref.WeakKeyDictionary[Any, asyncio.Lock] = weakref.WeakKeyDictionary()
        self._few = asyncio.Semaphore(plan.pool - 1)  # one thread of the pool is for all that is no filter

    async def search(
        self,
        name: str,
        index: Any,
        vector: np.ndarray,
        k: int,
        offset: int,
        threshold: float | None,
        where: str | None,
        group_by: str | None,
        without: int = -1,
    ) -> Hits:
        """Hits offset .. offset + k of a unit vector (D,), as `Index.page` finds them. ValueError: as it raises."""
        if where is not None:
            await self._filter(index, where)
        key: Key = (index, k, where, offset, threshold, group_by, without)
        with stage("search"):
            if group_by is not None or offset + k > DEEP:
                return (await self._run(_together, key, [vector]))[0]
            lane = self._lanes[name]
            if _plain(key) and self._cost.get(index, QUICK + 1) <= QUICK and not lane.closed:
                return await self._quick.do((key, vector))
            return await lane.do(vector, key)

    def _by_key(self, asked: list[tuple[Key, np.ndarray]]) -> list[Hits]:
        """Those of equal keys together."""
        hits = {
            key: iter(self._timed(key, [vector for other, vector in asked if other == key]))
            for key in dict.fromkeys(key for key, _ in asked)
        }
        return [next(hits[key]) for key, _ in asked]

    def _timed(self, key: Any, vectors: list[np.ndarray]) -> list[Hits]:
        started = time.perf_counter()
        hits = _together(key, vectors)
        if _plain(key):
            each = (time.perf_counter() - started) / len(vectors)
            before = self._cost.get(key[0], each)
            self._cost[key[0]] = before + NEWS * (each - before)
        return hits

    def close(self) -> list[Lane]:
        """Take nothing more; returns the lanes, to be joined."""
        for lane in self._lanes.values():
            lane.close()
        return list(self._lanes.values())

    async def _filter(self, index: Any, where: str) -> None:
        """Have a filter's rows found, in the pool, before the search that then finds them ready.

        The filters of an index wait for each other here, as in a thread each would keep others from it. Problem 503: one
        waited for too long.
        """
        if index.prepared(where):
            hit("filter")
            return
        miss("filter")
        turn = self._turns.setdefault(index, asyncio.Lock())
        with stage("filter"):
            try:
                await asyncio.wait_for(turn.acquire(), PATIENCE)
            except asyncio.TimeoutError:
                why = f"it waited {PATIENCE:g} s for the filters of other requests; try again"
                raise Problem(503, "Too many filters", why, {"Retry-After": "5"}) from None
            try:
                async with self._few:
                    if not index.prepared(where):  # as it may be since, by another request
                        await to_its_end(self._run(index.prepare, where))
            finally:
                turn.release()


def _plain(key: Key) -> bool:
    """Whether it is a search of the kind that may be quick."""
    _, k, where, offset, _, group_by, _ = key
    return where is None and group_by is None and offset + k <= SHALLOW


def _together(key: Key, vectors: list[np.ndarray]) -> list[Hits]:
    """The hits of each vector (D,), by one search."""
    index, k, where, offset, threshold, group_by, without = key
    ids, scores = index.page(np.stack(vectors), k, where, None, offset, threshold, group_by, without)
    found = (ids >= 0).sum(axis=1)
    return [(row[:n], score[:n]) for row, score, n in zip(ids, scores, found, strict=True)]
