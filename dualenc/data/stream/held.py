"""Files that must stay while this process lives: what removes files elsewhere leaves those that are locked."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import logging
import os
import resource
import shutil
from pathlib import Path
from typing import IO

log = logging.getLogger("dualenc")

_held: dict[Path, IO[bytes]] = {}  # open, and so locked, until the process ends


def hold(file: IO[bytes], path: Path) -> bool:
    """Keep `file`, opened at `path`, from being `removed`, by any process; takes the file over.

    False where it has been removed since it was opened, or something else lies there.
    """
    fcntl.flock(file, fcntl.LOCK_SH)
    there = _same(file, path)
    if not there or _same(_held.get(path), path):
        file.close()
    elif len(_held) >= _most():
        _warn(len(_held))
        file.close()
    else:
        if path in _held:
            _held[path].close()
        _held[path] = file
    return there


def _same(file: IO[bytes] | None, path: Path) -> bool:
    """Whether an open file is the one at a path."""
    with contextlib.suppress(FileNotFoundError):
        return file is not None and os.path.samestat(os.fstat(file.fileno()), path.stat())
    return False


def removed(folder: Path) -> bool:
    """Remove a folder of files; False where one of them is held, or cannot be opened."""
    with contextlib.ExitStack() as stack:
        try:
            for path in folder.iterdir():
                file = stack.enter_context(open(path, "rb"))
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # until it is gone: `hold` waits, and sees that
        except FileNotFoundError:  # another process removes it
            pass
        except OSError:
            return False
        shutil.rmtree(folder, ignore_errors=True)
        return True


def _most() -> int:
    """How many files may be held: half of what this process may open, which is raised as they become more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return 1 << 20
    if len(_held) >= soft // 2:
        with contextlib.suppress(ValueError, OSError):  # where the system has a limit of its own
            more = 2 * soft if hard == resource.RLIM_INFINITY else min(2 * soft, hard)
            resource.setrlimit(resource.RLIMIT_NOFILE, (more, hard))
            soft = more
    return soft // 2


@functools.cache
def _warn(count: int) -> None:
    log.warning(
        "more than %d files of the cache are in use, so another process may remove the others; raise `ulimit -n`, "
        "or give each process its own XDG_CACHE_HOME",
        count,
    )
