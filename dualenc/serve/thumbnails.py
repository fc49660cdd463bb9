"""GET /items/{id}/image: a small form of an item's picture, read out of its shard or folder, kept for the next one."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated

from fastapi import APIRouter, FastAPI, Header, Path, Query, Request, Response

from dualenc.images import BadImage
from dualenc.serve.cache import Cache
from dualenc.serve.columns import plain
from dualenc.serve.observe import stage
from dualenc.serve.outgoing import JPEG, WEBP, small
from dualenc.serve.pictures import PLACE, Found, NoPicture, find, place_of, read, rows_of
from dualenc.serve.problems import Problem, responses
from dualenc.serve.schemas import LARGEST_ID

if TYPE_CHECKING:
    from dualenc.index.index import Index

SMALLEST, LARGEST, USUAL = 16, 2048, 320  # pixels of the longer side
CACHE = 64 << 20  # bytes of thumbnails that a process keeps
FORM = b"1"  # another value where the same picture would be encoded otherwise

router = APIRouter()


class Thumbnails:
    """Encoded thumbnails by ETag, `kept` for the next one. Those who ask for one that is being made wait for it."""

    def __init__(self, most: int = CACHE):
        self.kept: Cache[bytes] = Cache("thumbnail", most)
        self._made: dict[str, asyncio.Task[bytes]] = {}

    async def get(self, tag: str, make: Callable[[], Awaitable[bytes]]) -> bytes:
        """The thumbnail with this ETag, made if it has to be. What `make` raises reaches all who wait for it."""
        if (kept := self.kept.get(tag)) is not None:
            return kept
        task = self._made.get(tag)
        if task is None:
            task = self._made[tag] = asyncio.ensure_future(self._make(tag, make))
            task.add_done_callback(lambda done: done.cancelled() or done.exception())  # all may have gone: no complaint
        return await asyncio.shield(task)  # one that goes away leaves the others theirs

    async def _make(self, tag: str, make: Callable[[], Awaitable[bytes]]) -> bytes:
        try:
            data = await make()
        finally:
            del self._made[tag]
        self.kept.put(tag, data, len(data))
        return data


@router.get(
    "/items/{id}/image",
    summary="A thumbnail of an item's picture",
    response_class=Response,
    responses={
        200: {"description": "The picture", "content": {JPEG: {}, WEBP: {}}},
        304: {"description": "If-None-Match names this very thumbnail"},
        **responses(404, 422),
    },
)
async def image(
    request: Request,
    id: Annotated[int, Path(ge=0, le=LARGEST_ID)],
    size: Annotated[int, Query(ge=SMALLEST, le=LARGEST, description="pixels of the longer side")] = USUAL,
    index: Annotated[str | None, Query(description="an index by name; none: the server's first")] = None,
    accept: Annotated[str, Header()] = "",
    if_none_match: Annotated[str, Header()] = "",
) -> Response:
    """JPEG, or WebP where the Accept header names it. A picture that is smaller than `size` stays as it is."""
    service = request.app.state.service
    kind = WEBP if _accepts_webp(accept) else JPEG
    with stage("thumbnail"):
        try:
            found = await service.run(_find, service.live(index).index, id)
            tag = etag(found, size, kind)
            # its address says no generation: a browser asks each time, and is told by the ETag that nothing changed
            headers = {"ETag": tag, "Cache-Control": "private, no-cache", "Vary": "Accept"}
            if names(if_none_match, tag):
                return Response(status_code=304, headers=headers)
            most = request.app.state.settings.max_pixels
            data = await thumbnails_of(request.app).get(tag, lambda: service.run(_made, found, size, kind, most))
        except NoPicture as error:
            raise Problem(404, "No picture", f"Item {id} has no picture to show. {error}") from error
    return Response(data, media_type=kind, headers=headers)


def thumbnails_of(app: FastAPI) -> Thumbnails:
    """The thumbnails that this process keeps for an app."""
    if not hasattr(app.state, "thumbnails"):
        app.state.thumbnails = Thumbnails()
    return app.state.thumbnails


def etag(found: Found, size: int, kind: str) -> str:
    """What a thumbnail depends on, as an ETag: the picture's place, its file as it is now, the size and the format."""
    text = "\0".join(map(str, (*found.place[:3], found.file_size, found.mtime_ns, size, kind)))
    return f'"{hashlib.blake2b(text.encode("utf-8", "surrogatepass"), key=FORM, digest_size=16).hexdigest()}"'


def names(if_none_match: str, tag: str) -> bool:
    """Whether an If-None-Match header names a tag (RFC 9110: weak or strong, one or several, or `*` for any)."""
    given = [one.strip().removeprefix("W/") for one in if_none_match.split(",")]
    return tag in given or "*" in given


def _accepts_webp(accept: str) -> bool:
    """Whether an Accept header names WebP itself: `*/*` alone is sent by whoever says nothing about it."""
    for one in accept.split(","):
        kind, *options = (part.strip().lower() for part in one.split(";"))
        if kind == WEBP:
            return not any(option.replace(" ", "") in ("q=0", "q=0.0", "q=0.00", "q=0.000") for option in options)
    return False


def _find(index: Index, number: int) -> Found:
    table = rows_of(index, [number])
    return find(place_of(plain(table.select([name for name in PLACE if name in table.column_names]))[0]))


def _made(found: Found, size: int, kind: str, max_pixels: int) -> bytes:
    try:
        return small(read(found), size, kind, max_pixels)
    except BadImage as error:
        raise NoPicture(
            f"What lies there now cannot be shown ({error}); restore its file, or embed it again."
        ) from error
