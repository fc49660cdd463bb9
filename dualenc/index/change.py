"""Changes to an index that is there: add, remove. Each holds the writer lock and ends in a new generation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from dualenc.index.build import refuse_foreign, store_metadata
from dualenc.index.catalog import as_table, join
from dualenc.index.generation import open_generation, write_generation
from dualenc.index.lock import writer
from dualenc.index.vectors import as_ids, as_rows, is_store, unit_blocks

LAST_ID = np.iinfo(np.int64).max


def add_rows(folder: Path, vectors: Any, ids: Any = None, metadata: Any = None) -> None:
    """Add rows of an array, or of the index's side of a store; see `Index.add`."""
    with writer(folder):
        now = open_generation(folder, mapped=False)
        old_ids = np.asarray(now.catalog.ids)
        rows = as_rows(vectors, now.manifest["side"])
        if rows.dim != now.manifest["dim"]:
            raise ValueError(
                f"vectors have D = {rows.dim}, the index {now.manifest['dim']}; embed them with its encoder"
            )
        if is_store(vectors):
            refuse_foreign(now.manifest["fingerprint"], vectors.fingerprint, "the store to add")
        new_ids = _ids(ids, len(rows), now.manifest["next_id"])
        known = new_ids[now.catalog.find(new_ids) >= 0]
        if len(known):
            raise ValueError(f"id {known[0]} is in the index already; remove it first, or add under another id")
        given = store_metadata(vectors, now.manifest["side"]) if metadata is None else metadata
        table = join(now.catalog.metadata, len(old_ids), as_table(given, len(rows)), len(rows))
        if not len(rows):
            return
        for first, block in unit_blocks(rows):
            now.kind.add(block, new_ids[first : first + len(block)])
        next_id = max(now.manifest["next_id"], int(new_ids.max()) + 1)
        head = {**now.manifest, "generation": now.manifest["generation"] + 1, "next_id": next_id}
        write_generation(folder, head, now.kind, np.concatenate([old_ids, new_ids]), table)


def remove_rows(folder: Path, ids: Any) -> None:
    """Take rows out by id; see `Index.remove`."""
    with writer(folder):
        now = open_generation(folder, mapped=False)
        gone = as_ids(np.unique(np.asarray(ids)))
        rows = now.catalog.find(gone)
        if (rows < 0).any():
            raise ValueError(f"id {gone[rows < 0][0]} is not in the index of {now.manifest['rows']} rows")
        if not len(gone):
            return
        now.kind.remove(gone)
        keep = np.ones(now.manifest["rows"], bool)
        keep[rows] = False
        table = None if now.catalog.metadata is None else now.catalog.metadata.filter(pa.array(keep))
        head = {**now.manifest, "generation": now.manifest["generation"] + 1}
        write_generation(folder, head, now.kind, np.asarray(now.catalog.ids)[keep], table)


def _ids(ids: Any, count: int, next_id: int) -> np.ndarray:
    """The ids given, or the next ones that were never used: an id that was removed is not given out again."""
    if ids is not None:
        return as_ids(ids, count)
    if next_id + count - 1 > LAST_ID:
        raise ValueError(f"{count} ids after {next_id - 1} do not fit in int64; give ids")
    return np.arange(next_id, next_id + count, dtype=np.int64)
