"""Hits as /search and its kin answer them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import numpy as np

from dualenc.model.names import probabilities
from dualenc.serve.columns import quick, reading, shown
from dualenc.serve.observe import stage
from dualenc.serve.query import rows_of
from dualenc.serve.schemas import MOST_OFFSET

if TYPE_CHECKING:
    from dualenc.index.index import Index
    from dualenc.serve.live import Live
    from dualenc.serve.service import Service


def image_address(number: int, index: str) -> str:
    """Where the thumbnail of a row is to be had from this server."""
    return f"/items/{number}/image?index={quote(index, safe='')}"


async def metadata_of(service: Service, index: Index, ids: Any) -> tuple[list[dict[str, Any]], list[bool]]:
    """`shown`, in a thread where that may take long. ValueError: an unknown id."""
    if quick(index, len(ids)):
        return shown(index, ids)
    return await reading(service, index, shown, index, ids)


async def hits_of(
    service: Service,
    live: Live,
    index: Index,
    ids: np.ndarray,
    scores: np.ndarray,
    labels: Sequence[str] | None = None,
    templates: Sequence[str] | None = None,
    vectors: bool = False,
) -> list[dict[str, Any]]:
    """A dict for each hit: id, score, where its image is, metadata; its label and its row where they are asked for."""
    if not len(ids):
        return []
    with stage("metadata"):
        described, images = await metadata_of(service, index, ids)
    hits = [
        {
            "id": number,
            "score": score,
            "image": image_address(number, live.name) if image else None,
            "metadata": metadata,
        }
        for number, score, image, metadata in zip(ids.tolist(), scores.tolist(), images, described, strict=True)
    ]
    if labels is not None or vectors:
        rows = await service.run(rows_of, index, ids)
        if labels is not None:
            await _label(service, live, index, hits, rows, labels, templates)
        if vectors:
            for hit, row in zip(hits, rows, strict=True):
                hit["vector"] = row
    return hits


async def _label(
    service: Service,
    live: Live,
    index: Index,
    hits: list[dict[str, Any]],
    rows: np.ndarray,
    labels: Sequence[str],
    templates: Sequence[str] | None,
) -> None:
    """Give each hit the label that fits its row best, and how probable it is among all labels."""
    classifier = await service.classifier(live, tuple(labels), tuple(templates or ["{}"]), index)
    scale = service.logit_scale(live, index)
    shares = await service.run(lambda: probabilities(rows @ classifier.T, scale))  # (hits, labels)
    for hit, share, best in zip(hits, shares.max(axis=1).tolist(), shares.argmax(axis=1).tolist(), strict=True):
        hit["label"], hit["probability"] = labels[best], share


def answer(
    live: Live,
    index: Index,
    hits: list[dict[str, Any]],
    k: int,
    offset: int,
    times: tuple[float, float, float],
    others: int = 0,
) -> dict[str, Any]:
    """The reply to a search. times: when it began, was embedded and was searched (perf_counter seconds). others: rows
    that cannot be hits."""
    start, embedded, searched = times
    manifest = index.manifest
    took = {
        "total": round(1e3 * (time.perf_counter() - start), 3),
        "embed": round(1e3 * (embedded - start), 3),
        "search": round(1e3 * (searched - embedded), 3),
    }
    end = min(len(index) - others, MOST_OFFSET + 1)
    return {
        "index": live.name,
        "generation": manifest["generation"],
        "rows": len(index),
        "recall": (manifest.get("ann_recall") or {}).get("value"),
        "exact": manifest.get("results") == "exact",
        "took_ms": took,
        "hits": hits,
        "next_offset": offset + k if len(hits) == k and offset + k < end else None,
    }
