"""GET /openapi.json and /docs: the API's schema, and the same as a page that needs no script and no other host."""

from __future__ import annotations

import json
from typing import Any

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema

from dualenc.serve import problems
from dualenc.serve.routes.docs_page import REFERENCE, STYLE, page
from dualenc.serve.schemas import ClassifyRequest, EmbedRequest, SearchRequest

router = APIRouter(include_in_schema=False)
OPEN = ("/healthz", "/readyz", "/session")  # these need no token
DESCRIPTION = """Search, classify and embed with the indexes and encoders of this server.

Every error is a problem document (RFC 9457, `application/problem+json`) with a title, a detail in words, and the request's
id in `instance`, which the server's log has too. Fields and query parameters that are not listed here are refused. Where the
server has a token, send it as `Authorization: Bearer TOKEN`; `/healthz` and `/readyz` need none."""
TAGS = [
    {"name": "search", "description": "Find rows of an index"},
    {"name": "items", "description": "Single rows"},
    {"name": "encoder", "description": "Use the encoder alone"},
    {"name": "server", "description": "How the server is doing"},
    {"name": "clip-retrieval", "description": "What clip-retrieval's client and front end ask"},
]


@router.get("/openapi.json")
async def openapi(request: Request) -> Response:
    """The schema."""
    return Response(json.dumps(describe(request.app), ensure_ascii=False), media_type="application/json")


@router.get("/docs")
async def docs(request: Request) -> Response:
    """The schema as a page."""
    return Response(page(describe(request.app)), media_type="text/html")


@router.get("/docs.css")
async def style() -> Response:
    """The page's style, apart: the server lets no page style itself from within."""
    return Response(STYLE, media_type="text/css", headers={"Cache-Control": "max-age=3600"})


def describe(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI schema, made once: FastAPI's, with the bodies that routes read themselves and what settings add."""
    if app.openapi_schema is None:
        schema = get_openapi(
            title=app.title, version=app.version, description=DESCRIPTION, routes=app.routes, tags=TAGS
        )
        wanted: Any = [(model, "validation") for model in (SearchRequest, ClassifyRequest, EmbedRequest)]
        _, bodies = models_json_schema(wanted, ref_template=REFERENCE + "{model}")
        schema["components"]["schemas"] |= bodies["$defs"] | {"Problem": problems.SCHEMA}
        _refuse(schema, app.state.settings)
        _name_problems(schema["paths"])
        app.openapi_schema = schema
    return app.openapi_schema


def _refuse(schema: dict[str, Any], settings: Any) -> None:
    """Add the answers of what stands before all routes: token, rate limit, host."""
    everywhere = problems.responses(403, *[401] * bool(settings.token), *[429] * bool(settings.rate))
    for path, methods in schema["paths"].items():
        for operation in methods.values():
            for status, answer in everywhere.items():
                operation["responses"].setdefault(str(status), answer)
            if settings.token and path not in OPEN:
                operation["security"] = [{"token": []}]
    if settings.token:
        schema["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}


def _name_problems(part: Any) -> None:
    """Put a reference in the place of each copy of the problem document's schema."""
    for value in part.values() if isinstance(part, dict) else part if isinstance(part, list) else []:
        if isinstance(value, dict) and value.get("schema") == problems.SCHEMA:
            value["schema"] = {"$ref": REFERENCE + "Problem"}
        else:
            _name_problems(value)
