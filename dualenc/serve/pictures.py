"""The picture of a row of an index: where it lies, whether it is still the one that was embedded, its bytes."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import pyarrow as pa

from dualenc.data.items import is_utf8
from dualenc.data.opened import opened as open_at
from dualenc.data.tar_header import BLOCK, may_be_cut, parse
from dualenc.serve.query import PRIVATE, known

if TYPE_CHECKING:
    from dualenc.index.index import Index

MOST_BYTES = 128 << 20  # of one encoded picture
_PLAIN = (b"0", b"\0", b"7")  # kinds of tar members that are files
_AGAIN = "embed it again"
PLACE = (*PRIVATE, "key")  # columns that say where a picture lies


class NoPicture(ValueError):
    """A row without a picture to show. Its text says why, and names no file of the server."""


class Place(NamedTuple):
    """Where a picture lies: `size` bytes of a file from `offset` (None: the whole file), and its sample's key if known."""

    path: str
    offset: int
    size: int | None
    key: str | None


class Found(NamedTuple):
    """A place, with the size and the time of change of the file as it is now: another file, another value."""

    place: Place
    file_size: int
    mtime_ns: int


def rows_of(index: Index, ids: list[int]) -> pa.Table:
    """All metadata of ids, the server's paths included. Problem 404 names one that the index does not have."""
    with known(index):
        return index.rows(ids)


def place_of(row: Mapping[str, Any]) -> Place:
    """Where a row of metadata says that its picture lies. An `image_path` alone, as clip-retrieval writes it, is a file.

    NoPicture: it does not say.
    """
    path, offset, size, key = (row.get(name) for name in PLACE)
    key = key if isinstance(key, str) else None
    if not isinstance(path, str) or not path:
        raise NoPicture("The metadata does not say where its picture lies.")
    if offset is None and size is None:
        return Place(path, 0, None, key)
    if not isinstance(offset, int) or not isinstance(size, int) or offset < 0 or size < 0:
        raise NoPicture(
            "The metadata names a file but no image_offset and image_size in it; `dualenc embed` writes them."
        )
    return Place(path, offset, size, key)


def find(place: Place) -> Found:
    """The place and what its file is now. NoPicture: no such file, or one in which the picture cannot be any more."""
    try:
        about = os.stat(place.path)
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        raise NoPicture(f"Its file is gone or cannot be read; restore it, or {_AGAIN}.") from error
    if not stat.S_ISREG(about.st_mode):
        raise NoPicture(f"What its path names is no file; restore it, or {_AGAIN}.")
    size = about.st_size if place.size is None else place.size
    if size > MOST_BYTES:
        raise NoPicture(f"Its file has {size:,} bytes, more than {MOST_BYTES:,}.")
    if place.offset + size > about.st_size:
        raise NoPicture(f"Its file is shorter than when it was embedded; restore it, or {_AGAIN}.")
    if place.size is not None and not place.offset and size != about.st_size:
        raise NoPicture(f"Its file was changed since it was embedded; restore it, or {_AGAIN}.")
    return Found(place, about.st_size, about.st_mtime_ns)


def read(found: Found) -> bytes:
    """The encoded picture. NoPicture: the file is another one than when it was embedded, or is being replaced."""
    path, offset, size, key = found.place
    size = found.file_size if size is None else size
    header = BLOCK if path.endswith(".tar") and offset >= BLOCK else 0  # a member's header stands before it
    try:
        data = open_at(path, found.file_size, found.mtime_ns).read([(offset - header, size + header)])[0]
    except OSError as error:
        raise NoPicture(f"Its file was moved or changed since it was embedded; restore it, or {_AGAIN}.") from error
    if header and not _is_member(data[:BLOCK], size, key):
        raise NoPicture(f"Its shard was written anew since it was embedded, with something else there; {_AGAIN}.")
    return data[header:]


def _is_member(header: bytes, size: int, key: str | None) -> bool:
    """Whether a tar's header is that of a file of this size, and of this sample where its name says so."""
    member = parse(header)
    if member is None or member[0] not in _PLAIN or member[2] != size:
        return False
    name = member[1]
    stem = name.rpartition("/")[2].partition(".")[0]
    # a key may say more than the name (its folder), never less
    return not key or may_be_cut(name) or not is_utf8(stem) or stem in key
