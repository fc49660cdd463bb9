"""The members of a tar that is read once, from its start to its end. What they are and what damage is, `tar` says."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from dualenc.data.tar import BLOCK, LONGEST, Walk

_CHUNK = 1 << 20


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
        self._walk = Walk(_Contents(source))

    @property
    def damage(self) -> str | None:
        return self._walk.damage

    def __iter__(self) -> Iterator[tuple[str, bytes]]:
        for name, _, data in self._walk:
            yield name, data


class _Contents:
    """A stream of which members are read: a member's data is its bytes."""

    def __init__(self, source: Bytes):
        self.source = source

    def block(self) -> bytes:
        return self.source.read(BLOCK)

    def tail(self) -> bytes:
        return self.source.tail(BLOCK)

    def take(self, size: int) -> bytes | None:
        data = self.source.read(size) if size <= _CHUNK else self._long(size)
        self._pass(-size % BLOCK)
        return data if len(data) == size else None

    def text(self, size: int) -> tuple[bytes, bool]:
        text = self.source.read(min(size, LONGEST))
        there = len(text) + self._pass(-(-size // BLOCK) * BLOCK - len(text))
        return text, there >= size

    def _long(self, size: int) -> bytes:
        """`size` bytes, or those that are left: a header may say more than could be held."""
        parts: list[bytes] = []
        while size and (data := self.source.read(min(size, _CHUNK))):
            parts.append(data)
            size -= len(data)
        return b"".join(parts)

    def _pass(self, size: int) -> int:
        """Pass over `size` bytes; returns how many there were."""
        passed = 0
        while passed < size and (data := self.source.read(min(size - passed, _CHUNK))):
            passed += len(data)
        return passed
