"""Lanes: threads that work off what waits, several requests at once where they go together.

While a thread of a lane is idle a request starts at once; while all work, the next ones gather, and go together when one
is done. So nobody waits for company, and yet batches grow with the load.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Hashable, Sequence
from typing import Any, TypeVar

from dualenc.serve import observe

Result = TypeVar("Result")
Work = Callable[[Hashable, list[Any]], Sequence[Any]]
NEWS = 0.2  # how much the last batch counts in what an item is expected to take


class Closed(RuntimeError):
    """The lane takes nothing more: the server is stopping."""


class _Job:
    __slots__ = ("future", "item", "key", "loop", "size")

    def __init__(self, item: Any, key: Hashable, size: int):
        self.item, self.key, self.size = item, key, size
        self.loop = asyncio.get_running_loop()
        self.future: asyncio.Future[Any] = self.loop.create_future()


class Lane:
    """Runs `work(key, items)`, which returns one result for each item, in threads of its own.

    Items of equal keys go together, up to `most` by their sizes. Where the work of several raises, each is done again
    alone, so that only those fail that are at fault. A request that is cancelled while it waits is left out.

    budget: seconds that a batch of several may be expected to take (None: any). Where work grows with each item, as a scan
    of all rows does, going together saves nothing, and the first of a batch would wait for the last.
    begin: called once in each thread, before its first work.
    """

    def __init__(
        self,
        name: str,
        work: Work,
        most: int = 32,
        threads: int = 1,
        budget: float | None = None,
        begin: Callable[[], object] | None = None,
    ):
        self.name, self._work, self._most, self._budget, self._begin = name, work, most, budget, begin
        self._jobs: deque[_Job] = deque()
        self._ready = threading.Condition()
        self._closed, self._cost = False, 0.0  # seconds that one item takes, about
        self._threads = [threading.Thread(target=self._run, name=f"lane {name}", daemon=True) for _ in range(threads)]
        for thread in self._threads:
            thread.start()

    async def do(self, item: Any, key: Hashable = None, size: int = 1) -> Any:
        """The result of one item. key: items of equal keys may go together. size: what it counts towards `most`."""
        job = _Job(item, key, size)
        with self._ready:
            if self._closed:
                raise Closed(f"the lane {self.name} is closed")
            self._jobs.append(job)
            self._ready.notify()
            observe.queue(self.name, len(self._jobs))
        return await job.future

    @property
    def closed(self) -> bool:
        """Whether it takes nothing more."""
        return self._closed

    def close(self) -> None:
        """Take nothing more; what waits is still done."""
        with self._ready:
            self._closed = True
            self._ready.notify_all()

    def join(self) -> None:
        """Wait until all is done, after `close`."""
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        if self._begin is not None:
            self._begin()
        while jobs := self._next():
            started = time.perf_counter()
            self._do(jobs)
            each = (time.perf_counter() - started) / sum(job.size for job in jobs)
            self._cost += (NEWS if self._cost else 1.0) * (each - self._cost)
            del jobs  # a key may hold an index, which would live on while this waits for more

    def _next(self) -> list[_Job]:
        """Jobs that go together, as soon as there are any; none when all is done and the lane is closed."""
        with self._ready:
            while True:
                while not self._jobs and not self._closed:
                    self._ready.wait()
                taken = self._take()
                observe.queue(self.name, len(self._jobs))
                if taken or self._closed:
                    return taken

    def _take(self) -> list[_Job]:
        """The first job, and those behind it that go with it; the others keep their order."""
        jobs = [job for job in self._jobs if not job.future.cancelled()]
        most = self._most if self._budget is None or not self._cost else min(self._most, self._budget / self._cost)
        share = -(-len(jobs) // len(self._threads))  # the other threads take theirs
        taken: list[_Job] = []
        left: deque[_Job] = deque()
        size = 0
        for job in jobs:
            fits = len(taken) < share and size + job.size <= most and taken and job.key == taken[0].key
            if fits or not taken:
                taken.append(job)
                size += job.size
            else:
                left.append(job)
        self._jobs = left
        return taken

    def _do(self, jobs: list[_Job]) -> None:
        try:
            results = list(self._work(jobs[0].key, [job.item for job in jobs]))
            assert len(results) == len(jobs), f"{self.name} made {len(results)} results of {len(jobs)} items"
            _deliver([(job, result, None) for job, result in zip(jobs, results, strict=True)])
        except BaseException as error:
            if len(jobs) == 1:
                _deliver([(jobs[0], None, error)])
                return
            for job in jobs:
                self._do([job])


def _deliver(done: list[tuple[_Job, Any, BaseException | None]]) -> None:
    """Hand results to those who wait, by one call into their event loop."""

    def settle(some: list[tuple[_Job, Any, BaseException | None]]) -> None:
        for job, result, error in some:
            if job.future.done():  # cancelled meanwhile
                continue
            if error is None:
                job.future.set_result(result)
            else:
                job.future.set_exception(error)

    for loop in {id(job.loop): job.loop for job, _, _ in done}.values():
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(settle, [each for each in done if each[0].loop is loop])


async def to_its_end(work: Awaitable[Result]) -> Result:
    """Wait for work in a thread. Who is cancelled waits as well, and keeps what he holds meanwhile: the thread goes on."""
    task = asyncio.ensure_future(work)
    try:
        await asyncio.wait([task])
    finally:
        await asyncio.wait([task])
        error = task.exception()  # looked at, so that nobody says it was not
    if error is not None:
        raise error
    return task.result()
