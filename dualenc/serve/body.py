"""Bodies of requests: so many bytes, in such a time, and so many at once."""

from __future__ import annotations

from time import monotonic
from typing import Any

import anyio

from dualenc.serve.problems import Problem

GRACE = 30.0  # seconds until the first byte, and on top of what SLOWEST allows
SLOWEST = 32_000  # bytes a second that a body must keep up
AT_ONCE = 256 << 20  # bytes of bodies that are read and not answered yet
LINGER = 2.0  # seconds that a refused body is still read and thrown away, so that its sender hears why
CHARSETS = (b"utf-8", b"utf8", b"us-ascii", b"ascii")
CLOSE = {"Connection": "close"}


class Bodies:
    """Middleware that bounds bodies: 413 above `most` bytes, known beforehand or counted; 408 for slow ones; 503 while
    those of others fill the memory. A multipart charset that is not UTF-8 is 415: Python's stranger codecs take hours.
    """

    def __init__(self, app: Any, most: int, grace: float = GRACE, slowest: float = SLOWEST, at_once: int = AT_ONCE):
        self.app, self.most, self.grace, self.slowest = app, most, grace, slowest
        self.at_once = max(at_once, 4 * most)
        self.held = 0  # bytes of bodies of requests that are being answered

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        length, chunked, kind = b"", False, b""
        for name, value in scope["headers"]:
            if name == b"content-length":
                length = value
            elif name == b"transfer-encoding":
                chunked = True
            elif name == b"content-type" and not kind:
                kind = value.lower()
        if not chunked and length in (b"", b"0"):
            await self.app(scope, receive, send)
            return
        body = _Body(self, receive, send)
        if refused := self._beforehand(length, kind):
            await body.refuse(refused)
            return
        try:
            await self.app(scope, body.receive, body.send)
        except Problem as problem:
            if problem is not body.problem:
                raise
            if not (body.answering or body.refused):
                await body.refuse(problem)
        finally:
            self.held -= body.size

    def _beforehand(self, length: bytes, kind: bytes) -> Problem | None:
        """What the headers alone tell of a body that is not to be read."""
        if length and not (length.isdigit() and len(length) < 20):
            return Problem(400, "Bad Content-Length", "Content-Length is not a number.", CLOSE)
        if length and int(length) > self.most:
            return self.too_large()
        if b"multipart" in kind and b"charset" in kind:
            charset = kind.partition(b"charset")[2].lstrip(b" =").partition(b";")[0].strip(b' "')
            if charset not in CHARSETS or kind.count(b"charset") > 1:
                return Problem(
                    415, "Unknown charset", "Multipart bodies are read as UTF-8; leave the charset out.", CLOSE
                )
        return None

    def too_large(self) -> Problem:
        return Problem(
            413, "Body too large", f"A request may have {self.most:,} bytes; send less.", CLOSE, max_bytes=self.most
        )


class _Body:
    """One request's body: counts what is received, and answers in the app's stead once it is refused."""

    def __init__(self, limits: Bodies, receive: Any, send: Any):
        self.limits, self._receive, self._send = limits, receive, send
        self.size, self.started, self.ended = 0, monotonic(), False
        self.problem: Problem | None = None
        self.answering = self.refused = False

    async def receive(self) -> Any:
        if self.problem is not None:
            raise self.problem
        if self.ended:
            return await self._receive()
        left = self.started + self.limits.grace + self.size / self.limits.slowest - monotonic()
        message = None
        with anyio.move_on_after(left):
            message = await self._receive()
        if message is None:
            raise self._slow()
        if message["type"] != "http.request":
            self.ended = True
            return message
        size = len(message.get("body", b""))
        self.size += size
        self.limits.held += size
        self.ended = not message.get("more_body", False)
        if self.size > self.limits.most:
            self.problem = self.limits.too_large()
        elif self.limits.held > self.limits.at_once:
            headers = CLOSE | {"Retry-After": "2"}
            self.problem = Problem(503, "Busy", "Other uploads fill the server's memory; send it again soon.", headers)
        if self.problem is not None:
            raise self.problem
        return message

    async def send(self, message: Any) -> None:
        if self.problem is None or self.answering:  # half of another answer that is out may end
            self.answering = True
            await self._send(message)
        elif (
            message["type"] == "http.response.start" and not self.refused
        ):  # whatever the app made of the error: this is the reason
            await self.refuse(self.problem)

    async def refuse(self, problem: Problem) -> None:
        """Answer, then read on for a moment: a connection closed on bytes in flight would drop the answer too."""
        headers, body = problem.encoded()
        self.refused = True
        await self._send({"type": "http.response.start", "status": problem.status, "headers": headers})
        await self._send({"type": "http.response.body", "body": body, "more_body": True})
        if problem.status != 408 and not self.ended:
            with anyio.move_on_after(LINGER):
                while not self.ended:
                    message = await self._receive()
                    self.ended = message["type"] != "http.request" or not message.get("more_body", False)
        await self._send({"type": "http.response.body", "body": b""})

    def _slow(self) -> Problem:
        detail = f"{self.size:,} bytes came in {monotonic() - self.started:.0f} s, and no more; send it again."
        self.problem = Problem(408, "Body too slow", detail, CLOSE)
        return self.problem
