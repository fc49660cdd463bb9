"""Which rows of an index, or of another embedding of the same data, are the images and captions at hand: by name."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np

from dualenc.evaluate.ranks import Ints
from dualenc.evaluate.sections import Embedded


def image_keys(embedded: Embedded, whose: str = "the data") -> list[str]:
    """The key of each image, each of which occurs once. ValueError: no keys, an image without one, one twice."""
    return unique_keys(column(embedded.metadata, "key", whose), whose)


def text_names(embedded: Embedded, keys: Sequence[str], whose: str = "the data") -> list[tuple[str, str, int]]:
    """(key of its image, caption, how many before it are the same) of each caption: no two are equal."""
    captions = column(embedded.text_metadata, "caption", whose)
    return numbered([(keys[image], text) for image, text in zip(embedded.image_row, captions, strict=True)])


def numbered(names: Sequence[tuple[Any, ...]]) -> list[Any]:
    """Each name with the number of equal ones before it, so that no two are equal.

    >>> numbered([("a",), ("b",), ("a",)])
    [('a', 0), ('b', 0), ('a', 1)]
    """
    seen: dict[Hashable, int] = defaultdict(int)
    out = []
    for name in names:
        out.append((*name, seen[name]))
        seen[name] += 1
    return out


def column(table: Any, name: str, whose: str) -> list[Any]:
    """A column of metadata as a list; ValueError where `table` is None or lacks it."""
    if table is None or name not in table.column_names:
        raise ValueError(
            f"{whose} has no column {name!r} in its metadata, so its rows cannot be told apart; embed again with dualenc"
        )
    return table[name].to_pylist()


def unique_keys(keys: list[Any], whose: str) -> list[str]:
    """`keys` as they are; ValueError for one that is null or occurs twice."""
    if None in keys:
        raise ValueError(
            f"row {keys.index(None)} of {whose} has no key, so nobody knows which image it is; give it one"
        )
    if len(set(keys)) < len(keys):
        twice = next(name for name in numbered([(key,) for key in keys]) if name[1])
        raise ValueError(
            f"the key {twice[0]!r} occurs twice in {whose} ({len(keys) - len(set(keys)):,} rows too many), so nobody "
            "knows which of the rows is that image; remove one"
        )
    return keys


def places(wanted: Sequence[Hashable], there: Sequence[Hashable]) -> Ints:
    """(len(wanted),) where each name of `wanted` stands in `there`, -1 where it does not.

    >>> places(["b", "c"], ["a", "b"])
    array([ 1, -1])
    """
    at = {name: place for place, name in enumerate(there)}
    return np.array([at.get(name, -1) for name in wanted], np.int64)


def example(names: Sequence[Any], found: Ints) -> str:
    """The first name that is not in `found`, for an error: a key, or a key with its caption."""
    name = names[int(np.argmax(found < 0))]
    return repr(name) if isinstance(name, str) else f"{name[1]!r} of {name[0]!r}"
