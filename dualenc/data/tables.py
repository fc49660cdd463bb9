"""Items out of a table: which columns play a part, and rows of one image brought together, in two readings."""

from __future__ import annotations

import array
import difflib
import json
import posixpath
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from dualenc.data.items import Dropped, Item, clean_captions, plain
from dualenc.data.rows import Row, column_names, read_rows

IMAGE_COLUMNS = ("image", "image_path", "filepath", "file_path", "file_name", "filename", "path", "file")
CAPTION_COLUMNS = ("captions", "caption", "text", "title")
CLASS_COLUMNS = ("label", "class", "class_name", "category")


class Columns(NamedTuple):
    """Which columns play a part. `where`: (column, value) pairs that a row must have to be packed.

    guessed: nobody named `label`: an image without a class just has none, as in a table without that column, and a list
    of classes is metadata.
    """

    image: str
    captions: tuple[str, ...]
    key: str | None
    label: str | None
    where: tuple[tuple[str, str], ...]
    guessed: bool = False


class Survey(NamedTuple):
    """What a first reading of a table finds; `repeated` counts, per hash, the rows of images that have several."""

    rows: int
    chosen: int
    images: int
    repeated: dict[int, int]
    classes: list[str] | None  # None where classes are numbers already
    seen: dict[str, list[str]]  # the values of the `where` columns


def choose_columns(
    table: Path,
    kind: str,
    image: str | None,
    captions: Sequence[str] | None,
    key: str | None,
    label: str | None,
    where: Sequence[str],
) -> Columns:
    """Check the columns named, and find those not named by their usual names. ValueError lists what the table has."""
    names = column_names(table, kind)
    conditions = tuple((column, value) for column, _, value in (text.partition("=") for text in where))
    for text in where:
        if "=" not in text:
            raise ValueError(
                f"where {text!r} is not COLUMN=VALUE, so no row can be chosen by it; write e.g. split=train"
            )
    for name in [image, *(captions or ()), key, label, *(column for column, _ in conditions)]:
        if name is not None and name not in names:
            close = difflib.get_close_matches(name, names, 1, 0.5)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise ValueError(f"{table} has no column {name!r}; its columns are {', '.join(names)}{hint}")
    image = image or _image_column(table, names)
    if captions is None:
        captions = _first(CAPTION_COLUMNS, names)
        if not captions and label is None:
            raise ValueError(
                f"{table}: which column holds captions? Its columns are {', '.join(names)}; name one or more"
            )
    return Columns(image, tuple(captions), key, label, conditions)


def guess_columns(table: Path, kind: str) -> Columns:
    """The columns of a table that is read as it is: by their usual names, as `choose_columns` finds them, and the class
    likewise. A table without captions and classes holds images alone."""
    names = column_names(table, kind)
    label = next(iter(_first(CLASS_COLUMNS, names)), None)
    return Columns(_image_column(table, names), _first(CAPTION_COLUMNS, names), None, label, (), guessed=True)


def _image_column(table: Path, names: Sequence[str]) -> str:
    image = next(iter(_first(IMAGE_COLUMNS, names)), None)
    if image is None:
        raise ValueError(f"{table}: which column holds image paths? Its columns are {', '.join(names)}; name one")
    return image


def _first(known: Sequence[str], names: Sequence[str]) -> tuple[str, ...]:
    """The first of the known names that a table has, if any."""
    return tuple(name for name in known if name in names)[:1]


def survey(table: Path, kind: str, columns: Columns) -> Survey:
    """Read a table once, for what must be known before its images are packed in one stream."""
    rows = chosen = 0
    identities = array.array("q")  # 8 bytes a row
    labels: set[str] = set()
    seen: dict[str, dict[str, None]] = {column: {} for column, _ in columns.where}
    for row in tqdm(read_rows(table, kind), desc=f"reading {table.name}", unit="row", disable=None):
        rows += 1
        for column, found in seen.items():
            if len(found) < 10 and column in row.fields:
                found[_text(row.fields[column])] = None
        if row.problem is None and _chosen(row, columns):
            chosen += 1
            identities.append(hash(_identity(row, columns)))
            if columns.label is not None and _one_class(row.fields.get(columns.label), columns):
                labels.add(_text(row.fields[columns.label]))
    values, counts = np.unique(np.frombuffer(identities, np.int64), return_counts=True)
    numbers = all(label.isascii() and label.isdigit() for label in labels)
    return Survey(
        rows,
        chosen,
        len(values),
        dict(zip(values[counts > 1].tolist(), counts[counts > 1].tolist(), strict=True)),
        None if numbers else sorted(labels),
        {column: list(found) for column, found in seen.items()},
    )


def table_items(table: Path, kind: str, columns: Columns, known: Survey) -> Iterator[Item | Dropped | None]:
    """One item per image, in the order in which their last rows come; None for a row that `where` leaves out."""
    remaining = dict(known.repeated)
    waiting: dict[int, dict[tuple[str, str], list[Row]]] = {}
    for row in read_rows(table, kind):
        if row.problem is not None:
            yield Dropped(row.name, row.problem)
        elif not _chosen(row, columns):
            yield None
        else:
            identity = _identity(row, columns)
            number = hash(identity)
            waiting.setdefault(number, {}).setdefault(identity, []).append(row)
            remaining[number] = remaining.get(number, 1) - 1
            if remaining[number] == 0:
                del remaining[number]
                for rows in waiting.pop(number).values():
                    yield _item(rows, columns, known.classes)


def _chosen(row: Row, columns: Columns) -> bool:
    return all(_text(row.fields.get(column)) == value for column, value in columns.where)


def _text(value: Any) -> str:
    """A field as a person writes it in a condition: true, 3, train."""
    if isinstance(value, bool) or value is None:
        return json.dumps(value)
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _one_class(value: Any, columns: Columns) -> bool:
    """Whether a field says a class. In a column that nobody named, a list (or JSON's text of one) is several: metadata."""
    several = isinstance(value, list) or (isinstance(value, str) and value.lstrip().startswith("["))
    return value not in (None, "") and not (columns.guessed and several)


def _identity(row: Row, columns: Columns) -> tuple[str, str]:
    """Rows with the same are captions of one sample. A row without an image stands alone."""
    image = row.fields.get(columns.image)
    path = posixpath.normpath(image) if isinstance(image, str) and image.strip() else f"\0{row.name}"
    return path, "" if columns.key is None else _text(row.fields.get(columns.key))


def _item(rows: list[Row], columns: Columns, classes: list[str] | None) -> Item | Dropped:
    first = rows[0].fields
    image = first.get(columns.image)
    if not isinstance(image, str) or not image.strip():
        return Dropped(rows[0].name, "row names no image")
    captions, notes = clean_captions(row.fields.get(column) for row in rows for column in columns.captions)
    label = None
    value = None if columns.label is None else first.get(columns.label)
    if _one_class(value, columns):
        if classes is None and not -(2**63) <= int(_text(value)) < 2**63:
            return Dropped(image, "class is too large a number")
        label = int(_text(value)) if classes is None else classes.index(_text(value))
    elif columns.label is not None and not columns.guessed and value in (None, ""):
        return Dropped(image, "missing class")
    elif value in (None, "") and columns.captions and not captions:
        return Dropped(image, notes[0] if notes else "missing caption")
    key = None
    if columns.key is not None:
        key = _text(first.get(columns.key))
        if not key.strip() or first.get(columns.key) is None:
            return Dropped(image, "missing key")
    used = {*columns.captions, columns.key}
    metadata = {name: value for name, raw in first.items() if name not in used and (value := plain(raw)) is not None}
    return Item(image, captions, metadata, key, label, notes)
