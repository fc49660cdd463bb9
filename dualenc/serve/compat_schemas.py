"""What the OpenAPI document says of clip-retrieval's addresses, whose bodies are read by hand."""

from __future__ import annotations

from typing import Any

from dualenc.serve.compat_request import MOST
from dualenc.serve.schemas import LARGEST_ID


def _maybe(kind: str, about: str, **more: Any) -> dict[str, Any]:
    return {"type": [kind, "null"], "description": about, **more}


_NAME = _maybe("string", "an index by name; null: the server's first")
_KNN = {
    "type": "object",
    "required": ["modality", "num_images", "indice_name"],
    "properties": {
        "text": _maybe("string", "words to look for; they go before all others"),
        "image": _maybe("string", "an encoded picture in base64; it goes before image_url"),
        "image_url": _maybe("string", "where a picture is; only if the server may fetch"),
        "embedding_input": _maybe("array", "D numbers, made by the same encoder", items={"type": "number"}),
        "modality": {"enum": ["image", "text"], "description": "the side that the index finds"},
        "num_images": {"type": "integer", "minimum": 0, "maximum": MOST, "description": "hits with metadata"},
        "num_result_ids": _maybe("integer", "hits; default num_images", minimum=1, maximum=MOST),
        "indice_name": _NAME,
        "deduplicate": {"description": "leave out hits whose cosine with a better one is above 0.94"},
        "use_mclip": {"enum": [False, None], "description": "this server has no multilingual model"},
    },
}
_METADATA = {
    "type": "object",
    "required": ["ids"],  # and indice_name, unless there are none
    "properties": {
        "ids": {
            "type": "array",
            "maxItems": MOST,
            "items": {"type": "integer", "minimum": 0, "maximum": LARGEST_ID},
        },
        "indice_name": _NAME,
    },
}
_HIT = {
    "type": "object",
    "required": ["id", "similarity"],
    "properties": {
        "id": {"type": "integer"},
        "similarity": {"type": "number"},
        "image": {"type": "string", "description": "the picture as JPEG in base64"},
    },
}
_ROW = {
    "type": "object",
    "required": ["id", "metadata"],
    "properties": {"id": {"type": "integer"}, "metadata": {"type": "object"}},
}


def _about(body: dict[str, Any], entry: dict[str, Any], summary: str) -> dict[str, Any]:
    reply = {"type": "array", "items": entry}
    return {
        "summary": summary,
        "requestBody": {"required": True, "content": {"application/json": {"schema": body}}},
        "responses": {"200": {"description": "OK", "content": {"application/json": {"schema": reply}}}},
    }


KNN = _about(_KNN, _HIT, "clip-retrieval's search")
METADATA = _about(_METADATA, _ROW, "clip-retrieval's metadata of rows")
