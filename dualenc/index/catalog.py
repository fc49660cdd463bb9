"""Ids and metadata of an index's rows: checked when they come in, found again when asked for."""

from __future__ import annotations

import threading
from collections import OrderedDict
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dualenc.index.hits import group_numbers
from dualenc.index.kinds import Allowed
from dualenc.index.segment import Segment
from dualenc.index.where import Where

FILTERS = 8  # kept ready for the next search with the same `where`


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
    return _kept(table) if table.num_columns else None


def _kept(table: pa.Table) -> pa.Table:
    """The table with columns that parquet holds and Arrow's functions know; ValueError names one that cannot be kept."""
    for place, field in enumerate(table.schema):
        if str(field.type) in ("string_view", "binary_view"):
            plain = pa.string() if "string" in str(field.type) else pa.binary()
            table = table.set_column(place, field.name, table.column(place).cast(plain))
            continue
        try:
            pq.ParquetWriter(pa.BufferOutputStream(), pa.schema([field])).close()
        except (pa.ArrowException, OSError) as error:
            raise ValueError(
                f"metadata column {field.name!r} is {field.type}, which parquet cannot hold; make it another type"
            ) from error
    return table


def _from_dicts(metadata: list[dict[str, Any]]) -> pa.Table:
    names = dict.fromkeys(name for row in metadata for name in row)
    if not all(isinstance(name, str) for name in names):
        raise ValueError(f"metadata has a key that is no text ({next(n for n in names if not isinstance(n, str))!r})")
    try:
        return pa.table({name: [row.get(name) for row in metadata] for name in names})
    except (pa.ArrowException, OverflowError) as error:
        raise ValueError(f"metadata mixes types in one column: {str(error).splitlines()[0]}") from error


def join(parts: list[tuple[pa.Table | None, int]]) -> pa.Table | None:
    """(metadata, rows) of several parts as one table, in order; a column that a part lacks is null there.

    ValueError: one column has types that do not go together.
    """
    schemas = [table.schema for table, _ in parts if table is not None]
    if not schemas:
        return None
    tables = [_nulls(schemas[0], rows) if table is None else table for table, rows in parts]
    try:
        return pa.concat_tables(tables, promote_options="permissive")
    except pa.ArrowException as error:
        raise ValueError(f"metadata does not fit the index's columns: {str(error).splitlines()[0]}") from error


def _nulls(schema: pa.Schema, rows: int) -> pa.Table:
    return pa.table({field.name: pa.nulls(rows, field.type) for field in schema})


class MetadataFile:
    """One segment's metadata: opened at once, so that a writer who replaces it takes nothing from a reader, read late."""

    def __init__(self, path: Path, rows: int):
        self._path, self._rows, self._map = path, rows, pa.memory_map(str(path))

    @property
    def schema(self) -> pa.Schema:
        """The columns and their types."""
        try:
            return pq.read_schema(self._map).remove_metadata()
        except (pa.ArrowException, OSError) as error:
            raise self._damaged(error) from error

    def _damaged(self, error: Exception) -> ValueError:
        reason = str(error).splitlines()[0]
        return ValueError(f"{self._path} does not open ({reason}); restore it or build the index again")

    @cached_property
    def table(self) -> pa.Table:
        """All rows, the removed ones included."""
        try:
            table = pq.ParquetFile(self._map).read()
        except (pa.ArrowException, OSError) as error:
            raise self._damaged(error) from error
        if table.num_rows != self._rows:
            raise ValueError(f"{self._path} has {table.num_rows} rows for {self._rows} ids; restore it or build again")
        return table


class Catalog:
    """Ids and metadata of one generation, over all segments. A row of it is one that was not removed, in order."""

    def __init__(self, segments: list[Segment], files: list[MetadataFile | None]):
        self.segments, self.files = segments, files
        self.starts = np.cumsum([0] + [segment.live for segment in segments])
        self._filters: OrderedDict[str, list[Allowed]] = OrderedDict()
        self._groups: dict[str, np.ndarray] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return int(self.starts[-1])

    @cached_property
    def ids(self) -> np.ndarray:
        """(N,) int64: the id of each row."""
        parts = [
            np.asarray(segment.ids) if not len(segment.removed) else np.asarray(segment.ids)[segment.alive]
            for segment in self.segments
        ]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def part(self, place: int) -> pa.Table | None:
        """Metadata of a segment's rows that were not removed."""
        file, segment = self.files[place], self.segments[place]
        if file is None:
            return None
        return file.table.take(pa.array(segment.alive)) if len(segment.removed) else file.table

    @cached_property
    def metadata(self) -> pa.Table | None:
        """All metadata, in row order; None for an index that was given none."""
        return join([(self.part(place), segment.live) for place, segment in enumerate(self.segments)])

    def refuse_clash(self, table: pa.Table | None, rows: int) -> None:
        """ValueError where a table of new rows has columns that do not go with the index's."""
        schemas = [file.schema for file in self.files if file is not None]
        alike = all(
            schema.field(field.name).type == field.type
            for schema in schemas
            for field in (table.schema if table is not None else [])
            if field.name in schema.names
        )
        if not alike:  # other types may still go together, which depends on the values: only then is all read
            join([(self.metadata, len(self)), (table, rows)])

    @cached_property
    def where(self) -> Where:
        """Filters over metadata, and over `id` where no column of metadata has that name."""
        table, ids = self.metadata, pa.array(self.ids)
        if table is None:
            return Where(pa.table({"id": ids}))
        named = any(name.lower() == "id" for name in table.column_names)  # SQL's names know no case
        return Where(table if named else table.append_column("id", ids))

    def allowed(self, where: str) -> list[Allowed]:
        """What each segment may find under a filter. The last few are kept, with what searches made of them."""
        with self._lock:
            if where in self._filters:
                self._filters.move_to_end(where)
                return self._filters[where]
        mask = self.where.mask(where)
        parts = [
            segment.allow(mask[start:stop])
            for segment, start, stop in zip(self.segments, self.starts[:-1], self.starts[1:], strict=True)
        ]
        with self._lock:
            self._filters[where] = parts
            while len(self._filters) > FILTERS:
                self._filters.popitem(last=False)
        return parts

    def ready(self, where: str) -> bool:
        """Whether `allowed` has this filter."""
        with self._lock:
            return where in self._filters

    def column_groups(self, column: str) -> np.ndarray:
        """(N,) int64: a number for each value of a metadata column, -1 for nulls; kept for the next search."""
        if column not in self._groups:
            table = self.metadata
            if table is None or column not in table.column_names:
                have = "there is none" if table is None else ", ".join(table.column_names)
                raise ValueError(f"group_by={column!r} is no column of the metadata ({have})")
            self._groups[column] = group_numbers(table[column])
        return self._groups[column]

    def find(self, ids: np.ndarray) -> np.ndarray:
        """Row number of each id (n,), -1 where the index has no such id."""
        found = np.full(ids.shape, -1, np.int64)
        for segment, start in zip(self.segments, self.starts[:-1], strict=True):
            row = segment.find(ids)
            if len(segment.removed):
                place = np.searchsorted(segment.removed, row)
                gone = segment.removed[np.minimum(place, len(segment.removed) - 1)] == row
                row = np.where(gone | (row < 0), -1, row - place)
            found = np.where(row >= 0, row + start, found)
        return found

    def vectors(self, rows: np.ndarray) -> np.ndarray:
        """(n, D) unit float32: the original vectors of rows by number, in the order given."""
        owner = np.searchsorted(self.starts, rows, side="right") - 1
        taken = np.empty((len(rows), self.segments[0].kind.dim), np.float32)
        for place in np.unique(owner):
            here = owner == place
            segment = self.segments[place]
            taken[here] = segment.take(segment.alive[rows[here] - self.starts[place]])
        return taken

    def known(self, ids: Any) -> tuple[np.ndarray, np.ndarray]:
        """(ids, row numbers) of ids that must be there. ValueError: an unknown id, or -1."""
        wanted = np.asarray(ids).ravel()
        if wanted.size and wanted.dtype.kind not in "iu":
            raise ValueError(f"ids have dtype {wanted.dtype}; give whole numbers")
        wanted = wanted.astype(np.int64)
        if (wanted < 0).any():
            raise ValueError(f"id {wanted.min()} stands for 'nothing found'; leave it out: ids[ids >= 0]")
        rows = self.find(wanted)
        if (rows < 0).any():
            raise ValueError(f"id {wanted[rows < 0][0]} is not in the index of {len(self)} rows")
        return wanted, rows

    def of(self, ids: Any) -> pa.Table:
        """Metadata of ids, in the order given; the ids alone where there is none. ValueError: an unknown id, or -1."""
        wanted, rows = self.known(ids)
        return pa.table({"id": wanted}) if self.metadata is None else self.metadata.take(pa.array(rows))
