"""Take over an index that another program wrote: autofaiss's `image.index`, or any FAISS file of cosines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dualenc.index.catalog import as_table
from dualenc.index.folder import listed
from dualenc.index.generation import commit, write_segment
from dualenc.index.index import Index
from dualenc.index.kinds.adopted import Adopted
from dualenc.index.lock import making
from dualenc.index.manifest import new_head
from dualenc.index.measure import Picked, measure
from dualenc.index.queries import pick_queries
from dualenc.index.vectors import as_ids, as_rows, is_store
from dualenc.index.whose import source_folder, store_metadata, whose

NOT_MEASURED = "nothing: the vectors were not given (--store measures it)"


def adopt(
    file: str | Path,
    out: str | Path,
    metadata: Any = None,
    encoder: Any = None,
    store: Any = None,
    side: str = "image",
    recall: float | None = None,
    queries: Any = None,
) -> Index:
    """Make an index folder of a FAISS file that another program built, in a new folder `out`.

    metadata: a folder of parquet files whose rows go with the vectors in order (autofaiss's, clip-retrieval's), a
    pyarrow.Table or a list of dicts; default the store's. encoder: whose embeddings these are (a fingerprint or what
    has one). store: the embeddings that were indexed, array or open store; with them ANN recall is measured, on
    `queries`, else on the store's other side, and the setting chosen that reaches `recall`; without `recall` the file's
    own setting is kept, and without queries nothing is measured.
    The index can be searched; it cannot be added to or merged: its codes are another program's.
    ValueError: no FAISS index, one of another metric than cosine, or other rows than the metadata or store has.
    """
    kind = Adopted.adopt(Path(file))
    own = kind.own_ids()
    ids = np.arange(kind.total, dtype=np.int64) if own is None else as_ids(own, kind.total)
    fingerprint, name = whose(store, encoder)
    given = _metadata(metadata) if metadata is not None else store_metadata(store, side)
    if own is not None and given is not None:  # rows of metadata are numbered; the ids say which belongs to which
        given = _numbered(given, ids)
    table = as_table(given, kind.total)
    record, setting = _measured(kind, ids, store, queries, side, recall)
    kind.keep_setting(setting)
    recipe = {"name": "adopted", "build": kind.build, "search": _ladders(kind)}
    whose_and_what = new_head(None, side, kind.dim, ids, (fingerprint, name), source_folder(store))
    head = {**whose_and_what, "recipe": recipe, "choice": None, "spread": None, **record}
    with making(Path(out)) as (_, folder):
        commit(folder, head, [write_segment(folder, 1, kind, ids, table)])
    return Index.open(out)


def _measured(
    kind: Adopted, ids: np.ndarray, store: Any, queries: Any, side: str, recall: float | None
) -> tuple[dict[str, Any], dict[str, int]]:
    """(what the manifest says of recall and time, the setting)."""
    rows = None if store is None else as_rows(store, side)
    if rows is not None and (len(rows), rows.dim) != (kind.total, kind.dim):
        raise ValueError(
            f"the store has {len(rows)} x {rows.dim} {side}s, the index {kind.total} x {kind.dim}; give the embeddings "
            "that were indexed"
        )
    other = "text" if side == "image" else "image"
    if rows is None or (queries is None and not (is_store(store) and len(store.side(other)))):
        results = "approximate" if kind.knobs or not kind.exact else "exact"
        reason = NOT_MEASURED if rows is None else "no queries: give some, or a store that has the other side"
        if recall is not None:
            raise ValueError(f"recall={recall} cannot be measured: {reason}")
        record = {"k": 10, "target": None, "value": None, "reason": reason, "rows": kind.total}
        scores = "exact" if kind.exact else "approximate"
        return {
            "search": kind.setting,
            "scores": scores,
            "results": results,
            "ann_recall": record,
            "latency": {},
        }, kind.setting
    asked = pick_queries(store, rows, side, queries)
    ladders = _ladders(kind) if recall else {knob: [value] for knob, value in kind.setting.items()}
    if len(ids) and ids.max() >= len(rows):
        raise ValueError(f"the index has id {ids.max()}, the store rows 0 to {len(rows) - 1}; give what was indexed")
    inside = Picked(rows, ids)
    measured = measure(kind, {"search": ladders}, inside, ids, asked, recall or 1e-9)
    return measured.record, measured.setting


def _ladders(kind: Adopted) -> dict[str, list[int]]:
    """Settings to try: doubling, up to all lists or as many candidates as a graph is ever asked for."""
    most = kind.nlist or 2048
    return {knob: sorted({*(2**step for step in range(12) if 2**step < most), most}) for knob in kind.knobs}


def _metadata(metadata: Any) -> Any:
    """A table; of a folder, its parquet files in the order of the numbers in their names."""
    if not isinstance(metadata, (str, Path)):
        return metadata
    files = listed(Path(metadata), "*.parquet") if Path(metadata).is_dir() else [Path(metadata)]
    if not files:
        raise FileNotFoundError(f"{metadata} holds no .parquet; give the metadata folder that clip-retrieval wrote")
    try:
        return pa.concat_tables([pq.read_table(path) for path in files], promote_options="permissive")
    except pa.ArrowException as error:
        raise ValueError(f"{metadata} does not open ({str(error).splitlines()[0]}); give parquet files") from error


def _numbered(metadata: Any, ids: np.ndarray) -> pa.Table | None:
    """The rows of metadata with the numbers `ids`. ValueError: there are none of such a number."""
    count = metadata.num_rows if isinstance(metadata, pa.Table) else len(metadata) if isinstance(metadata, list) else 0
    table = as_table(metadata, count)
    if len(ids) and ids.max() >= count:
        raise ValueError(
            f"the index has id {ids.max()}, the metadata rows 0 to {count - 1}; give the metadata of what was indexed"
        )
    return None if table is None else table.take(pa.array(ids))
