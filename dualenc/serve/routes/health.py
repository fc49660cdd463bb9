"""GET /healthz and /readyz"""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from dualenc.serve.routes.bodies import reply
from dualenc.serve.routes.replies import Health, Readiness

router = APIRouter(tags=["server"])


@router.get(
    "/healthz",
    summary="Whether the process answers",
    responses={200: {"model": Health, "description": "it does"}},
)
async def healthz() -> Response:
    """At once, whatever else the server is doing. Needs no token."""
    return reply({"status": "ok"})


@router.get(
    "/readyz",
    summary="Whether every query will be answered",
    responses={
        200: {"model": dict[str, Readiness], "description": "all encoders are loaded"},
        503: {"model": dict[str, Readiness], "description": "one is loading, or could not be loaded"},
    },
)
async def readyz(request: Request) -> Response:
    """200 once every index that has an encoder can be searched by texts and pictures; queries by vector and by id are
    answered before. Needs no token."""
    state = request.app.state.service.ready()
    ready = all(about["encoder"] in ("ready", "none") for about in state.values())
    return reply(state, 200 if ready else 503, None if ready else {"Retry-After": "1"})
