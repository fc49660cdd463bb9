"""The engine that the routes call: indexes by name, encoders, searches. It knows nothing of HTTP but `Problem`."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from dualenc.serve import threads
from dualenc.serve.embeddings import Embeddings
from dualenc.serve.encoders import Encoders
from dualenc.serve.lanes import Closed
from dualenc.serve.live import Live, warm
from dualenc.serve.problems import Problem
from dualenc.serve.searches import Searches
from dualenc.serve.settings import Settings

LINGER = 60.0  # seconds for which requests of a generation that was replaced may still need its encoder


class Service:
    """All that one worker process serves. Its coroutines belong to one event loop.

    A request takes `live(name).index` once and hands it on as `index`, so that it sees one generation from its first step
    to its last; where `index` is left out, the current generation is meant.
    """

    def __init__(self, settings: Settings):
        """Open all indexes; nothing is started. ValueError, FileNotFoundError: one that does not open, in one line."""
        self.settings, self.plan = settings, threads.plan(settings.threads, settings.workers)
        threads.no_spinning()
        self.lives = {name: Live(name, folder) for name, folder in settings.indexes.items()}
        self._encoders = Encoders(settings.encoder, settings.precision, self.plan)
        self._embeddings = Embeddings(self._encoders, self.run)
        self._tasks: list[asyncio.Task[Any]] = []

    async def start(self) -> None:
        """Start the threads; encoders begin to load, and nothing waits for them."""
        threads.short_turns()
        threads.search_alone()  # of the event loop, which does the quick searches itself
        self._pool = ThreadPoolExecutor(self.plan.pool, "pool", threads.search_alone)
        self._searches = Searches(list(self.lives), self.plan, self.run)
        for live in self.lives.values():
            prepare = functools.partial(self._prepare, live)
            self._tasks += [asyncio.create_task(work) for work in (self._begin(live), live.watch(self.run, prepare))]

    async def stop(self) -> None:
        """Finish what is queued, then end the threads."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        lanes = [*self._searches.close(), *self._encoders.close()]
        for lane in lanes:
            await asyncio.to_thread(lane.join)
        await asyncio.to_thread(self._pool.shutdown)

    async def settled(self, seconds: float) -> None:
        """Until all encoders are loaded, or have failed, so long at most."""
        slots = [slot for live in self.lives.values() if (slot := self._encoders.slot(live.index)) is not None]
        await asyncio.gather(*(slot.wait(seconds) for slot in slots))

    async def _begin(self, live: Live) -> None:
        """What is better done before the first request asks for it, though none has to wait."""
        await self.run(warm, live.index)
        self._encoders.slot(live.index)

    async def _prepare(self, live: Live, index: Any) -> None:
        """Before a new generation is swapped in: its encoder is loaded, where it is another than the old one's.

        ValueError: it does not load, and the old one works.
        """
        slot = self._encoders.slot(index)
        while slot is not None and not slot.loaded.done():
            await slot.wait(60.0)
        error = None if slot is None else slot.loaded.exception()
        if error is not None and self._encoders.state(live.index) == "ready":
            raise ValueError(f"the encoder of the new generation does not load: {error}") from error
        await self.run(warm, index)
        asyncio.get_running_loop().call_later(LINGER, self._forget)

    def _forget(self) -> None:
        self._encoders.keep([live.index for live in self.lives.values()])

    def live(self, name: str | None) -> Live:
        """The index of that name, the first where it is None. Problem 404: there is none."""
        if name is None:
            return next(iter(self.lives.values()))
        if name not in self.lives:
            raise Problem(404, "No such index", f"there is no index {name!r}; there is {', '.join(self.lives)}")
        return self.lives[name]

    def ready(self) -> dict[str, Any]:
        """Of each index: rows, generation and its encoder ("ready", "loading", "none" or "failed")."""
        return {
            name: {"rows": len(live.index), "generation": live.generation, "encoder": self._encoders.state(live.index)}
            for name, live in self.lives.items()
        }

    async def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """The result of a function that takes its time, called in one of the pool's threads."""
        call = functools.partial(contextvars.copy_context().run, function, *arguments)
        with _told():
            return await asyncio.get_running_loop().run_in_executor(self._pool, call)

    async def texts(self, live: Live, texts: Sequence[str], index: Any = None) -> np.ndarray:
        """(T, D) float32 unit rows of texts. Problem: 409 where the index has no encoder, 503 while it loads, 500 where it
        could not be loaded."""
        with _told(live):
            return await self._embeddings.texts(_of(live, index), texts)

    async def images(self, live: Live, pictures: Sequence[Any], index: Any = None) -> np.ndarray:
        """(N, D) float32 unit rows of PIL images. Problem: as `texts`."""
        with _told(live):
            return await self._embeddings.images(_of(live, index), pictures)

    async def classifier(
        self, live: Live, classes: tuple[str, ...], templates: tuple[str, ...], index: Any = None
    ) -> np.ndarray:
        """(C, D) unit rows, one for each class: the mean of its prompts. templates: each with a {} for the class.

        Problem: as `texts`, and 400 for no class or no template.
        """
        with _told(live):
            return await self._embeddings.classifier(_of(live, index), classes, templates)

    def logit_scale(self, live: Live, index: Any = None) -> float:
        """What cosines are multiplied by before a softmax. Problem: as `texts`, at once."""
        return self._embeddings.logit_scale(_of(live, index))

    async def search(
        self,
        live: Live,
        index: Any,
        vector: np.ndarray,
        k: int,
        offset: int = 0,
        threshold: float | None = None,
        where: str | None = None,
        group_by: str | None = None,
        without: int = -1,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Hits offset .. offset + k of a unit vector (D,): ids (n,) int64 and cosines (n,) float32, best first, n <= k.

        Problem 400: what `Index.page` refuses, in its words.
        """
        with _told(live):
            return await self._searches.search(live.name, index, vector, k, offset, threshold, where, group_by, without)


def _of(live: Live, index: Any) -> Any:
    """The generation that a request means. An index without rows is one as well, though it is falsy."""
    return live.index if index is None else index


@contextlib.contextmanager
def _told(live: Live | None = None) -> Iterator[None]:
    """Errors as callers are told them: without the server's paths."""
    try:
        yield
    except Closed as error:
        raise Problem(503, "The server is stopping", "try again", {"Retry-After": "5"}) from error
    except ValueError as error:
        if live is None:
            raise
        raise Problem(400, "The search is refused", _without_paths(str(error), live)) from error


def _without_paths(text: str, live: Live) -> str:
    for path in {str(live.folder.resolve()), str(live.folder.absolute()), str(live.folder)} - {"."}:
        text = text.replace(path, f"index {live.name}")
    return " ".join(text.split())
