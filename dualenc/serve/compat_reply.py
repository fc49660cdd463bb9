"""Rows as clip-retrieval answers them: their metadata, and the picture itself in base64."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from pydantic_core import to_json

from dualenc.images import BadImage
from dualenc.serve.columns import plain
from dualenc.serve.outgoing import as_jpeg
from dualenc.serve.pictures import NoPicture, find, place_of, read, rows_of
from dualenc.serve.query import PATH, PRIVATE

if TYPE_CHECKING:
    from dualenc.index.index import Index

ROWS = 64  # turned into Python values at once
PIECE = 1 << 20  # bytes of pictures after which a piece is sent
BATCH = 1024  # entries of a piece at most


def listed(
    index: Index, entries: list[dict[str, Any]], shown: int, max_pixels: int, under: str | None = None
) -> Iterator[bytes]:
    """A JSON list of entries, in pieces; the first `shown` of them with the metadata of the row of their `id`.

    under: the field of the entry that the metadata goes to; None: into the entry, whose own fields count.
    Problem 404, before the first piece: an id that is not in the index.
    """
    rows = _rows(index, [entry["id"] for entry in entries[:shown]], max_pixels)
    batch: list[dict[str, Any]] = []
    size, before, last = 0, b"[", len(entries) - 1
    for place, entry in enumerate(entries):
        if place < shown:
            row = next(rows)
            size += len(row.get("image", ""))
            entry = {**row, **entry} if under is None else {**entry, under: row}
        batch.append(entry)
        if size > PIECE or len(batch) == BATCH or place == last:
            text = to_json(batch, inf_nan_mode="null", fallback=str)[1:-1]
            yield before + text + (b"]" if place == last else b"")
            batch, size, before = [], 0, b","
    if not entries:
        yield b"[]"


def pictured(index: Index) -> bool:
    """Whether its rows may have pictures to read."""
    return index.metadata is not None and PATH in index.metadata.column_names


def _rows(index: Index, ids: list[int], max_pixels: int) -> Iterator[dict[str, Any]]:
    """Metadata of rows, a dict each, with `image` where there is a picture; without nulls and the server's paths."""
    table = rows_of(index, ids)
    if index.metadata is None:  # the table has the ids alone
        yield from ({} for _ in ids)
        return
    for start in range(0, len(ids), ROWS):
        for row in plain(table.slice(start, ROWS)):
            image = _image(row, max_pixels)
            # a column `image` is something else: here the name stands for the picture itself
            shown = {name: _text(v) for name, v in row.items() if v is not None and name not in (*PRIVATE, "image")}
            yield shown if image is None else {**shown, "image": image}


def _image(row: dict[str, Any], max_pixels: int) -> str | None:
    """The row's picture as JPEG in base64; None where it has none, or none that can be read any more."""
    try:
        return base64.b64encode(as_jpeg(read(find(place_of(row))), max_pixels)).decode()
    except (NoPicture, BadImage):
        return None


def _text(value: Any) -> Any:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value
