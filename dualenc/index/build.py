"""Build an index: what was asked is checked, a kind is chosen, filled and tuned, and the folder appears whole."""

from __future__ import annotations

import hashlib
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from dualenc.files import read_json, refuse_existing, write_json
from dualenc.index.budget import check_latency, check_memory, parse_bytes, parse_seconds
from dualenc.index.catalog import as_table
from dualenc.index.choose import as_json, choose, table
from dualenc.index.fill import PART, fill, source_key
from dualenc.index.generation import commit, write_segment
from dualenc.index.kinds import KINDS, Kind
from dualenc.index.lock import making
from dualenc.index.manifest import new_head
from dualenc.index.measure import Measured, measure, refuse_slower_than_exact
from dualenc.index.queries import Queries, pick_queries
from dualenc.index.recipe import load_recipe
from dualenc.index.segments import spread
from dualenc.index.tune import OutOfReach
from dualenc.index.vectors import Rows, as_ids, as_rows, identity, is_store, kept_dtype, source_files, unit_rows
from dualenc.index.whose import refuse_foreign, source_folder, store_metadata, whose
from dualenc.index.work import OURS, clear

DISAPPOINTS = 1.25  # times the estimate of the next candidate: built in full, that one may be better


@dataclass(frozen=True)
class Asked:
    """What an index shall be made of, and what it shall reach."""

    rows: Rows
    ids: np.ndarray
    metadata: pa.Table | None
    queries: Queries
    recall: float
    memory: int | None
    latency: float | None
    files: list[Path] | None  # the store's .npy files, where codes can be scored again from them
    source: str | None  # what tells these rows from others, where a killed build is to go on
    dtype: str  # else: what the original rows are kept as
    work: Path  # where a build that is killed leaves what it has


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
    out = Path(out)
    refuse_existing(out)
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
    given = as_table(store_metadata(source, side) if metadata is None else metadata, len(rows))
    fingerprint, name = whose(source, encoder)
    if is_store(queries):
        refuse_foreign(fingerprint, queries.fingerprint, "the query store")
    resolved = load_recipe(recipe, len(rows))
    picked = pick_queries(source, rows, side, queries)
    files = source_files(source, side) if is_store(source) else None
    with making(out) as (work, folder):
        asked = Asked(
            rows,
            ids,
            given,
            picked,
            recall,
            most_bytes,
            most_seconds,
            files,
            _source(rows, files),
            kept_dtype(rows),
            work,
        )
        chosen, kind, measured, choice = _build(asked, resolved)
        entry = _write(folder, asked, kind, measured)
        check_memory(entry["files"]["index"]["bytes"], most_bytes, kind.name, len(rows), rows.dim)
        whose_and_what = new_head(kind.mean, side, rows.dim, ids, (fingerprint, name), source_folder(source))
        head = {**whose_and_what, "recipe": chosen, "choice": choice, "spread": entry["spread"], **measured.record}
        commit(folder, head, [entry])


def _build(asked: Asked, recipe: dict[str, Any]) -> tuple[dict[str, Any], Kind, Measured, list[dict[str, Any]] | None]:
    """(recipe, kind, what was measured, auto's table) of the index that reaches what is asked."""
    if recipe["build"]["kind"] != "auto":
        return recipe, *_one(asked, recipe), None
    candidates = _candidates(asked, recipe)
    able = sorted((one for one in candidates if one["order"] is not None), key=lambda one: one["order"])
    recipes = {one["recipe"]: load_recipe(one["recipe"], len(asked.rows)) for one in able}
    exact_fits = any(not chosen["search"] for chosen in recipes.values())
    best: tuple[dict[str, Any], Callable[[], Kind], Measured] | None = None
    last: OutOfReach | None = None
    for one in able:
        if best is not None and (one["guessed"] or best[2].cost <= DISAPPOINTS * _estimate(one)):
            continue
        chosen = recipes[one["recipe"]]
        sys.stderr.write(f"index: building {one['recipe']}\n")
        try:
            kind, measured = _one(asked, chosen)
            if exact_fits and chosen["search"]:
                refuse_slower_than_exact(measured, asked.rows, asked.queries)
        except OutOfReach as error:
            one["reason"], last = f"built in full: {error}", error
            clear(asked.work, *OURS)  # the next candidate is another build
            continue
        clear(asked.work, *OURS)
        one["measured"] = {how: measured.latency[how] for how in ("single_ms", "batch_ms_per_query")}
        if best is None or measured.cost < best[2].cost:
            best = one, _aside(kind, asked.work / "best.faiss"), measured
        del kind  # two at once would take twice the memory
    if best is None:
        raise ValueError(str(last)) from last
    candidates = [{**one, "chosen": one is best[0]} for one in candidates]
    sys.stderr.write(table(candidates) + "\n")
    return {**recipes[best[0]["recipe"]], "asked": recipe["name"]}, best[1](), best[2], candidates


def _aside(kind: Kind, path: Path) -> Callable[[], Kind]:
    """Put an index on the disk; what takes it up again."""
    kind.write(path)
    read, build, dim, total, mean = type(kind).read, kind.build, kind.dim, kind.total, kind.mean
    return lambda: read(path, build, dim, total, mean, mapped=False)


def _estimate(candidate: dict[str, Any]) -> float:
    """A candidate's cost as its trials have it; see `Measured.cost`."""
    return math.sqrt(candidate["single_ms"] * candidate["batch_ms"])


def _candidates(asked: Asked, recipe: dict[str, Any]) -> list[dict[str, Any]]:
    """auto's table, as JSON; kept while the build is under way, since another day's timings may choose otherwise."""
    kept = asked.work / "choice.json"
    resumes = len(asked.rows) > PART
    queries = hashlib.sha256(np.ascontiguousarray(asked.queries.rows).data).hexdigest()
    key = [asked.source, queries, recipe, asked.recall, asked.memory, asked.latency]
    if resumes and kept.exists():
        try:
            there = read_json(kept)
            if there["asked"] == key:
                return there["candidates"]
        except (ValueError, KeyError, TypeError):
            pass  # half a file of a killed build: chosen again
    chosen = choose(asked.rows, asked.queries, recipe, asked.recall, asked.memory, asked.latency, rerank=True)
    candidates = as_json(chosen)
    if resumes:
        asked.work.mkdir(parents=True, exist_ok=True)
        write_json(kept, {"asked": key, "candidates": candidates})
    return candidates


def _source(rows: Rows, files: list[Path] | None) -> str | None:
    """What tells these rows from any others: of files, their size and time; of rows in memory, a hash of them all."""
    if len(rows) <= PART:
        return None  # nothing of them is kept
    if files:
        states = [(str(path.absolute()), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
        return f"{states} {source_key(rows)}"
    digest = hashlib.sha256()
    for block in rows.blocks():
        digest.update(np.ascontiguousarray(block).data)
    return f"{len(rows)} x {rows.dim}: {digest.hexdigest()}"


def _one(asked: Asked, recipe: dict[str, Any]) -> tuple[Kind, Measured]:
    """Fill, measure without the held-out rows, then add those."""
    build, rows, held = recipe["build"], asked.rows, asked.queries.held
    needed = KINDS[build["kind"]].bytes_needed(build, len(rows), rows.dim)
    check_memory(needed, asked.memory, recipe["name"], len(rows), rows.dim)  # before the work
    if "nprobe" not in recipe["search"] and "efSearch" not in recipe["search"]:
        held = None  # exact: nothing to measure, nothing to hold out
    kind = fill(build, rows, asked.ids, asked.work, skip=held, source=asked.source)
    measured = measure(kind, recipe, rows, asked.ids, asked.queries, asked.recall)
    check_latency(measured.latency["single_ms"] / 1e3, asked.latency, recipe["name"], measured.setting)
    if held is not None:
        for start in range(0, len(held), 1 << 16):
            some = held[start : start + (1 << 16)]
            kind.add(unit_rows(rows.take(some), "vectors", numbers=some), asked.ids[some])
    kind.keep_setting(measured.setting)
    return kind, measured


def _write(folder: Path, asked: Asked, kind: Kind, measured: Measured) -> dict[str, Any]:
    """The one segment of a new index. Codes that are scored again keep their rows, or know the store's files."""
    rerank = "rerank" in measured.setting
    blocks = asked.rows.blocks() if rerank and not asked.files else None
    store = identity(asked.files) if rerank and asked.files else None
    return write_segment(
        folder, 1, kind, asked.ids, asked.metadata, blocks, asked.dtype, store, spread(kind, asked.rows)
    )
