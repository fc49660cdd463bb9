"""One writer at a time, of an index that stands and of one in the making."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from dualenc.files import refuse_existing


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


@contextlib.contextmanager
def making(out: Path) -> Iterator[tuple[Path, Path]]:
    """(a folder for what a killed build leaves, the folder of the new index, which becomes `out` at the end).

    Both are in `.NAME.building` beside `out`, so that the next attempt finds and clears them. A refusal (ValueError)
    leaves nothing; an interruption or a full disk leaves what the next attempt can go on from.
    FileExistsError: `out` holds something. BlockingIOError: somebody is making it.
    """
    refuse_existing(out)
    work = out.parent / f".{out.name}.building"
    work.mkdir(parents=True, exist_ok=True)
    with writer(work):
        folder = work / "index"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        try:
            yield work, folder
            refuse_existing(out)  # another process was faster
            os.replace(folder, out)
        except ValueError:
            shutil.rmtree(work, ignore_errors=True)
            raise
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            if {path.name for path in work.iterdir()} <= {".writer"}:
                shutil.rmtree(work, ignore_errors=True)
            raise
        shutil.rmtree(work, ignore_errors=True)
