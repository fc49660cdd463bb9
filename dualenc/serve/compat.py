"""clip-retrieval's own addresses, so that its ClipClient and its web front end work against this server unchanged.

GET /indices-list, POST /knn-service and POST /metadata answer as its `back` does when it was started without models for
safety, violence, aesthetics and other languages: the fields that switch these on are ignored, but `use_mclip`, which is
refused. Where its `back` fails with 500, the answer is a problem document (4xx) that says what is wrong. Metadata comes
with all columns but those that say where the server's files are; null values are left out, as the front end expects.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from fastapi import APIRouter, Request, Response
from starlette.responses import StreamingResponse

from dualenc.serve.alike import first_of_alike
from dualenc.serve.columns import quick, reading
from dualenc.serve.compat_reply import listed, pictured
from dualenc.serve.compat_request import Knn, knn_of, metadata_of, unit
from dualenc.serve.compat_schemas import KNN, METADATA
from dualenc.serve.observe import stage
from dualenc.serve.problems import Problem, responses
from dualenc.serve.query import Part, embedded_pictures

if TYPE_CHECKING:
    from dualenc.index.index import Index

ALIKE = 0.94  # cosine above which clip-retrieval takes two hits for the same picture
JSON = "application/json"

router = APIRouter(tags=["clip-retrieval"])


class Query(NamedTuple):
    """What to search for: a unit row (D,), and the length that scores are multiplied by, which clip-retrieval keeps."""

    row: np.ndarray
    length: float


async def indices_list(request: Request) -> list[str]:
    """The names of all indexes."""
    return list(request.app.state.service.lives)


async def knn_service(request: Request) -> Response:
    """The nearest rows of a text, an image or an embedding; the first `num_images` of them with their metadata.

    The body is JSON whatever its content type says.
    """
    service, settings = request.app.state.service, request.app.state.settings
    asked = knn_of(await request.body())
    live = service.live(asked.index)
    index = live.index
    side = index.manifest.get("side", "image")
    if asked.modality != side:
        raise Problem(400, "Other modality", f"index {live.name!r} finds {side}s; send modality {side!r}")
    row, length = await _query(request.app.state, live, index, asked)
    ids, scores = await service.search(live, index, row, min(asked.num_result_ids, max(len(index), 1)))
    if asked.deduplicate and len(ids) > 1:
        with stage("deduplicate"):
            kept = await service.run(_unlike, index, ids)
        ids, scores = ids[kept], scores[kept]
    shown = min(asked.num_images, len(ids))
    found = zip(ids.tolist(), (scores * np.float32(length)).tolist(), strict=True)
    entries = [{"id": number, "similarity": score} for number, score in found]
    return await _reply(service, index, listed(index, entries, shown, settings.max_pixels), shown)


async def metadata(request: Request) -> Response:
    """The metadata of rows by id, in the order asked for."""
    service, settings = request.app.state.service, request.app.state.settings
    name, ids = metadata_of(await request.body())
    if not ids:
        return Response(b"[]", media_type=JSON)
    index = service.live(name).index
    entries = [{"id": number} for number in ids]
    return await _reply(service, index, listed(index, entries, len(ids), settings.max_pixels, "metadata"), len(ids))


async def _query(state: Any, live: Any, index: Index, asked: Knn) -> Query:
    """Text goes before image, image before its address, and an embedding is last. Problem: what cannot be used."""
    if asked.text:
        return Query((await state.service.texts(live, [asked.text], index))[0], 1.0)
    for kind in ("image", "image_url"):
        if (value := getattr(asked, kind)) is not None:
            return Query((await embedded_pictures([Part(1.0, kind, value)], (), state, live, index))[0], 1.0)
    return Query(*unit(asked.embedding or [], index.dim))


def _unlike(index: Index, ids: np.ndarray) -> np.ndarray:
    """(n,) bool: which hits stay. All, where the index holds codes alone and their rows cannot be compared."""
    try:
        rows = index.vectors(ids)
    except ValueError:
        return np.ones(len(ids), bool)
    return first_of_alike(rows, ALIKE)


async def _reply(service: Any, index: Index, pieces: Iterator[bytes], rows: int) -> Response:
    """JSON in pieces that are made while the ones before are sent: pictures of many hits would fill the memory."""
    with stage("metadata"):
        if quick(index, rows) and not pictured(index):
            return Response(b"".join(pieces), media_type=JSON)
        first, second = await reading(service, index, lambda: (next(pieces), next(pieces, None)))
    if second is None:
        return Response(first, media_type=JSON)

    async def all() -> AsyncIterator[bytes]:
        piece = second
        yield first
        while piece is not None:
            yield piece
            piece = await service.run(next, pieces, None)

    return StreamingResponse(all(), media_type=JSON)


def _add(path: str, answer: Any, method: str, **about: Any) -> None:
    router.add_api_route(path, answer, methods=[method], **about)
    # the front end writes its server's address, which may end with a slash, before the path
    router.add_api_route(f"/{path}", answer, methods=[method], include_in_schema=False)


_add("/indices-list", indices_list, "GET", summary="Names of all indexes")
_add("/knn-service", knn_service, "POST", openapi_extra=KNN, responses=responses(400, 403, 404, 409, 413, 415, 503))
_add("/metadata", metadata, "POST", openapi_extra=METADATA, responses=responses(400, 404, 413))
