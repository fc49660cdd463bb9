"""Every error as a problem document (RFC 9457): what is wrong and what to do, and nothing of the server's inside."""

from __future__ import annotations

import http
import json
import logging
from typing import TYPE_CHECKING, Any

from dualenc.serve.record import request_id

if TYPE_CHECKING:
    from fastapi import FastAPI, Request, Response

MEDIA_TYPE = "application/problem+json"
MOST_ERRORS, MOST_LETTERS = 10, 300  # of a bad body that are told
CLOSED = 499  # nobody is left to answer (nginx's number, for the log only)
log = logging.getLogger(__name__)


class Problem(Exception):
    """An error that the caller is told: `status`, a `title` that is the same each time, a `detail` in words.

    `members` are further fields of the document, `headers` go out with it (Retry-After, Allow).
    """

    def __init__(
        self, status: int, title: str, detail: str = "", headers: dict[str, str] | None = None, **members: Any
    ):
        super().__init__(detail or title)
        self.status, self.title, self.detail = status, title, detail
        self.headers = headers or {}
        self.members = members

    def document(self) -> dict[str, Any]:
        """The fields of RFC 9457; `instance` is the request's id, which the log has too."""
        fields: dict[str, Any] = {"type": "about:blank", "title": self.title, "status": self.status}
        if self.detail:
            fields["detail"] = self.detail
        return fields | {"instance": request_id()} | self.members

    def encoded(self) -> tuple[list[tuple[bytes, bytes]], bytes]:
        """Raw headers and body of the reply. ASCII alone: a caller's lone surrogate would not encode otherwise."""
        body = json.dumps(self.document()).encode("ascii")
        headers = [
            (b"content-type", MEDIA_TYPE.encode()),
            (b"content-length", str(len(body)).encode()),
            (b"cache-control", b"no-store"),
        ]
        headers += [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in self.headers.items()]
        return headers, body


async def reply(problem: Problem, send: Any) -> None:
    """A problem as the whole answer, from a middleware."""
    headers, body = problem.encoded()
    await send({"type": "http.response.start", "status": problem.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


class Unexpected:
    """Middleware, the innermost: an error that nobody foresaw is logged whole and told as 500 without its words."""

    def __init__(self, app: Any):
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = False

        async def watch(message: Any) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self.app(scope, receive, watch)
        except Exception as error:
            if started:
                raise  # half an answer is out: the server must cut the connection
            if _gone(error):
                log.info("the caller went away before the request was read")
                await reply(Problem(CLOSED, "Client closed the connection"), send)
                return
            log.error("error in %s", scope.get("method", ""), exc_info=error)
            await reply(Problem(500, "Internal error", "The server failed; its log tells why, under this id."), send)


def install(app: FastAPI) -> None:
    """Have `app` answer every error with a problem document."""
    from fastapi.exceptions import RequestValidationError
    from starlette.exceptions import HTTPException

    from dualenc.serve.layers import add

    handlers: dict[Any, Any] = {
        Problem: _problem,
        HTTPException: _http,
        RequestValidationError: _bad_body,
    }
    for kind, handler in handlers.items():
        app.add_exception_handler(kind, handler)
    add(app, Unexpected, "errors")


def responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """For a route's `responses=`: that these statuses come as problem documents."""
    content = {MEDIA_TYPE: {"schema": SCHEMA}}
    return {status: {"description": http.HTTPStatus(status).phrase, "content": content} for status in statuses}


SCHEMA = {
    "title": "Problem",
    "description": "RFC 9457 problem document",
    "type": "object",
    "required": ["type", "title", "status", "instance"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "instance": {"type": "string", "description": "the request's id, as in X-Request-ID and the log"},
        "errors": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"field": {"type": "string"}, "problem": {"type": "string"}},
            },
        },
    },
}


def _response(problem: Problem) -> Response:
    from starlette.responses import Response

    headers, body = problem.encoded()
    response = Response(body, problem.status)
    response.raw_headers = headers
    return response


async def _problem(request: Request, error: Any) -> Response:
    return _response(error)


async def _http(request: Request, error: Any) -> Response:
    """Starlette's and FastAPI's own refusals: no such path, wrong method, a body that does not parse."""
    title = _phrase(error.status_code)
    detail = error.detail if isinstance(error.detail, str) and error.detail != title else ""
    if error.status_code == 404:
        detail = "There is nothing at this path; /openapi.json lists those there are."
    elif error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "")
        detail = f"{request.method if len(request.method) < 16 else 'This method'} is not answered here" + (
            f"; {allowed} is." if allowed else "."
        )
    return _response(Problem(error.status_code, title, detail, headers=dict(error.headers or {})))


async def _bad_body(request: Request, error: Any) -> Response:
    """What pydantic found wrong, field by field; never the values themselves."""
    found = error.errors()
    errors = [{"field": _field(one), "problem": _words(one)} for one in found[:MOST_ERRORS]]
    detail = "; ".join(f"{e['field']}: {e['problem']}" for e in errors[:3])
    if len(found) > 3:
        detail += f"; and {len(found) - 3} more"
    return _response(Problem(422, "The request is not as the schema says", detail, errors=errors))


def _field(error: dict[str, Any]) -> str:
    """("body", "terms", 0, "weight") as "body.terms.0.weight", shortened where the caller made the names up."""
    location = error["loc"][:1] if error["type"] == "json_invalid" else error["loc"]  # there: a letter's number
    return ".".join(str(part)[:60] for part in location)[:MOST_LETTERS]


def _words(error: dict[str, Any]) -> str:
    if error["type"] == "json_invalid":
        return f"not JSON: {(error.get('ctx') or {}).get('error', 'it does not parse')}"[:MOST_LETTERS]
    return str(error["msg"])[:MOST_LETTERS]


def _phrase(status: int) -> str:
    try:
        return http.HTTPStatus(status).phrase
    except ValueError:
        return "Error"


def _gone(error: BaseException) -> bool:
    from starlette.requests import ClientDisconnect

    return isinstance(error, ClientDisconnect)
