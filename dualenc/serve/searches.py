"""Searches: those of the same index and settings go together; what takes long goes another way, so that nothing waits for it."""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np

from dualenc.serve import threads
from dualenc.serve.lanes import Lane
from dualenc.serve.observe import hit, miss, stage

BATCH, BUDGET = 16, 0.002  # searches that go together, and seconds that they may take
DEEP = 2000  # hits from which on a search is not quick
FILTERS = 64  # of an index that are known to be ready; the index keeps as many
Hits = tuple[np.ndarray, np.ndarray]  # ids (n,) int64 and scores (n,) float32, best first


class Searches:
    """A lane for each index, and the pool for what takes long: deep pages, groups, filters that are new."""

    def __init__(self, names: list[str], count: int, run: Callable[..., Awaitable[Any]]):
        """count: threads of each lane. run: calls a function in the pool."""
        self._lanes = {
            name: Lane(f"search {name}", _together, BATCH, count, BUDGET, threads.search_alone) for name in names
        }
        self._run = run
        self._filters: weakref.WeakKeyDictionary[Any, OrderedDict[str, None]] = weakref.WeakKeyDictionary()

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
    ) -> Hits:
        """Hits offset .. offset + k of a unit vector (D,), as `Index.page` finds them. ValueError: as it raises."""
        if where is not None:
            await self._filter(index, where)
        key = (index, k, where, offset, threshold, group_by)
        with stage("search"):
            if group_by is not None or offset + k > DEEP:
                return (await self._run(_together, key, [vector]))[0]
            return await self._lanes[name].do(vector, key)

    def close(self) -> list[Lane]:
        """Take nothing more; returns the lanes, to be joined."""
        for lane in self._lanes.values():
            lane.close()
        return list(self._lanes.values())

    async def _filter(self, index: Any, where: str) -> None:
        """Have a filter's rows found, in the pool, before the search that then finds them ready."""
        ready = self._filters.setdefault(index, OrderedDict())
        if where in ready:
            ready.move_to_end(where)
            hit("filter")
            return
        miss("filter")
        with stage("filter"):
            await self._run(index.ids_where, where)
        ready[where] = None
        while len(ready) > FILTERS:
            ready.popitem(last=False)


def _together(key: Any, vectors: list[np.ndarray]) -> list[Hits]:
    """The hits of each vector (D,), by one search."""
    index, k, where, offset, threshold, group_by = key
    ids, scores = index.page(np.stack(vectors), k, where, None, offset, threshold, group_by)
    found = (ids >= 0).sum(axis=1)
    return [(row[:n], score[:n]) for row, score, n in zip(ids, scores, found, strict=True)]
