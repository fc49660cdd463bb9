"""The members of a tar that is read once, from its start to its end. What they are and what damage is, `tar` says."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from dualenc.data import tar
from dualenc.data.tar import BLOCK, DAMAGED, NOT_A_TAR, TRUNCATED

_ZEROS = bytes(BLOCK)


class Bytes(Protocol):
    """What a tar is read from."""

    def read(self, size: int) -> bytes:
        """`size` bytes; fewer only at the end."""

    def tail(self, size: int) -> bytes:
        """The same, for what comes after the tar's own end."""


class TarStream:
    """Iterate it once: (name, bytes) of each regular file. `damage` is then what was wrong: None, TRUNCATED, DAMAGED or
    NOT_A_TAR. The same members as `tar.members` lists of a file with these bytes."""

    def __init__(self, source: Bytes):
        self.source = source
        self.damage: str | None = None
        self._found = False
        self._name: str | None = None  # of the next member, from an extended header; and so its size
        self._length: int | None = None
        self._extended = False  # whether such headers were seen at all
        self._nameless = False  # the next member's true name was, or may well have been, in a header that is damaged
        self._doubtful = False  # nothing is known of what is damaged

    def __iter__(self) -> Iterator[tuple[str, bytes]]:
        header = self._first()
        while len(header) == BLOCK:
            if header == _ZEROS:
                header = self._after_end()
                continue
            parsed = tar._parse(header)
            if parsed is None:
                self._lost(*tar._extends(header))
                header = self._next_header()
                continue
            member = self._step(*parsed)
            if member is not None:
                self._found = True
                yield member
            header = self._header()
        if not self._found and self.damage == DAMAGED:
            self.damage = NOT_A_TAR

    def _first(self) -> bytes:
        header = self.source.read(BLOCK)
        if len(header) < BLOCK:
            self.damage = NOT_A_TAR if header else TRUNCATED
        return header

    def _header(self) -> bytes:
        """The next block; where it is cut or missing, the tar is, unless a member was cut before."""
        header = self.source.read(BLOCK)
        if len(header) < BLOCK:
            self.damage = self.damage or TRUNCATED
        return header

    def _step(self, kind: bytes, name: str, length: int) -> tuple[str, bytes] | None:
        """Read what belongs to a header; the member, if that is one."""
        if kind in tar._EMPTY or (kind == b"\0" and name.endswith("/")):
            length = 0
        regular = kind in tar._REGULAR and not (kind == b"\0" and name.endswith("/"))
        if regular and self._length is not None and length not in (0, self._length):
            self._lost(True)
        elif regular and self._length is not None:
            length = self._length
        name = name if self._name is None else self._name
        named = not (self._nameless or (self._doubtful and tar._may_be_cut(name)))
        data = self.source.read(-(-length // BLOCK) * BLOCK)
        if kind in (b"x", b"L"):
            self._extend(kind, data[:length], length)
        elif kind == tar._SPARSE:
            self._lost(False)
        if kind not in (b"x", b"L", b"K", b"g"):
            self._name, self._length, self._nameless, self._doubtful = None, None, False, False
        return (name, data[:length]) if regular and named and len(data) >= length else None

    def _extend(self, kind: bytes, text: bytes, length: int) -> None:
        """Take the text of an extended header: GNU's long name, or pax records."""
        self._nameless, self._doubtful, self._extended = False, False, True
        if kind == b"L":
            self._name = text[: tar._LONGEST].split(b"\0", 1)[0].decode("utf-8", "surrogateescape")
            return
        records = tar._records(text) if length <= tar._LONGEST else None
        size = b"" if records is None else records.get(b"size", b"0")
        if records is None or not size.isdigit() or b"GNU.sparse" in text:
            if len(text) == length:
                self._lost(True)
            return
        if b"path" in records:
            self._name = records[b"path"].decode("utf-8", "surrogateescape")
        if b"size" in records:
            self._length = int(size)

    def _lost(self, nameless: bool, doubtful: bool = False) -> None:
        self.damage = DAMAGED
        self._nameless, self._doubtful = nameless or (doubtful and self._extended), doubtful
        self._name, self._length = None, None

    def _after_end(self) -> bytes:
        """What follows the blocks of zeros that end a tar: nothing, or a sound header, which makes it a damaged one."""
        padding = BLOCK
        while (block := self.source.tail(BLOCK)) == _ZEROS:
            padding += BLOCK
        if block.strip(b"\0"):
            self._lost(False, doubtful=True)
            return self._next_header(block)
        if padding + len(block) > tar._MOST_PADDING:
            self.damage = self.damage or TRUNCATED
        return b""

    def _next_header(self, block: bytes = _ZEROS) -> bytes:
        """The first block, from this one on, that is a sound header; less than a block where there is none."""
        while len(block) == BLOCK:
            at = tar._MAGIC_AT
            if block[at : at + len(tar._MAGIC)] == tar._MAGIC and tar._parse(block) is not None:
                break
            block = self.source.read(BLOCK)
        return block
