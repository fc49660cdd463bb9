"""Bodies of requests, JSON or a form with pictures, checked once; replies, written at once; and how both are documented."""

from __future__ import annotations

from typing import Any, TypeVar

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from pydantic_core import to_json
from starlette.datastructures import UploadFile

from dualenc.serve.problems import Problem
from dualenc.serve.schemas import MOST_IMAGES, Body

Model = TypeVar("Model", bound=Body)
JSON, FORM = "application/json", "multipart/form-data"
PARTS = "use `query` (the JSON) and `image` (pictures, as files)"


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
    try:
        async with request.form(max_files=MOST_IMAGES, max_fields=8, max_part_size=most) as form:
            for name, value in form.multi_items():
                data = await value.read() if isinstance(value, UploadFile) else value.encode()
                if name == "image" and isinstance(value, UploadFile):
                    images.append(data)
                elif name == "query" and query is None:
                    query = data
                else:
                    raise Problem(422, "Form not understood", f"part {name[:60]!r} is one too many; {PARTS}")
    except UnicodeError as error:  # a charset of the caller's own that does not decode
        raise Problem(400, "Form not understood", "its charset does not fit its text; send UTF-8") from error
    return _checked(model, b"{}" if query is None else query), images


def _checked(model: type[Model], data: bytes) -> Model:
    try:
        return model.model_validate_json(data)
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False)
        raise RequestValidationError([{**one, "loc": ("body", *one["loc"])} for one in found]) from error


def reply(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """A JSON response. NaN and infinity, which JSON does not have, are null; what it has no form for is a text."""
    return Response(to_json(value, inf_nan_mode="null", bytes_mode="base64", fallback=str), status, headers, JSON)


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
