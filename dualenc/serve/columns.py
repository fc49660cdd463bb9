"""Metadata as replies show it: of hits, and what there is to filter by. Nothing that says where the server's files are."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from dualenc.serve.query import PATH, PRIVATE

if TYPE_CHECKING:
    from dualenc.index.index import Index
    from dualenc.serve.service import Service

MOST_VALUES = 50  # of a column that is listed with its values
UNFIT = (
    ValueError,
    OverflowError,
)  # what Arrow raises at values that Python cannot hold, text that is no UTF-8 among them
UNLISTED = ("key", "caption", "captions")  # a value each: nothing to choose from
STEP = 65_536  # rows looked at before a column with more values is given up
FEW = 64  # rows whose metadata is read sooner than another thread is asked to
# indexes whose metadata is in memory: reading it for the first time may take seconds
_READ: weakref.WeakSet[Index] = weakref.WeakSet()


def quick(index: Index, rows: int) -> bool:
    """Whether the metadata of so many rows may be read on the event loop."""
    return rows <= FEW and index in _READ


async def reading(service: Service, index: Index, function: Callable[..., Any], *arguments: Any) -> Any:
    """The result of a function that reads metadata of an index, called in a thread."""
    found = await service.run(function, *arguments)
    _READ.add(index)
    return found


def shown(index: Index, ids: Any) -> tuple[list[dict[str, Any]], list[bool]]:
    """The metadata of ids, a dict each, and whether there is an image. ValueError: an unknown id."""
    table = index.rows(ids)
    if index.metadata is None:
        return [{} for _ in ids], [False] * len(ids)
    names = [name for name in PRIVATE if name in table.column_names]
    images = [PATH in names] * len(ids)
    if PATH in names and table[PATH].null_count:
        images = [value is not None for value in table[PATH].to_pylist()]
    return plain(table.drop_columns(names)), images


def plain(table: pa.Table) -> list[dict[str, Any]]:
    """Rows as dicts. What Python cannot hold, which parquet of other programs may, is shown as text, or as null."""
    try:
        return table.to_pylist()
    except UNFIT:
        columns = {name: _told(table[name]) for name in table.column_names}
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _told(column: pa.ChunkedArray) -> list[Any]:
    """A column's values; of texts that are not UTF-8 the letters that are."""
    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        if not pa.types.is_string(column.type):  # within lists and the like
            return [None] * len(column)
        raw = column.cast(pa.binary()).to_pylist()
        return [None if value is None else value.decode("utf-8", "replace") for value in raw]
    except UNFIT:  # times of nanoseconds, or after the year 9999
        return column.cast(pa.string()).to_pylist()


class Columns:
    """What there is to filter by in each open index, looked at once for each generation."""

    def __init__(self) -> None:
        self._known: weakref.WeakKeyDictionary[Index, asyncio.Future[dict[str, Any]]] = weakref.WeakKeyDictionary()

    async def of(self, service: Service, index: Index) -> dict[str, Any]:
        """`described(index)`, made in a thread; who asks meanwhile waits for the same."""
        if index not in self._known:
            self._known[index] = asyncio.ensure_future(service.run(described, index))
        try:
            return await asyncio.shield(self._known[index])  # one that goes away leaves the others theirs
        except Exception:
            self._known.pop(index, None)  # tried again when it is asked for again
            raise


def described(index: Index) -> dict[str, Any]:
    """Whether an index has images and original rows, and each column that may be filtered by (`column`)."""
    table = index.metadata
    names = [] if table is None else table.column_names
    try:
        labels = len(index.vectors(index.ids[:1])) > 0
    except ValueError:  # codes alone
        labels = False
    columns = [] if table is None else [column(name, table[name]) for name in names if name not in PRIVATE]
    return {"images": PATH in names, "labels": labels, "columns": columns}


def kind_of(type_: pa.DataType) -> str:
    """What a page can do with a column: "text", "number", "boolean", "time" or "other"."""
    if pa.types.is_dictionary(type_):
        type_ = type_.value_type
    if pa.types.is_string(type_) or pa.types.is_large_string(type_):
        return "text"
    if pa.types.is_integer(type_) or pa.types.is_floating(type_) or pa.types.is_decimal(type_):
        return "number"
    if pa.types.is_boolean(type_):
        return "boolean"
    return "time" if pa.types.is_timestamp(type_) or pa.types.is_date(type_) else "other"


def column(name: str, values: pa.ChunkedArray) -> dict[str, Any]:
    """A column's name, type, values with their counts (at most 50, the most frequent first) and range."""
    kind = kind_of(values.type)
    about: dict[str, Any] = {"name": name, "type": kind, "values": None, "min": None, "max": None}
    if kind == "other":
        return about
    values = _simple(values)
    try:
        listed = None if name in UNLISTED else _values(values)
        return about | {"values": listed} | (pc.min_max(values).as_py() if kind in ("number", "time") else {})
    except UNFIT:
        return about


def _simple(values: pa.ChunkedArray) -> pa.ChunkedArray:
    """A column without what only Arrow has (dictionaries, short floats, nanoseconds); of numbers the finite ones."""
    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    if pa.types.is_float16(values.type):
        values = values.cast(pa.float32())
    elif pa.types.is_decimal(values.type):
        values = values.cast(pa.float64())
    elif pa.types.is_timestamp(values.type) and values.type.unit == "ns":
        values = values.cast(pa.timestamp("us", values.type.tz), safe=False)
    return values.filter(pc.is_finite(values)) if pa.types.is_floating(values.type) else values


def _values(column: pa.ChunkedArray) -> list[list[Any]] | None:
    counts: dict[Any, int] = {}
    for start in range(0, len(column), STEP):
        part = column.slice(start, STEP).drop_null().value_counts()
        if len(part) > MOST_VALUES:
            return None
        for entry in part.to_pylist():
            counts[entry["values"]] = counts.get(entry["values"], 0) + entry["counts"]
        if len(counts) > MOST_VALUES:
            return None
    return [[value, count] for value, count in sorted(counts.items(), key=lambda item: -item[1])]
