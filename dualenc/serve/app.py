"""The server's application: its parts, put together."""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator
from typing import Any

from fastapi import FastAPI, Request, Response
from starlette.staticfiles import StaticFiles

from dualenc.serve import compat, observe, problems, security, thumbnails
from dualenc.serve.columns import Columns
from dualenc.serve.query import Pictures
from dualenc.serve.routes import classify, docs, health, indexes, items, search
from dualenc.serve.service import Service
from dualenc.serve.settings import VARIABLE, Settings

PICTURES = 2  # that are decoded at once: each may take up to 15 bytes x max_pixels for a moment
KEPT = 16 << 20  # pixels, of 3 bytes, that wait to be embedded


def create_app(settings: Settings) -> FastAPI:
    """The application that answers for `settings`; its lifespan starts and stops the service.

    ValueError, OSError: an index that does not open, in one line.
    """
    app = FastAPI(
        title="dualenc",
        version="1",  # of the API: it goes up where a client would have to change
        lifespan=_lifespan,
        openapi_url=None,  # the schema and its page are in routes/docs.py
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        generate_unique_id_function=lambda route: route.name,
    )
    app.state.settings, app.state.service = settings, Service(settings)
    app.state.columns, app.state.pictures = Columns(), Pictures(PICTURES, KEPT)
    problems.install(app)
    security.install(app, settings)
    for module in (search, items, classify, indexes, compat, health, docs):
        app.include_router(module.router)
    app.include_router(thumbnails.router, tags=["items"])
    observe.install(app, settings)
    _serve_page(app)
    return app


def from_environment() -> FastAPI:
    """The application of the settings in DUALENC_SERVE: for `uvicorn --factory` and other servers than dualenc's own."""
    text = os.environ.get(VARIABLE)
    if text is None:
        raise ValueError(f'{VARIABLE} is not set; give it the settings, such as {{"indexes": {{"name": "folder"}}}}')
    return create_app(Settings.from_json(text))


@contextlib.asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    await app.state.service.start()
    try:
        yield
    finally:
        await app.state.service.stop()


def _serve_page(app: FastAPI) -> None:
    """A route for each file of the page. A mount at / would take every path that is not there, and every wrong method."""
    files = StaticFiles(directory=security.PAGE)

    async def file(request: Request) -> Response:
        path = request.scope["path"].lstrip("/") or "index.html"
        return await files.get_response(path, request.scope)

    options: dict[str, Any] = {"methods": ["GET", "HEAD"], "include_in_schema": False}
    for path in sorted(security.page_paths() - {"/index.html"}):
        app.add_route(path, file, **options)
