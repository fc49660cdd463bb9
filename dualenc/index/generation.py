"""One generation of an index on disk: opened whole by readers, replaced whole by the one writer.

    manifest.json            names the files below, with sizes and checksums; replaced last, by one atomic rename
    index.000001.faiss       the FAISS index; ids are in it
    ids.000001.npy           int64 (N,): the id of each row
    metadata.000001.parquet  row r belongs to ids[r]; absent when there is no metadata

A change writes files with the next number, then the manifest, then removes the old ones. Readers hold the old files
open; a writer that is killed leaves files that no manifest names, which the next change removes.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dualenc.index.catalog import Catalog
from dualenc.index.kinds import KINDS, Kind
from dualenc.index.manifest import check_files, file_entry, mean_of, read_manifest, versions, write_manifest

_OURS = re.compile(r"(index\.\d{6}\.faiss|ids\.\d{6}\.npy|metadata\.\d{6}\.parquet|\.manifest\.json\..*\.tmp)")


@dataclass(frozen=True)
class Generation:
    """Everything that a search needs, of one moment of the index."""

    manifest: dict[str, Any]
    kind: Kind
    catalog: Catalog

    @property
    def setting(self) -> int | None:
        """The value of the kind's knob that tuning chose; None for flat."""
        return next(iter(self.manifest["search"].values()), None)


def open_generation(folder: Path, verify: bool = False, mapped: bool = True) -> Generation:
    """Open what the manifest names. mapped: rows stay on disk until they are read (a writer wants them in memory)."""
    while True:
        manifest = read_manifest(folder)
        try:
            check_files(folder, manifest, verify)
            return _open(folder, manifest, mapped)
        except (OSError, ValueError):
            # a writer may have replaced these very files since the manifest was read: only then is it worth another try
            if read_manifest(folder)["generation"] == manifest["generation"]:
                raise


def _open(folder: Path, manifest: dict[str, Any], mapped: bool) -> Generation:
    paths = {role: folder / Path(entry["name"]).name for role, entry in manifest["files"].items()}
    build = manifest["recipe"]["build"]
    if build["kind"] not in KINDS or not {"index", "ids"} <= paths.keys():
        raise ValueError(f"{folder}: kind {build['kind']!r} is unknown to this dualenc; update it")
    catalog = Catalog(paths["ids"], paths.get("metadata"))
    if len(catalog.ids) != manifest["rows"]:
        raise ValueError(
            f"{paths['ids']} has {len(catalog.ids)} ids for {manifest['rows']} rows; restore it or build again"
        )
    total = manifest["rows"] + manifest["tombstones"]
    read = KINDS[build["kind"]].read
    kind = read(paths["index"], total, manifest["dim"], build.get("nlist", 0), mean_of(manifest), mapped)
    return Generation(manifest, kind, catalog)


def write_generation(
    folder: Path, head: dict[str, Any], kind: Kind, ids: np.ndarray, metadata: pa.Table | None
) -> None:
    """Write generation `head["generation"]` of an index and make it the current one.

    head: the manifest, less what follows from kind, ids and metadata.
    """
    number = f"{head['generation']:06d}"
    paths = {"index": folder / f"index.{number}.faiss", "ids": folder / f"ids.{number}.npy"}
    if metadata is not None:
        paths["metadata"] = folder / f"metadata.{number}.parquet"
    try:
        kind.write(paths["index"])
        np.save(paths["ids"], ids)
        if metadata is not None:
            pq.write_table(metadata, paths["metadata"])
        for path in paths.values():
            with open(path, "rb") as file:
                os.fsync(file.fileno())
        files = {role: file_entry(path) for role, path in paths.items()}
        write_manifest(folder, _manifest(head, kind, len(ids), files))
    except BaseException:
        for path in paths.values():
            path.unlink(missing_ok=True)
        raise
    named = {path.name for path in paths.values()}
    for path in folder.iterdir():
        if _OURS.fullmatch(path.name) and path.name not in named:
            path.unlink(missing_ok=True)


def _manifest(head: dict[str, Any], kind: Kind, rows: int, files: dict[str, Any]) -> dict[str, Any]:
    codes = kind.code_bytes(head["dim"])
    sizes = {
        "index": files["index"]["bytes"],
        "codes": codes,
        "vectors": 0,  # original rows kept beside the codes for re-ranking: these kinds' codes are the rows
        "per_vector": round(files["index"]["bytes"] / max(rows, 1), 1),
    }
    counts = {"rows": rows, "tombstones": kind.total - rows}
    mean = None if kind.mean is None else [float(value) for value in kind.mean]
    return {**head, **counts, "bytes": sizes, "files": files, "versions": versions(), "mean": mean}
