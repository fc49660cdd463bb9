"""What a request looks for, made one vector: texts, pictures, rows and embeddings, weighted, added and subtracted."""

from __future__ import annotations

import asyncio
import contextlib
import math
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from dualenc.index.compose import UNIT, combine, parse
from dualenc.serve.fetch import fetch_image
from dualenc.serve.lanes import to_its_end
from dualenc.serve.problems import Problem
from dualenc.serve.schemas import MOST_TERMS
from dualenc.serve.uploads import from_base64, picture

if TYPE_CHECKING:
    from dualenc.index.index import Index
    from dualenc.serve.live import Live
    from dualenc.serve.schemas import SearchRequest
    from dualenc.serve.settings import Settings

PATH = "image_path"
PRIVATE = (PATH, "image_offset", "image_size")  # metadata that says where files of the server are
_UNKNOWN = re.compile(r"id (\d+) is not in the index")  # how an index refuses one
_NAMES_PRIVATE = re.compile("|".join(PRIVATE), re.IGNORECASE)


class Pictures:
    """Decoded pictures of all requests. A picture may be small as a file and large in memory: few are decoded at once, and
    few pixels kept until they are embedded."""

    def __init__(self, at_once: int, most: int):
        """at_once: pictures that are decoded at once. most: pixels kept beside those."""
        self.decoding, self.most, self.kept = asyncio.Semaphore(at_once), most, 0

    def add(self, batch: list[Any], picture: Any) -> bool:
        """Put a picture to a request's others; whether there are too many pixels now, so that they must go first."""
        batch.append(picture)
        self.kept += picture.width * picture.height
        return self.kept > self.most

    def drop(self, batch: list[Any]) -> None:
        """A request's pictures are done with."""
        self.kept -= sum(picture.width * picture.height for picture in batch)
        batch.clear()


class Part(NamedTuple):
    """One part of a query: how much it counts, what it is (one of `schemas.KINDS`), and the value."""

    weight: float
    kind: str
    value: Any


def parts_of(request: SearchRequest, uploads: int) -> list[Part]:
    """The parts of a query, in the order of its fields; uploads that no term names count with weight 1.

    uploads: how many pictures came with it. Problem 422: none, too many, an upload that did not come, a bad expression.
    """
    kinds = ("text", "image", "image_url", "embedding", "id")
    parts = [Part(1.0, kind, value) for kind in kinds if (value := getattr(request, kind)) is not None]
    parts += _expressed(request.expression) if request.expression is not None else []
    parts += [Part(term.weight, term.kind, getattr(term, term.kind)) for term in request.terms]
    named = {part.value for part in parts if part.kind == "upload"}
    if named and max(named) >= uploads:
        raise Problem(422, "No such upload", f"a term names upload {max(named)} (the first is 0), and {uploads} came")
    parts += [Part(1.0, "upload", number) for number in range(uploads) if number not in named]
    if not parts:
        raise Problem(422, "Nothing to search for", "give a text, an image, an embedding, an id, or terms with weights")
    if len(parts) > MOST_TERMS:
        raise Problem(422, "Too many terms", f"the query has {len(parts)} terms; use up to {MOST_TERMS}")
    return parts


def _expressed(expression: str) -> list[Part]:
    try:
        terms = parse(expression)
    except ValueError as error:
        raise Problem(422, "Expression not understood", str(error)) from error
    if any(term.kind == "image" for term in terms):
        raise Problem(
            422,
            "Expression names a file",
            "the server opens no file that a request names; send the picture as `image`, or write the name in `text`",
        )
    return [Part(*term) for term in terms]


async def vector_of(
    parts: Sequence[Part], uploads: Sequence[bytes], state: Any, live: Live, index: Index
) -> np.ndarray:
    """(D,) unit float32: the query of its parts. uploads: encoded pictures, by number. state: the application's.

    Problem: a picture or an embedding that cannot be used, an id that is not there, parts that cancel out.
    """
    rows: list[Any] = [None] * len(parts)
    texts: list[int] = []  # places in rows
    pictures: list[int] = []
    for place, part in enumerate(parts):
        if part.kind == "embedding":
            rows[place] = unit(part.value, index.dim)
        elif part.kind == "id":
            rows[place] = row_of(index, part.value)
        else:
            (texts if part.kind == "text" else pictures).append(place)
    if texts:
        made = await state.service.texts(live, [parts[place].value for place in texts], index)
        for place, row in zip(texts, made, strict=True):
            rows[place] = row
    if pictures:
        made = await embedded_pictures([parts[place] for place in pictures], uploads, state, live, index)
        for place, row in zip(pictures, made, strict=True):
            rows[place] = row
    if len(parts) == 1 and parts[0].weight > 0:
        return rows[0]  # as it stands, to the bit: the index is asked what `Index.search` would be asked
    try:
        return combine(np.stack(rows), [part.weight for part in parts])
    except ValueError as error:
        raise Problem(422, "Terms cannot be combined", str(error)) from error


async def embedded_pictures(
    parts: Sequence[Part], uploads: Sequence[bytes], state: Any, live: Live, index: Index
) -> np.ndarray:
    """(n, D) float32 unit rows of the pictures that parts name. Problem 4xx: one cannot be used or fetched.

    They are embedded together, as far as `state.pictures` has room for them.
    """
    rows: list[np.ndarray] = []
    batch: list[Any] = []

    async def embed() -> None:
        rows.append(await state.service.images(live, batch, index))
        state.pictures.drop(batch)

    try:
        for part in parts:
            data = await fetch_image(part.value, state.settings) if part.kind == "image_url" else None
            async with state.pictures.decoding:
                made = await to_its_end(state.service.run(_decoded, part, data, uploads, state.settings))
                if state.pictures.add(batch, made):
                    await embed()  # nothing more is decoded here until then
        if batch:
            await embed()
    finally:
        state.pictures.drop(batch)
    return np.concatenate(rows)


def _decoded(part: Part, fetched: bytes | None, uploads: Sequence[bytes], settings: Settings) -> Any:
    """The picture of a part: what was fetched for it, an upload, or base64."""
    if part.kind == "image":
        return picture(from_base64(part.value, settings.max_body), settings.max_pixels)
    return picture(uploads[part.value] if fetched is None else fetched, settings.max_pixels)


def unit(values: list[float], dim: int) -> np.ndarray:
    """(D,) float32 of an embedding in a request. Problem 422: another D, or not of length 1."""
    if len(values) != dim:
        raise Problem(
            422,
            "Embedding of another size",
            f"the embedding has {len(values)} numbers, the index has {dim}; embed with the index's own encoder",
        )
    row = np.asarray(values, np.float64)
    with np.errstate(over="ignore"):
        length = math.sqrt(float(row @ row)) if np.abs(row).max() < 1e100 else math.inf
    if not abs(length - 1) <= UNIT:
        raise Problem(422, "Embedding not of length 1", f"its length is {length:.4g}; divide it by that")
    return row.astype(np.float32)


def row_of(index: Index, number: int) -> np.ndarray:
    """(D,) float32: the original row with this id. Problem 404: no such id; 409: the index holds codes alone."""
    return rows_of(index, [number])[0]


def rows_of(index: Index, ids: Any) -> np.ndarray:
    """(n, D) float32: the original rows of ids. Problem 404: an id that is not there; 409: the index holds codes alone."""
    try:
        with known(index):
            return index.vectors(ids)
    except ValueError as error:
        raise Problem(
            409,
            "Index without original rows",
            "it holds codes and not the rows themselves, which this needs; build it again with a recipe that keeps them",
        ) from error


@contextlib.contextmanager
def known(index: Index) -> Iterator[None]:
    """Asking an index for ids. Problem 404 names one that it does not have; other errors stay as they are."""
    try:
        yield
    except ValueError as error:
        unknown = _UNKNOWN.match(str(error))
        if unknown is None:
            raise
        detail = f"id {unknown[1]} is not in the index of {len(index):,} rows"
        raise Problem(404, "No such item", detail) from error


def allowed(where: str | None, group_by: str | None) -> str | None:
    """`where`, unless it or `group_by` asks after the server's files, bit by bit. Problem 400."""
    if (where and _NAMES_PRIVATE.search(where)) or (group_by and _NAMES_PRIVATE.search(group_by)):
        names = ", ".join(PRIVATE)
        raise Problem(400, "Column refused", f"{names} say where the server keeps its files; choose by other columns")
    return where
