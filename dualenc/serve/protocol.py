"""uvicorn's HTTP, with bounds on what comes before the application is asked: a request's line and headers. And where a caller
leaves, its request is cancelled: uvicorn would have all the work done for nobody.

httptools bounds neither their length nor their time, and a header of 100 MB, joined piece by piece, holds up every other
request. h11, which uvicorn takes where httptools is not installed, stops at 64 kB by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
from collections.abc import Iterator
from typing import Any

from dualenc.serve.problems import Problem

LONGEST = 64 << 10  # bytes of a request's line and headers (and up to one read more, about 256 kB)
SECONDS = 20.0  # from a connection, or a request's first byte, until its headers are there
STALLED = 30.0  # seconds within which a caller must take some of what is sent; it lies in memory until then
REASONS = {400: "Bad Request", 431: "Request Header Fields Too Large"}


def best() -> type[Any]:
    """For uvicorn.Config's `http`: the fastest parser that is installed, bounded."""
    return _bounded() if importlib.util.find_spec("httptools") else _h11()


class Cancelling:
    """One connection, as uvicorn's protocols have it in `cycle`: when it is lost, the request is cancelled that it brought,
    and it is broken off where the caller does not read."""

    _stall: Any = None

    def pause_writing(self) -> None:
        super().pause_writing()  # type: ignore[misc]
        self._look(None)

    def resume_writing(self) -> None:
        super().resume_writing()  # type: ignore[misc]
        self._stop_looking()

    def _look(self, before: int | None) -> None:
        """Look again and again whether less is left to be sent than before."""
        left = self.transport.get_write_buffer_size()  # type: ignore[attr-defined]
        if before is not None and left >= before:
            self.transport.abort()  # type: ignore[attr-defined]
        else:
            self._stall = self.loop.call_later(STALLED, self._look, left)  # type: ignore[attr-defined]

    def _stop_looking(self) -> None:
        if self._stall is not None:
            self._stall.cancel()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_looking()
        super().connection_lost(exc)  # type: ignore[misc]
        cycle: Any = self.cycle  # type: ignore[attr-defined]
        if cycle is not None and not cycle.response_complete and hasattr(cycle, "task"):
            cycle.task.cancel()


@contextlib.contextmanager
def ends_with_its_caller(scope: Any, receive: Any) -> Iterator[None]:
    """Around the application's answer to a request: where its caller leaves, it ends here without complaint."""
    cycle = getattr(receive, "__self__", None)  # uvicorn's, of a request
    if scope["type"] == "http" and cycle is not None:
        cycle.task = asyncio.current_task()
    try:
        yield
    except asyncio.CancelledError:
        if not getattr(cycle, "disconnected", False):
            raise  # the server's time to stop is over


def _h11() -> type[Any]:
    from uvicorn.protocols.http.h11_impl import H11Protocol

    return type("H11", (Cancelling, H11Protocol), {})


def _bounded() -> type[Any]:
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

    class Bounded(Cancelling, HttpToolsProtocol):
        """One connection."""

        def __init__(self, *arguments: Any, **options: Any):
            super().__init__(*arguments, **options)
            self._length, self._in_head = 0, False
            self._timer: Any = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._wait()

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            self._stop_waiting()

        def on_message_begin(self) -> None:
            super().on_message_begin()
            self._length, self._in_head = 0, True

        def on_headers_complete(self) -> None:
            self._in_head = False
            self._stop_waiting()
            super().on_headers_complete()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self.transport.is_closing():
                return
            if self._in_head:
                self._length += len(data)
                if self._length > LONGEST:
                    detail = f"A request's line and headers may have {LONGEST:,} bytes; send less."
                    self._refuse(Problem(431, "Headers too large", detail))
            if self.cycle is None or self.cycle.response_complete:  # nothing is being answered: something must come
                self._wait()

        def send_400_response(self, msg: str) -> None:
            self._refuse(Problem(400, "Not HTTP", "The request does not parse."))

        def _refuse(self, problem: Problem) -> None:
            headers, body = problem.encoded()
            head = b"HTTP/1.1 %d %s\r\nconnection: close\r\n" % (problem.status, REASONS[problem.status].encode())
            self.transport.write(head + b"".join(b"%s: %s\r\n" % pair for pair in headers) + b"\r\n" + body)
            self.transport.close()

        def _wait(self) -> None:
            if self._timer is None:
                self._timer = self.loop.call_later(SECONDS, self.transport.close)

        def _stop_waiting(self) -> None:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

    return Bounded
