"""Images by the names that a benchmark's files give them."""

from __future__ import annotations

import posixpath
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from dualenc.data.items import IMAGE_SUFFIXES


def find(keys: Sequence[str], names: Sequence[str]) -> npt.NDArray[np.int64]:
    """(M,) which key each name stands for, -1 where none does. keys: N names of samples; names: file names or paths.

    A key is a path without its suffix (`Source.keys`), a name may have one: they meet when they are equal with or without
    it, or else in their last parts alone, where that says one key.

    >>> find(["val2017/0001", "val2017/0002", "other/0002"], ["0001.jpg", "val2017/0002.jpg", "0002.jpg", "3.jpg"])
    array([ 0,  1, -1, -1])
    """
    whole = {key: i for i, key in enumerate(keys)}
    last: dict[str, int] = {}
    for key, i in whole.items():
        base = posixpath.basename(key)
        last[base] = -1 if base in last else i

    def place(name: str) -> int:
        stem = name[: -len(_suffix(name))] if _suffix(name) else name
        for text in (name, stem):
            if text in whole:
                return whole[text]
        found = [last[base] for base in map(posixpath.basename, (name, stem)) if base in last]
        return found[0] if found else -1

    return np.array([place(name) for name in names], np.int64)


def _suffix(name: str) -> str:
    suffix = posixpath.splitext(name)[1]
    return suffix if suffix.lower() in IMAGE_SUFFIXES else ""
