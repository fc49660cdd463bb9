"""Sources out of whatever a path names: shards (webdataset tars, read by offset), a folder of images, a table."""

from __future__ import annotations

import collections
import contextlib
import glob
from collections.abc import Sequence
from pathlib import Path

import braceexpand
import numpy as np

from dualenc.beside import shard_folder, shards_missing
from dualenc.data.folder_source import FOLDER_EXTENSIONS, Folder
from dualenc.data.keys import Keys
from dualenc.data.known_sets import no_such_path
from dualenc.data.opened import OpenFile, opened
from dualenc.data.rows import FORMATS
from dualenc.data.sample import KINDS, Sample
from dualenc.data.shard_index import MISSING_IMAGE, nothing_found, read_indexes, where
from dualenc.data.source import Source

__all__ = ["FOLDER_EXTENSIONS", "Folder", "Shards", "Source", "open_source", "read_at"]

_COLUMN = {kind: 2 * number for number, kind in enumerate(KINDS)}  # of a shard's table of places


class Shards(Source):
    """Local webdataset tars. `owner[s]`: which of `names` shard s belongs to."""

    def __init__(self, paths: Sequence[Path], strict: bool, names: list[str], owner: Sequence[int]):
        self.paths = [str(path.resolve()) for path in paths]
        indexes = read_indexes(self.paths, strict)
        keys = Keys.joined([index.keys for index in indexes])
        problems: dict[str, list[str]] = collections.defaultdict(list)
        for path, index in zip(self.paths, indexes, strict=True):
            if index.damage:
                problems[index.damage].append(path)
            if index.imageless:
                problems[MISSING_IMAGE] += index.imageless
        if not len(keys) and strict:
            raise nothing_found(self.paths, indexes)
        self._stats = [(index.size, index.mtime_ns) for index in indexes]
        self._shard = np.repeat(np.arange(len(indexes), dtype=np.int32), [len(index.keys) for index in indexes])
        self._places = np.concatenate([index.places for index in indexes])
        twice = keys.again()
        origin_of_all = np.array(owner, dtype=np.int64)[self._shard]
        if len(twice) and strict:
            raise self._same_key(keys, int(twice[0]))
        if len(twice):
            problems["duplicate key"] = [keys[i] for i in twice]
            kept = np.setdiff1d(np.arange(len(keys)), twice)
            keys, self._shard, self._places = Keys.of(keys[i] for i in kept), self._shard[kept], self._places[kept]
        origin = np.delete(origin_of_all, twice)
        super().__init__(where(self.paths), keys, dict(problems), names, origin)
        counts: collections.Counter[tuple[int, str]] = collections.Counter()
        for number, index in zip(owner, indexes, strict=True):
            counts.update({(number, index.damage): 1} if index.damage else {})
            counts.update({(number, MISSING_IMAGE): len(index.imageless)} if index.imageless else {})
        counts.update((int(number), "duplicate key") for number in origin_of_all[twice])
        self.problem_counts = dict(counts)

    def sample(self, i: int, kinds: Sequence[str] = KINDS) -> Sample:
        places = self._places[i].tolist()
        held = [kind for kind in kinds if places[_COLUMN[kind]] >= 0]
        wanted = [(places[c], places[c + 1]) for c in map(_COLUMN.__getitem__, held)]
        found = self._opened(self._shard[i]).read(wanted) if wanted else []
        return Sample(self.keys[i], dict(zip(held, found, strict=True)))

    def location(self, i: int, kind: str = "image") -> tuple[str, int, int] | None:
        column = _COLUMN[kind]
        offset, size = self._places[i, column : column + 2].tolist()
        return None if offset < 0 else (self.paths[self._shard[i]], offset, size)

    def prefetch(self, first: int, last: int) -> None:
        shards, places = self._shard[first:last], self._places[first:last]
        for shard in np.unique(shards):
            rows = places[shards == shard]
            offsets, sizes = rows[:, 0::2], rows[:, 1::2]
            with contextlib.suppress(OSError):  # whoever reads the samples meets it again
                self._opened(shard).will_need(int(offsets[offsets >= 0].min()), int((offsets + sizes).max()))

    def _opened(self, shard: int) -> OpenFile:
        return opened(self.paths[shard], *self._stats[shard])

    def _files(self) -> list[tuple[str, int]]:
        return [(Path(path).name, size) for path, (size, _) in zip(self.paths, self._stats, strict=True)]

    def _same_key(self, keys: Keys, second: int) -> ValueError:
        key = keys[second]
        first = next(i for i, other in enumerate(keys) if other == key)
        return ValueError(
            f"key {key!r} is in {self.paths[self._shard[first]]} and again in {self.paths[self._shard[second]]}: keys must "
            "be unique, or rows of the index would point at the wrong image; pack one of them under other keys"
        )


def open_source(path: str | Path | Sequence[str | Path], strict: bool = True) -> Source:
    """Open shards (a folder of them, one, a glob or brace pattern, or a list of these), a folder of images, or a table.

    A folder whose `test/` holds the shards, as in CLIP_benchmark's layout (`beside.shard_folder`), stands for that one.
    A folder of images has NAME.txt beside them, or one sub-folder a class (`folder_source.class_names`). A table (CSV,
    TSV, JSONL, parquet, by its suffix) names its images (`table_source.Table`). The last two are opened alone.
    Remote shards (https://, s3://, pipe:, …) are copied to the local cache first.
    strict: raise ValueError on a key that occurs twice, on shards without any image and on fewer shards than a folder's
    nshards.txt says; otherwise all are listed in `problems`. FileNotFoundError when there is nothing at `path`, which
    says where a known set comes from.
    """
    names = [str(p) for p in (path if isinstance(path, list | tuple) else [path])]
    if "" in names:
        raise ValueError("the path of the data is empty, which would be this folder; write . for it, or name the data")
    tars: list[Path] = []
    owner: list[int] = []
    folders: list[Path] = []
    empty: list[str] = []
    missing: list[str] = []
    for number, name in enumerate(names):
        for found in _local(name):
            if found.is_dir():
                folders.append(found)
                inside = shard_folder(found)
                tars += sorted(path for path in inside.glob("*.tar") if path.is_file())  # no pipes, no folders
                missing += shards_missing(inside)
            elif found.is_file():
                tars.append(found)
            else:
                raise no_such_path(found)
        if len(tars) == len(owner):
            empty.append(name)
        owner += [number] * (len(tars) - len(owner))
    if tars and all(tar.suffix.lower() in FORMATS for tar in tars):
        return _table(tars, names)
    if empty == names and len(folders) == 1:
        return Folder(folders[0], names[0])
    if empty:
        raise ValueError(f"{where(empty)}: no shards (.tar) were found; `dualenc data pack` makes shards")
    if missing and strict:
        raise ValueError(
            f"{where(missing)}: missing, though nshards.txt beside it counts it, so scores would be of a part of the set "
            "alone; download it again, or correct nshards.txt"
        )
    source = Shards(tars, strict, names, owner)
    if missing:
        source.problems["missing shard"] = missing
    return source


def _table(tables: Sequence[Path], names: list[str]) -> Source:
    from dualenc.data.table_source import Table  # lazily: most data is shards

    if len(tables) > 1:
        raise ValueError(
            f"{where([str(table) for table in tables])}: tables are opened one at a time, so that a row is found again; "
            "bring them into one, or make shards of each with `dualenc data pack`"
        )
    return Table(tables[0], names[0])


def _local(name: str) -> list[Path]:
    """The files and folders that a path, a pattern or an address stands for; addresses are copied here."""
    expanded = list(braceexpand.braceexpand(name))
    if "://" in name or name.startswith("pipe:"):
        from dualenc.data.stream.remote import fetch_all  # lazily: most data is local

        return [Path(p) for p in fetch_all(expanded)]
    return [Path(p) for one in expanded for p in (sorted(glob.glob(one)) or [one])]


def read_at(path: str, offset: int, size: int) -> bytes:
    """`size` bytes of a file from `offset`; where images lie is kept as these three in a store's metadata."""
    with open(path, "rb") as file:
        file.seek(offset)
        return file.read(size)
