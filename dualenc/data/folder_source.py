"""A folder of images as a source: captions in NAME.txt beside them, or classes by the names of its sub-folders."""

from __future__ import annotations

import collections
import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from dualenc.data.items import IMAGE_SUFFIXES
from dualenc.data.keys import Keys
from dualenc.data.sample import KINDS, Sample
from dualenc.data.source import Source

FOLDER_EXTENSIONS = tuple(suffix[1:] for suffix in IMAGE_SUFFIXES)  # what `data pack` takes from a folder
_WORDS = (".txt", ".cls")  # beside an image: what says that its folder's name is no class


class Folder(Source):
    """Images under a folder, with captions in NAME.txt beside them where there are any; key: relative path without suffix.

    A folder by class (`class_names`) gives each image the number of its class, as KEY.cls in a shard does.
    Hidden files and folders are not read.
    """

    def __init__(self, root: Path, name: str | None = None):
        root = root.resolve()
        found = [p for p in root.rglob("*") if not any(x.startswith(".") for x in p.relative_to(root).parts)]
        shown = [p for p in found if _is_text(p)]
        unnamed = sorted(os.fsencode(p.relative_to(root)).decode(errors="replace") for p in found if not _is_text(p))
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
        problems = {"file name is not UTF-8": unnamed} if unnamed else {}
        super().__init__(str(root), keys, problems, [name or str(root)], np.zeros(len(keys), dtype=np.int64))
        worded = {p.relative_to(root).with_suffix("").as_posix() for p in shown if p.suffix in _WORDS}
        self.classes = None if worded.intersection(stems) else class_names(names)
        self._label = np.zeros(0, dtype=np.int32)  # (N,) of a folder by class
        if self.classes is not None:
            number = {name: i for i, name in enumerate(self.classes)}
            self._label = np.array([number[name.partition("/")[0]] for name in names], dtype=np.int32)

    def sample(self, i: int, kinds: Sequence[str] = KINDS) -> Sample:
        parts = {}
        for kind in kinds:
            path = self._path(i, kind)
            if kind == "cls" and self.classes is not None:
                parts[kind] = str(self._label[i]).encode()
            elif kind == "image" or os.path.isfile(path):
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


def _is_text(path: Path) -> bool:
    """Whether a path is text, as keys are; old file systems hold names that are none."""
    try:
        os.fspath(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def class_names(images: Sequence[str]) -> list[str] | None:
    """The classes of a folder's images, in the order of their numbers (as text sorts); None where it is not by class.

    images: their paths, relative to the folder. It is by class when the paths alone say so: no image lies in the folder
    itself, and two or more of its sub-folders hold images, on whatever level; a sub-folder without images is no class.
    (`Folder` also wants no NAME.txt or NAME.cls beside any image: it would say more than a folder's name.)

    >>> class_names(["dog/2.jpg", "cat/1.jpg", "cat/wild/3.jpg"])
    ['cat', 'dog']
    >>> class_names(["cat/1.jpg", "dog.jpg"]), class_names(["only/1.jpg"])
    (None, None)
    """
    firsts = {PurePosixPath(name).parts[0] for name in images}
    nested = all("/" in name for name in images)
    return sorted(firsts) if nested and len(firsts) > 1 else None
