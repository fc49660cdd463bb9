"""GET /items/{id} and /items/{id}/similar"""

from __future__ import annotations

import time
from typing import Annotated

from fastapi import APIRouter, Path, Query, Request, Response

from dualenc.serve.problems import responses
from dualenc.serve.query import allowed, known, row_of
from dualenc.serve.routes.bodies import reply
from dualenc.serve.routes.hits import answer, hits_of, image_address, metadata_of
from dualenc.serve.routes.replies import Item, SearchReply
from dualenc.serve.schemas import LARGEST_ID, ItemQuery, SimilarQuery

router = APIRouter(tags=["items"])
Number = Annotated[int, Path(ge=0, le=LARGEST_ID, description="an id, as hits have it", examples=[17])]


@router.get(
    "/items/{id}",
    summary="A row's metadata",
    response_description="the row",
    responses={200: {"model": Item}, **responses(404, 422, 500)},
)
async def item(request: Request, id: Number, query: Annotated[ItemQuery, Query()]) -> Response:
    """What the index knows of one row, and where its thumbnail is."""
    service = request.app.state.service
    live = service.live(query.index)
    index = live.index
    with known(index):
        metadata, images = await metadata_of(service, index, [id])
    address = image_address(id, live.name) if images[0] else None
    return reply({"id": id, "image": address, "metadata": metadata[0]})


@router.get(
    "/items/{id}/similar",
    summary="More like a row",
    response_description="hits, best first",
    responses={200: {"model": SearchReply}, **responses(400, 404, 409, 422, 500, 503)},
)
async def similar(request: Request, id: Number, query: Annotated[SimilarQuery, Query()]) -> Response:
    """The rows nearest to one, best first, itself left out. Needs no encoder."""
    start, service = time.perf_counter(), request.app.state.service
    live = service.live(query.index)
    index, where = live.index, allowed(query.where, query.group_by)
    vector = row_of(index, id)
    embedded = time.perf_counter()
    ids, scores = await service.search(
        live, index, vector, query.k, query.offset, query.threshold, where, query.group_by, without=id
    )
    searched = time.perf_counter()
    hits = await hits_of(service, live, index, ids, scores)
    return reply(answer(live, index, hits, query.k, query.offset, (start, embedded, searched), others=1))
