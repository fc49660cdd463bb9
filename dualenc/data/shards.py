"""Sources: samples by number, out of shards (webdataset tars, read by offset) or a folder of images."""

from __future__ import annotations

import abc
import collections
import glob
import hashlib
import json
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import braceexpand
import numpy as np

from dualenc.data.items import IMAGE_SUFFIXES
from dualenc.data.tar import members

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")
FOLDER_EXTENSIONS = tuple(suffix[1:] for suffix in IMAGE_SUFFIXES)  # what `data pack` takes from a folder
UNREADABLE = "unreadable file"  # why a sample whose file is gone, or not ours to read, is left out
KINDS = ("image", "txt", "json", "cls")  # columns of Shards' table


class BadSample(ValueError):
    """A sample that cannot be used; its text is the reason under which it is counted."""


class Source(abc.ABC):
    """Samples by number. `keys[i]` is unique; `problems` maps a reason to the names of what was left out while listing."""

    def __init__(self, path: str, keys: list[str], problems: dict[str, list[str]]):
        self.path = path
        self.keys = keys
        self.problems = problems

    def __len__(self) -> int:
        return len(self.keys)

    @abc.abstractmethod
    def location(self, i: int, kind: str = "image") -> tuple[str, int, int] | None:
        """(path, offset, size) of one member of sample i, or None where it has none."""

    def digest(self) -> str:
        """SHA-256 over the names and sizes of the files: equal wherever they lie, another for other files."""
        return hashlib.sha256(json.dumps(self._files()).encode()).hexdigest()

    @abc.abstractmethod
    def _files(self) -> list[tuple[str, int]]:
        """(name, bytes) of every file that samples come from."""

    def read(self, i: int, kind: str = "image") -> bytes | None:
        """The raw bytes of one member of sample i, or None where it has none."""
        place = self.location(i, kind)
        return None if place is None else read_at(*place)

    def image_bytes(self, i: int) -> bytes:
        """The encoded image of sample i. OSError when it cannot be read, or is gone since it was listed."""
        data = self.read(i)
        if data is None:
            raise FileNotFoundError(f"{self.keys[i]}: its image is gone since {self.path} was listed; restore it")
        return data

    def captions(self, i: int) -> list[str]:
        """The captions of sample i, one a line; [] without text. BadSample when they are not UTF-8.

        Where KEY.json's `caption` equals the text (what img2dataset writes), the whole text is one caption.
        """
        raw = self.read(i, "txt")
        if raw is None:
            return []
        try:
            text = raw.decode("utf-8-sig")
        except UnicodeDecodeError:
            raise BadSample("caption is not UTF-8") from None
        if "\n" in text.strip() and self._json(i).get("caption") == text:
            return [" ".join(text.split())]
        return [caption for line in text.split("\n") if (caption := " ".join(line.split()))]

    def label(self, i: int) -> int | None:
        """The class number of sample i, if it has one. BadSample when KEY.cls holds no integer."""
        raw = self.read(i, "cls")
        if raw is None:
            return None
        if not re.fullmatch(rb"\s*[+-]?\d{1,18}\s*", raw):  # what an int64 holds
            raise BadSample("class is not an integer")
        return int(raw)

    def metadata(self, i: int) -> dict[str, Any]:
        """KEY.json's scalar fields; NaN and the infinities become None. BadSample when it is not a JSON object."""
        scalars = {k: v for k, v in self._json(i).items() if isinstance(v, str | int | float | bool)}
        return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in scalars.items()}

    def _json(self, i: int) -> dict[str, Any]:
        raw = self.read(i, "json")
        try:
            value = {} if raw is None else json.loads(raw)
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict):
            raise BadSample("metadata is not a JSON object")
        return value


class Shards(Source):
    """Local webdataset tars."""

    def __init__(self, paths: Sequence[Path], strict: bool = True):
        self.paths = [str(path.resolve()) for path in paths]
        keys: list[str] = []
        rows: list[tuple[int, ...]] = []  # shard, then (offset, size) per kind, -1 where absent
        problems: dict[str, list[str]] = collections.defaultdict(list)
        extensions: collections.Counter[str] = collections.Counter()
        home: dict[str, int] = {}
        for number, path in enumerate(self.paths):
            found, damage = members(path)
            if damage:
                problems[damage].append(path)
            for key, parts in group(found):
                extensions.update(list(parts))
                image = next((parts[e] for e in IMAGE_EXTENSIONS if e in parts), None)
                if image is None:
                    problems["missing image"].append(key)
                elif key in home:
                    if strict:
                        raise ValueError(
                            f"key {key!r} is in {self.paths[home[key]]} and again in {path}: keys must be unique, "
                            "or rows of the index would point at the wrong image; pack one of them under other keys"
                        )
                    problems["duplicate key"].append(key)
                else:
                    home[key] = number
                    places = [image, *(parts.get(kind) for kind in KINDS[1:])]
                    keys.append(key)
                    rows.append((number, *(x for place in places for x in (place or (-1, -1)))))
        if not keys and strict:
            seen = ", ".join(f".{e} ({n})" for e, n in extensions.most_common(8)) or "no member at all"
            damaged = "".join(f"; {reason}: {len(names)}" for reason, names in problems.items())
            raise ValueError(
                f"{where(self.paths)}: no sample with an image ({', '.join(IMAGE_EXTENSIONS)}) was found, but {seen}"
                f"{damaged}; `dualenc data pack` makes shards"
            )
        self._table = np.array(rows, dtype=np.int64).reshape(-1, 1 + 2 * len(KINDS))
        super().__init__(where(self.paths), keys, dict(problems))

    def location(self, i: int, kind: str = "image") -> tuple[str, int, int] | None:
        row, column = self._table[i], 1 + 2 * KINDS.index(kind)
        offset, size = int(row[column]), int(row[column + 1])
        return None if offset < 0 else (self.paths[row[0]], offset, size)

    def _files(self) -> list[tuple[str, int]]:
        return [(Path(path).name, Path(path).stat().st_size) for path in self.paths]


class Folder(Source):
    """Images under a folder, with captions in NAME.txt beside them where there are any; key: relative path without suffix.

    Hidden files and folders are not read.
    """

    def __init__(self, root: Path):
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
        self.files = files
        names = [p.relative_to(root).as_posix() for p in files]
        stems = [name.rsplit(".", 1)[0] for name in names]
        twice = {stem for stem, count in collections.Counter(stems).items() if count > 1}
        twice.update(names)  # a.jpg.png beside a.jpg
        super().__init__(str(root), [n if s in twice else s for n, s in zip(names, stems, strict=True)], {})

    def location(self, i: int, kind: str = "image") -> tuple[str, int, int] | None:
        path = self.files[i] if kind == "image" else self.files[i].with_suffix(f".{kind}")
        return (str(path), 0, path.stat().st_size) if path.is_file() else None

    def _files(self) -> list[tuple[str, int]]:
        places = [(i, kind, self.location(i, kind)) for i in range(len(self)) for kind in KINDS]
        names = [path.relative_to(self.path).as_posix() for path in self.files]
        return [(names[i] if kind == "image" else kind, place[2]) for i, kind, place in places if place is not None]


def open_source(path: str | Path | Sequence[str | Path], strict: bool = True) -> Source:
    """Open a folder of shards, one shard, a glob or brace pattern of shards, a list of these, or a folder of images.

    strict: raise ValueError on a key that occurs twice and on shards without any image; otherwise both are listed in
    `problems`. FileNotFoundError when there is nothing at `path`.
    """
    parts = [str(p) for p in (path if isinstance(path, list | tuple) else [path])]
    tars: list[Path] = []
    folders: list[Path] = []
    for part in parts:
        if "://" in part or part.startswith("pipe:"):
            raise ValueError(f"{part}: only local shards are read; copy them to a local folder first")
        found = [Path(p) for name in braceexpand.braceexpand(part) for p in (sorted(glob.glob(name)) or [name])]
        for name in found:
            if name.is_dir():
                folders.append(name)
                tars += sorted(name.glob("*.tar"))
            elif name.is_file():
                tars.append(name)
            else:
                raise FileNotFoundError(f"{name}: no such file or folder, so there is no data to read; check the path")
    if not tars and len(folders) == 1:
        return Folder(folders[0])
    if not tars:
        raise ValueError(f"{where(parts)}: no shards (.tar) were found; `dualenc data pack` makes shards")
    return Shards(tars, strict)


def read_at(path: str, offset: int, size: int) -> bytes:
    """`size` bytes of a file from `offset`; where images lie is kept as these three in a store's metadata."""
    with open(path, "rb") as file:
        file.seek(offset)
        return file.read(size)


def group(found: Iterable[Any]) -> Iterator[tuple[str, dict[str, tuple[int, int]]]]:
    """Samples from tar members as webdataset groups them: neighbours whose name is equal up to the first dot of the last part."""
    current: str | None = None
    parts: dict[str, tuple[int, int]] = {}
    for name, offset, size in found:
        folder, slash, base = name.rpartition("/")
        stem, dot, extension = base.partition(".")
        if not dot or not stem:
            continue
        key = folder + slash + stem
        if key != current or extension.lower() in parts:
            if current is not None:
                yield current, parts
            current, parts = key, {}
        parts[extension.lower()] = (offset, size)
    if current is not None:
        yield current, parts


def where(paths: Sequence[str]) -> str:
    """A short name for one or several paths."""
    return paths[0] if len(paths) == 1 else f"{paths[0]} (and {len(paths) - 1} more)"
