"""Where an item's image lies, and under which key it goes."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

from dualenc.data.items import Item, is_utf8
from dualenc.data.write import tar_key


class Unusable(ValueError):
    """An item that cannot be used; its text is the reason."""


def image_path(image: str, root: Path) -> Path:
    """The file of an image; a path that leads out of `root` is refused, links inside it are followed."""
    root_text = os.path.abspath(root)
    path = os.path.normpath(os.path.join(root_text, image))
    if os.path.commonpath([root_text, path]) != root_text:
        raise Unusable("path leads out of the folder of images")
    return Path(path)


def free_key(item: Item, relative: Path | None, taken: set[str]) -> tuple[str, list[str]]:
    """A key that no sample has yet. One made from a path gives way; one that the table gives is refused."""
    if relative is None:
        key = tar_key(str(item.key))
        if key in taken:
            raise Unusable("key occurs twice")
        notes = []
    else:
        wanted = tar_key(str(relative.with_suffix("")))
        ending = relative.suffix.lstrip(".").lower()
        names = itertools.chain([wanted, f"{wanted}_{ending}"], (f"{wanted}_{i}" for i in itertools.count(2)))
        key = next(name for name in names if name not in taken)
        notes = [] if key == wanted else ["key was taken, so it was given another"]
        if not is_utf8(str(relative)):
            notes.append("file name is not UTF-8")
    taken.add(key)
    return key, notes


def shown(name: str) -> str:
    """A name that can be printed and written."""
    return name.encode("utf-8", "backslashreplace").decode()
