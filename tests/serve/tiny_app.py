"""A few lines of ASGI in the server's place: quick to start, and as slow or as broken as a test wants it."""

from __future__ import annotations

import asyncio
import json
import os
import threading
import time
from typing import Any

from dualenc.serve.settings import Settings

NAME = "tests.serve.tiny_app:make"


def make(settings: Settings) -> Any:
    """GET /pid; /sleep/SECONDS; /hang, which no cancelling ends; /settings. An encoder called broken does not start."""
    if settings.encoder == "broken":
        raise ValueError("photos cannot be opened; build it again")
    if settings.encoder == "slow start":
        time.sleep(2)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await _lifespan(settings, receive, send)
            return
        _, what, *rest = scope["path"].split("/")
        if what == "sleep":
            await asyncio.sleep(float(rest[0]))
        while what == "hang":
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                continue
        body = json.dumps({"pid": os.getpid(), "token": settings.token, "indexes": list(settings.indexes)}).encode()
        head = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": head})
        await send({"type": "http.response.body", "body": body})

    return app


async def _lifespan(settings: Settings, receive: Any, send: Any) -> None:
    while True:
        kind = (await receive())["type"]
        if kind == "lifespan.startup" and settings.encoder == "late":
            await send({"type": "lifespan.startup.failed", "message": "no"})
            return
        if kind == "lifespan.startup" and settings.encoder == "hung thread":
            asyncio.get_running_loop().run_in_executor(None, threading.Event().wait)  # the loop's end waits for it
        await send({"type": f"{kind}.complete"})
        if kind == "lifespan.shutdown":
            return
