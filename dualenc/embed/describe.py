"""What is known of each sample of a source, as a table: the metadata beside its embedding."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from dualenc.data.items import plain
from dualenc.data.shards import Source

WORDS = ("txt", "json", "cls")  # what is read of a sample: all but its image


def describe(source: Source, positions: np.ndarray) -> tuple[pa.Table, list[list[str]]]:
    """Metadata of the given samples, one row each, and their captions.

    Columns: `key`, `caption` (the first), `captions`, `image_path`, `image_offset`, `image_size`, `label`, and KEY.json's
    scalar fields. A field that has one of these names but says something else is kept as `json_NAME`.
    """
    columns = ("key", "caption", "captions", "image_path", "image_offset", "image_size", "label")
    rows, captions = [], []
    for i in map(int, positions):
        sample, place = source.sample(i, WORDS), source.location(i)
        if place is None:
            raise FileNotFoundError(f"{source.keys[i]}: its image is gone since {source.path} was listed; restore it")
        some = sample.captions()
        known = (sample.key, some[0] if some else None, some, *place, sample.label())
        row = dict(zip(columns, known, strict=True))
        rows.append(row | _others(sample.metadata(), row))
        captions.append(some)
    types = [pa.string(), pa.string(), pa.list_(pa.string()), pa.string(), pa.int64(), pa.int64(), pa.int64()]
    fixed = {n: pa.array([r[n] for r in rows], t) for n, t in zip(columns, types, strict=True)}
    names = dict.fromkeys(name for r in rows for name, v in r.items() if name not in columns and v is not None)
    return pa.table(fixed | {name: _column([r.get(name) for r in rows]) for name in names}), captions


def _others(fields: dict[str, Any], row: dict[str, Any]) -> dict[str, Any]:
    """KEY.json's fields under names that `row` leaves free, less those that repeat it (as img2dataset's do)."""
    found: dict[str, Any] = {}
    for field, value in fields.items():
        name = str(plain(field))
        if name in row and " ".join(str(value).split()) == str(row[name]):
            continue
        while name in row or name in found or (name != field and name in fields):
            name = f"json_{name}"
        found[name] = value
    return found


def _column(values: list[Any]) -> pa.Array:
    try:
        return pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError, UnicodeEncodeError):
        # One sample's number is another one's text, or more than 64 bits; or half of a UTF-16 pair stands alone
        return pa.array([None if v is None else plain(str(v)) for v in values], pa.string())
