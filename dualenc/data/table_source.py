"""A table (CSV, TSV, JSONL, parquet) as a source: a row names an image, its caption, its class."""

from __future__ import annotations

import collections
import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dualenc.data.item_files import Unusable, free_key, image_path, shown
from dualenc.data.items import Dropped, Item
from dualenc.data.keys import Keys
from dualenc.data.rows import kind_of
from dualenc.data.sample import KINDS, Sample
from dualenc.data.source import Source
from dualenc.data.tables import guess_columns, survey, table_items

_NO_LABEL = np.iinfo(np.int64).min


class Table(Source):
    """The images that a table names, read where they lie: as `data pack` would pack it, with the same keys.

    Image paths are relative to the table's folder and stay inside it. Columns are found by their usual names
    (`tables.guess_columns`); rows of one image are captions of one sample, in the order of its last row; other columns
    are its metadata. Classes are numbers, or names, which are numbered as they sort. What cannot be used is listed in
    `problems`. ValueError when that is all.
    """

    def __init__(self, table: Path, name: str | None = None):
        table = Path(os.path.abspath(table))
        kind = kind_of(table)
        columns = guess_columns(table, kind)
        known = survey(table, kind, columns)
        self.root = table.parent
        problems: dict[str, list[str]] = collections.defaultdict(list)
        taken: set[str] = set()
        keys, images, words, facts, labels = [], [], [], [], []
        for item in table_items(table, kind, columns, known):
            place = _place(item, self.root, problems)
            if place is None or not isinstance(item, Item):
                continue
            relative = place.relative_to(self.root)
            keys.append(free_key(item, relative, taken)[0])
            images.append(relative.as_posix())
            words.append("\n".join(item.captions))
            facts.append(json.dumps(item.metadata, ensure_ascii=False))
            labels.append(_NO_LABEL if item.label is None else item.label)
        if not keys:
            reasons = ", ".join(f"{len(names)} {reason} (e.g. {names[0]})" for reason, names in problems.items())
            raise ValueError(
                f"{table}: no row of it names an image that can be used: {reasons or 'it has no rows'}; image paths "
                f"(column {columns.image!r}) are relative to {self.root}; correct them, or name another folder for them "
                "with `dualenc data pack --images`"
            )
        self._images, self._words, self._facts = Keys.of(images), Keys.of(words), Keys.of(facts)
        self._labels = np.array(labels, dtype=np.int64)
        self._stat = (table.name, table.stat().st_size)
        super().__init__(
            str(table), Keys.of(keys), dict(problems), [name or str(table)], np.zeros(len(keys), dtype=np.int64)
        )
        self.problem_counts = {(0, reason): len(names) for reason, names in problems.items()}
        self.classes = None if columns.label is None else known.classes

    def sample(self, i: int, kinds: Sequence[str] = KINDS) -> Sample:
        parts = {}
        for kind in kinds:
            if kind == "image":
                with open(self._path(i), "rb", buffering=0) as file:
                    parts[kind] = file.readall()
            elif kind == "txt" and self._words[i]:
                parts[kind] = self._words[i].encode()
            elif kind == "json":
                parts[kind] = self._facts[i].encode()
            elif kind == "cls" and self._labels[i] != _NO_LABEL:
                parts[kind] = str(self._labels[i]).encode()
        return Sample(self.keys[i], parts)

    def location(self, i: int, kind: str = "image") -> tuple[str, int, int] | None:
        path = self._path(i)
        return (path, 0, os.path.getsize(path)) if kind == "image" and os.path.isfile(path) else None

    def _path(self, i: int) -> str:
        return os.path.join(self.root, self._images[i])

    def _files(self) -> list[tuple[str, int]]:
        places = [(name, self.location(i)) for i, name in enumerate(self._images)]
        return [self._stat, *((name, place[2]) for name, place in places if place is not None)]


def _place(item: Item | Dropped | None, root: Path, problems: dict[str, list[str]]) -> Path | None:
    """The file of an item's image, or None with the reason noted."""
    if item is None:
        return None
    try:
        if isinstance(item, Dropped):
            raise Unusable(item.reason)
        path = image_path(item.image, root)
        if not os.path.isfile(path):  # False too for what no file can be called
            raise Unusable("missing file")
    except Unusable as error:
        problems[str(error)].append(shown(item.name if isinstance(item, Dropped) else item.image))
        return None
    return path
