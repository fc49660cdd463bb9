"""Ids and metadata of an index's rows: checked when they come in, found again when asked for."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dualenc.index.where import Where


def as_table(metadata: Any, rows: int) -> pa.Table | None:
    """A pyarrow.Table, or a list of dicts whose keys may differ, as a table of `rows` rows; None for no columns.

    ValueError: another type, another number of rows, a column that mixes types, two columns of one name.
    """
    if metadata is None:
        return None
    if isinstance(metadata, list) and all(isinstance(row, dict) for row in metadata):
        count, table = len(metadata), _from_dicts(metadata)
    elif isinstance(metadata, pa.Table):
        count, table = metadata.num_rows, metadata.replace_schema_metadata(None)
    else:
        raise ValueError(f"metadata is {type(metadata).__name__}; give a pyarrow.Table or a list of dicts")
    if count != rows:
        raise ValueError(f"{count} rows of metadata for {rows} vectors; give one each")
    if len(set(table.column_names)) < table.num_columns:
        raise ValueError(f"metadata has two columns of one name ({', '.join(table.column_names)}); rename one")
    return table if table.num_columns else None


def _from_dicts(metadata: list[dict[str, Any]]) -> pa.Table:
    names = dict.fromkeys(name for row in metadata for name in row)
    try:
        return pa.table({str(name): [row.get(name) for row in metadata] for name in names})
    except pa.ArrowException as error:
        raise ValueError(f"metadata mixes types in one column: {str(error).splitlines()[0]}") from error


def join(old: pa.Table | None, old_rows: int, new: pa.Table | None, new_rows: int) -> pa.Table | None:
    """Metadata of old rows, then new ones; a column that one of them lacks is null there. ValueError if types clash."""
    if old is None and new is None:
        return None
    old = _nulls(new.schema, old_rows) if old is None else old  # type: ignore[union-attr]
    new = _nulls(old.schema, new_rows) if new is None else new
    try:
        return pa.concat_tables([old, new], promote_options="permissive")
    except pa.ArrowException as error:
        raise ValueError(f"metadata does not fit the index's columns: {str(error).splitlines()[0]}") from error


def _nulls(schema: pa.Schema, rows: int) -> pa.Table:
    return pa.table({field.name: pa.nulls(rows, field.type) for field in schema})


class Catalog:
    """Ids and metadata as one generation of an index holds them. Files are opened at once and read when first needed,
    so that a writer who replaces them takes nothing from a reader."""

    def __init__(self, ids: Path, metadata: Path | None):
        try:
            self.ids: np.ndarray = np.load(ids, mmap_mode="r", allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise ValueError(f"{ids} does not open ({error}); restore it or build the index again") from error
        if self.ids.ndim != 1 or self.ids.dtype != np.int64:
            raise ValueError(f"{ids} holds {self.ids.dtype} {self.ids.shape}, not int64 (rows,); restore it")
        self._path = metadata
        self._map = None if metadata is None else pa.memory_map(str(metadata))

    @cached_property
    def metadata(self) -> pa.Table | None:
        """All metadata, in row order; None for an index that was given none."""
        if self._map is None:
            return None
        try:
            table = pq.ParquetFile(self._map).read()
        except (pa.ArrowException, OSError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"{self._path} does not open ({reason}); restore it or build the index again") from error
        if table.num_rows != len(self.ids):
            raise ValueError(
                f"{self._path} has {table.num_rows} rows for {len(self.ids)} ids; restore it or build again"
            )
        return table

    @cached_property
    def where(self) -> Where:
        """Filters over metadata, and over `id` where no column of metadata has that name."""
        table, ids = self.metadata, pa.array(np.asarray(self.ids))
        if table is None:
            return Where(pa.table({"id": ids}))
        named = any(name.lower() == "id" for name in table.column_names)  # SQL's names know no case
        return Where(table if named else table.append_column("id", ids))

    def find(self, ids: np.ndarray) -> np.ndarray:
        """Row number of each id (n,), -1 where the index has no such id."""
        order, ordered = self._order
        if not len(ordered):
            return np.full(len(ids), -1, np.int64)
        place = np.minimum(np.searchsorted(ordered, ids), len(ordered) - 1)
        return np.where(ordered[place] == ids, place if order is None else order[place], -1)

    @cached_property
    def _order(self) -> tuple[np.ndarray | None, np.ndarray]:
        """(argsort, sorted ids); the argsort is None where ids rise as they are."""
        ids = np.asarray(self.ids)
        if (ids[1:] > ids[:-1]).all():
            return None, ids
        order = np.argsort(ids)
        return order, ids[order]

    def of(self, ids: Any) -> pa.Table:
        """Metadata of ids, in the order given; the ids alone where there is none. ValueError: an unknown id, or -1."""
        wanted = np.asarray(ids).ravel()
        if wanted.size and wanted.dtype.kind not in "iu":
            raise ValueError(f"ids have dtype {wanted.dtype}; give whole numbers")
        wanted = wanted.astype(np.int64)
        if (wanted < 0).any():
            raise ValueError(f"id {wanted.min()} stands for 'nothing found'; leave it out: ids[ids >= 0]")
        rows = self.find(wanted)
        if (rows < 0).any():
            raise ValueError(f"id {wanted[rows < 0][0]} is not in the index of {len(self.ids)} rows")
        return pa.table({"id": wanted}) if self.metadata is None else self.metadata.take(pa.array(rows))
