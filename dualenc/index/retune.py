"""Choose the search setting of an index that stands."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from dualenc.index.budget import check_latency, parse_seconds
from dualenc.index.catalog import Catalog
from dualenc.index.change import changing, next_head
from dualenc.index.generation import Generation, commit
from dualenc.index.measure import Picked, measured_search
from dualenc.index.queries import pick_queries
from dualenc.index.segment import Segment
from dualenc.index.segments import draft_of
from dualenc.index.vectors import BLOCK, is_store
from dualenc.index.whose import refuse_foreign


class Gallery:
    """The original rows of an index as `Rows`. ValueError, once they are read, where only codes are left."""

    def __init__(self, catalog: Catalog):
        self._catalog, self.dim = catalog, catalog.segments[0].kind.dim

    def __len__(self) -> int:
        return len(self._catalog)

    def blocks(self, rows: int = BLOCK) -> Iterator[np.ndarray]:
        for start in range(0, len(self), rows):
            yield self.take(np.arange(start, min(start + rows, len(self))))

    def take(self, rows: Any) -> np.ndarray:
        return self._catalog.vectors(np.asarray(rows))


def tune_index(
    folder: Path, queries: Any = None, recall: float | None = None, latency: float | str | None = None
) -> dict[str, Any]:
    """Choose the search setting again, without building again; see `Index.tune`. Returns the new record."""
    with changing(folder) as now:
        manifest = now.manifest
        target = manifest["ann_recall"]["target"] if recall is None else recall
        if not 0 < target <= 1:
            raise ValueError(f"recall={recall!r}; ANN recall is a share above 0 and at most 1, like 0.95")
        if not len(now.catalog):
            raise ValueError(f"{folder} has no rows left: there is nothing to measure; add some first")
        kind = now.segments[0].kind
        recipe = manifest["recipe"]  # with all settings that may be tried, whichever was chosen from them before
        rows = Gallery(now.catalog)
        if is_store(queries):
            refuse_foreign(manifest["fingerprint"], queries.fingerprint, "the query store")
        asked = pick_queries(rows, rows, manifest["side"], queries)
        if asked.held is not None and kind.name == "hnsw":
            raise ValueError(
                f"{folder} is a graph, which leads to each of its own rows: they are no test; give queries (--queries STORE)"
            )
        held = asked.held if recipe["search"] else None
        segments = now.segments if held is None else _without(folder, now, held)
        measured = measured_search(segments, recipe, rows, now.catalog.ids, asked, target, kind.exact)
        check_latency(
            measured.latency["single_ms"] / 1e3, parse_seconds(latency), manifest["recipe"]["name"], measured.setting
        )
        commit(folder, {**next_head(now), **measured.record}, now.entries)
        return measured.record


def _without(folder: Path, now: Generation, held: np.ndarray) -> list[Segment]:
    """The segments less some rows (numbers over all segments), in memory.

    A filter would leave the rows out as well, but a search widens for filters, or compares what they leave exactly: what
    is measured then would not be what a setting is worth later.
    """
    gallery, starts, parts = Gallery(now.catalog), now.catalog.starts, []
    for place, (start, stop) in enumerate(itertools.pairwise(starts)):
        draft = draft_of(folder, now, place)
        here = held[(held >= start) & (held < stop)] - start
        if len(here):
            draft.kind.remove(draft.ids[here])
        originals = None if draft.kind.exact else Picked(gallery, np.delete(np.arange(start, stop), here))
        ids = np.delete(draft.ids, here)
        parts.append(Segment(now.segments[place].number, draft.kind, ids, np.zeros(0, np.int64), originals))
    return parts
