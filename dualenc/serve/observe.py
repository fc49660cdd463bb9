"""What a running server tells of itself: request ids, one log line a request, metrics, and the time of each stage."""

from __future__ import annotations

import asyncio
import logging
from time import perf_counter
from typing import TYPE_CHECKING, Any

from dualenc.serve import accesslog, metrics
from dualenc.serve.problems import CLOSED
from dualenc.serve.record import Record, choose_id, current, request_id

if TYPE_CHECKING:
    from fastapi import FastAPI

    from dualenc.serve.settings import Settings

__all__ = ["hit", "install", "miss", "queue", "request_id", "stage"]
QUIET = ("/healthz", "/readyz", "/metrics")  # asked every few seconds: logged at DEBUG while all is well


class stage:
    """`with stage("search"):` counts the time within to a stage, of the request and over all of them.

    Names stand in the code, never in a request: each is a label in the metrics. Works in any thread; the request
    is known where its context was handed on (asyncio.to_thread does).
    """

    __slots__ = ("name", "started")

    def __init__(self, name: str):
        self.name = name

    def __enter__(self) -> None:
        self.started = perf_counter()

    def __exit__(self, *_: object) -> None:
        seconds = perf_counter() - self.started
        record = current.get()
        if record is not None:
            record.stages[self.name] = record.stages.get(self.name, 0.0) + seconds
        metrics.time_stage(self.name, seconds)


def hit(cache: str) -> None:
    """A look-up found what it sought."""
    metrics.count_cache(cache, "hit")


def miss(cache: str) -> None:
    """A look-up found nothing."""
    metrics.count_cache(cache, "miss")


def queue(lane: str, length: int) -> None:
    """So many requests wait in a lane now."""
    metrics.set_queue(lane, length)


def install(app: FastAPI, settings: Settings) -> None:
    """Observe every request of `app`, and answer GET /metrics and /metrics-summary."""
    from starlette.responses import PlainTextResponse, Response

    from dualenc.serve.layers import add

    accesslog.configure(settings.log)
    add(app, Observe, "observe")

    def lives() -> dict[str, Any]:
        service = getattr(app.state, "service", None)
        return getattr(service, "lives", {})

    def prometheus() -> Response:
        """Requests, latency by route and stage, queues, caches and indexes, as Prometheus reads them."""
        return Response(metrics.exposition(lives()), media_type="text/plain; version=0.0.4; charset=utf-8")

    def summary() -> Response:
        """Count and mean time of every route and stage, as text."""
        return PlainTextResponse(metrics.summary())

    app.add_api_route("/metrics", prometheus, response_class=PlainTextResponse, response_model=None, tags=["server"])
    app.add_api_route(
        "/metrics-summary", summary, response_class=PlainTextResponse, response_model=None, tags=["server"]
    )


class Observe:
    """Middleware, the outermost: gives a request its id, and counts, times and logs it when it is answered."""

    def __init__(self, app: Any):
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        record = Record(choose_id(_header(scope, b"x-request-id")))
        header = (b"x-request-id", record.id.encode())
        status = 500  # of an answer that never started

        async def watch(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {**message, "headers": [*message.get("headers", ()), header]}
            await send(message)

        token = current.set(record)
        try:
            await self.app(scope, receive, watch)
        except asyncio.CancelledError:
            status = CLOSED if status == 500 else status
            raise
        finally:
            seconds = perf_counter() - record.started
            try:
                _account(scope, record, status, seconds)
            finally:
                current.reset(token)


def _account(scope: Any, record: Record, status: int, seconds: float) -> None:
    route = _route(scope, status)
    method, path, client = scope["method"], scope["path"], scope.get("client")
    metrics.count_request(method, route, status, seconds)
    level = logging.DEBUG if path in QUIET and status < 400 else logging.INFO
    if not accesslog.access.isEnabledFor(level):
        return
    accesslog.request_line(
        {
            "id": record.id,
            "method": method[:16],
            "path": path[: accesslog.LONGEST],
            "route": route,
            "status": status,
            "ms": round(seconds * 1000, 3),
            "client": client[0] if client else "-",
            "stages": {name: round(took * 1000, 3) for name, took in record.stages.items()},
        },
        level,
    )


def _route(scope: Any, status: int) -> str:
    """The template of the route that answered; "page" for what came without one, "none" where nothing was found."""
    route = scope.get("route")
    template = getattr(route, "path_format", None) or getattr(route, "path", None)
    return template or ("page" if status < 400 else "none")


def _header(scope: Any, name: bytes) -> bytes | None:
    for key, value in scope["headers"]:
        if key == name:
            return value
    return None
