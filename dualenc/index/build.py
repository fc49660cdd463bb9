"""Build an index: vectors by the block into FAISS, then the search setting that measuring chooses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from dualenc.files import refuse_existing, whole_folder
from dualenc.index.budget import check_latency, check_memory, parse_bytes, parse_seconds
from dualenc.index.catalog import as_table
from dualenc.index.generation import write_generation
from dualenc.index.kinds import KINDS, Kind
from dualenc.index.manifest import FORMAT, VERSION
from dualenc.index.recipe import load_recipe
from dualenc.index.tune import K, Queries, measure_latency, pick_queries, tune
from dualenc.index.vectors import Rows, as_ids, as_rows, is_store, unit_blocks, unit_rows


def build(
    source: Any,
    out: str | Path,
    ids: Any = None,
    metadata: Any = None,
    recipe: str | Path | dict[str, Any] = "auto",
    recall: float = 0.95,
    memory: int | str | None = None,
    latency: float | str | None = None,
    queries: Any = None,
    encoder: Any = None,
    side: str = "image",
) -> None:
    """Build an index folder; see `Index.build`, which this is."""
    refuse_existing(Path(out))
    if side not in ("image", "text"):
        raise ValueError(f'side={side!r}; give "image" or "text"')
    if not 0 < recall <= 1:
        raise ValueError(f"recall={recall!r}; ANN recall is a share above 0 and at most 1, like 0.95")
    most_bytes, most_seconds = parse_bytes(memory), parse_seconds(latency)
    rows = as_rows(source, side)
    if not len(rows):
        raise ValueError(
            f"{f'the store has no {side}s' if is_store(source) else 'vectors has no rows'}: nothing to index"
        )
    ids = np.arange(len(rows), dtype=np.int64) if ids is None else as_ids(ids, len(rows))
    table = as_table(store_metadata(source, side) if metadata is None else metadata, len(rows))
    fingerprint, name = whose(source, encoder)
    if is_store(queries):
        refuse_foreign(fingerprint, queries.fingerprint, "the query store")
    resolved = load_recipe(recipe, len(rows))
    shape = (resolved["build"]["kind"], len(rows), rows.dim)
    check_memory(len(rows) * 4 * rows.dim, most_bytes, *shape)  # before the work, where it can be told
    asked = pick_queries(source, rows, side, queries)
    kind = _fill(resolved["build"], rows, ids)
    measured = _measure(kind, ids, rows, asked, resolved["search"], recall, most_seconds)
    head = {
        "format": FORMAT,
        "version": VERSION,
        "generation": 1,
        "recipe": resolved,
        "metric": "cosine",
        "scores": "exact",
        "side": side,
        "dim": rows.dim,
        "next_id": int(ids.max()) + 1,
        "fingerprint": fingerprint,
        "encoder": name,
        **measured,
    }
    with whole_folder(out) as folder:
        write_generation(folder, head, kind, ids, table)
        check_memory(sum(path.stat().st_size for path in folder.glob("*.faiss")), most_bytes, *shape)


def store_metadata(source: Any, side: str) -> Any:
    """The metadata that a store has for a side; None for plain vectors."""
    if not is_store(source):
        return None
    return source.metadata() if side == "image" else source.text_metadata()


def whose(source: Any, encoder: Any) -> tuple[str | None, str | None]:
    """(fingerprint, name or path) of the encoder: the store's, or the one given; ValueError where they differ."""
    theirs = (source.fingerprint, source.encoder) if is_store(source) else (None, None)
    if encoder is None:
        return theirs
    given = fingerprint_of(encoder)
    refuse_foreign(theirs[0], given, "the encoder given")
    path = getattr(encoder, "path", None)
    return given, theirs[1] if path is None else str(path)


def fingerprint_of(encoder: Any) -> str:
    """The fingerprint that `encoder` is, or has."""
    fingerprint = encoder if isinstance(encoder, str) else getattr(encoder, "fingerprint", None)
    if not isinstance(fingerprint, str) or not fingerprint:
        raise ValueError(f"encoder={encoder!r} has no fingerprint; give an encoder or its fingerprint")
    return fingerprint


def refuse_foreign(ours: str | None, theirs: str | None, name: str) -> None:
    """ValueError when both fingerprints are known and differ: their cosines would mean nothing."""
    if ours is not None and theirs is not None and ours != theirs:
        raise ValueError(
            f"{name} has fingerprint {theirs[:12]}…, the vectors are from {ours[:12]}…; "
            "use the encoder that embedded them, or embed and build again with this one"
        )


def _measure(
    kind: Kind, ids: np.ndarray, rows: Rows, asked: Queries, search: dict, recall: float, most_seconds: float | None
) -> dict[str, Any]:
    """Choose the setting, store it in the FAISS index; what the manifest says of it, of recall and of time."""
    setting, record = None, {"k": K, "target": recall, "value": 1.0, "queries": "none: every row is compared"}
    if kind.knob:
        setting, record = tune(kind, ids, rows, asked, kind.knob, search[kind.knob], recall)
    kind.keep_setting(setting)
    times = measure_latency(kind, ids, asked.rows, setting)
    check_latency(times["single_ms"] / 1e3, most_seconds, kind.name, f" at {kind.knob} {setting}" if kind.knob else "")
    return {
        "search": {kind.knob: setting} if kind.knob else {},
        "results": "approximate" if kind.knob else "exact",
        "ann_recall": record,
        "latency": times,
    }


def _fill(build: dict[str, Any], rows: Rows, ids: np.ndarray) -> Kind:
    """Train where the kind trains, then add all rows by the block."""
    mean = _mean(rows) if build.get("centred") else None
    sample = _sample(rows, build) if "nlist" in build else None
    kind = KINDS[build["kind"]].new(build, rows.dim, mean, sample)
    with tqdm(total=len(rows), unit="row", unit_scale=True, desc="index", disable=None) as bar:
        for first, block in unit_blocks(rows):
            kind.add(block, ids[first : first + len(block)])
            bar.update(len(block))
    return kind


def _mean(rows: Rows) -> np.ndarray:
    """(D,) float32 mean of all rows, summed in float64."""
    total = np.zeros(rows.dim)
    for _, block in unit_blocks(rows):
        total += block.sum(axis=0, dtype=np.float64)
    return (total / len(rows)).astype(np.float32)


def _sample(rows: Rows, build: dict[str, Any]) -> np.ndarray:
    """Rows to train centroids on: random, never the first ones, which may all be of one kind."""
    count = min(len(rows), build["nlist"] * build["train_rows_per_list"])
    chosen = np.sort(np.random.default_rng(build["seed"]).permutation(len(rows))[: max(count, build["nlist"])])
    return unit_rows(rows.take(chosen), "vectors", numbers=chosen)
