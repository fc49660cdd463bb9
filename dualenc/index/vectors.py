"""What goes into an index: unit float32 rows by the block, and int64 ids. Everything that is unfit is refused here."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np

from dualenc.index.npy import BLOCK, NpyRows, check_identity, identity, source_files, stored

__all__ = [
    "BLOCK",
    "UNIT",
    "Array",
    "NpyRows",
    "Rows",
    "as_ids",
    "as_queries",
    "as_rows",
    "check_identity",
    "identity",
    "is_store",
    "kept_dtype",
    "source_files",
    "stored",
    "unit_blocks",
    "unit_rows",
]

UNIT = 5e-3  # a row is unit when | ||x|| - 1 | is at most this: float16 rounding stays far below


class Rows(Protocol):
    """N rows of D floats, in order and by number; a store's side is one, `Array` is another."""

    dim: int

    def __len__(self) -> int: ...

    def blocks(self, rows: int = ...) -> Iterator[np.ndarray]:
        """All rows in order, as (b, D) arrays."""

    def take(self, rows: Any) -> np.ndarray:
        """The given rows, (n, D)."""


class Array:
    """An (N, D) array or memory map as `Rows`; nothing is copied before a block is asked for."""

    def __init__(self, array: np.ndarray):
        self._array, self.dim, self.dtype = array, array.shape[1], array.dtype

    def __len__(self) -> int:
        return len(self._array)

    def blocks(self, rows: int = BLOCK) -> Iterator[np.ndarray]:
        for start in range(0, len(self._array), rows):
            yield self._array[start : start + rows]

    def take(self, rows: Any) -> np.ndarray:
        return self._array[rows]


def is_store(source: Any) -> bool:
    """Whether `source` is an open store (it has two sides); stores are known by what they can do, not by class."""
    return hasattr(source, "side") and hasattr(source, "metadata")


def as_rows(source: Any, side: str = "image", name: str = "vectors") -> Rows:
    """`Rows` of an (N, D) array, a list of rows, or one side of an open store (`Rows` stay what they are).

    ValueError says what does not fit.
    """
    if is_store(source):
        return source.side(side)
    if hasattr(source, "blocks"):
        return source
    if isinstance(source, (str, bytes)) or hasattr(source, "__fspath__"):
        raise ValueError(f"{name}={source!r} is a path; open it first: dualenc.embed.open_store({str(source)!r})")
    try:
        array = source if isinstance(source, np.ndarray) else np.asarray(source)
    except ValueError as error:
        raise ValueError(f"{name} is no (rows, D) array: {error}") from error
    if array.dtype.kind != "f":
        raise ValueError(f"{name} has dtype {array.dtype}; give unit rows as float32, float16 or float64")
    if array.ndim != 2 or not array.shape[1]:
        raise ValueError(f"{name} has shape {array.shape}; give (rows, D)")
    return Array(array)


def kept_dtype(rows: Rows) -> str:
    """What original rows are kept as: float16 where all of them are float16, else float32."""
    types = {part.dtype for part in getattr(rows, "parts", [])} or {getattr(rows, "dtype", None)}
    return "float16" if types == {np.dtype(np.float16)} else "float32"


def unit_rows(block: np.ndarray, name: str, first: int = 0, numbers: np.ndarray | None = None) -> np.ndarray:
    """`block` (n, D) as contiguous float32 rows of length 1, so that inner products are cosines.

    Rows a little off (float16 storage) are divided by their length; rows already unit keep their bits. ValueError
    names the first row that is not finite, or further from unit than 5e-3: by `numbers` (n,), else counted from `first`.
    """
    rows = np.ascontiguousarray(block, dtype=np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        length = np.sqrt(np.einsum("ij,ij->i", rows, rows))
    wrong = np.flatnonzero(~(np.abs(length - 1) <= UNIT))
    if len(wrong):
        row, size = first + wrong[0] if numbers is None else numbers[wrong[0]], length[wrong[0]]
        if not np.isfinite(rows[wrong[0]]).all():
            raise ValueError(f"{name}: row {row} holds NaN or infinity; leave it out")
        raise ValueError(f"{name}: row {row} has length {size:.4g}, not 1; divide each row by its length first")
    off = np.abs(length - 1) > 1e-6
    return rows / np.where(off, length, np.float32(1))[:, None] if off.any() else rows


def unit_blocks(rows: Rows, name: str = "vectors") -> Iterator[tuple[int, np.ndarray]]:
    """(number of the first row, unit float32 block) over all rows, in order."""
    first = 0
    for block in rows.blocks(BLOCK):
        yield first, unit_rows(block, name, first)
        first += len(block)


def as_queries(queries: Any, dim: int) -> np.ndarray:
    """(Q, D) unit float32 queries; one (D,) query is taken as (1, D)."""
    array = np.asarray(queries)
    rows = as_rows(array[None] if array.ndim == 1 else array, name="queries")
    if rows.dim != dim:
        raise ValueError(f"queries have D = {rows.dim}, the index has {dim}; embed them with the index's own encoder")
    return unit_rows(rows.take(slice(None)), "queries")


def as_ids(ids: Any, count: int | None = None, name: str = "ids") -> np.ndarray:
    """(n,) int64 ids, each at least 0, no two equal, `count` of them where it is given."""
    array = np.asarray(ids).ravel()
    if array.size == 0:
        array = array.astype(np.int64)
    if array.dtype.kind not in "iu":
        raise ValueError(f"{name} have dtype {array.dtype}; give whole numbers from 0 to 2**63 - 1")
    if array.size and (int(array.min()) < 0 or int(array.max()) > np.iinfo(np.int64).max):
        worst = int(array.min()) if int(array.min()) < 0 else int(array.max())
        raise ValueError(f"{name}: {worst} is outside 0 .. 2**63 - 1 (-1 stands for 'nothing found')")
    array = array.astype(np.int64)
    if count is not None and len(array) != count:
        raise ValueError(f"{len(array)} {name} for {count} vectors; give one each")
    ordered = np.sort(array)
    twice = ordered[1:][ordered[1:] == ordered[:-1]]
    if len(twice):
        raise ValueError(f"{name}: {twice[0]} occurs more than once; each row needs an id of its own")
    return array
