"""One writer at a time, of an index that stands and of one in the making."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dualenc.files import refuse_existing
from dualenc.index.budget import OutOfReach


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
        if not _still_there(file, folder / ".writer"):
            raise BlockingIOError(f"{folder} was removed by another process just now; try again")
        file.truncate(0)
        file.write(f"pid {os.getpid()} since {time.strftime('%Y-%m-%d %H:%M:%S')}")
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)


def _still_there(file: Any, path: Path) -> bool:
    """Whether the file that is locked is the one that others find."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def making(out: Path) -> Iterator[tuple[Path, Path]]:
    """(a folder for what a killed build leaves, the folder of the new index, which becomes `out` at the end).

    Both are in `.NAME.building` beside `out`, so that the next attempt finds and clears them. A refusal (ValueError)
    leaves nothing; an interruption, a full disk or a recall out of reach leaves what the next attempt can go on from.
    FileExistsError: `out` holds something. BlockingIOError: somebody is making it.
    """
    refuse_existing(out)
    if out.is_symlink():
        raise ValueError(f"{out} is a link, and a new index is a folder of its own; name the folder itself")
    work = out.parent / f".{out.name}.building"
    work.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(writer(work))
        except OSError as error:
            if not isinstance(error, BlockingIOError):  # a full disk: nothing was begun
                shutil.rmtree(work, ignore_errors=True)
            raise
        folder = work / "index"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        try:
            yield work, folder
            refuse_existing(out)  # another process was faster
            os.replace(folder, out)
        except BaseException as error:
            if isinstance(error, ValueError) and not isinstance(error, OutOfReach):
                shutil.rmtree(work, ignore_errors=True)
                raise
            shutil.rmtree(folder, ignore_errors=True)
            if {path.name for path in work.iterdir()} <= {".writer"}:
                shutil.rmtree(work, ignore_errors=True)
            raise
        shutil.rmtree(work, ignore_errors=True)
