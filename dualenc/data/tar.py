"""Where each member of a tar lies, from its headers alone, so that samples are read by offset instead of from the start.

Written for what may be damaged: every header's checksum is verified, and after a bad one reading goes on at the next good
one. Understood are ustar, GNU and pax headers; the standard library's tarfile is the oracle of the tests.
"""

from __future__ import annotations

import os
import zlib
from pathlib import Path
from typing import NamedTuple

BLOCK = 512
TRUNCATED, DAMAGED, NOT_A_TAR = "truncated shard", "damaged shard", "not a tar"

_ZEROS = bytes(BLOCK)
_MAGIC, _MAGIC_AT = b"ustar", 257
_CHUNK = 1 << 20
_LONGEST = 1 << 20  # bytes of one extended header; names are shorter
_MOST_PADDING = 1 << 20  # zeros that end a tar; more of them are what a crash left of a file
_REGULAR = (b"0", b"\0", b"7")
_EMPTY = (
    b"1",
    b"2",
    b"3",
    b"4",
    b"5",
    b"6",
)  # links, devices, folders: no data follows, whatever their size field says
_SPARSE = b"S"


class Member(NamedTuple):
    name: str
    offset: int
    size: int


def members(path: str | Path) -> tuple[list[Member], str | None]:
    """Regular files in a tar, in its order, and what is wrong with it: None, TRUNCATED, DAMAGED or NOT_A_TAR.

    Of a truncated tar, all members that are whole; of a damaged one, all whose headers are sound. Never a wrong name or
    place, except where an extended header's text is damaged unseen (tar has no checksum for it). Bytes of a name that
    are not UTF-8 are kept as surrogate escapes.
    """
    size = os.path.getsize(path)
    if size < BLOCK:
        return [], NOT_A_TAR if size else TRUNCATED
    with open(path, "rb", buffering=0) as file:
        try:
            return _Walk(file.fileno(), size).run()
        except OSError as error:
            error.filename = str(path)
            raise


class _Walk:
    """One pass over the headers of a tar."""

    def __init__(self, file: int, size: int):
        self.file, self.size = file, size
        self.found: list[Member] = []
        self.damage: str | None = None
        self.name: str | None = None  # of the next member, from an extended header; and so its size
        self.length: int | None = None
        self.extended = False  # whether such headers were seen at all
        self.nameless = False  # the next member's true name was, or may well have been, in a header that is damaged
        self.doubtful = False  # nothing is known of what is damaged

    def run(self) -> tuple[list[Member], str | None]:
        at: int | None = 0
        while at is not None:
            header = os.pread(self.file, BLOCK, at)
            if len(header) < BLOCK:
                self.damage = self.damage or TRUNCATED
                break
            if header == _ZEROS:
                at = self._after_end(at)
                continue
            parsed = _parse(header)
            if parsed is None:
                self._lost(*_extends(header))
                at = self._next_header(at + BLOCK)
            else:
                at = self._step(at + BLOCK, *parsed)
        if not self.found and self.damage == DAMAGED:
            self.damage = NOT_A_TAR
        return self.found, self.damage

    def _step(self, data: int, kind: bytes, name: str, length: int) -> int | None:
        """Take the member whose data begins at `data`; returns where the next header is, None at the end."""
        if kind in _EMPTY or (kind == b"\0" and name.endswith("/")):
            length = 0
        elif kind in _REGULAR:
            length = self._regular(data, name, length)
        elif kind in (b"x", b"L"):
            self._extend(kind, data, length)
        elif kind == _SPARSE:
            self._lost(False)
        if kind not in (b"x", b"L", b"K", b"g"):
            self.name = self.length = None
            self.nameless = self.doubtful = False
        if data + length > self.size:
            self.damage = self.damage or TRUNCATED
            return None
        return data + -(-length // BLOCK) * BLOCK

    def _regular(self, data: int, name: str, length: int) -> int:
        if self.length is not None and length not in (0, self.length):  # not what writers do: they leave 0 there
            self._lost(True)
        elif self.length is not None:
            length = self.length
        name = name if self.name is None else self.name
        if data + length <= self.size and not (self.nameless or (self.doubtful and _may_be_cut(name))):
            self.found.append(Member(name, data, length))
        return length

    def _extend(self, kind: bytes, data: int, length: int) -> None:
        """Read the text of an extended header: GNU's long name, or pax records."""
        text = os.pread(self.file, min(length, _LONGEST), data)
        self.nameless, self.doubtful, self.extended = False, False, True
        if kind == b"L":
            self.name = text.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")
            return
        records = _records(text) if length <= _LONGEST else None
        size = b"" if records is None else records.get(b"size", b"0")
        if records is None or not size.isdigit() or b"GNU.sparse" in text:  # a sparse file does not lie in one piece
            if data + length <= self.size:
                self._lost(True)
            return
        if b"path" in records:
            self.name = records[b"path"].decode("utf-8", "surrogateescape")
        if b"size" in records:
            self.length = int(size)

    def _lost(self, nameless: bool, doubtful: bool = False) -> None:
        self.damage = DAMAGED
        self.nameless, self.doubtful = nameless or (doubtful and self.extended), doubtful
        self.name = self.length = None

    def _after_end(self, at: int) -> int | None:
        """Where reading goes on after a block of zeros: nowhere, unless more than zeros follows."""
        for place in range(at, self.size, _CHUNK):
            chunk = os.pread(self.file, _CHUNK, place)
            rest = len(chunk.lstrip(b"\0"))
            if rest:
                self._lost(False, doubtful=True)
                return self._next_header((place + len(chunk) - rest) // BLOCK * BLOCK)
        if self.size - at > _MOST_PADDING:
            self.damage = self.damage or TRUNCATED
        return None

    def _next_header(self, at: int) -> int | None:
        """The first block from `at` on that is a sound header."""
        while at + BLOCK <= self.size:
            chunk = os.pread(self.file, _CHUNK, at)
            if len(chunk) < BLOCK:
                return None
            spot = chunk.find(_MAGIC)
            while spot >= 0:
                start = spot - _MAGIC_AT
                if start >= 0 and start % BLOCK == 0 and _parse(chunk[start : start + BLOCK]) is not None:
                    return at + start
                spot = chunk.find(_MAGIC, spot + 1)
            at += len(chunk) // BLOCK * BLOCK
        return None


def _parse(header: bytes) -> tuple[bytes, str, int] | None:
    """(kind, name, size) of a header, or None where its checksum or its size is wrong."""
    field, size = header[148:156], header[124:136]
    checksum = field.split(b"\0", 1)[0].strip(b" ")
    if len(header) < BLOCK or not checksum.isdigit():
        return None
    try:
        # the sum of all bytes, the checksum's own read as spaces; Adler-32's lower half is 1 + the sum of all bytes modulo
        # 65521, ten times faster than sum()
        wanted = 1 + int(checksum, 8) - 8 * 32 + sum(field)
        if zlib.adler32(header) & 0xFFFF != wanted % 65521:
            return None
        digits = size.strip(b" \0")
        length = int.from_bytes(size[1:], "big") if size[0] == 0x80 else int(digits, 8) if digits else 0
    except ValueError:  # not octal
        return None
    if length < 0 or length >> 63:
        return None
    name = header[:100].split(b"\0", 1)[0]
    if header[345] and header[257:263] == b"ustar\0":
        name = header[345:500].split(b"\0", 1)[0] + b"/" + name
    return header[156:157], name.decode("utf-8", "surrogateescape"), length


def _extends(header: bytes) -> tuple[bool, bool]:
    """Whether a damaged header looks like one that said the name of the next member, and whether too little of it is left."""
    name, field = header[:100], header[148:156].split(b"\0", 1)[0].strip(b" ")
    looks = header[156:157] in (b"x", b"g", b"L", b"K") or b"PaxHeader" in name or b"@LongLink" in name
    stored = int(field, 8) if field and not field.strip(b"01234567") else -BLOCK
    one_byte = abs(sum(header) - sum(header[148:156]) + 8 * 32 - stored) < 256
    return looks, not one_byte and header[_MAGIC_AT : _MAGIC_AT + len(_MAGIC)] != _MAGIC


def _may_be_cut(name: str) -> bool:
    """Whether a plain header's name may stand for one that did not fit: long, or with a sign for what is not ASCII."""
    return len(name.encode("utf-8", "surrogateescape")) > 90 or "?" in name


def _records(text: bytes) -> dict[bytes, bytes] | None:
    """The `length key=value` records of a pax header, or None where they are damaged."""
    found: dict[bytes, bytes] = {}
    at = 0
    while at < len(text) and text[at]:
        digits, space, _ = text[at : at + 20].partition(b" ")
        if not space or not digits.isdigit():
            return None
        end = at + int(digits)
        key, equals, value = text[at + len(digits) + 1 : end - 1].partition(b"=")
        if not equals or text[end - 1 : end] != b"\n":
            return None
        found[key] = value
        at = end
    return found
