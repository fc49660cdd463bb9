"""Segments in the making: rows that are about to be written, and several segments joined into one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from dualenc.index.catalog import join
from dualenc.index.generation import Generation, write_segment
from dualenc.index.kinds import Kind
from dualenc.index.vectors import Rows, kept_dtype, unit_blocks, unit_rows

SAMPLE = 10_000  # rows whose distance to their centroids is looked at

Blocks = Callable[[], Iterator[tuple[np.ndarray, np.ndarray]]]  # -> (ids (n,), the original rows (n, D)) by the block


@dataclass
class Draft:
    """A segment that is not written yet."""

    kind: Kind  # filled; where kinds do not join, the empty one that `joined` fills anew
    ids: np.ndarray
    table: pa.Table | None
    originals: Blocks | None  # None where only codes are left
    keeps: str | None  # dtype to keep originals in beside the codes; None: they are not kept
    spread: float | None = None

    def write(self, folder: Path, number: int, setting: dict[str, int]) -> dict[str, Any]:
        """Write it as segment `number`; returns its entry for the manifest. setting: the index's, for FAISS alone."""
        blocks = None
        if self.keeps:
            assert self.originals is not None
            blocks = (rows for _, rows in self.originals())
        self.kind.keep_setting(setting)
        return write_segment(
            folder, number, self.kind, self.ids, self.table, blocks, self.keeps or "float32", spread=self.spread
        )


def new_draft(kind: Kind, rows: Rows, ids: np.ndarray, table: pa.Table | None, keeps: str | None) -> Draft:
    """Rows that are new to the index, added to an empty `kind`."""
    for first, block in unit_blocks(rows):
        kind.add(block, ids[first : first + len(block)])

    def originals() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        first = 0
        for block in rows.blocks():
            yield ids[first : first + len(block)], block
            first += len(block)

    return Draft(kind, ids, table, originals, keeps, spread(kind, rows))


def spread(kind: Kind, rows: Rows, seed: int = 0) -> float | None:
    """Mean squared distance of some rows to their centroids; None for kinds without."""
    chosen = np.sort(np.random.default_rng(seed).permutation(len(rows))[:SAMPLE])
    return kind.drift(unit_rows(rows.take(chosen), "vectors", numbers=chosen)) if len(chosen) else None


def draft_of(folder: Path, now: Generation, place: int, entry: dict[str, Any] | None = None) -> Draft:
    """A segment that is there, less the rows that `entry` says were removed."""
    segment, file = now.segments[place], now.catalog.files[place]
    if entry is not None and entry is not now.entries[place]:
        removed = np.load(folder / entry["files"]["removed"]["name"], allow_pickle=False)
        segment = replace(segment, removed=removed)
    entry = now.entries[place] if entry is None else entry
    kind, alive = segment.kind, segment.alive
    ids = np.asarray(segment.ids)[alive]
    if kind.joins:  # a copy in memory, of the files that are open: a writer elsewhere may have replaced them
        kind = kind.empty()
        kind.absorb(segment.kind)
        if len(segment.removed):
            kind.remove(np.asarray(segment.ids)[segment.removed])
    return Draft(
        kind,
        ids,
        None if file is None else file.table.take(pa.array(alive)),
        segment.originals if segment.lossless else None,
        None if segment.vectors is None else kept_dtype(segment.vectors),
        entry["spread"],
    )


def joined(drafts: list[Draft]) -> Draft:
    """Several drafts as one, rows in their order. ValueError: a graph over codes whose original rows nobody has."""
    first = drafts[0]
    if len(drafts) == 1 and first.kind.joins:
        return first
    ids = np.concatenate([draft.ids for draft in drafts])
    table = join([(draft.table, len(draft.ids)) for draft in drafts])
    sources = [draft.originals for draft in drafts if draft.originals is not None]
    keeps = None
    if first.keeps:
        keeps = "float16" if all(draft.keeps == "float16" for draft in drafts) else "float32"

    def originals() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for source in sources:
            yield from source()

    whole = len(sources) == len(drafts)
    kind = _one_kind(drafts, originals if whole else None)
    return Draft(kind, ids, table, originals if whole else None, keeps, _mean_spread(drafts))


def _one_kind(drafts: list[Draft], originals: Blocks | None) -> Kind:
    kind = drafts[0].kind
    if kind.joins:
        for draft in drafts[1:]:
            kind.absorb(draft.kind)
        return kind
    if originals is None:
        raise ValueError(
            f"{kind.name} over {kind.build['codes']} codes cannot be joined without the original rows, which this index "
            "does not keep; build it again from them"
        )
    kind = kind.empty()
    for ids, rows in originals():
        kind.add(unit_rows(rows, "the original rows"), ids)
    return kind


def _mean_spread(drafts: list[Draft]) -> float | None:
    if any(draft.spread is None for draft in drafts):
        return None
    rows = sum(len(draft.ids) for draft in drafts)
    return sum(draft.spread * len(draft.ids) for draft in drafts if draft.spread is not None) / max(rows, 1)
