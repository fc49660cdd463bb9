"""Bodies of requests, JSON or a form with pictures, checked once; replies, written at once; and how both are documented."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import ValidationError
from pydantic_core import from_json, to_json
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from dualenc.serve.problems import Problem
from dualenc.serve.schemas import MOST_IMAGES, Body

if TYPE_CHECKING:
    from dualenc.serve.service import Service

Model = TypeVar("Model", bound=Body)
MANY = 50_000  # numbers of a reply that take too long to write on the event loop
SMALL, MOST_VALUES, MOST_FIELDS = (
    16_384,
    300_000,
    64,
)  # bytes that need no look; of a larger body: values, fields of an object
JSON, FORM = "application/json", "multipart/form-data"
PARTS = "use `query` (the JSON) and `image` (pictures, as files)"


class Direct(APIRoute):
    """A route whose function takes the request and nothing else: FastAPI documents it, and prepares nothing for it."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        return self.endpoint


class InMemory(MultiPartParser):
    """Keeps files where they are: a body is bounded, and a full disk is no reason to refuse one."""

    spool_max_size = 1 << 40


async def read(request: Request, model: type[Model]) -> tuple[Model, list[bytes]]:
    """The request's JSON as `model`, and the pictures that came with it: of a form, the JSON is its part `query`.

    Problem 415: another content type; 400: no form; 422: what does not fit the model, by field.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == JSON:
        return _checked(model, await request.body()), []
    if kind == FORM:
        return await _form(request, model)
    raise Problem(
        415, "Content type not supported", f"the body is {kind[:80] or 'of no declared type'}; send {JSON} or {FORM}"
    )


async def _form(request: Request, model: type[Model]) -> tuple[Model, list[bytes]]:
    most = request.app.state.settings.max_body
    query: bytes | None = None
    images = []
    parser = InMemory(request.headers, request.stream(), max_files=MOST_IMAGES, max_fields=8, max_part_size=most)
    try:
        form = await parser.parse()
        for name, value in form.multi_items():
            data = await value.read() if isinstance(value, UploadFile) else value.encode()
            if name == "image" and isinstance(value, UploadFile):
                images.append(data)
            elif name == "query" and query is None:
                query = data
            else:
                raise Problem(422, "Form not understood", f"part {name[:60]!r} is one too many; {PARTS}")
    except MultiPartException as error:
        raise Problem(400, "Form not understood", error.message) from error
    except UnicodeError as error:  # a charset of the caller's own that does not decode
        raise Problem(400, "Form not understood", "its charset does not fit its text; send UTF-8") from error
    return _checked(model, b"{}" if query is None else query), images


def bounded(data: bytes) -> bytes:
    """A JSON body, unless it has more values than any query: each takes many times its bytes in memory. Problem 413."""
    if len(data) > SMALL and data.count(b",") + data.count(b"[") + data.count(b"{") > MOST_VALUES:
        raise Problem(413, "Too many values", f"the JSON has more than {MOST_VALUES:,} values; send fewer at once")
    return data


def _checked(model: type[Model], data: bytes) -> Model:
    if len(bounded(data)) > SMALL:
        _refuse_many_fields(data)
    try:
        return model.model_validate_json(data)
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False)
        raise RequestValidationError([{**one, "loc": ("body", *one["loc"])} for one in found]) from error


def _refuse_many_fields(data: bytes) -> None:
    """Problem 422 for objects of which each field would be an error of its own: thousands of them take minutes."""
    try:
        value = from_json(data)
    except ValueError:
        return  # the model says what is wrong
    terms = value.get("terms") if isinstance(value, dict) else None
    for one in (value, *(terms if isinstance(terms, list) else [])):
        if isinstance(one, dict) and len(one) > MOST_FIELDS:
            raise Problem(422, "Unknown fields", f"an object has {len(one):,} fields; /docs says which there are")


def reply(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """A JSON response. NaN and infinity, which JSON does not have, are null; what it has no form for is a text."""
    return Response(_json(value), status, headers, JSON)


async def long_reply(service: Service, value: dict[str, Any], numbers: int) -> Response:
    """`reply` of an object with arrays of so many numbers in its lists: where they are many, written in a thread.

    A list goes entry by entry, as nobody else gets a turn while one is written.
    """
    if numbers <= MANY:
        return reply(value)
    return Response(await service.run(_written, value), media_type=JSON)


def _written(value: dict[str, Any]) -> bytes:
    pieces: list[bytes] = []
    for name, part in value.items():
        pieces += [b"," if pieces else b"{", _json(name), b":"]
        if not isinstance(part, list):
            pieces.append(_json(part))
            continue
        pieces.append(b"[")
        for place, entry in enumerate(part):
            pieces += [b"," if place else b"", _json(entry)]
        pieces.append(b"]")
    return b"".join([*pieces, b"}"])


def _json(value: Any) -> bytes:
    return to_json(value, inf_nan_mode="null", bytes_mode="base64", fallback=_simple)


def _simple(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray) else str(value)


def body_of(model: type[Body], most: int) -> dict[str, Any]:
    """For a route's `openapi_extra=`: the two forms of its body, which `read` reads without FastAPI, with at most so
    many pictures."""
    schema = {"$ref": f"#/components/schemas/{model.__name__}"}
    pictures = {"type": "array", "items": {"type": "string", "format": "binary"}, "maxItems": most}
    form = {
        "type": "object",
        "properties": {"query": schema, "image": pictures | {"description": "pictures, as files"}},
        "additionalProperties": False,
    }
    content = {
        JSON: {"schema": schema},
        FORM: {"schema": form, "encoding": {"query": {"contentType": JSON}, "image": {"contentType": "image/*"}}},
    }
    return {"requestBody": {"required": True, "content": content}}
