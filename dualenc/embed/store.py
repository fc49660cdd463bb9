"""The store: a folder of embeddings with keys and metadata, in clip-retrieval's layout.

    img_emb/img_emb_0000.npy                 (n, D) float16 or float32, unit rows
    text_emb/text_emb_0000.npy               (t, D)
    metadata/metadata_0000.parquet           n rows, aligned with img_emb
    text_metadata/text_metadata_0000.parquet t rows, aligned with text_emb; `image_row` counts over all parts
    manifest.json                            whose embeddings these are, checksums; absent in clip-retrieval's folders

`dualenc.embed.store_writer` writes it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from dualenc.embed.tables import image_row_of, read_table, read_tables, row_count
from dualenc.files import read_json, sha256

FORMAT, VERSION = "dualenc-store", 1
UNIT = 5e-3  # a row is unit when | ||x|| - 1 | is at most this: float16 rounding stays far below
BLOCK = 65_536  # rows handed on at once: 128 MiB of float32 at D = 512


class Rows:
    """The rows of several (n, D) arrays as one, in order; float32 whatever the files hold."""

    def __init__(self, parts: list[np.ndarray], dim: int):
        self.parts, self.dim = parts, dim
        self._starts = np.cumsum([0] + [len(part) for part in parts])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def blocks(self, rows: int = BLOCK) -> Iterator[np.ndarray]:
        """All rows in order as float32 (b, D) arrays, b at most `rows`."""
        for part in self.parts:
            for start in range(0, len(part), rows):
                yield np.asarray(part[start : start + rows], dtype=np.float32)

    def take(self, rows: Any) -> np.ndarray:
        """The given rows, in the order given: (len(rows), D) float32. IndexError outside 0 .. len - 1."""
        rows = np.asarray(rows, dtype=np.int64).ravel()
        if len(rows) and not (rows.min() >= 0 and rows.max() < len(self)):
            raise IndexError(f"row {rows.min() if rows.min() < 0 else rows.max()} is outside 0 .. {len(self) - 1}")
        taken = np.empty((len(rows), self.dim), np.float32)
        owner = np.searchsorted(self._starts, rows, side="right") - 1
        for part in np.unique(owner):
            here = owner == part
            taken[here] = self.parts[part][rows[here] - self._starts[part]]
        return taken


@dataclass(frozen=True)
class Store:
    """A store that is open for reading: memory-mapped embeddings of N images and T texts, and their metadata."""

    folder: Path
    image_parts: list[np.ndarray]
    text_parts: list[np.ndarray]
    manifest: dict[str, Any]  # {} where clip-retrieval wrote the folder
    dim: int

    @property
    def rows(self) -> int:
        """N, the number of images."""
        return len(self.side("image"))

    @property
    def text_rows(self) -> int:
        """T, the number of texts."""
        return len(self.side("text"))

    @property
    def fingerprint(self) -> str | None:
        """The encoder's fingerprint; None where nobody recorded it."""
        return self.manifest.get("fingerprint")

    @property
    def encoder(self) -> str | None:
        """The encoder's name or path; None where nobody recorded it."""
        return self.manifest.get("encoder")

    def side(self, side: str) -> Rows:
        """The rows of one side: "image" or "text"."""
        if side not in ("image", "text"):
            raise ValueError(f'side={side!r}: a store has the sides "image" and "text"')
        return Rows(self.image_parts if side == "image" else self.text_parts, self.dim)

    def images(self, rows: int = BLOCK) -> Iterator[np.ndarray]:
        """Image embeddings in order, as float32 (b, D) blocks."""
        return self.side("image").blocks(rows)

    def texts(self, rows: int = BLOCK) -> Iterator[np.ndarray]:
        """Text embeddings in order, as float32 (b, D) blocks."""
        return self.side("text").blocks(rows)

    def metadata(self) -> pa.Table:
        """N rows that align with the images. Columns are those of all parts together; a part without one has nulls."""
        return read_tables(_files(self.folder, "metadata", "parquet").values())

    def text_metadata(self) -> pa.Table:
        """T rows that align with the texts: at least `image_row`, and `key` and `caption` where they are known."""
        files = _files(self.folder, "text_metadata", "parquet")
        if files or not self.text_rows:
            return read_tables(files.values())
        table = self.metadata()
        table = table.select([name for name in ("key", "caption") if name in table.column_names])
        return table.append_column("image_row", pa.array(np.arange(self.text_rows)))

    @cached_property
    def image_row(self) -> np.ndarray:
        """(T,) int64: the row of each text's image; 0 .. T-1 where texts and images are 1:1."""
        files = _files(self.folder, "text_metadata", "parquet")
        if not files:
            return np.arange(self.text_rows, dtype=np.int64)
        parts = [image_row_of(read_table(path), path) for path in files.values()]
        rows = np.concatenate([np.zeros(0, np.int64), *parts])
        if len(rows) and not (rows.min() >= 0 and rows.max() < self.rows):
            raise ValueError(f"{self.folder}: text_metadata names image rows outside 0 .. {self.rows - 1}; embed again")
        return rows


def is_store(path: str | Path) -> bool:
    """Whether `path` is a store, finished or not, rather than shards or images."""
    return any((Path(path) / kind).is_dir() for kind in ("img_emb", "text_emb"))


def open_store(folder: str | Path, verify: bool = False, unit: bool = False) -> Store:
    """Open a finished store, dualenc's or clip-retrieval's.

    unit: read every row and refuse those that are not unit. verify: the same, and hash every file that the manifest
    names. FileNotFoundError or ValueError says what is missing, damaged or not a store.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such store; make it with `dualenc embed --out {folder}`")
    manifest = _read_manifest(folder, verify)
    images, texts, tables = (_files(folder, *kind) for kind in _EMBEDDED)
    if not images and not texts:
        raise ValueError(f"{folder} is not a store: no img_emb/img_emb_*.npy and no text_emb/text_emb_*.npy in it")
    image_parts = [_open_array(path) for path in images.values()]
    text_parts = [_open_array(path) for path in texts.values()]
    widths = {part.shape[1] for part in image_parts + text_parts}
    if len(widths) > 1:
        raise ValueError(f"{folder}: parts have D = {sorted(widths)}; they come from several encoders: embed again")
    store = Store(folder, image_parts, text_parts, manifest, widths.pop())
    _check_aligned(folder, images or texts, image_parts or text_parts, tables, "metadata")
    text_tables = _files(folder, "text_metadata", "parquet")
    if text_tables:
        _check_aligned(folder, texts, text_parts, text_tables, "text_metadata")
    elif images and texts:
        _check_aligned(folder, texts, text_parts, tables, "metadata")
    if unit or verify:
        for path, part in zip([*images.values(), *texts.values()], image_parts + text_parts, strict=True):
            for block in Rows([part], store.dim).blocks():
                check_unit(block, str(path))
    return store


def check_unit(rows: np.ndarray, name: str) -> None:
    """ValueError names the first row of `rows` (n, D) that is not finite and of length 1 within 5e-3."""
    rows = np.asarray(rows, dtype=np.float32)
    norm = np.sqrt(np.einsum("ij,ij->i", rows, rows))
    wrong = np.flatnonzero(~(np.abs(norm - 1) <= UNIT))
    if len(wrong) and not np.isfinite(norm[wrong[0]]):
        raise ValueError(f"{name}: row {wrong[0]} holds NaN or infinity; embed again without it")
    if len(wrong):
        raise ValueError(
            f"{name}: row {wrong[0]} has length {norm[wrong[0]]:.4g}, not 1; divide each row by its length"
        )


_EMBEDDED = (("img_emb", "npy"), ("text_emb", "npy"), ("metadata", "parquet"))


def _files(folder: Path, kind: str, suffix: str) -> dict[int, Path]:
    """Part number -> path, in order. clip-retrieval pads numbers to no fixed width."""
    found: dict[int, Path] = {}
    for path in sorted((folder / kind).glob(f"{kind}_*.{suffix}")):
        number = re.fullmatch(rf"{kind}_(\d+)", path.stem)
        if number and found.setdefault(int(number[1]), path) != path:
            raise ValueError(f"{path} and {found[int(number[1])].name} are both part {int(number[1])}; remove one")
    return dict(sorted(found.items()))


def _read_manifest(folder: Path, verify: bool) -> dict[str, Any]:
    path = folder / "manifest.json"
    if not path.exists():
        if (folder / ".parts").exists():
            raise ValueError(f"{folder} is not finished: parts are still missing; run the same `dualenc embed` again")
        return {}
    manifest = read_json(path)
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise ValueError(f"{folder} is not a store: its manifest.json is another program's")
    if manifest.get("version") != VERSION:
        raise ValueError(
            f"{folder}: store version {manifest.get('version')}, this dualenc reads {VERSION}; update dualenc"
        )
    try:
        _check_files(folder, manifest, verify)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} lacks what a store's manifest has ({error!r}); restore it or embed again") from error
    return manifest


def _check_files(folder: Path, manifest: dict[str, Any], verify: bool) -> None:
    listed = {name: there for part in manifest["parts"] for name, there in part["files"].items()}
    for name, expected in listed.items():
        file = folder / name
        if not file.exists():
            raise FileNotFoundError(f"{file} is missing from the store; restore it or embed again")
        if file.stat().st_size != expected["bytes"] or (verify and sha256(file) != expected["sha256"]):
            raise ValueError(f"{file} is not the file that was written (size or checksum); restore it or embed again")
    for path in (path for kind in _EMBEDDED for path in _files(folder, *kind).values()):
        if path.relative_to(folder).as_posix() not in listed:
            raise ValueError(f"{path} is no part of the store that manifest.json describes; remove it or embed again")


def _open_array(path: Path) -> np.ndarray:
    try:
        rows = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path} does not open as a .npy array ({error}); restore it or embed again") from error
    if rows.ndim != 2 or rows.dtype.kind != "f" or not rows.shape[1]:
        raise ValueError(f"{path} holds {rows.dtype} {rows.shape}; a store's parts are floating point (rows, D)")
    return rows


def _check_aligned(folder: Path, files: dict, parts: list[np.ndarray], tables: dict[int, Path], kind: str) -> None:
    """Each part of embeddings has its part of metadata, with as many rows."""
    if files.keys() != tables.keys():
        lone = sorted(files.keys() ^ tables.keys())
        raise ValueError(
            f"{folder}: {kind} and embeddings do not pair up (parts {lone[:5]}); restore them or embed again"
        )
    for (number, path), part in zip(files.items(), parts, strict=True):
        rows = row_count(tables[number])
        if rows != len(part):
            raise ValueError(f"{path} has {len(part)} rows, {tables[number].name} has {rows}; embed this part again")
