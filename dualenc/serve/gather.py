"""Work that is quick enough for the event loop itself, of all who ask for it at about the same time.

A thread beside the event loop waits for Python's lock several times a batch, and has the loop wait for it; and it begins with
the first request, while others are just being read, though a small tower takes longer for each text alone than for several
together. So the loop reads on while requests come, and then does them together, itself.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from time import perf_counter
from typing import Any

from dualenc.serve import observe
from dualenc.serve.lanes import NEWS

QUIET, LONGEST = 0.0002, 0.002  # seconds that the first item waits: until nothing more comes for a while, and in all


class Gather:
    """Runs `work(items)`, which returns one result for each item, on the event loop of those who ask.

    Up to `most` items go together, and as many as may be expected to take `budget` seconds: nothing else goes on
    meanwhile. Where the work of several raises, each is done again alone, so that only those fail that are at fault.
    quiet: seconds without another item after which work begins; 0: in the loop's next round. begin: called once, before the
    first work.
    """

    def __init__(
        self,
        name: str,
        work: Callable[[list[Any]], Any],
        most: int,
        budget: float = math.inf,
        quiet: float = QUIET,
        begin: Callable[[], object] = lambda: None,
    ):
        self._name, self._work, self._begin = name, work, begin
        self._most, self._budget, self._quiet = most, budget, quiet
        self._cost = 0.0  # seconds that one item takes, about
        self._waiting: list[tuple[Any, asyncio.Future[Any]]] = []
        self._first = self._last = 0.0  # perf_counter() of the first and of the latest of those that wait
        self._begun = False

    async def do(self, item: Any) -> Any:
        """The result of one item."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        self._last = perf_counter()
        if not self._waiting:
            self._first = self._last
            loop.call_soon(self._turn)
        self._waiting.append((item, future))
        return await future

    def _turn(self) -> None:
        """Once a round of the event loop: wait for another one, or do what waits."""
        now = perf_counter()
        within = self._budget / self._cost if self._cost else math.inf
        most = int(min(self._most, max(1, within)))
        full = len(self._waiting) >= most
        if not full and now < self._last + self._quiet and now < self._first + LONGEST:
            asyncio.get_running_loop().call_soon(self._turn)
            return
        taken, self._waiting = self._waiting[:most], self._waiting[most:]
        observe.queue(self._name, len(self._waiting))
        if self._waiting:
            asyncio.get_running_loop().call_soon(self._turn)
        if not self._begun:
            self._begin()
            self._begun = True
        some = [(item, future) for item, future in taken if not future.cancelled()]
        if some:
            started = perf_counter()
            self._do(some)
            each = (perf_counter() - started) / len(some)
            self._cost += (NEWS if self._cost else 1.0) * (each - self._cost)

    def _do(self, some: list[tuple[Any, asyncio.Future[Any]]]) -> None:
        try:
            results = list(self._work([item for item, _ in some]))
            assert len(results) == len(some), f"{self._name} made {len(results)} results of {len(some)} items"
        except Exception as error:
            if len(some) == 1:
                some[0][1].set_exception(error)
                return
            for one in some:
                self._do([one])
        else:
            for (_, future), result in zip(some, results, strict=True):
                future.set_result(result)
