"""Security headers, and the order in which requests are checked: CORS, host, rate, token, body."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from dualenc.serve.addresses import is_loopback
from dualenc.serve.body import Bodies
from dualenc.serve.guard import Guard
from dualenc.serve.layers import add
from dualenc.serve.rate import Rate
from dualenc.serve.tokens import Token, router

if TYPE_CHECKING:
    from fastapi import FastAPI

    from dualenc.serve.settings import Settings

PAGE = Path(__file__).parent / "page"
CONTENT = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "font-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"  # no script can make markup of a caption, by mistake either
)
HEADERS = (
    ("x-content-type-options", "nosniff"),
    ("x-frame-options", "DENY"),
    ("referrer-policy", "no-referrer"),
    ("permissions-policy", "camera=(), display-capture=(), geolocation=(), microphone=(), payment=(), usb=()"),
    ("cross-origin-opener-policy", "same-origin"),
)


def install(app: FastAPI, settings: Settings) -> None:
    """Put the checks around `app`; with a token, add POST /session. Routes and page come after."""
    from starlette.middleware.cors import CORSMiddleware

    token = Token(settings.token) if settings.token else None
    rate = Rate(settings.rate, settings.workers) if settings.rate else None
    page = page_paths()
    add(app, Headers, "headers", cors=bool(settings.cors), page=page)
    if settings.cors:
        add(
            app,
            CORSMiddleware,
            "cors",
            allow_origins=list(settings.cors),
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type", "X-Request-ID"],
            expose_headers=["X-Request-ID", "Retry-After"],
        )
    loopback = is_loopback(settings.host)
    add(app, Guard, "guard", loopback=loopback, token=token, rate=rate, cors=settings.cors, page=page)
    add(app, Bodies, "body", most=settings.max_body)
    if token is not None:
        app.include_router(router(token))


def page_paths(folder: Path = PAGE) -> frozenset[str]:
    """Paths of the page's files, and "/"."""
    files = (file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())
    return frozenset({"/", *("/" + name for name in files)})


class Headers:
    """Middleware that adds the security headers to every answer; a policy or cache rule that an answer has stays."""

    def __init__(self, app: Any, cors: bool, page: frozenset[str]):
        self.app, self.page = app, page
        resource = "cross-origin" if cors else "same-origin"
        pairs = (*HEADERS, ("cross-origin-resource-policy", resource))
        self.always = [(name.encode(), value.encode()) for name, value in pairs]
        self.policy = (b"content-security-policy", CONTENT.encode())

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def dress(message: Any) -> None:
            if message["type"] == "http.response.start":
                headers = [*message.get("headers", ()), *self.always]
                names = {name for name, _ in headers}
                if b"content-security-policy" not in names:
                    headers.append(self.policy)
                if b"cache-control" not in names:
                    headers.append(_REVALIDATE if scope["path"] in self.page else _NO_STORE)
                message = {**message, "headers": headers}
            await send(message)

        await self.app(scope, receive, dress)


_NO_STORE = (b"cache-control", b"no-store")
_REVALIDATE = (b"cache-control", b"no-cache")
