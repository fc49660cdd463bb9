"""One generation of an index on disk: opened whole by readers, replaced whole by the one writer.

    manifest.json                 names the segments and their files; replaced last, by one atomic rename
    index.000001.faiss            segment 1's FAISS index; ids are in it
    ids.000001.npy                int64 (N,): the id of each row of it
    metadata.000001.parquet       row r belongs to ids[r]; absent when there is no metadata
    vectors.000001.npy            the rows as they were given, where codes need them for re-ranking
    removed.000001.000004.npy     int64: rows of segment 1 that were removed, as generation 4 wrote it

A change writes new files, then the manifest, then removes what it no longer names. Readers hold the old files open; a
writer that is killed leaves files that no manifest names, which the next change removes.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dualenc.index.catalog import Catalog, MetadataFile
from dualenc.index.kinds import KINDS, Kind
from dualenc.index.manifest import check_files, file_entry, mean_of, read_manifest, versions, write_manifest
from dualenc.index.segment import Segment
from dualenc.index.vectors import Rows, check_identity, stored

_OURS = re.compile(
    r"((index|ids|metadata|vectors|removed)\.\d{6,}(\.\d{6,})?\.(faiss|npy|parquet)|\.manifest\.json\..*\.tmp)"
)


@dataclass(frozen=True)
class Generation:
    """Everything that a search needs, of one moment of the index."""

    manifest: dict[str, Any]
    segments: list[Segment]
    catalog: Catalog

    @property
    def setting(self) -> dict[str, int]:
        """The search setting that tuning chose; {} for flat."""
        return self.manifest["search"]

    @property
    def head(self) -> dict[str, Any]:
        """The manifest less what `commit` derives from the segments."""
        derived = ("segments", "rows", "tombstones", "bytes", "versions")
        return {key: value for key, value in self.manifest.items() if key not in derived}

    @property
    def entries(self) -> list[dict[str, Any]]:
        """The manifest's entry of each segment."""
        return self.manifest["segments"]


def open_generation(folder: Path, verify: bool = False) -> Generation:
    """Open what the manifest names; rows stay on disk until they are read. verify: hash every file first."""
    while True:
        manifest = read_manifest(folder)
        try:
            check_files(folder, manifest, verify)
            return _open(folder, manifest, verify)
        except (KeyError, TypeError, AttributeError, OverflowError, IndexError) as error:
            raise ValueError(
                f"{folder}: its manifest is not that of an index ({error!r}); restore it or build the index again"
            ) from error
        except (OSError, ValueError):
            # a writer may have replaced these very files since the manifest was read: only then is it worth another try
            if read_manifest(folder)["generation"] == manifest["generation"]:
                raise


def _open(folder: Path, manifest: dict[str, Any], verify: bool) -> Generation:
    kind = manifest["recipe"]["build"]["kind"]
    if kind not in KINDS:
        raise ValueError(f"{folder}: kind {kind!r} is unknown to this dualenc; update it")
    opened = [_open_segment(folder, manifest, entry, verify) for entry in manifest["segments"]]
    catalog = Catalog([segment for segment, _ in opened], [file for _, file in opened])
    if len(catalog) != manifest["rows"]:
        raise ValueError(f"{folder} has {len(catalog)} ids for {manifest['rows']} rows; restore it or build again")
    return Generation(manifest, catalog.segments, catalog)


def _open_segment(
    folder: Path, manifest: dict[str, Any], entry: dict[str, Any], verify: bool
) -> tuple[Segment, MetadataFile | None]:
    """Open one segment and its metadata."""
    paths = {role: folder / Path(file["name"]).name for role, file in entry["files"].items()}
    ids = _numbers(paths["ids"])
    removed = _numbers(paths["removed"]) if "removed" in paths else np.zeros(0, np.int64)
    if len(ids) and int(ids.min()) < 0:
        raise ValueError(f"{paths['ids']} holds id {ids.min()}, and ids are 0 or more; restore it or build again")
    if len(ids) != entry["rows"] or (len(removed) and not 0 <= removed.min() <= removed.max() < len(ids)):
        raise ValueError(f"{paths['ids']} has {len(ids)} ids for {entry['rows']} rows; restore it or build again")
    build = manifest["recipe"]["build"]
    read = KINDS[build["kind"]].read
    kind = read(paths["index"], build, manifest["dim"], entry["rows"], mean_of(manifest))
    vectors: Rows | None = None
    if "vectors" in paths:
        vectors = stored([paths["vectors"]])
    elif entry.get("store"):
        check_identity(entry["store"], verify)
        vectors = stored([Path(file["path"]) for file in entry["store"]])
    if vectors is not None and (len(vectors), vectors.dim) != (len(ids), manifest["dim"]):
        raise ValueError(
            f"{folder}: the original rows are {len(vectors)} x {vectors.dim}, the index has {len(ids)} x "
            f"{manifest['dim']}; restore the store, or build again"
        )
    file = MetadataFile(paths["metadata"], len(ids)) if "metadata" in paths else None
    return Segment(entry["number"], kind, ids, np.array(removed), vectors), file


def _numbers(path: Path) -> np.ndarray:
    """A (n,) int64 array, memory-mapped."""
    try:
        numbers = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path} does not open ({error}); restore it or build the index again") from error
    if numbers.ndim != 1 or numbers.dtype != np.int64:
        raise ValueError(f"{path} holds {numbers.dtype} {numbers.shape}, not int64 (rows,); restore it")
    return numbers


def write_segment(
    folder: Path,
    number: int,
    kind: Kind,
    ids: np.ndarray,
    metadata: pa.Table | None,
    vectors: Iterable[np.ndarray] | None = None,
    dtype: str = "float32",
    store: list[dict[str, Any]] | None = None,
    spread: float | None = None,
) -> dict[str, Any]:
    """Write a segment's files; returns its entry for the manifest, which nobody sees before `commit`.

    vectors: the original rows in blocks, kept beside codes as `dtype`. store: instead, the files they are in. spread:
    mean squared distance of the rows to their centroids.
    """
    paths = {role: folder / f"{role}.{number:06d}.{suffix}" for role, suffix in (("index", "faiss"), ("ids", "npy"))}
    if metadata is not None:
        paths["metadata"] = folder / f"metadata.{number:06d}.parquet"
    if vectors is not None:
        paths["vectors"] = folder / f"vectors.{number:06d}.npy"
    try:
        kind.write(paths["index"])
        np.save(paths["ids"], ids)
        if metadata is not None:
            pq.write_table(metadata, paths["metadata"])
        if vectors is not None:
            _write_vectors(paths["vectors"], vectors, len(ids), kind.dim, dtype)
        entry = {"number": number, "rows": len(ids), "removed": 0, "codes": kind.code_bytes, "spread": spread}
        return {**entry, "store": store, "files": {role: _settled(path) for role, path in paths.items()}}
    except BaseException:
        for path in paths.values():
            path.unlink(missing_ok=True)
        raise


def _write_vectors(path: Path, blocks: Iterable[np.ndarray], rows: int, dim: int, dtype: str) -> None:
    with open(path, "wb") as file:
        header = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": (rows, dim)}
        np.lib.format.write_array_header_1_0(file, header)
        for block in blocks:
            file.write(np.ascontiguousarray(block, dtype=dtype).data)


def write_removed(folder: Path, entry: dict[str, Any], generation: int, removed: np.ndarray) -> dict[str, Any]:
    """Write which rows of a segment are removed, as a new file; returns the segment's new entry."""
    path = folder / f"removed.{entry['number']:06d}.{generation:06d}.npy"
    np.save(path, removed)
    return {**entry, "removed": len(removed), "files": {**entry["files"], "removed": _settled(path)}}


def _settled(path: Path) -> dict[str, Any]:
    """A file's entry, once it is safely on the disk."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
    return file_entry(path)


def commit(folder: Path, head: dict[str, Any], entries: list[dict[str, Any]]) -> None:
    """Make `entries` the index's segments, by the manifest's rename; then remove the files that it no longer names.

    head: the manifest, less what follows from the segments.
    """
    write_manifest(folder, {**head, **_derived(entries), "versions": versions()})
    sweep(folder, entries)


def sweep(folder: Path, entries: list[dict[str, Any]]) -> None:
    """Remove the files of ours that no segment names: of past generations, or of a writer that was killed."""
    named = {file["name"] for entry in entries for file in entry["files"].values()}
    for path in folder.iterdir():
        if _OURS.fullmatch(path.name) and path.name not in named:
            with contextlib.suppress(OSError):  # it only takes up room; the next change tries again
                path.unlink()


def _derived(entries: list[dict[str, Any]]) -> dict[str, Any]:
    rows = sum(entry["rows"] - entry["removed"] for entry in entries)
    sizes = {
        role: sum(e["files"][role]["bytes"] for e in entries if role in e["files"]) for role in ("index", "vectors")
    }
    sizes["codes"] = sum(entry["codes"] for entry in entries)
    per_vector = round(sizes["index"] / max(rows, 1), 1)
    return {
        "rows": rows,
        "tombstones": sum(entry["removed"] for entry in entries),
        "bytes": {**sizes, "per_vector": per_vector},
        "segments": entries,
    }
