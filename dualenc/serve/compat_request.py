"""What clip-retrieval's clients send, checked: JSON of any content type, with nulls for what is not used."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic_core import from_json

from dualenc.serve.problems import Problem
from dualenc.serve.routes.bodies import bounded
from dualenc.serve.schemas import LARGEST_ID

MOST = 10_000  # hits or rows of one request: the most that the front end asks for


@dataclass(frozen=True)
class Knn:
    """A body of POST /knn-service. At least one of text, image, image_url and embedding is there."""

    text: str | None
    image: str | None  # base64
    image_url: str | None
    embedding: list[Any] | None
    modality: str
    num_images: int
    num_result_ids: int
    index: str | None
    deduplicate: bool


def knn_of(body: bytes) -> Knn:
    """The query in a body. Problem 400 says which field is missing or unfit."""
    fields = _object(body)
    for name in ("modality", "num_images", "indice_name"):
        if name not in fields:
            raise _unfit(name, "is missing")
    if fields.get("use_mclip") and fields.get("text"):
        raise _unfit("use_mclip", "asks for a multilingual model, which this server does not have; send false")
    num_images = _count(fields, "num_images", 0)
    asked = fields if fields.get("num_result_ids") is not None else {"num_result_ids": num_images}
    knn = Knn(
        _text(fields, "text"),
        _text(fields, "image"),
        _text(fields, "image_url"),
        _numbers(fields, "embedding_input"),
        _modality(fields),
        num_images,
        _count(asked, "num_result_ids", 1),
        _text(fields, "indice_name"),
        bool(fields.get("deduplicate")),
    )
    if not knn.text and knn.image is None and knn.image_url is None and knn.embedding is None:
        raise _unfit("text", "and image, image_url and embedding_input are all empty; give one of them")
    return knn


def metadata_of(body: bytes) -> tuple[str | None, list[int]]:
    """(index, ids) of a body of POST /metadata. Problem 400 says which field is missing or unfit."""
    fields = _object(body)
    ids = fields.get("ids")
    if not isinstance(ids, list):
        raise _unfit("ids", "is no list; give the ids of rows")
    if len(ids) > MOST:
        raise _unfit("ids", f"has {len(ids):,} ids; ask for up to {MOST:,} at once")
    for number in ids:
        if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number <= LARGEST_ID:
            raise _unfit("ids", "holds something that is no id; ids are whole numbers from 0 on")
    if ids and "indice_name" not in fields:
        raise _unfit("indice_name", "is missing")
    return _text(fields, "indice_name"), ids


def unit(values: list[Any], dim: int) -> tuple[np.ndarray, float]:
    """(D,) unit float32 of an embedding of any length, and that length. Problem 400: another D, no numbers, all zero."""
    try:
        row = np.asarray(values, np.float64)
    except OverflowError as error:
        raise _unfit("embedding_input", "holds something that is no number") from error
    if len(row) != dim:
        raise _unfit(
            "embedding_input", f"has {len(row)} numbers, the index has {dim}; embed with the index's own encoder"
        )
    with np.errstate(over="ignore"):
        length = float(np.linalg.norm(row))
    if not 1e-30 < length < 1e30:
        raise _unfit("embedding_input", f"has the length {length:.4g}; it must be more than 0, and finite")
    return (row / length).astype(np.float32), length


def _object(body: bytes) -> dict[str, Any]:
    try:
        fields = from_json(bounded(body), allow_inf_nan=True)
    except ValueError as error:
        raise Problem(400, "Not JSON", "the body does not parse as JSON; send a JSON object") from error
    if not isinstance(fields, dict):
        raise Problem(400, "Not an object", "the body is JSON, but no object with fields")
    return fields


def _text(fields: dict[str, Any], name: str) -> str | None:
    value = fields.get(name)
    if value is not None and not isinstance(value, str):
        raise _unfit(name, "is no text")
    return value


def _numbers(fields: dict[str, Any], name: str) -> list[Any] | None:
    value = fields.get(name)
    if value is None:
        return None
    if not isinstance(value, list) or not all(type(number) in (int, float) for number in value):
        raise _unfit(name, "is no list of numbers")
    return value


def _modality(fields: dict[str, Any]) -> str:
    if fields["modality"] not in ("image", "text"):
        raise _unfit("modality", 'is neither "image" nor "text"')
    return fields["modality"]


def _count(fields: dict[str, Any], name: str, least: int) -> int:
    value = fields[name]
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= MOST:
        raise _unfit(name, f"is no whole number from {least} to {MOST:,}")
    return value


def _unfit(field: str, problem: str) -> Problem:
    return Problem(400, "Unfit request", f"{field} {problem}")
