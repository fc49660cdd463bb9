"""GET /indexes"""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response

from dualenc.serve.problems import responses
from dualenc.serve.routes.bodies import reply
from dualenc.serve.routes.replies import IndexInfo

router = APIRouter(tags=["search"])


@router.get(
    "/indexes",
    summary="The indexes there are",
    response_description="the indexes, in the order of the command line",
    responses={200: {"model": list[IndexInfo]}, **responses(500)},
)
async def indexes(request: Request) -> Response:
    """Each index by name, the first being the one that is searched where a request names none, with the columns that
    `where` may ask for."""
    service, columns = request.app.state.service, request.app.state.columns
    found = []
    for name, state in service.ready().items():
        live = service.lives[name]
        index = live.index  # once: the next line may see another generation
        about = _about(index) | await columns.of(service, index)
        labels = about["labels"] and state["encoder"] != "none"
        found.append({"name": name, **about, "encoder": state["encoder"], "labels": labels})
    return reply(found)


def _about(index: Any) -> dict[str, Any]:
    """What the manifest says."""
    manifest = index.manifest
    recall = manifest.get("ann_recall") or {}
    return {
        "rows": len(index),
        "dim": index.dim,
        "kind": manifest["recipe"]["build"]["kind"],
        "recall": recall.get("value"),
        "recall_at": recall.get("k"),
        "exact": manifest.get("results") == "exact",
        "bytes": manifest["bytes"]["index"] + manifest["bytes"]["vectors"],
        "generation": manifest["generation"],
        "fingerprint": index.fingerprint,
    }
