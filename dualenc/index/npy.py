"""Rows in .npy files: read by blocks or by number without loading them, and known again later by size and checksum."""

from __future__ import annotations

import hashlib
import mmap
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from tqdm import tqdm

BLOCK = 65_536  # rows handed on at once: 128 MiB of float32 at D = 512
GATHER = 4_096  # rows taken at once: what lies between the file and the float32 rows stays in the processor's cache
SPARSE = 64  # one row in so many, or fewer: reading ahead reads what nobody asks for


class NpyRows:
    """The rows of several .npy files (n, D) as one, in order; float32 whatever the files hold.

    Files stay on disk, memory-mapped. Several threads may read at once.
    """

    def __init__(self, files: list[Path]):
        if not files:
            raise ValueError("no .npy file to read rows from; name one at least")
        self.files = files
        maps = [open_npy(path) for path in files]
        self.dim = maps[0].shape[1]
        for path, part in zip(files, maps, strict=True):
            if part.shape[1] != self.dim:
                raise ValueError(
                    f"{path} has D = {part.shape[1]}, {files[0]} has {self.dim}; keep rows of one encoder together"
                )
        self._starts = np.cumsum([0] + [len(part) for part in maps])
        self._parts = [np.asarray(part) for part in maps]
        self._scattered = [_unread_ahead(part) for part in maps]
        self._half = all(part.dtype == np.float16 for part in maps)
        # FAISS turns float16 into float32 with the processor's own instructions and in several threads
        self._decoder = faiss.IndexScalarQuantizer(self.dim, faiss.ScalarQuantizer.QT_fp16)

    @property
    def dtype(self) -> np.dtype:
        """What the files hold: float16 where all do, else float32."""
        return np.dtype(np.float16 if self._half else np.float32)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def blocks(self, rows: int = BLOCK) -> Iterator[np.ndarray]:
        """All rows in order as float32 (b, D) arrays, b at most `rows`."""
        for part in self._parts:
            for start in range(0, len(part), rows):
                yield np.asarray(part[start : start + rows], dtype=np.float32)

    def take(self, rows: Any) -> np.ndarray:
        """The given rows, in the order given: (len(rows), D) float32. IndexError outside 0 .. len - 1."""
        rows = np.asarray(rows, dtype=np.int64).ravel()
        if len(rows) and not (rows.min() >= 0 and rows.max() < len(self)):
            raise IndexError(f"row {rows.min() if rows.min() < 0 else rows.max()} is outside 0 .. {len(self) - 1}")
        taken = np.empty((len(rows), self.dim), np.float32)
        parts = self._scattered if len(rows) * SPARSE < len(self) else self._parts
        for start in range(0, len(rows), GATHER):
            here = taken[start : start + GATHER]
            if self._half:
                raw = self._gather(parts, rows[start : start + GATHER], np.empty(here.shape, np.float16))
                self._decoder.sa_decode(raw.view(np.uint8), here)
            else:
                self._gather(parts, rows[start : start + GATHER], here)
        return taken

    def _gather(self, parts: list[np.ndarray], rows: np.ndarray, out: np.ndarray) -> np.ndarray:
        owner = np.searchsorted(self._starts, rows, side="right") - 1
        for part in np.unique(owner):
            here = np.flatnonzero(owner == part) if owner.min() < owner.max() else slice(None)
            out[here] = parts[part][rows[here] - self._starts[part]]
        return out


def stored(files: list[Path]) -> NpyRows:
    """Rows that lie in these .npy files, in order, by number and by block. ValueError: no file, or unfit ones."""
    return NpyRows(files)


def open_npy(path: Path) -> np.memmap:
    """An .npy file of floating-point rows (n, D) as a read-only memory map; ValueError says what else it is."""
    try:
        rows = np.lib.format.open_memmap(path, mode="r")
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path} does not open as a .npy array ({error}); write it with numpy.save") from error
    if rows.ndim != 2 or rows.dtype.kind != "f" or rows.dtype.itemsize > 8 or not rows.shape[1]:
        raise ValueError(f"{path} holds {rows.dtype} {rows.shape}; give float16, float32 or float64 (rows, D)")
    if not rows.flags.c_contiguous:
        raise ValueError(f"{path} is in Fortran order, so that no row lies in one piece; save numpy.ascontiguousarray")
    return rows


def _unread_ahead(part: np.memmap) -> np.ndarray:
    """The same rows through a map that tells the system not to read ahead: single rows are asked for, in no order."""
    if not part.size or not hasattr(mmap, "MADV_RANDOM"):
        return np.asarray(part)
    with open(str(part.filename), "rb") as file:
        whole = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    whole.madvise(mmap.MADV_RANDOM)
    return np.frombuffer(whole, part.dtype, part.size, part.offset).reshape(part.shape)


def source_files(store: Any, side: str) -> list[Path] | None:
    """The .npy files that hold the rows of one side of `store`, whole and in order; None where they lie otherwise.

    store: an open store, a folder of embeddings (`open_vectors`), or a memory map of one .npy file.
    """
    if hasattr(store, "files"):
        return store.files(side)
    parts = [store] if isinstance(store, np.ndarray) else getattr(store, f"{side}_parts", None)
    files = [_whole_file(part) for part in parts or []]
    return [path for path in files if path] if files and all(files) else None


def _whole_file(part: Any) -> Path | None:
    """The .npy file that `part` maps from its first row to its last; None for a piece of one, or anything else."""
    if not isinstance(part, np.memmap) or part.mode == "c" or not isinstance(part.filename, (str, Path)):
        return None
    path = Path(part.filename)
    try:
        there = open_npy(path)
    except (ValueError, OSError):
        return None
    alike = (there.shape, there.dtype, there.strides, there.offset)
    return path if alike == (part.shape, part.dtype, part.strides, part.offset) else None


def identity(files: list[Path]) -> list[dict[str, Any]]:
    """What tells later whether these files are still the same: path (absolute), bytes, mtime_ns, sha256 of each."""
    entries = []
    with _hashing(files) as bar:
        for path in files:
            state = os.stat(path)  # before reading: a change meanwhile shows as another time
            entry = {"path": str(Path(path).absolute()), "bytes": state.st_size, "mtime_ns": state.st_mtime_ns}
            entries.append({**entry, "sha256": _digest(path, bar)})
    return entries


def check_identity(entries: list[dict[str, Any]], verify: bool = False) -> list[dict[str, Any]]:
    """Refuse files that are not those that `identity` saw; returns `entries` with the times of change as they are now.

    A file of the right size whose time of change differs is hashed; verify: all are. FileNotFoundError: one is gone;
    ValueError: one holds something else.
    """
    now = []
    with _hashing([Path(entry["path"]) for entry in entries if Path(entry["path"]).exists()]) as bar:
        for entry in entries:
            path, state = Path(entry["path"]), None
            try:
                state = os.stat(path)
            except FileNotFoundError:
                message = f"{path} is gone: the index reads original rows from it; restore it, or build the index again"
                raise FileNotFoundError(message) from None
            change = "" if state.st_size == entry["bytes"] else f"{state.st_size} bytes, {entry['bytes']} then"
            if not change and (verify or state.st_mtime_ns != entry["mtime_ns"]):
                change = "" if _digest(path, bar) == entry["sha256"] else "another checksum"
            if change:
                raise ValueError(
                    f"{path} changed since the index was built ({change}); restore it, or build the index again"
                )
            now.append({**entry, "mtime_ns": state.st_mtime_ns})
    return now


def _hashing(files: list[Path]) -> tqdm:
    total = sum(os.stat(path).st_size for path in files)
    return tqdm(total=total, unit="B", unit_scale=True, desc="checksums", disable=None, delay=1)


def _digest(path: Path, bar: tqdm) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
            bar.update(len(block))
    return digest.hexdigest()
