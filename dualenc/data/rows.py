"""Rows of a table (CSV, TSV, JSONL, parquet), one at a time; one that cannot be read is a row with a problem."""

from __future__ import annotations

import csv
import itertools
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow
import pyarrow.parquet

FORMATS = {".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet", ".pq": "parquet"}
KINDS = ("folder", *dict.fromkeys(FORMATS.values()))
PEEK = 100  # rows whose fields are taken for the columns of a JSONL file
BATCH = 1_000  # rows of a parquet file in memory at a time


class Row(NamedTuple):
    """One row. `problem` says why it cannot be used; it is then listed as `name`."""

    name: str
    fields: dict[str, Any]
    problem: str | None = None


def kind_of(source: Path, given: str | None = None) -> str:
    """What a source is: one of KINDS, `given` or by its suffix."""
    if given is not None and given not in KINDS:
        raise ValueError(f"format {given!r} is not known, so {source} cannot be read; use one of {', '.join(KINDS)}")
    if not source.exists():
        raise FileNotFoundError(f"{source}: no such file or folder, so there is nothing to pack; check the path")
    if given is not None and source.is_dir() != (given == "folder"):
        raise ValueError(
            f"{source} is {'a folder' if source.is_dir() else 'a file'}, but format says {given}; correct one"
        )
    kind = "folder" if source.is_dir() else given or FORMATS.get(source.suffix.lower())
    if kind is None:
        raise ValueError(
            f"{source}: the suffix {source.suffix!r} does not tell what it is; name its format ({', '.join(KINDS)})"
        )
    return kind


def read_rows(table: Path, kind: str) -> Iterator[Row]:
    """The rows of a table, in order. Text that is not UTF-8 keeps its bytes as Python's surrogate escapes."""
    if kind == "parquet":
        return _parquet(table)
    return _jsonl(table) if kind == "jsonl" else _delimited(table, "\t" if kind == "tsv" else ",")


def column_names(table: Path, kind: str) -> list[str]:
    """The columns of a table; of JSONL, the fields of its first rows. ValueError when there are none."""
    if kind == "parquet":
        names = _open_parquet(table).schema_arrow.names
    elif kind == "jsonl":
        first = itertools.islice(_jsonl(table), PEEK)
        names = list(dict.fromkeys(name for row in first for name in row.fields))
    else:
        with _open_text(table) as file:
            names = next(csv.reader(file, delimiter="\t" if kind == "tsv" else ","), [])
    if not names:
        raise ValueError(f"{table} has no columns, so nothing says where the images are; is it empty, or not {kind}?")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{table}: two columns are called {twice!r}, so one would hide the other; rename one")
    return names


def _open_text(table: Path) -> Any:
    return open(table, encoding="utf-8-sig", errors="surrogateescape", newline="")


def _delimited(table: Path, delimiter: str) -> Iterator[Row]:
    ended = False

    def lines(file: Iterable[str]) -> Iterator[str]:
        nonlocal ended
        yield from file
        ended = True  # asked for a line after the last one: a row is still open

    with _open_text(table) as file:
        reader = csv.reader(lines(file), delimiter=delimiter)
        header = next(reader, [])
        while True:
            start = reader.line_num + 1
            try:
                values = next(reader)
            except StopIteration:
                return
            except csv.Error as error:  # an open quote that swallows the file, a NUL
                yield Row(
                    _lines(start, reader.line_num),
                    {},
                    f"row is not valid {'TSV' if delimiter == chr(9) else 'CSV'} ({error})",
                )
                continue
            if not values:
                continue
            problem = None if len(values) == len(header) else "row has another number of fields than the header"
            if ended:
                problem = "a quote is never closed, so the rest of the table is inside it"
            yield Row(_lines(start, reader.line_num), dict(zip(header, values, strict=False)), problem)


def _lines(first: int, last: int) -> str:
    return f"line {first}" if first >= last else f"lines {first}-{last}"


def _jsonl(table: Path) -> Iterator[Row]:
    with open(table, "rb") as file:
        for number, line in enumerate(file, 1):
            text = line.decode("utf-8-sig" if number == 1 else "utf-8", "surrogateescape").strip()
            if not text:
                continue
            try:
                fields = json.loads(text)
            except (ValueError, RecursionError):
                fields = None
            good = isinstance(fields, dict)
            yield Row(f"line {number}", fields if good else {}, None if good else "row is not a JSON object")


def _open_parquet(table: Path) -> pyarrow.parquet.ParquetFile:
    try:
        return pyarrow.parquet.ParquetFile(table)
    except (pyarrow.ArrowException, OSError) as error:
        text = str(error).splitlines()[0]
        raise ValueError(f"{table} does not open as parquet ({text}); restore it, or name its format") from error


def _parquet(table: Path) -> Iterator[Row]:
    file = _open_parquet(table)
    number = 0
    for batch in file.iter_batches(BATCH):
        try:
            rows = batch.to_pylist()
        except UnicodeDecodeError:  # somewhere in the batch: find the row
            rows = [_one_row(batch.slice(i, 1)) for i in range(batch.num_rows)]
        for fields in rows:
            number += 1
            yield Row(f"row {number}", fields or {}, None if fields is not None else "row is not UTF-8")


def _one_row(batch: pyarrow.RecordBatch) -> dict[str, Any] | None:
    try:
        return batch.to_pylist()[0]
    except UnicodeDecodeError:
        return None
