"""Who may ask: the right host name, no other site's page, not too often, with the token."""

from __future__ import annotations

import functools
import ipaddress
from time import monotonic
from typing import Any

from dualenc.serve.problems import Problem, reply
from dualenc.serve.rate import Rate, whose
from dualenc.serve.tokens import CHALLENGE, Token

PROBES = frozenset(("/healthz", "/readyz"))  # open to all, and never too often
THUMBNAIL = 0.05  # of a request: a page of hits asks for dozens
READS = ("GET", "HEAD", "OPTIONS")


class Guard:
    """Middleware that refuses what must not go further. `page`: paths of the page's own files, which hold no data."""

    def __init__(
        self,
        app: Any,
        loopback: bool,
        token: Token | None,
        rate: Rate | None,
        cors: tuple[str, ...],
        page: frozenset[str],
    ):
        self.app, self.loopback, self.token, self.rate, self.page = app, loopback, token, rate, page
        self.anywhere = "*" in cors
        self.origins = frozenset(origin.encode("latin-1", "replace") for origin in cors)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            problem = self.refusal(scope)
            if problem is not None:
                await reply(problem, send)
                return
        elif scope["type"] == "websocket":  # there are none here
            return
        await self.app(scope, receive, send)

    def refusal(self, scope: Any) -> Problem | None:
        """Why a request is refused; None where it may go on."""
        path, method, headers = scope["path"], scope["method"], scope["headers"]
        given = dict(headers)
        if sum(name == b"host" for name, _ in headers) > 1:  # proxies and we could each take another one
            return Problem(400, "Two hosts", "The request has more than one Host header; send one.")
        if self.loopback and not _local(given.get(b"host", b"")):
            return _FOREIGN_HOST()
        if method not in READS and not self._own_page(given):
            return Problem(
                403,
                "Other sites may not ask",
                "The request comes from another site's page; --cors ORIGIN allows one.",
            )
        if path in PROBES:
            return None
        static = path in self.page and method in ("GET", "HEAD")
        if self.rate is not None and not static:
            seconds = self.rate.wait(whose(scope.get("client")), monotonic(), _cost(path))
            if seconds:
                detail = f"More requests came from your address than are answered; ask again in {seconds} s."
                return Problem(429, "Too many requests", detail, {"Retry-After": str(seconds)})
        if self.token is None or static or path == "/session":
            return None
        if not self.token.shown(headers):
            if b"authorization" in given:
                return Problem(401, "Wrong token", "This is not the token the server was started with.", CHALLENGE)
            return Problem(401, "Token needed", "Send the server's token as Authorization: Bearer TOKEN.", CHALLENGE)
        return None

    def _own_page(self, headers: dict[bytes, bytes]) -> bool:
        """Whether no other site's page sent this, as far as a browser says so; programs say nothing.

        Browsers leave Sec-Fetch-Site out for plain HTTP but to this machine itself: there, Origin must be ours.
        """
        origin, site = headers.get(b"origin"), headers.get(b"sec-fetch-site")
        own = origin is None or origin.partition(b"://")[2] == headers.get(b"host")
        if site in (b"none", b"same-origin") or (site is None and own):
            return True
        return self.anywhere or origin in self.origins


@functools.lru_cache(maxsize=256)
def _local(header: bytes) -> bool:
    """Whether a Host header is a localhost name or an address: whoever rebinds a name of theirs must send that name."""
    try:
        text = header.decode("ascii").lower()
    except UnicodeDecodeError:
        return False
    if text.startswith("["):
        name, closed, port = text[1:].partition("]")
        port = port[1:] if port.startswith(":") else port and "x"
        if not closed:
            return False
    else:
        name, _, port = text.partition(":")
    if port and not port.isdigit():
        return False
    name = name.rstrip(".")
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _cost(path: str) -> float:
    return THUMBNAIL if path.startswith("/items/") and path.endswith("/image") else 1.0


def _FOREIGN_HOST() -> Problem:
    return Problem(
        421,
        "Unknown host name",
        "This server is bound to loopback and answers to localhost and addresses only, so that no web page can reach it "
        "under a name of its own; have a proxy send Host: localhost, or start the server with another --host.",
    )
