"""Right classes from a metadata column: one for each image, or several."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from dualenc.evaluate.ranks import Ints
from dualenc.evaluate.sections import Embedded, listed


def labels(embedded: Embedded, class_names: Sequence[str], column: str = "label") -> tuple[Ints, Ints]:
    """Rows that have a class in the metadata column, (M,), and its number, (M,): a number (0 is the first) or a name.

    ValueError: no such column, no label in it, one outside the classes.
    """
    row, found = _cells(embedded, column)
    number = {name: i for i, name in enumerate(class_names)}
    return row, np.array([_number(value, number, class_names, column) for value in found], np.int64)


def label_lists(
    embedded: Embedded, class_names: Sequence[str], column: str = "label"
) -> tuple[Ints, npt.NDArray[np.bool_]]:
    """Rows that have a list of classes, (M,), and which classes each holds, (M, C). Errors as `labels`.

    A list holds numbers or names, also as JSON text (`["cat", "dog"]`, what a CSV can hold); an empty one says that the
    image shows none of the classes, null that nothing is known of it.
    """
    row, found = _cells(embedded, column)
    number = {name: i for i, name in enumerate(class_names)}
    held = np.zeros((len(row), len(class_names)), bool)
    for i, value in enumerate(found):
        several = _list(value)
        if several is None:
            raise ValueError(
                f"{column} holds {value!r} among lists of classes; write a list in each row, as [{value!r}]"
            )
        held[i, [_number(one, number, class_names, column) for one in several]] = True
    return row, held


def holds_lists(table: pa.Table, column: str) -> bool:
    """Whether a metadata column says several classes for an image: lists, or text that is a JSON list.

    >>> holds_lists(pa.table({"a": [["cat"], None], "b": ["[0, 2]", "[]"], "c": ["cat", "dog"]}), "b")
    True
    """
    if column not in table.column_names:
        return False
    kind = table.schema.field(column).type
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return True
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        return False
    found = [value for value in table[column].to_pylist() if value is not None]
    return bool(found) and all(_list(value) is not None for value in found)


def _cells(embedded: Embedded, column: str) -> tuple[Ints, list[Any]]:
    """Rows with a value in the column, and the values."""
    if column not in embedded.metadata.column_names:
        raise ValueError(
            f"the data has no column {column!r}, so no right classes; add KEY.cls files or name another column "
            f"({', '.join(embedded.metadata.column_names)})"
        )
    values = embedded.metadata[column].to_pylist()
    row = np.array([i for i, value in enumerate(values) if value is not None], np.int64)
    if len(row) == 0:
        raise ValueError(f"no image has a class in {column!r}, so accuracy cannot be told; add KEY.cls files")
    return row, [values[i] for i in row]


def _number(value: Any, number: dict[str, int], class_names: Sequence[str], column: str) -> int:
    at = number.get(value, -1) if isinstance(value, str) else value
    if not isinstance(at, int) or isinstance(at, bool) or not 0 <= at < len(class_names):
        raise ValueError(
            f"{column} {value!r} is none of the {len(class_names)} classes (numbers 0..{len(class_names) - 1}, or "
            f"{listed(list(class_names))}); give the class list the labels were made with"
        )
    return at


def _list(value: Any) -> list[Any] | None:
    """A cell as a list; None where it is none."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value)
        except ValueError:
            return None
    return value if isinstance(value, list) else None
