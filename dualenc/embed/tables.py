"""Parquet files whose columns may differ from part to part, read as one table."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq


def _open(path: Path, read: Callable[[pq.ParquetFile], Any]) -> Any:
    try:
        with pq.ParquetFile(path) as file:
            return read(file)
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path} does not open as parquet ({str(error).splitlines()[0]}); restore it") from error


def row_count(path: Path) -> int:
    """Rows of a parquet file, from its footer alone."""
    return _open(path, lambda file: file.metadata.num_rows)


def read_table(path: Path) -> pa.Table:
    """One parquet file; ValueError names it when it is damaged."""
    return _open(path, lambda file: file.read().replace_schema_metadata(None))


def read_tables(paths: Iterable[Path]) -> pa.Table:
    """All rows of several files, in order, with the columns of all; a file without one has nulls there."""
    tables = [read_table(path) for path in paths]
    if not tables:
        return pa.table({})
    try:
        return pa.concat_tables(tables, promote_options="permissive")
    except pa.ArrowException:  # say, width is 640 in one part and "640 px" in the next: both become text
        clashing = [name for name in dict.fromkeys(n for t in tables for n in t.column_names) if _clashes(tables, name)]
        return pa.concat_tables([_as_text(table, clashing) for table in tables], promote_options="permissive")


def _clashes(tables: list[pa.Table], name: str) -> bool:
    kinds = [pa.schema([table.schema.field(name)]) for table in tables if name in table.column_names]
    try:
        pa.unify_schemas(kinds, promote_options="permissive")
    except pa.ArrowException:
        return True
    return False


def _as_text(table: pa.Table, names: list[str]) -> pa.Table:
    for name in set(names) & set(table.column_names):
        values = table.column(name).to_pylist()
        text = [
            v if v is None or isinstance(v, str) else json.dumps(v, default=str, ensure_ascii=False) for v in values
        ]
        table = table.set_column(table.column_names.index(name), name, pa.array(text, pa.string()))
    return table


def image_row_of(table: pa.Table, path: str | Path) -> np.ndarray:
    """(T,) int64: the column image_row of a text_metadata table; ValueError names `path` when it is unfit."""
    if "image_row" not in table.column_names:
        raise ValueError(f"{path} has no column image_row: which image each text belongs to is unknown")
    column = table.column("image_row")
    if not pa.types.is_integer(column.type) or column.null_count:
        raise ValueError(f"{path}: image_row is {column.type} with {column.null_count} nulls; it must be whole numbers")
    return column.to_numpy().astype(np.int64)
