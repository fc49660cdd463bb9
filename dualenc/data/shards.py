"""Sources: samples by number, out of shards (webdataset tars, read by offset) or a folder of images."""

from __future__ import annotations

import abc
import collections
import contextlib
import glob
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

import braceexpand
import numpy as np

from dualenc.data.items import IMAGE_SUFFIXES
from dualenc.data.keys import Keys
from dualenc.data.opened import OpenFile, opened
from dualenc.data.sample import KINDS, Sample
from dualenc.data.shard_index import MISSING_IMAGE, nothing_found, read_indexes, where

FOLDER_EXTENSIONS = tuple(suffix[1:] for suffix in IMAGE_SUFFIXES)  # what `data pack` takes from a folder
_COLUMN = {kind: 2 * number for number, kind in enumerate(KINDS)}  # of a shard's table of places


class Source(abc.ABC):
    """Samples by number.

    keys: a sequence of N names, all different. problems: by reason, the names of what was left out while listing.
    names: the paths the source was opened by, and origin: int64 (N,), which of them each sample comes from.
    problem_counts: how much was left out, by (number in `names`, reason).
    """

    problem_counts: dict[tuple[int, str], int]

    def __init__(self, path: str, keys: Keys, problems: dict[str, list[str]], names: list[str], origin: np.ndarray):
        self.path = path
        self.keys = keys
        self.problems = problems
        self.names = names
        self.origin = origin
        self.problem_counts = {}

    def __len__(self) -> int:
        return len(self.keys)

    @abc.abstractmethod
    def sample(self, i: int, kinds: Sequence[str] = KINDS) -> Sample:
        """The undecoded bytes of sample i, of the wanted kinds that it has. OSError when it cannot be read."""

    @abc.abstractmethod
    def location(self, i: int, kind: str = "image") -> tuple[str, int, int] | None:
        """(path, offset, size) of one member of sample i, or None where it has none."""

    def read(self, i: int, kind: str = "image") -> bytes | None:
        """The raw bytes of one member of sample i, or None where it has none."""
        return self.sample(i, (kind,)).parts.get(kind)

    def prefetch(self, first: int, last: int) -> None:  # noqa: B027  (a hint, which a source may ignore)
        """Ask the system to read samples first .. last - 1 into memory; returns at once."""

    def digest(self) -> str:
        """SHA-256 over the names and sizes of the files: equal wherever they lie, another for other files."""
        return hashlib.sha256(json.dumps(self._files()).encode()).hexdigest()

    @abc.abstractmethod
    def _files(self) -> list[tuple[str, int]]:
        """(name, bytes) of every file that samples come from."""


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


class Folder(Source):
    """Images under a folder, with captions in NAME.txt beside them where there are any; key: relative path without suffix.

    Hidden files and folders are not read.
    """

    def __init__(self, root: Path, name: str | None = None):
        root = root.resolve()
        shown = [p for p in root.rglob("*") if not any(x.startswith(".") for x in p.relative_to(root).parts)]
        files = sorted(p for p in shown if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())
        if not files:
            seen = collections.Counter(p.suffix for p in shown if p.is_file())
            kinds = ", ".join(f"{e or 'no suffix'} ({n})" for e, n in seen.most_common(8)) or "no file at all"
            raise ValueError(
                f"{root}: neither shards (.tar) nor images ({', '.join(FOLDER_EXTENSIONS)}) were found, but {kinds}; "
                "name a folder that holds one of the two"
            )
        names = [p.relative_to(root).as_posix() for p in files]
        self.files = Keys.of(names)  # relative to the folder
        stems = [name.rpartition(".")[0] for name in names]
        twice = {stem for stem, count in collections.Counter(stems).items() if count > 1}
        twice.update(names)  # a.jpg.png beside a.jpg
        keys = Keys.of(n if s in twice else s for n, s in zip(names, stems, strict=True))
        super().__init__(str(root), keys, {}, [name or str(root)], np.zeros(len(keys), dtype=np.int64))

    def sample(self, i: int, kinds: Sequence[str] = KINDS) -> Sample:
        parts = {}
        for kind in kinds:
            path = self._path(i, kind)
            if kind == "image" or os.path.isfile(path):
                with open(path, "rb", buffering=0) as file:
                    parts[kind] = file.readall()
        return Sample(self.keys[i], parts)

    def location(self, i: int, kind: str = "image") -> tuple[str, int, int] | None:
        path = self._path(i, kind)
        return (path, 0, os.path.getsize(path)) if os.path.isfile(path) else None

    def _path(self, i: int, kind: str) -> str:
        name = self.files[i]
        return os.path.join(self.path, name if kind == "image" else f"{name.rpartition('.')[0]}.{kind}")

    def _files(self) -> list[tuple[str, int]]:
        places = [(name, kind, self.location(i, kind)) for i, name in enumerate(self.files) for kind in KINDS]
        return [(name if kind == "image" else kind, place[2]) for name, kind, place in places if place is not None]


def open_source(path: str | Path | Sequence[str | Path], strict: bool = True) -> Source:
    """Open a folder of shards, one shard, a glob or brace pattern of shards, a list of these, or a folder of images.

    Remote shards (https://, s3://, pipe:, …) are copied to the local cache first.
    strict: raise ValueError on a key that occurs twice and on shards without any image; otherwise both are listed in
    `problems`. FileNotFoundError when there is nothing at `path`.
    """
    names = [str(p) for p in (path if isinstance(path, list | tuple) else [path])]
    tars: list[Path] = []
    owner: list[int] = []
    folders: list[Path] = []
    empty: list[str] = []
    for number, name in enumerate(names):
        for found in _local(name):
            if found.is_dir():
                folders.append(found)
                tars += sorted(path for path in found.glob("*.tar") if path.is_file())  # no pipes, no folders
            elif found.is_file():
                tars.append(found)
            else:
                raise FileNotFoundError(f"{found}: no such file or folder, so there is no data to read; check the path")
        if len(tars) == len(owner):
            empty.append(name)
        owner += [number] * (len(tars) - len(owner))
    if empty == names and len(folders) == 1:
        return Folder(folders[0], names[0])
    if empty:
        raise ValueError(f"{where(empty)}: no shards (.tar) were found; `dualenc data pack` makes shards")
    return Shards(tars, strict, names, owner)


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
