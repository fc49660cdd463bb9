"""Items to pack: one image with all its captions. Those of a folder are made here, those of tables in `tables`."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

# fmt: off
IMAGE_SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".ico", ".avif", ".jp2",
)
# fmt: on


class Item(NamedTuple):
    """One image to pack. `image`: its path, relative to the folder of images, or absolute."""

    image: str
    captions: list[str]
    metadata: dict[str, Any]
    key: str | None = None
    label: int | None = None
    notes: tuple[str, ...] = ()  # what was left out of it


class Dropped(NamedTuple):
    name: str
    reason: str


def clean_captions(values: Iterable[Any]) -> tuple[list[str], tuple[str, ...]]:
    """Captions with their white space collapsed, out of texts and lists of texts; and what was left out, by reason."""
    captions: list[str] = []
    notes: dict[str, None] = {}
    for value in values:
        for text in value if isinstance(value, list) else [value]:
            if text is None or (isinstance(text, float) and math.isnan(text)):
                continue
            caption = " ".join(str(text).split())
            if not caption:
                notes["empty caption"] = None
            elif not is_utf8(caption):
                notes["caption is not UTF-8"] = None
            else:
                captions.append(caption)
    return captions, tuple(notes)


def is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def plain(value: Any) -> Any:
    """A value as JSON can hold it; None where it cannot."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, list):
        return [plain(x) for x in value]
    if isinstance(value, dict):
        return {str(plain(str(k))): plain(x) for k, x in value.items()}
    return None if value is None or isinstance(value, bytes) else plain(str(value))  # dates, decimals


def folder_items(root: Path) -> Iterator[Item | Dropped]:
    """Every image under `root`, its captions in NAME.txt beside it, one a line; hidden files and folders are not read."""
    problems: list[Dropped] = []

    def unreadable(error: OSError) -> None:
        problems.append(Dropped(os.path.relpath(error.filename, root), "folder cannot be read"))

    for folder, subfolders, files in os.walk(root, onerror=unreadable):
        yield from problems
        problems.clear()
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        for name in subfolders:
            if os.path.islink(os.path.join(folder, name)):
                yield Dropped(os.path.relpath(os.path.join(folder, name), root), "link to a folder")
        yield from _files(root, folder, sorted(name for name in files if not name.startswith(".")))
    yield from problems


def _files(root: Path, folder: str, names: list[str]) -> Iterator[Item | Dropped]:
    images = {name for name in names if name.lower().endswith(IMAGE_SUFFIXES)}
    pictured = {os.path.splitext(name)[0] for name in images}
    for name in names:
        path = os.path.join(folder, name)
        relative = os.path.relpath(path, root)
        stem, suffix = os.path.splitext(name)
        if name in images:
            captions, notes = _beside(os.path.join(folder, stem + ".txt"))
            if captions:
                yield Item(relative, captions, {"image": plain(relative)}, notes=notes)
            else:
                yield Dropped(relative, notes[0] if notes else "missing caption")
        elif stem not in pictured:
            yield Dropped(relative, "missing image" if suffix == ".txt" else "no image's name")


def _beside(path: str) -> tuple[list[str], tuple[str, ...]]:
    try:
        with open(path, "rb") as file:
            data = file.read()
    except FileNotFoundError:
        return [], ()
    except OSError:
        return [], ("captions cannot be read",)
    lines = data.decode("utf-8-sig", "surrogateescape").splitlines()
    captions, notes = clean_captions(line for line in lines if line.strip())
    return captions, notes if captions or notes else ("empty caption",)
