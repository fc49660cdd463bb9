"""Write a store by parts, in one job or in several at once; a killed one goes on where it stood.

A marker `.parts/0003.json` follows each part that is safely there. The job that finds all of them writes the manifest,
last, and removes `.parts/`. Until then the folder is no store.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dualenc import __version__
from dualenc.embed.store import FORMAT, VERSION, check_unit
from dualenc.embed.tables import image_row_of, read_table
from dualenc.files import read_json, refuse_existing, sha256, whole_file, write_json


class StoreWriter:
    """Write a store by parts; any number of jobs may do so at once, each with the same plan and parts of its own.

    plan: JSON values that fix what the store will hold. Required: `bounds` (part p is made from source rows
    bounds[p] .. bounds[p+1] - 1), `dim`, `dtype` ("float16" or "float32"), `fingerprint`, `encoder` (where that lies: it
    may be moved between jobs, and the manifest says where it was last). Whatever else it names (source, preprocessing,
    ...) must be equal too. A job whose plan differs is refused: ValueError says where.
    """

    def __init__(self, folder: str | Path, plan: Mapping[str, Any]):
        self.folder, self.plan = Path(folder), _checked_plan(plan)
        self._markers = self.folder / ".parts"
        manifest = self.folder / "manifest.json"
        try:
            refuse_existing(self.folder)
        except (
            FileExistsError
        ):  # a store's first file is .parts, its last the manifest: asked in this order, one is seen
            if not self._markers.exists() and not manifest.exists():
                raise
        if manifest.exists() and not _is_store(manifest):
            raise FileExistsError(
                f"{self.folder} holds something else (its manifest.json is no store's); name another folder"
            )
        try:
            if not manifest.exists():
                self._markers.mkdir(parents=True, exist_ok=True)
                _create(self._markers / "plan.json", json.dumps(self.plan, ensure_ascii=False))
            # asked again: a job that finished in between has removed .parts, and ours with it or not
            theirs = read_json(manifest).get("plan") if manifest.exists() else read_json(self._markers / "plan.json")
        except FileNotFoundError:
            theirs = read_json(manifest).get("plan")
        if manifest.exists():
            shutil.rmtree(self._markers, ignore_errors=True)
        if difference := _difference(theirs, self.plan):
            raise ValueError(f"{self.folder} was begun with another plan ({difference}); use another folder")

    @property
    def parts(self) -> int:
        """How many parts the plan has."""
        return len(self.plan["bounds"]) - 1

    def missing_parts(self) -> list[int]:
        """Parts that no job has written yet; [] for a finished store."""
        if (self.folder / "manifest.json").exists():
            return []
        return [part for part in range(self.parts) if not self._marker(part).exists()]

    def write_part(
        self,
        part: int,
        images: np.ndarray,
        texts: np.ndarray,
        metadata: pa.Table,
        text_metadata: pa.Table,
        dropped: Mapping[str, int] | None = None,
    ) -> None:
        """Write part `part`: images (n, D), texts (t, D), unit rows; n and t rows of metadata.

        text_metadata: `image_row` counts from this part's first image. dropped: reason -> samples left out.
        Nothing counts until the marker, written last, is there; a part that has one already is left as it is.
        """
        if not 0 <= part < self.parts:
            raise ValueError(f"part {part}: the plan has parts 0 .. {self.parts - 1}")
        if part not in self.missing_parts():
            return
        most = self.plan["bounds"][part + 1] - self.plan["bounds"][part]
        if len(images) > most:
            raise ValueError(f"part {part}: {len(images)} images from {most} rows of the source")
        rows = image_row_of(text_metadata, f"text_metadata of part {part}")
        if len(rows) and not (rows.min() >= 0 and rows.max() < len(images)):
            raise ValueError(
                f"part {part}: image_row outside 0 .. {len(images) - 1}; it counts from the part's first image"
            )
        self._write_array("img_emb", part, images, metadata)
        self._write_array("text_emb", part, texts, text_metadata)
        with whole_file(self._path("metadata", part)) as path:
            pq.write_table(metadata, path)
        with whole_file(self._local(part)) as path:
            pq.write_table(text_metadata, path)
        files = [self._path(kind, part) for kind in ("img_emb", "text_emb", "metadata")]
        marker = {
            "rows": len(images),
            "text_rows": len(texts),
            "dropped": dict(dropped or {}),
            "files": self._sums(files),
        }
        write_json(self._marker(part), marker)

    def finish(self) -> bool:
        """When all parts are there: number the texts' images over all parts, write the manifest. False when not.

        Safe to be killed in and to be run by several jobs at once: each writes the same bytes.
        """
        if self.missing_parts():
            return False
        try:
            if not (self.folder / "manifest.json").exists():
                self._write_manifest()
        except FileNotFoundError:  # another job was faster and has removed .parts
            if not (self.folder / "manifest.json").exists():
                raise
        for kind in ("img_emb", "text_emb", "metadata", "text_metadata"):  # not .parts: another job may be removing it
            for left in (self.folder / kind).glob(".*.tmp"):  # of jobs that were killed
                left.unlink(missing_ok=True)
        shutil.rmtree(self._markers, ignore_errors=True)
        return True

    def _write_manifest(self) -> None:
        parts = [read_json(self._marker(part)) for part in range(self.parts)]
        first = 0  # row of the part's first image, over all parts
        for number, part in enumerate(parts):
            table = read_table(self._local(number))
            image_row = pa.array(image_row_of(table, self._local(number)) + first)
            table = table.set_column(table.column_names.index("image_row"), "image_row", image_row)
            with whole_file(self._path("text_metadata", number)) as path:
                pq.write_table(table, path)
            part["files"] |= self._sums([self._path("text_metadata", number)])
            first += part["rows"]
        dropped: dict[str, int] = {}
        for part in parts:
            for reason, count in part["dropped"].items():
                dropped[reason] = dropped.get(reason, 0) + count
        versions = {"dualenc": __version__, "python": platform.python_version(), "pyarrow": pa.__version__}
        manifest = {name: self.plan[name] for name in ("fingerprint", "encoder", "dim", "dtype")}
        totals = {name: sum(part[name] for part in parts) for name in ("rows", "text_rows")}
        head = {"format": FORMAT, "version": VERSION, **manifest, **totals, "dropped": dropped, "versions": versions}
        write_json(self.folder / "manifest.json", {**head, "plan": self.plan, "parts": parts})

    def _write_array(self, kind: str, part: int, rows: np.ndarray, table: pa.Table) -> None:
        rows = np.asarray(rows)
        if rows.ndim != 2 or rows.shape[1] != self.plan["dim"] or rows.dtype.kind != "f":
            raise ValueError(
                f"{kind} of part {part} is {rows.dtype} {rows.shape}; the plan says (rows, {self.plan['dim']})"
            )
        if len(rows) != table.num_rows:
            raise ValueError(f"{kind} of part {part} has {len(rows)} rows, its metadata {table.num_rows}")
        check_unit(rows, f"{kind} of part {part}")
        with whole_file(self._path(kind, part)) as path, open(path, "wb") as file:
            np.save(file, rows.astype(self.plan["dtype"]))

    def _path(self, kind: str, part: int) -> Path:
        suffix = "npy" if kind.endswith("_emb") else "parquet"
        return self.folder / kind / f"{kind}_{part:04d}.{suffix}"

    def _marker(self, part: int) -> Path:
        return self._markers / f"{part:04d}.json"

    def _local(self, part: int) -> Path:
        return self._markers / f"text_metadata_{part:04d}.parquet"

    def _sums(self, files: list[Path]) -> dict[str, dict[str, Any]]:
        return {
            path.relative_to(self.folder).as_posix(): {"bytes": path.stat().st_size, "sha256": sha256(path)}
            for path in files
        }


def _checked_plan(plan: Mapping[str, Any]) -> dict[str, Any]:
    absent = [name for name in ("bounds", "dim", "dtype", "fingerprint", "encoder") if name not in plan]
    if absent:
        raise ValueError(f"a store's plan needs {', '.join(absent)}")
    if plan["dtype"] not in ("float16", "float32"):
        raise ValueError(f"dtype={plan['dtype']!r}: a store holds float16 or float32")
    bounds = list(plan["bounds"])
    if len(bounds) < 2 or bounds[0] != 0 or bounds != sorted(bounds):
        raise ValueError(f"a plan's bounds rise from 0 and name at least one part, not {bounds[:4]}")
    return json.loads(json.dumps(dict(plan), allow_nan=False))


def _create(path: Path, text: str) -> None:
    """Write `path` whole unless it exists: of several jobs that start at once, one plan wins."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with open(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(name, 0o644)  # mkstemp's 0600 would keep another user's job out
        if not path.exists():
            os.link(name, path)  # unlike a rename, fails where the name is taken
    except FileExistsError:
        pass
    except PermissionError:  # a file system without links (exFAT): a rename, at the price of a short race
        shutil.copyfile(name, path)
    finally:
        os.unlink(name)


def _is_store(manifest: Path) -> bool:
    found = read_json(manifest)
    return isinstance(found, dict) and found.get("format") == FORMAT


def _difference(theirs: Any, ours: dict[str, Any]) -> str | None:
    """The first setting that differs, both values shortened; None when the plans agree."""
    theirs = theirs if isinstance(theirs, dict) else {}
    for name in {**theirs, **ours}:
        if name == "encoder" or (name == "source_digest" and name not in theirs):  # begun before plans had it
            continue
        there, here = (json.dumps(plan.get(name))[:60] for plan in (theirs, ours))
        if theirs.get(name) != ours.get(name):
            return f"{name}: {there} there, {here} now"
    return None
