"""uvicorn's HTTP, with bounds on what comes before the application is asked: a request's line and headers.

httptools bounds neither their length nor their time, and a header of 100 MB, joined piece by piece, holds up every other
request. h11, which uvicorn takes where httptools is not installed, stops at 64 kB by itself.
"""

from __future__ import annotations

import importlib.util
from typing import Any, Literal

from dualenc.serve.problems import Problem

LONGEST = 64 << 10  # bytes of a request's line and headers (and up to one read more, about 256 kB)
SECONDS = 20.0  # from a connection, or a request's first byte, until its headers are there
REASONS = {400: "Bad Request", 431: "Request Header Fields Too Large"}


def best() -> type[Any] | Literal["h11"]:
    """For uvicorn.Config's `http`: the fastest parser that is installed, bounded."""
    return _bounded() if importlib.util.find_spec("httptools") else "h11"


def _bounded() -> type[Any]:
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

    class Bounded(HttpToolsProtocol):
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
