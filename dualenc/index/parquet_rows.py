"""Rows in a parquet column of lists of floats: read by row groups, never the whole at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dualenc.index.npy import BLOCK

NAMES = ("embedding", "embeddings", "vector", "emb")


class ParquetRows:
    """The embeddings of several parquet files as one, in order; float32 whatever the files hold.

    `take` reads every row group that it needs a row of, so ask for many rows at once.
    """

    def __init__(self, files: list[Path]):
        self.column = _column_of(files[0])
        self.files = files
        groups = [(path, group, rows) for path in files for group, rows in enumerate(_group_rows(path, self.column))]
        self._groups = [(path, group) for path, group, rows in groups]
        self._starts = np.cumsum([0] + [rows for _, _, rows in groups])
        self.dtype, self.dim = self._look()

    def __len__(self) -> int:
        return int(self._starts[-1])

    def blocks(self, rows: int = BLOCK) -> Iterator[np.ndarray]:
        """All rows in order as float32 (b, D) arrays, b at most `rows`."""
        for number in range(len(self._groups)):
            for _, block in self._group_blocks(number, rows):
                yield block

    def take(self, rows: Any) -> np.ndarray:
        """The given rows, in the order given: (len(rows), D) float32. IndexError outside 0 .. len - 1."""
        rows = np.asarray(rows, dtype=np.int64).ravel()
        if len(rows) and not (rows.min() >= 0 and rows.max() < len(self)):
            raise IndexError(f"row {rows.min() if rows.min() < 0 else rows.max()} is outside 0 .. {len(self) - 1}")
        taken = np.empty((len(rows), self.dim), np.float32)
        order = np.argsort(rows, kind="stable")
        ordered = rows[order]
        for number in np.unique(np.searchsorted(self._starts, ordered, side="right") - 1):
            for first, block in self._group_blocks(int(number), BLOCK):
                low, high = np.searchsorted(ordered, [first, first + len(block)])
                taken[order[low:high]] = block[ordered[low:high] - first]
        return taken

    def _group_blocks(self, number: int, rows: int) -> Iterator[tuple[int, np.ndarray]]:
        """(number of the first row, float32 block) over one row group."""
        path, group = self._groups[number]
        first = int(self._starts[number])
        try:
            with pq.ParquetFile(path, memory_map=True) as file:
                for batch in file.iter_batches(rows, row_groups=[group], columns=[self.column]):
                    block = _as_rows(batch.column(0), self.dim, path, first)
                    yield first, block
                    first += len(block)
        except (pa.ArrowException, OSError) as error:
            raise _damaged(path, error) from error

    def _look(self) -> tuple[np.dtype, int]:
        """(dtype, D) by the first row; (float32, 0) where there is no row at all."""
        for (path, group), rows in zip(self._groups, np.diff(self._starts), strict=True):
            if rows:
                column = open_parquet(path, partial(_first, group=group, column=self.column))
                if column.null_count or not len(column[0]):
                    raise ValueError(f"{path}: {self.column} is empty in the first row; leave rows without one out")
                return np.dtype(column.type.value_type.to_pandas_dtype()), len(column[0])
        return np.dtype(np.float32), 0


def _first(file: pq.ParquetFile, group: int, column: str) -> pa.Array:
    return next(file.iter_batches(1, [group], [column])).column(0)


def open_parquet(path: Path, read: Callable[[pq.ParquetFile], Any]) -> Any:
    """What `read` makes of an open parquet file; ValueError names a damaged one."""
    try:
        with pq.ParquetFile(path, memory_map=True) as file:
            return read(file)
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> ValueError:
    return ValueError(f"{path} does not open as parquet ({str(error).splitlines()[0]}); restore it or write it again")


def _column_of(path: Path) -> str:
    """The column of embeddings: the one with such a name, else the only one of lists of floats."""
    schema = open_parquet(path, lambda file: file.schema_arrow)
    lists = [field.name for field in schema if _is_embedding(field.type)]
    named = [name for name in lists if name in NAMES]
    if len(named) == 1:
        return named[0]
    if not lists:
        raise ValueError(
            f"{path} has no column of embeddings (lists of float16, float32 or float64); columns: {schema.names}"
        )
    if named or len(lists) > 1:
        raise ValueError(
            f"{path} has several columns of embeddings ({', '.join(named or lists)}); name one `embedding`"
        )
    return lists[0]


def _is_embedding(kind: pa.DataType) -> bool:
    listed = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    return listed and pa.types.is_floating(kind.value_type)


def _group_rows(path: Path, column: str) -> list[int]:
    """Rows of each row group; ValueError where the file has no such column of embeddings."""

    def read(file: pq.ParquetFile) -> list[int] | None:
        place = file.schema_arrow.get_field_index(column)
        if place < 0 or not _is_embedding(file.schema_arrow.field(place).type):
            return None
        return [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]

    groups = open_parquet(path, read)
    if groups is None:
        raise ValueError(
            f"{path} has no column of embeddings named {column}, as the first file has; give all files the same"
        )
    return groups


def _as_rows(column: Any, dim: int, path: Path, first: int) -> np.ndarray:
    """(n, D) float32 of an Arrow array of lists; ValueError names the first row that is null or of another length."""
    if pa.types.is_fixed_size_list(column.type):
        lengths = np.full(len(column), column.type.list_size)
    else:
        lengths = np.diff(column.offsets.to_numpy())
    wrong = (lengths != dim) | column.is_null().to_numpy(zero_copy_only=False)
    if wrong.any():
        row = int(np.argmax(wrong))
        what = "no embedding" if not column[row].is_valid else f"D = {lengths[row]}, the first row {dim}"
        raise ValueError(
            f"{path}: row {first + row} (counted over all files) has {what}; leave it out or embed it again"
        )
    values = column.flatten().to_numpy(zero_copy_only=False)
    return values.reshape(len(column), dim).astype(np.float32, copy=False)
