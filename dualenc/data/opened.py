"""Bytes of files by offset, through a few descriptors that a process keeps open."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence

OPEN_FILES = 64
_SMALL = 16 << 10  # bytes that cost less to read than another call
_WASTE = 1 << 20  # bytes between the wanted ones that may be read along with them, and at most three times these
_READ_AHEAD = 128 << 10  # what Linux reads for one hint: it leaves out the rest of a longer range


class ChangedFile(OSError):
    """A file that is not the one that was listed."""


class OpenFile:
    """A descriptor, closed when the last that reads from it lets it go."""

    descriptor = -1

    def __init__(self, path: str):
        self.path = path
        self.descriptor = os.open(path, os.O_RDONLY)

    def __del__(self, close: Callable[[int], None] = os.close) -> None:  # `os` may be gone when the interpreter ends
        if self.descriptor >= 0:
            close(self.descriptor)

    def read(self, wanted: Sequence[tuple[int, int]]) -> list[bytes]:
        """Pieces given by (offset, size), at once where they are neighbours. OSError when the file is too short for one."""
        first, (start, length) = min(wanted)[0], max(wanted)
        span, total = start + length - first, sum([size for _, size in wanted])
        if span - total <= _SMALL or span - total <= min(3 * total, _WASTE):
            data = os.pread(self.descriptor, span, first)
            missing = span - len(data)
            found = [data[offset - first : offset - first + size] for offset, size in wanted]
        else:
            found = [os.pread(self.descriptor, size, offset) for offset, size in wanted]
            missing = total - sum(map(len, found))
        if missing:
            raise ChangedFile(f"{self.path} was cut since it was listed, so samples are missing from it; restore it")
        return found

    def will_need(self, start: int, end: int) -> None:
        """Ask the system to read bytes start .. end - 1 into memory; returns at once."""
        if hasattr(os, "posix_fadvise"):  # not on macOS
            for at in range(start, end, _READ_AHEAD):
                os.posix_fadvise(self.descriptor, at, min(_READ_AHEAD, end - at), os.POSIX_FADV_WILLNEED)


@functools.lru_cache(OPEN_FILES)
def opened(path: str, size: int, mtime_ns: int) -> OpenFile:
    """A file for reading by offset (no shared position, so forked processes may use it too).

    OSError when its size or time of change is another than given: what was listed then lies elsewhere in it.
    """
    file = OpenFile(path)
    stat = os.fstat(file.descriptor)
    if (stat.st_size, stat.st_mtime_ns) != (size, mtime_ns):
        raise ChangedFile(f"{path} was changed since it was listed, so samples lie elsewhere in it now; start again")
    return file
