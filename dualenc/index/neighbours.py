"""The graph of nearest neighbours: for each row the k rows most like it, written as parquet by the block."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from dualenc.files import refuse_existing, whole_file
from dualenc.index.vectors import Rows, unit_blocks

QUERIES = 4_096  # rows searched for at once
SCHEMA = pa.schema([("id", pa.int64()), ("neighbour", pa.int64()), ("rank", pa.int16()), ("score", pa.float32())])
MOST = 32_767  # neighbours that `rank` can count

Search = Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray]]


def write_graph(search: Search, rows: Rows, ids: np.ndarray, k: int, out: str | Path, progress: bool = True) -> int:
    """Write the k nearest neighbours of each row to the parquet file `out`, whole or not at all; returns how many lines.

    search: (queries (Q, D), count) -> ids (Q, count) int64 and scores (Q, count) float32, best first, -1 at the end
    where fewer are found. rows: unit within 5e-3; ids (N,): theirs, as `search` gives them. A line is `id`, `neighbour`
    (never the row itself; equal rows are neighbours), `rank` (0 = the nearest) and `score`; lines stand in the order of
    rows, then rank. Rows have fewer than k lines only where `search` finds fewer.
    ValueError: k or ids that do not fit. FileExistsError: `out` is there already.
    """
    if isinstance(k, bool) or not isinstance(k, (int, np.integer)) or not 1 <= k <= MOST:
        raise ValueError(f"k={k!r}; ask for a whole number of neighbours, from 1 to {MOST}")
    if len(ids) != len(rows):
        raise ValueError(f"{len(ids)} ids for {len(rows)} rows; give one each")
    refuse_existing(Path(out))
    lines, hidden = 0, None if progress else True
    with (
        whole_file(out) as partial,
        pq.ParquetWriter(partial, SCHEMA, compression="zstd") as writer,
        tqdm(total=len(rows), unit="row", unit_scale=True, desc="neighbours", disable=hidden) as bar,
    ):
        for first, block in unit_blocks(rows):
            for start in range(0, len(block), QUERIES):
                queries = block[start : start + QUERIES]
                own = ids[first + start : first + start + len(queries)]
                table = _lines(own, *search(queries, int(k) + 1), int(k))
                writer.write_table(table)
                lines += table.num_rows
                bar.update(len(queries))
    return lines


def _lines(own: np.ndarray, found: np.ndarray, scores: np.ndarray, k: int) -> pa.Table:
    """What was found for the rows `own` (Q,), without themselves, as lines.

    A row need not come first among its equals, nor be found at all: then the last of the k + 1 is left out instead.
    """
    keep = (found != own[:, None]) & (found >= 0)
    rank = np.cumsum(keep, axis=1) - 1
    keep &= rank < k
    columns = [np.broadcast_to(own[:, None], keep.shape)[keep], found[keep], rank[keep], scores[keep]]
    arrays = [pa.array(column, field.type) for column, field in zip(columns, SCHEMA, strict=True)]
    return pa.table(arrays, schema=SCHEMA)
