"""Changes to an index that is there: add, upsert, remove, compact. Each holds the writer lock, ends in a new generation.

What is added becomes a segment of its own, so that an add costs what it adds; a segment that is less than twice as
large as the next one is joined with it, so that there are never more than some log2(rows) of them and each row is
rewritten as seldom (the logarithmic method: Bentley and Saxe, 1980).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from dualenc.index.catalog import as_table
from dualenc.index.generation import Generation, commit, open_generation, sweep, write_removed
from dualenc.index.lock import writer
from dualenc.index.manifest import read_manifest
from dualenc.index.segments import Draft, draft_of, joined, new_draft
from dualenc.index.vectors import Rows, as_ids, as_rows, is_store, kept_dtype
from dualenc.index.whose import refuse_foreign, store_metadata

LAST_ID = np.iinfo(np.int64).max


def add_rows(folder: Path, vectors: Any, ids: Any = None, metadata: Any = None, upsert: bool = False) -> None:
    """Add rows of an array, or of the index's side of a store; see `Index.add`."""
    with changing(folder) as now:
        rows, table = _fitting(now, vectors, metadata)
        if not len(rows):
            return
        if upsert:
            new_ids, replaced = _upserted(now, table, ids)
        else:
            new_ids, replaced = _new_ids(ids, len(rows), now.manifest["next_id"]), np.zeros(0, np.int64)
            known = new_ids[now.catalog.find(new_ids) >= 0]
            if len(known):
                raise ValueError(
                    f"id {known[0]} is in the index already; remove it first, add under another id, or upsert"
                )
        now.catalog.refuse_clash(table, len(rows))
        entries = _without(folder, now, replaced)
        keeps = None if now.segments[0].vectors is None else kept_dtype(rows)
        draft = new_draft(now.segments[0].kind.empty(), rows, new_ids, table, keeps)
        next_id = max(now.manifest["next_id"], int(new_ids.max()) + 1)
        _commit_with(folder, now, entries, draft, {"next_id": next_id})


def remove_rows(folder: Path, ids: Any) -> None:
    """Take rows out by id; see `Index.remove`."""
    with changing(folder) as now:
        gone = as_ids(np.unique(np.asarray(ids)))
        rows = now.catalog.find(gone)
        if (rows < 0).any():
            raise ValueError(f"id {gone[rows < 0][0]} is not in the index of {now.manifest['rows']} rows")
        if len(gone):
            commit(folder, next_head(now), _without(folder, now, rows))


def compact(folder: Path) -> None:
    """Make one segment of all, without what was removed; see `Index.compact`."""
    with changing(folder) as now:
        if len(now.segments) == 1 and not now.manifest["tombstones"]:
            return
        number = now.manifest["next_segment"]
        draft = joined([draft_of(folder, now, place) for place in range(len(now.segments))])
        entry = draft.write(folder, number, now.setting)
        commit(folder, {**next_head(now), "next_segment": number + 1}, [entry])


@contextlib.contextmanager
def changing(folder: Path) -> Iterator[Generation]:
    """The current generation, for its one writer; files of a change that fails are removed."""
    with writer(folder):
        now = open_generation(folder)
        if now.manifest["recipe"]["build"]["kind"] == "adopted":
            raise ValueError(
                f"{folder} was adopted as another program built it and is not changed; build one of our own"
            )
        try:
            yield now
        except BaseException:
            sweep(
                folder, read_manifest(folder)["segments"]
            )  # the old ones, or the new ones where those are named already
            raise


def next_head(now: Generation) -> dict[str, Any]:
    return {**now.head, "generation": now.manifest["generation"] + 1}


def _without(folder: Path, now: Generation, rows: np.ndarray) -> list[dict[str, Any]]:
    """The segments' entries once these rows (numbers over all segments) are removed."""
    entries, rows = list(now.entries), np.sort(rows)
    for place, (segment, start) in enumerate(zip(now.segments, now.catalog.starts, strict=False)):
        here = rows[(rows >= start) & (rows < start + segment.live)] - start
        if len(here):
            removed = np.union1d(segment.removed, segment.alive[here])
            entries[place] = write_removed(folder, entries[place], now.manifest["generation"] + 1, removed)
    return entries


def _commit_with(
    folder: Path, now: Generation, entries: list[dict[str, Any]], draft: Draft, head: dict[str, Any]
) -> None:
    """Add a segment, joined with the last ones while those are less than twice as large."""
    number = now.manifest["next_segment"]
    while entries and _worth_joining(now, len(entries) - 1, entries[-1], draft):
        draft = joined([draft_of(folder, now, len(entries) - 1, entries[-1]), draft])
        entries = entries[:-1]
    entry = draft.write(folder, number, now.setting)
    commit(folder, {**next_head(now), **head, "next_segment": number + 1}, [*entries, entry])


def _worth_joining(now: Generation, place: int, entry: dict[str, Any], draft: Draft) -> bool:
    left = entry["rows"] - entry["removed"]
    return left < 2 * len(draft.ids) and (now.segments[place].kind.joins or now.segments[place].lossless)


def _fitting(now: Generation, vectors: Any, metadata: Any) -> tuple[Rows, pa.Table | None]:
    """Rows to add and their metadata; ValueError where they do not go with the index."""
    rows = as_rows(vectors, now.manifest["side"])
    if rows.dim != now.manifest["dim"]:
        raise ValueError(f"vectors have D = {rows.dim}, the index {now.manifest['dim']}; embed them with its encoder")
    if is_store(vectors):
        refuse_foreign(now.manifest["fingerprint"], vectors.fingerprint, "the store to add")
    given = store_metadata(vectors, now.manifest["side"]) if metadata is None else metadata
    return rows, as_table(given, len(rows))


def _new_ids(ids: Any, count: int, next_id: int) -> np.ndarray:
    """The ids given, or the next ones that were never used: an id that was removed is not given out again."""
    if ids is not None:
        return as_ids(ids, count)
    if next_id + count - 1 > LAST_ID:
        raise ValueError(f"{count} ids after {next_id - 1} do not fit in int64; give ids")
    return np.arange(next_id, next_id + count, dtype=np.int64)


def _upserted(now: Generation, table: pa.Table | None, ids: Any) -> tuple[np.ndarray, np.ndarray]:
    """(ids of the rows to add, rows that they replace): a row whose key is there takes over its id."""
    if ids is not None:
        raise ValueError("upsert goes by the column `key`, and rows keep their ids; leave ids out")
    if table is None or "key" not in table.column_names:
        raise ValueError("upsert goes by the column `key`, which this metadata lacks; give it, or add without upsert")
    if pa.types.is_nested(table["key"].type):
        raise ValueError(f"the column `key` is {table['key'].type}; upsert needs texts or numbers")
    old = now.catalog.metadata
    keys = table["key"].to_pylist()
    have = (
        {} if old is None or "key" not in old.column_names else _places(old["key"].to_pylist(), set(keys), "the index")
    )
    _places(keys, set(keys), "the rows to add")
    rows = np.array([have.get(key, -1) for key in keys], np.int64)
    fresh = np.flatnonzero(rows < 0)
    new_ids = np.empty(len(keys), np.int64)
    new_ids[fresh] = _new_ids(None, len(fresh), now.manifest["next_id"])
    new_ids[rows >= 0] = now.catalog.ids[rows[rows >= 0]]
    return new_ids, rows[rows >= 0]


def _places(keys: list[Any], wanted: set[Any], where: str) -> dict[Any, int]:
    """Row of each wanted key. ValueError: a key that is null, or there twice."""
    places: dict[Any, int] = {}
    for row, key in enumerate(keys):
        if key not in wanted:
            continue
        if key is None:
            raise ValueError(f"a key of {where} is null; upsert needs one for each row")
        if places.setdefault(key, row) != row:
            raise ValueError(f"key {key!r} occurs more than once in {where}; upsert cannot tell which row is meant")
    return places
