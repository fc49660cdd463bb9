"""POST /search"""

from __future__ import annotations

import time

from fastapi import APIRouter, Request, Response

from dualenc.serve.problems import responses
from dualenc.serve.query import allowed, parts_of, vector_of
from dualenc.serve.routes.bodies import Direct, body_of, long_reply, read
from dualenc.serve.routes.hits import answer, hits_of
from dualenc.serve.routes.replies import SearchReply
from dualenc.serve.schemas import MOST_TERMS, SearchRequest

router = APIRouter(tags=["search"], route_class=Direct)


@router.post(
    "/search",
    summary="Search by texts, pictures, embeddings and rows, weighted",
    response_description="hits, best first",
    openapi_extra=body_of(SearchRequest, MOST_TERMS),
    responses={200: {"model": SearchReply}, **responses(400, 403, 404, 409, 413, 415, 422, 500, 503)},
)
async def search(request: Request) -> Response:
    """The rows of an index that are nearest to what is looked for, best first.

    The terms of a query are embedded, multiplied by their weights and added up; a negative weight means less like this.
    Pictures come in base64 within the JSON, or as files of a form: a form's files that no term names by `upload` count
    with weight 1. `where`, `threshold` and `group_by` choose among the hits, `labels` names each of them.
    """
    start = time.perf_counter()
    state = request.app.state
    query, uploads = await read(request, SearchRequest)
    live = state.service.live(query.index)
    index, where = live.index, allowed(query.where, query.group_by)
    vector = await vector_of(parts_of(query, len(uploads)), uploads, state, live, index)
    embedded = time.perf_counter()
    ids, scores = await state.service.search(
        live, index, vector, query.k, query.offset, query.threshold, where, query.group_by
    )
    searched = time.perf_counter()
    hits = await hits_of(state.service, live, index, ids, scores, query.labels, query.templates, query.vectors)
    found = answer(live, index, hits, query.k, query.offset, (start, embedded, searched))
    return await long_reply(state.service, found, len(hits) * index.dim if query.vectors else 0)
