"""One row per query: its rank and its best hits with their scores, for whoever wants to look behind the mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dualenc.evaluate.metrics import sides
from dualenc.evaluate.ranks import Floats, Ints, pair_scores
from dualenc.evaluate.sections import Embedded
from dualenc.evaluate.top_hits import Hits, top_hits
from dualenc.files import whole_file

TOP = 10
NAME = pa.dictionary(pa.int32(), pa.string())  # keys and captions of hits: each is in memory once
HIT = pa.struct([("row", pa.int64()), ("key", NAME), ("text", NAME), ("score", pa.float64()), ("right", pa.bool_())])
SCHEMA = pa.schema(
    [
        ("way", pa.string()),  # text_to_image or image_to_text
        ("query_row", pa.int64()),  # the caption's row, or the image's, in the data
        ("key", pa.string()),
        ("text", pa.string()),  # the caption; null where an image asks
        ("rank", pa.int64()),  # of the best right row, from 1
        ("score", pa.float64()),  # cosine of the best right row
        ("hits", pa.list_(HIT)),  # the first rows of the gallery, best first
    ]
)


def per_query(
    embedded: Embedded,
    ranks: Mapping[str, Ints],
    top: int = TOP,
    relevant: Mapping[str, Sequence[Ints]] | None = None,
) -> pa.Table:
    """A table of SCHEMA with a row for each query of every way in `ranks`, in the order of the data.

    ranks: {"text_to_image": (T,), "image_to_text": (N,)}, counted from 0 as `dualenc.evaluate.ranks.ranks` gives them;
    here they count from 1. relevant: the right rows of each query, where others than its own are right, too (what the
    ranks were counted with). Of equal scores the wrong one stands first, so a query of rank r <= top has its first right
    hit at place r. Computed in blocks: no N × T matrix. ValueError: ranks of other data, an unknown way.
    """
    ways = {"text_to_image": (embedded.texts, embedded.images), "image_to_text": (embedded.images, embedded.texts)}
    if unknown := ranks.keys() - ways.keys():
        raise ValueError(f"there is no way {sorted(unknown)[0]!r}; the ways are {' and '.join(ways)}")
    if relevant is None:
        own = sides(embedded.images, embedded.texts, embedded.image_row, ks=())
        relevant = {way: side[2] for way, side in own.items()}
    tables = []
    for way, rank in ranks.items():
        (query, gallery), right = ways[way], relevant[way]
        if not len(rank) == len(right) == len(query):
            raise ValueError(
                f"{way}: {len(rank)} ranks and right rows of {len(right)} queries, but the data has {len(query)}; "
                "give those of this data"
            )
        hits = top_hits(query, gallery, right, top)
        tables.append(_table(way, embedded, np.asarray(rank), best_scores(query, gallery, right), hits))
    return pa.concat_tables(tables) if tables else SCHEMA.empty_table()


def write_per_query(path: str | Path, table: pa.Table) -> None:
    """Write the table as parquet, whole or not at all."""
    with whole_file(path) as partial:
        pq.write_table(table, partial, compression="zstd")


def refuse_other(path: str | Path) -> None:
    """FileExistsError where a file is there that is no such table: only those are made anew."""
    if not Path(path).exists():
        return
    try:
        same = pq.read_schema(path).names == SCHEMA.names
    except (pa.ArrowException, OSError):
        same = False
    if not same:
        raise FileExistsError(f"{path} is there and holds something else; name another file, or remove it")


def best_scores(query: np.ndarray, gallery: np.ndarray, relevant: Sequence[Ints]) -> Floats:
    """(Q,) float64: each query's cosine with the best of its right rows."""
    counts = [len(rows) for rows in relevant]
    scores = pair_scores(query, gallery, np.repeat(np.arange(len(counts)), counts), np.concatenate(relevant))
    return np.maximum.reduceat(scores, np.cumsum([0, *counts[:-1]]))


def names(embedded: Embedded, side: str) -> tuple[pa.Array, pa.Array]:
    """(keys, texts) of a side, "image" or "text", row by row; nulls where nobody knows them. An image's text is null."""
    table, rows = (embedded.metadata, len(embedded.images))
    keys = _column(table, "key", rows)
    if side == "image":
        return keys, pa.nulls(rows, pa.string())
    table, rows = embedded.text_metadata, len(embedded.texts)
    own = _column(table, "key", rows) if "key" in table.column_names else keys.take(pa.array(embedded.image_row))
    return own, _column(table, "caption", rows)


def _column(table: pa.Table, name: str, rows: int) -> pa.Array:
    if name not in table.column_names:
        return pa.nulls(rows, pa.string())
    return table[name].cast(pa.string()).combine_chunks()


def _table(way: str, embedded: Embedded, rank: Ints, score: Floats, hits: Hits) -> pa.Table:
    asking, answering = ("text", "image") if way == "text_to_image" else ("image", "text")
    keys, texts = names(embedded, asking)
    hit_keys, hit_texts = (column.dictionary_encode() for column in names(embedded, answering))
    flat = pa.array(hits.rows.ravel())
    columns = [
        flat,
        hit_keys.take(flat),
        hit_texts.take(flat),
        pa.array(hits.scores.ravel()),
        pa.array(hits.right.ravel()),
    ]
    structs = pa.StructArray.from_arrays(columns, fields=list(HIT))
    offsets = pa.array(np.arange(len(rank) + 1, dtype=np.int32) * hits.rows.shape[1])
    return pa.table(
        [
            pa.array([way] * len(rank)),
            pa.array(np.arange(len(rank))),
            keys,
            texts,
            pa.array(rank.astype(np.int64) + 1),
            pa.array(score),
            pa.ListArray.from_arrays(offsets, structs, type=SCHEMA.field("hits").type),
        ],
        schema=SCHEMA,
    )
