"""Where each member of a tar lies, from its headers alone, so that samples are read by offset instead of from the start."""

from __future__ import annotations

import mmap
import os
import tarfile
from pathlib import Path
from typing import NamedTuple

BLOCK = 512


class Member(NamedTuple):
    name: str
    offset: int
    size: int


def members(path: str | Path) -> tuple[list[Member], str | None]:
    """Regular files in a tar, in its order, and what is wrong with it: None, or "truncated shard" / "not a tar".

    Plain ustar headers are read directly; a tar with long or extended names goes through the standard library.
    Members before the damage are returned.
    """
    size = os.path.getsize(path)
    if size < BLOCK:
        return [], "not a tar" if size else "truncated shard"
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        plain = _plain_members(data, size)
    return plain if plain is not None else _any_members(path, size)


def _plain_members(data: mmap.mmap, size: int) -> tuple[list[Member], str | None] | None:
    found: list[Member] = []
    at = 0
    while at + BLOCK <= size:
        header = data[at : at + BLOCK]
        if header == bytes(BLOCK):
            return found, None  # the end-of-archive block
        kind, octal = header[156:157], header[124:136].strip(b" \0")
        if kind not in (b"0", b"\0", b"5") or header[257:262] != b"ustar" or not octal.isdigit():
            return None
        try:
            name = header[:100].split(b"\0", 1)[0].decode()
            prefix = header[345:500].split(b"\0", 1)[0].decode() if header[257:263] == b"ustar\0" else ""
            length = int(octal, 8)
        except ValueError:  # not UTF-8, or not octal
            return None
        at += BLOCK
        if at + length > size:
            return found, "truncated shard"
        if kind != b"5":
            found.append(Member(f"{prefix}/{name}" if prefix else name, at, length))
        at += -(-length // BLOCK) * BLOCK
    return found, "truncated shard"


def _any_members(path: str | Path, size: int) -> tuple[list[Member], str | None]:
    found: list[Member] = []
    try:
        with tarfile.open(path, "r:", errors="surrogateescape") as tar:
            for info in tar:
                if info.isreg():
                    if info.offset_data + info.size > size:
                        return found, "truncated shard"
                    found.append(Member(info.name, info.offset_data, info.size))
            end = tar.offset
        with open(path, "rb") as file:  # tarfile stops without a word where a header is cut or damaged
            file.seek(end)
            if file.read(BLOCK) != bytes(BLOCK):
                return found, "truncated shard"
    except (tarfile.TarError, EOFError):
        return found, "truncated shard" if found else "not a tar"
    return found, None
