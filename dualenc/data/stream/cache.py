"""A folder of shards that were copied from elsewhere, whole, with a limit to its size."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import re
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from dualenc.data.stream.held import hold, removed
from dualenc.data.stream.transport import CHUNK, RETRIES, Reader, shown

log = logging.getLogger("dualenc")

OFTEN = 64 << 20  # bytes that a copy grows by before there must be room for it again
TRIES = 3  # to keep a copy before another process removes it
YOUNG = 60.0  # seconds in which a temporary file may still be without its lock
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}


def size_in_bytes(size: str | int, name: str) -> int:
    """500_000_000, "500MB", "1.5 GiB" -> bytes; ValueError says what `name` should be."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?I?)B?\s*", str(size).upper())
    if match is None or match[2] not in _UNITS or not float(match[1]):
        raise ValueError(
            f"{name} {size!r} is no size, so no limit could be kept; write a number of bytes, or one like 20GB"
        )
    return int(float(match[1]) * _UNITS[match[2]])


class Cache:
    """Copies of whole shards under `folder`, together at most `limit` bytes: those that were used last.

    Several processes may use one folder: a copy appears when it is whole, one that was fetched stays while a process that
    fetched it lives, any other may go from the folder while a reader has it open, and what a killed process left is
    removed. A copy is found by its URL alone: change the URL when the shard changes. Its name is the shard's own, in a
    folder named after the URL.
    """

    def __init__(self, folder: str | Path, limit: int):
        self.folder, self.limit = Path(folder), limit

    def open(self, url: str) -> IO[bytes] | None:
        """The copy of a shard, open for reading; None where there is none."""
        path = self.path(url)
        try:
            file = open(path, "rb")  # noqa: SIM115  (the caller's)
        except OSError:
            return None
        about = os.fstat(file.fileno())
        if not _ends_as_tar(file):
            file.close()  # what came without a length, from a server that broke off
            return None
        with contextlib.suppress(OSError):  # used now; its mtime is how an index of the tar knows it
            os.utime(file.fileno(), ns=(time.time_ns(), about.st_mtime_ns))
        return file

    def fetch(self, url: str, retries: int = RETRIES) -> Path:
        """The path of a whole copy, which stays while this process lives.

        ShardError when it cannot be read to its end, NoRoom when it does not fit beside those that must stay.
        """
        path = self.path(url)
        self.folder.mkdir(parents=True, exist_ok=True)
        with _lock(self.folder / f".{path.parent.name[:1]}.lock"):  # another process's copy is waited for
            for _ in range(TRIES):
                file = self.open(url) or self._copied(url, retries)
                if file is not None and hold(file, path):
                    return path
        raise NoRoom("other processes need the room")

    def _copied(self, url: str, retries: int) -> IO[bytes] | None:
        """A new copy of a shard, open; None where another process has removed it by then."""
        with contextlib.closing(Copy(self, url, Reader(url, retries))) as copy:
            while copy.read(CHUNK):
                pass
        if copy.lost:
            raise NoRoom(copy.lost)
        with contextlib.suppress(FileNotFoundError):
            return open(self.path(url), "rb")
        return None

    def path(self, url: str) -> Path:
        """Where the copy of a URL is, or would be."""
        name = re.findall(r"[^/\s'\"]+", re.sub(r"[?#].*", "", url) if "://" in url else url) or ["shard.tar"]
        tars = [part for part in name if part.endswith(".tar")] or name
        return self.folder / hashlib.sha256(url.encode()).hexdigest()[:16] / re.sub(r"[^\w.,=+-]", "_", tars[-1])[-100:]

    def make_room(self) -> bool:
        """Remove the copies that were used longest ago until all is within the limit; False where that cannot be reached."""
        total, homes = 0, []
        for entry in os.scandir(self.folder):
            with contextlib.suppress(FileNotFoundError):  # another process does the same
                if entry.is_dir() and re.fullmatch("[0-9a-f]{16}", entry.name):
                    files = [file.stat() for file in os.scandir(entry.path)]
                    size = sum(file.st_size for file in files)
                    homes.append((max((file.st_atime_ns for file in files), default=0), size, Path(entry.path)))
                    total += size
                elif _is_temporary(entry.name) and not _abandoned(entry.path):
                    total += entry.stat().st_size
        for _, size, home in sorted(homes):
            if total <= self.limit:
                break
            total -= size if removed(home) else 0
        return total <= self.limit


class NoRoom(OSError):
    """A shard that does not fit into the cache."""


class Copy:
    """The bytes of a reader, as it gives them; at `close` the cache has them too, where they came whole.

    lost: why no copy is kept: reading goes on all the same.
    """

    def __init__(self, cache: Cache, url: str, reader: Reader):
        self.cache, self.url, self.reader = cache, url, reader
        self.lost: str | None = None
        self._size = self._looked = 0
        cache.folder.mkdir(parents=True, exist_ok=True)
        handle, self._name = tempfile.mkstemp(prefix=".shard-", suffix=".tmp", dir=cache.folder)
        fcntl.flock(handle, fcntl.LOCK_EX)  # held until it is whole: whoever can take it may remove the file
        self._file = os.fdopen(handle, "wb")

    def read(self, size: int) -> bytes:
        return self._kept(self.reader.read(size))

    def tail(self, size: int) -> bytes:
        return self._kept(self.reader.tail(size))

    def close(self) -> None:
        self.reader.close()
        try:
            if self.reader.complete and self.lost is None:
                self._publish()
        except OSError as error:
            self._lose(error.strerror or str(error))
        finally:
            with contextlib.suppress(OSError):
                os.unlink(self._name)
            fcntl.flock(self._file, fcntl.LOCK_UN)  # a process forked meanwhile has it too
            with contextlib.suppress(OSError):  # of a full disk, for what is still in its buffer
                self._file.close()

    def _kept(self, data: bytes) -> bytes:
        if self.lost is None:
            try:
                self._file.write(data)
                self._size += len(data)
                self._check_room(OFTEN)
            except OSError as error:
                self._lose(error.strerror or str(error))
        return data

    def _check_room(self, often: int = 0) -> None:
        if self._size > self.cache.limit:
            self._lose(f"the shard is larger than the cache may be ({self.cache.limit:,} bytes)")
        elif self._size - self._looked >= often:
            self._file.flush()
            self._looked = self._size
            if not self.cache.make_room():
                self._lose(f"the cache is full ({self.cache.limit:,} bytes)")

    def _publish(self) -> None:
        self._check_room()
        if self.lost is None:
            path = self.cache.path(self.url)
            os.fsync(self._file.fileno())
            os.fchmod(self._file.fileno(), 0o644)
            path.parent.mkdir(exist_ok=True)
            os.replace(self._name, path)

    def _lose(self, why: str) -> None:
        self.lost = why
        log.warning("%s is not kept in %s: %s", shown(self.url), self.cache.folder, why)
        with contextlib.suppress(OSError):
            self._file.truncate(0)


def _ends_as_tar(file: IO[bytes]) -> bool:
    """Whether a file's last block is zeros, as a whole tar's is."""
    size = os.fstat(file.fileno()).st_size
    return size >= 512 and os.pread(file.fileno(), 512, size - 512) == bytes(512)


def _is_temporary(name: str) -> bool:
    return name.startswith(".shard-") and name.endswith(".tmp")


def _abandoned(path: str) -> bool:
    """Remove a temporary file whose writer is gone; True where it was."""
    with open(path, "rb") as file:
        if time.time() - os.fstat(file.fileno()).st_mtime < YOUNG:
            return False
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        os.unlink(path)
        return True


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    with open(path, "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
