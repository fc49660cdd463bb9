"""One writer at a time."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def writer(folder: Path) -> Iterator[None]:
    """Hold the index folder's writer lock. BlockingIOError names the process that holds it, and since when.

    The lock is the kernel's (flock): it ends with its process, however that ends, and never has to be broken by hand.
    """
    import fcntl  # not on Windows, where everything but changes works

    with open(folder / ".writer", "a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise BlockingIOError(f"{folder} is being changed by {holder}; try again when it is done") from None
        file.truncate(0)
        file.write(f"pid {os.getpid()} since {time.strftime('%Y-%m-%d %H:%M:%S')}")
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)
