"""Plain embeddings from anywhere: an .npy file, a folder of them, or parquet, opened so that an index is built of them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dualenc.index.npy import NpyRows
from dualenc.index.parquet_rows import ParquetRows, open_parquet
from dualenc.index.vectors import BLOCK, Array, Rows


@dataclass(frozen=True)
class Vectors:
    """Embeddings that are open for reading, as a store without texts: `Index.build` takes it like one."""

    folder: Path
    rows: Rows
    tables: list[Path]  # parquet, in order, together N rows of metadata; [] where there is none
    column: str | None = None  # of `tables`: the embeddings, which are no metadata
    fingerprint: None = None  # nobody recorded whose embeddings these are
    encoder: None = None

    @property
    def dim(self) -> int:
        """D."""
        return self.rows.dim

    def side(self, side: str) -> Rows:
        """The rows of one side: all are "image", none is "text"."""
        if side not in ("image", "text"):
            raise ValueError(f'side={side!r}: embeddings have the sides "image" (all rows) and "text" (none)')
        return self.rows if side == "image" else Array(np.zeros((0, self.dim), np.float32))

    def metadata(self) -> pa.Table | None:
        """N rows that align with the embeddings, with the columns of all parts; None where there is no metadata."""
        parts = [_columns(path, self.column) for path in self.tables]
        try:
            table = pa.concat_tables(parts, promote_options="permissive") if parts else None
        except pa.ArrowException as error:
            message = f"{self.folder}: a column of metadata changes its type from file to file"
            raise ValueError(f"{message} ({str(error).splitlines()[0]}); write it as one type") from error
        return table if table is not None and table.num_columns else None

    def text_metadata(self) -> None:
        """There are no texts."""
        return

    def files(self, side: str) -> list[Path] | None:
        """The .npy files that hold the rows of a side as they are; None where they are parquet, or divided on the fly."""
        return list(self.rows.files) if side == "image" and isinstance(self.rows, NpyRows) else None


class Normalised:
    """Rows divided by their length as they are read. ValueError names the first row that has none."""

    def __init__(self, rows: Rows, name: str):
        self._rows, self._name, self.dim = rows, name, rows.dim

    def __len__(self) -> int:
        return len(self._rows)

    def blocks(self, rows: int = BLOCK) -> Iterator[np.ndarray]:
        """All rows in order as unit float32 (b, D) arrays."""
        first = 0
        for block in self._rows.blocks(rows):
            yield self._divided(block, np.arange(first, first + len(block)))
            first += len(block)

    def take(self, rows: Any) -> np.ndarray:
        """The given rows, in the order given: unit float32 (n, D)."""
        return self._divided(self._rows.take(rows), np.asarray(rows).ravel())

    def _divided(self, block: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        length = np.sqrt(np.einsum("ij,ij->i", block, block, dtype=np.float64))  # float64: squares may overflow
        if not length.all():
            row = numbers[np.argmin(length != 0)]
            raise ValueError(f"{self._name}: row {row} is all zeros and has no direction; leave it out")
        return (block / length[:, None]).astype(np.float32)


def open_vectors(path: str | Path, normalise: bool = False) -> Vectors:
    """Open embeddings that no encoder of ours wrote: N rows of D floats, with metadata where there is any.

    path: an .npy file (N, D); a parquet file with one column of embeddings (lists of floats, named embedding,
    embeddings, vector or emb, or the only such column), its other columns being metadata; or a folder of either, in
    natural order (x_2 before x_10), .npy files with metadata beside them as *.parquet or metadata/*.parquet.
    normalise: divide each row by its length; otherwise rows that are not unit are refused where they are read.
    FileNotFoundError or ValueError says what is missing or unfit.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(
            f"{path}: no such file or folder; give an .npy file, a parquet file or a folder of them"
        )
    arrays, tables, beside = _found(path)
    if not arrays and not tables:
        raise ValueError(f"{path} holds no embeddings; give an .npy file, a parquet file or a folder of either")
    folder = path if path.is_dir() else path.parent
    if arrays:
        vectors = Vectors(folder, NpyRows(arrays), beside or tables)
        _check_rows(path, len(vectors.rows), vectors.tables)
    else:
        rows = ParquetRows(tables)
        vectors = Vectors(folder, rows, tables, rows.column)
    if not len(vectors.rows):
        raise ValueError(f"{path} holds no rows; embed something first")
    if normalise:
        return Vectors(folder, Normalised(vectors.rows, str(path)), vectors.tables, vectors.column)
    return vectors


def _found(path: Path) -> tuple[list[Path], list[Path], list[Path]]:
    """(.npy files, parquet files, parquet files in metadata/) of a path, each in natural order."""
    if path.is_file():
        return [path] if path.suffix == ".npy" else [], [path] if path.suffix == ".parquet" else [], []
    if (path / "img_emb").is_dir() or (path / "text_emb").is_dir():
        raise ValueError(f"{path} is a store (img_emb or text_emb in it); open it with dualenc.embed.open_store")
    arrays, tables = listed(path, "*.npy"), listed(path, "*.parquet")
    beside = listed(path / "metadata", "*.parquet")
    if beside and tables:
        raise ValueError(f"{path} has *.parquet and metadata/*.parquet; which of them is meant is unclear: remove one")
    return arrays, tables, beside


def listed(folder: Path, pattern: str) -> list[Path]:
    return sorted((path for path in folder.glob(pattern) if not path.name.startswith(".")), key=_natural)


def _natural(path: Path) -> list[tuple[int, str]]:
    """x_2 before x_10: runs of digits count as numbers."""
    return [(int(run), run) if run.isdecimal() else (-1, run) for run in re.findall(r"\d+|\D+", path.name)]


def _check_rows(path: Path, rows: int, tables: list[Path]) -> None:
    counts = {table.name: open_parquet(table, lambda file: file.metadata.num_rows) for table in tables}
    if counts and sum(counts.values()) != rows:
        parts = ", ".join(f"{name} {count}" for name, count in list(counts.items())[:5])
        raise ValueError(
            f"{path} has {rows} embeddings and {sum(counts.values())} rows of metadata ({parts}); one each"
        )


def _columns(path: Path, embeddings: str | None) -> pa.Table:
    """A parquet file without its embeddings, and with its rows even where no other column is left."""

    def read(file: pq.ParquetFile) -> pa.Table:
        names = [name for name in file.schema_arrow.names if name != embeddings]
        return file.read(columns=names).replace_schema_metadata(None)

    return open_parquet(path, read)
