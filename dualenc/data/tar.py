"""The members of a tar from its headers: where they lie in a local file, or, over any other source, what they hold.

Written for what may be damaged: every header's checksum is verified, and after a bad one reading goes on at the next good
one. Understood are ustar, GNU and pax headers; the standard library's tarfile is the oracle of the tests.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Generic, NamedTuple, Protocol, TypeVar

from dualenc.data.tar_header import BLOCK, MAGIC, MAGIC_AT, extends, may_be_cut, parse, records

LONGEST = 1 << 20  # bytes of one extended header that are looked at; names are shorter
TRUNCATED, DAMAGED, NOT_A_TAR = "truncated shard", "damaged shard", "not a tar"

_ZEROS = bytes(BLOCK)
_PAGE = 1 << 12  # bytes read at a time: no slower than a block alone, and small members' headers lie close together
_MOST_PADDING = 1 << 20  # zeros that end a tar; more of them are what a crash left of a file
_REGULAR = (b"0", b"\0", b"7")
_EMPTY = (b"1", b"2", b"3", b"4", b"5", b"6")  # links, devices, folders: no data follows, whatever their size says
_SPARSE = b"S"

Data = TypeVar("Data")
Taken = TypeVar("Taken", covariant=True)


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
    with open(path, "rb", buffering=0) as file:
        try:
            walk = Walk(_Places(file.fileno()))
            found = [Member(name, offset, size) for name, size, offset in walk]
        except OSError as error:
            error.filename = str(path)
            raise
    return found, walk.damage


class Source(Protocol[Taken]):
    """What a tar is read from, from its start to its end."""

    def block(self) -> bytes:
        """The next BLOCK bytes; fewer only at the end."""

    def tail(self) -> bytes:
        """The same, for what comes after the tar's own end."""

    def take(self, size: int) -> Taken | None:
        """The next `size` bytes, or where they are, their padding passed over; None where there are fewer."""

    def text(self, size: int) -> tuple[bytes, bool]:
        """The same, but at most the first LONGEST bytes, and whether all `size` are there."""


class _Places:
    """A local file, of which only headers are read: a member's data is its offset."""

    def __init__(self, file: int):
        self.file, self.size = file, os.fstat(file).st_size
        self.at = self.start = 0
        self.ahead = b""  # what was read from `start` on

    def block(self) -> bytes:
        block = self._peek(BLOCK)
        self.at += BLOCK
        return block

    tail = block

    def take(self, size: int) -> int | None:
        at = self.at
        self.at = min(at + -(-size // BLOCK) * BLOCK, self.size)
        return at if at + size <= self.size else None

    def text(self, size: int) -> tuple[bytes, bool]:
        text = self._peek(min(size, LONGEST))
        return text, self.take(size) is not None

    def _peek(self, size: int) -> bytes:
        i = self.at - self.start
        if i + size > len(self.ahead):
            self.ahead, self.start, i = os.pread(self.file, max(size, _PAGE), self.at), self.at, 0
        return self.ahead[i : i + size]


class Walk(Generic[Data]):
    """Iterate it once: (name, size, what the source took) of each regular file that is whole. `damage` is then what was
    wrong: None, TRUNCATED, DAMAGED or NOT_A_TAR."""

    def __init__(self, source: Source[Data]):
        self.source = source
        self.damage: str | None = None
        self._name: str | None = None  # of the next member, from an extended header; and so its size
        self._size: int | None = None
        self._extended = False  # whether such headers were seen at all
        self._nameless = False  # the next member's true name was, or may well have been, in a header that is damaged
        self._doubtful = False  # nothing is known of what is damaged

    def __iter__(self) -> Iterator[tuple[str, int, Data]]:
        found = False
        block = self.source.block
        header: bytes | None = block()
        if header and len(header) < BLOCK:
            self.damage = NOT_A_TAR
        while header is not None and len(header) == BLOCK:
            if header == _ZEROS:
                header = self._after_end()
                continue
            parsed = parse(header)
            if parsed is None:
                self._lost(*extends(header))
                header = self._next_header(block())
                continue
            member = self._step(*parsed)
            if member is not None:
                found = True
                yield member
            header = block()
        if header is not None:
            self.damage = self.damage or TRUNCATED
        if not found and self.damage == DAMAGED:
            self.damage = NOT_A_TAR

    def _step(self, kind: bytes, name: str, size: int) -> tuple[str, int, Data] | None:
        """Pass over what belongs to a header; the member, if that is one."""
        member = None
        if kind in _REGULAR:
            if kind != b"\0" or not name.endswith("/"):
                member = self._regular(name, size)
        elif kind in (b"x", b"L"):
            self._extend(kind, *self.source.text(size), size)
            return None
        elif kind not in _EMPTY:
            if kind == _SPARSE:
                self._lost(False)
            self.source.text(size)
        if kind not in (b"K", b"g"):
            self._name = self._size = None
            self._nameless = self._doubtful = False
        return member

    def _regular(self, name: str, size: int) -> tuple[str, int, Data] | None:
        if self._size is not None and size not in (0, self._size):  # not what writers do: they leave 0 there
            self._lost(True)
        elif self._size is not None:
            size = self._size
        name = name if self._name is None else self._name
        if self._nameless or (self._doubtful and may_be_cut(name)):
            self.source.text(size)
            return None
        taken = self.source.take(size)
        return None if taken is None else (name, size, taken)

    def _extend(self, kind: bytes, text: bytes, whole: bool, size: int) -> None:
        """Take the text of an extended header: GNU's long name, or pax records."""
        self._nameless, self._doubtful, self._extended = False, False, True
        if kind == b"L":
            self._name = text.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")
            return
        said = records(text) if size <= LONGEST else None
        length = b"" if said is None else said.get(b"size", b"0")
        sound = length.isdigit() and len(length) < 19  # a larger size no file has
        if said is None or not sound or b"GNU.sparse" in text:  # a sparse file does not lie in one piece
            if whole:
                self._lost(True)
            return
        if b"path" in said:
            self._name = said[b"path"].decode("utf-8", "surrogateescape")
        if b"size" in said:
            self._size = int(length)

    def _lost(self, nameless: bool, doubtful: bool = False) -> None:
        self.damage = DAMAGED
        self._nameless, self._doubtful = nameless or (doubtful and self._extended), doubtful
        self._name = self._size = None

    def _after_end(self) -> bytes | None:
        """What follows the blocks of zeros that end a tar: nothing, or a sound header, which makes it a damaged one."""
        padding = BLOCK
        while (block := self.source.tail()) == _ZEROS:
            padding += BLOCK
        if block.strip(b"\0"):
            self._lost(False, doubtful=True)
            return self._next_header(block)
        if padding + len(block) > _MOST_PADDING:
            self.damage = self.damage or TRUNCATED
        return None

    def _next_header(self, block: bytes) -> bytes:
        """The first block, from this one on, that is a sound header; less than a block where there is none."""
        while len(block) == BLOCK and not (block.startswith(MAGIC, MAGIC_AT) and parse(block) is not None):
            block = self.source.block()
        return block
