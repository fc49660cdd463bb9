"""Embeddings of texts and pictures for requests: from the caches, or through the lanes of the index's encoder."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Hashable, Sequence
from typing import Any

import numpy as np

from dualenc.serve.cache import Cache
from dualenc.serve.encoders import IMAGES, Encoder, Encoders, Slot
from dualenc.serve.observe import stage
from dualenc.serve.problems import Problem

PATIENCE = 5.0  # seconds that a request waits for an encoder that is still loading
PIECE = 16  # texts of one request that go through the tower before others get their turn
OVERHEAD = 400  # bytes of an entry beside its array's values and its key, about
TEXT_BYTES, IMAGE_BYTES, CLASSIFIER_BYTES = 32 << 20, 8 << 20, 32 << 20  # of the caches, at most


class Embeddings:
    """Unit rows of texts, pictures and classes. Each method takes the index (a generation) that the rows are for, and raises
    Problem: 409 where it has no encoder, 503 while that loads, 500 where it could not be loaded."""

    def __init__(self, encoders: Encoders, run: Callable[..., Awaitable[Any]]):
        self._encoders, self._run = encoders, run
        self._texts: Cache[np.ndarray] = Cache("text", TEXT_BYTES)
        self._images: Cache[np.ndarray] = Cache("image", IMAGE_BYTES)
        self._classifiers: Cache[np.ndarray] = Cache("classifier", CLASSIFIER_BYTES)

    async def texts(self, index: Any, texts: Sequence[str]) -> np.ndarray:
        """(T, D) float32."""
        slot, encoder = await self._ready(index)
        rows = {text: self._texts.get((encoder.fingerprint, text)) for text in texts}
        missing = [text for text, row in rows.items() if row is None]
        if missing:
            for text, row in zip(missing, await self._through(slot, "text", missing, PIECE), strict=True):
                _keep(self._texts, (encoder.fingerprint, text), row, 4 * len(text))
                rows[text] = row
        return _stacked([rows[text] for text in texts], encoder.dim)

    async def images(self, index: Any, pictures: Sequence[Any]) -> np.ndarray:
        """(N, D) float32 of PIL images. The page asks for the same picture with each filter and each further page of hits."""
        slot, encoder = await self._ready(index)
        keys = [(encoder.fingerprint, await self._run(_digest, picture)) for picture in pictures]
        rows = {key: self._images.get(key) for key in keys}
        missing = {key: picture for key, picture in zip(keys, pictures, strict=True) if rows[key] is None}
        if missing:
            made = await self._through(slot, "image", list(missing.values()), IMAGES)
            for key, row in zip(missing, made, strict=True):
                _keep(self._images, key, row)
                rows[key] = row
        return _stacked([rows[key] for key in keys], encoder.dim)

    async def classifier(self, index: Any, classes: tuple[str, ...], templates: tuple[str, ...]) -> np.ndarray:
        """(C, D) float32: of each class the mean of its prompts. templates: each with a {} for the class."""
        from dualenc.model.names import fill, zero_shot_classifier

        slot, encoder = await self._ready(index)
        key = (encoder.fingerprint, classes, templates)
        kept = self._classifiers.get(key)
        if kept is None:
            prompts = list(dict.fromkeys(fill(template, name) for name in classes for template in templates))
            made = dict(zip(prompts, await self._through(slot, "text", prompts, PIECE), strict=True))
            kept = zero_shot_classifier(lambda some: np.stack([made[each] for each in some]), classes, templates)
            _keep(self._classifiers, key, kept, 4 * sum(map(len, classes + templates)))
        return kept

    def logit_scale(self, index: Any) -> float:
        """What cosines are multiplied by before a softmax: the encoder's own."""
        slot = self._slot(index)
        if not slot.loaded.done():
            raise _loading()
        return self._loaded(slot).logit_scale

    def _slot(self, index: Any) -> Slot:
        slot = self._encoders.slot(index)
        if slot is None:
            raise Problem(
                409,
                "No encoder",
                "the index does not say which encoder made its vectors, so texts and images cannot be searched for; "
                "search by embedding or by id, or start the server with --encoder",
            )
        return slot

    def _loaded(self, slot: Slot) -> Encoder:
        if slot.loaded.exception() is not None:
            # an error may hold paths of the server
            raise Problem(500, "The encoder did not load", "it could not be loaded; the server's log tells why")
        return slot.loaded.result()

    async def _ready(self, index: Any) -> tuple[Slot, Encoder]:
        slot = self._slot(index)
        if not slot.loaded.done():
            with stage("loading"):
                await slot.wait(PATIENCE)
            if not slot.loaded.done():
                raise _loading()
        return slot, self._loaded(slot)

    async def _through(self, slot: Slot, lane: str, items: list[Any], most: int) -> np.ndarray:
        """Rows of texts or pictures through a tower, in pieces, so that others get in between."""
        with stage(f"embed_{lane}"):
            if lane == "text" and slot.quick is not None and len(items) == 1 and slot.loaded.result().short(items[0]):
                return np.stack([await slot.quick.do(items[0])])
            rows = [
                await slot.lanes[lane].do(items[start : start + most], size=len(items[start : start + most]))
                for start in range(0, len(items), most)
            ]
        return np.concatenate(rows)


def _loading() -> Problem:
    return Problem(
        503,
        "The encoder is loading",
        "texts and images can be searched for in a few seconds; by embedding and by id they can be already",
        {"Retry-After": "3"},
    )


def _keep(cache: Cache[np.ndarray], key: Hashable, array: np.ndarray, key_bytes: int = 0) -> None:
    """Keep a copy, into which nobody writes: a row of a batch would hold the whole batch."""
    kept = array.copy()
    kept.flags.writeable = False
    cache.put(key, kept, kept.nbytes + key_bytes + OVERHEAD)


def _stacked(rows: list[Any], dim: int) -> np.ndarray:
    return np.stack(rows) if rows else np.zeros((0, dim), np.float32)


def _digest(picture: Any) -> bytes:
    """What tells pictures apart: all of their pixels."""
    about = f"{picture.mode} {picture.size}".encode()
    return hashlib.blake2b(about + picture.tobytes(), digest_size=16).digest()
