"""Live indexes: by name, always the newest generation of what is in the folder."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np

log = logging.getLogger("dualenc.serve")

SECONDS = 1.0  # between two looks at the folder
Run = Callable[..., Awaitable[Any]]  # (function, *arguments): runs it in a thread


class Live:
    """An index that is kept current. `index` is the one that is current now: a request takes it once and keeps it, so that
    all of its parts see one generation, whatever is swapped in meanwhile."""

    def __init__(self, name: str, folder: Path):
        """ValueError, FileNotFoundError: no index there, or a damaged one, as `Index.open` says."""
        self.name, self.folder = name, Path(folder)
        self._state = state_of(self.folder)
        self.index = _open(self.folder)
        self._told: Any = ()  # the state that was complained of last

    @property
    def generation(self) -> int:
        """Its number in the manifest. A folder that was built anew begins again at 1."""
        return self.index.manifest["generation"]

    async def watch(self, run: Run, prepare: Callable[[Any], Awaitable[None]], seconds: float = SECONDS) -> None:
        """Look at the folder again and again, and open what is new there. It never ends; cancel it.

        prepare: awaited with the new index before it is swapped in.
        """
        while True:
            await asyncio.sleep(seconds)
            await self.look(run, prepare)

    async def look(self, run: Run, prepare: Callable[[Any], Awaitable[None]]) -> bool:
        """Open what is in the folder if it is not what is open; whether it was. What does not open is told once, and
        tried again at the next look: the index that is open stays."""
        state = await run(state_of, self.folder)
        if state == self._state:
            return False
        try:
            index = await run(_open, self.folder)
            await prepare(index)
        except Exception as error:
            if self._told != state:
                log.warning(
                    "index %s stays at generation %d: %s", self.name, self.generation, " ".join(str(error).split())
                )
                self._told = state
            return False
        self.index, self._state, self._told = index, state, ()
        log.info("index %s: generation %d, %d rows", self.name, self.generation, len(index))
        return True


def _open(folder: Path) -> Any:
    from dualenc.index.index import Index

    return Index.open(folder)


def state_of(folder: Path) -> tuple[int, ...] | None:
    """What tells one manifest of a folder from the next, without reading it; None where there is none."""
    try:
        state = os.stat(folder / "manifest.json")
    except OSError:
        return None
    return state.st_ino, state.st_mtime_ns, state.st_size


def warm(index: Any) -> None:
    """Read what the first request would wait for: metadata, and what a search goes through."""
    import pyarrow as pa

    if not len(index):
        return
    index.rows(index.ids[:1])
    pa.default_memory_pool().release_unused()  # what reading the metadata took beside the metadata
    query = np.zeros(index.dim, np.float32)
    query[0] = 1
    index.search(query[None], k=min(10, len(index)))
