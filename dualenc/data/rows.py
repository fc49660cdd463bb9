"""Rows of a table of images and captions (CSV, TSV, JSONL, parquet), or of a folder, one at a time."""

from __future__ import annotations

import csv
import difflib
import itertools
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

FORMATS = {".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet", ".pq": "parquet"}
IMAGE_COLUMNS = ("image", "image_path", "filepath", "file_path", "file_name", "filename", "path", "file")
CAPTION_COLUMNS = ("captions", "caption", "text", "title")
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".avif", ".jp2")
PEEK = 100  # rows whose fields are the columns of a JSONL file


class Row(NamedTuple):
    """One row. `problem` says why it cannot be used; `name` is how it is listed then."""

    name: str
    fields: dict[str, Any]
    problem: str | None = None


class Columns(NamedTuple):
    """The names of the columns that play a part; None where there is none."""

    image: str
    captions: tuple[str, ...]
    key: str | None
    label: str | None


def format_of(source: Path, given: str | None) -> str:
    """ "folder" or a value of FORMATS; ValueError names what there is."""
    kinds = ("folder", *dict.fromkeys(FORMATS.values()))
    if given is not None and given not in kinds:
        raise ValueError(f"format {given!r} is not known, so {source} cannot be read; use one of {', '.join(kinds)}")
    if not source.exists():
        raise FileNotFoundError(f"{source}: no such file or folder, so there is nothing to pack; check the path")
    found = "folder" if source.is_dir() else given or FORMATS.get(source.suffix.lower())
    if found is None:
        raise ValueError(f"{source}: {source.suffix or 'no suffix'} does not tell what it is; name its format ({', '.join(kinds)})")
    return found


def read_rows(source: Path, kind: str) -> Iterator[Row]:
    """The rows of a table, in order; never raises for a row, whatever it holds."""
    if kind == "parquet":
        return _parquet(source)
    return _jsonl(source) if kind == "jsonl" else _delimited(source, "\t" if kind == "tsv" else ",")


def column_names(source: Path, kind: str) -> list[str]:
    """The table's columns; of a JSONL file, the fields of its first rows."""
    if kind == "parquet":
        return _parquet_file(source).schema_arrow.names
    first = itertools.islice((row for row in read_rows(source, kind) if row.problem is None), 1 if kind != "jsonl" else PEEK)
    names = list(dict.fromkeys(name for row in first for name in row.fields))
    return names or _header(source, kind)


def choose_columns(source: Path, names: Sequence[str], wanted: Columns | None) -> Columns: ...
