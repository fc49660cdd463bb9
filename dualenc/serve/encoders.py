"""Encoders: loaded in the background, once for all indexes whose vectors are theirs, each tower with a lane of its own."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import logging
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from dualenc.serve.lanes import Lane
from dualenc.serve.quiet import open_libraries, quietly
from dualenc.serve.threads import Plan

log = logging.getLogger("dualenc.serve")

TEXTS, IMAGES = 32, 8  # that go through a tower at once


class Encoder(Protocol):
    """What the engine needs of an encoder."""

    dim: int
    fingerprint: str
    logit_scale: float  # what cosines are multiplied by before a softmax

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """(T, D) float32 unit rows."""

    def embed_images(self, images: Sequence[Any]) -> np.ndarray:
        """(N, D) float32 unit rows of PIL images."""


class Need(NamedTuple):
    """The encoder that an index needs."""

    name: str  # folder, tag, …: what `DualEncoder.load` takes
    fingerprint: str | None  # whose vectors the index holds; None: it does not say
    dim: int


Embed = Callable[[Sequence[Any]], np.ndarray]


def load(need: Need, precision: str, threads: int) -> Encoder:
    """Load an encoder with torch, which takes seconds. ValueError, OSError: why it cannot be."""
    open_libraries()
    with quietly():
        from dualenc.serve.precision import load_encoder

        return load_encoder(need, precision, threads)


def need_of(index: Any, override: str | None) -> Need | None:
    """What an index needs; None where neither it nor the settings name an encoder."""
    name = override or index.encoder
    return None if name is None else Need(name, index.fingerprint, index.dim)


class Slot:
    """One encoder: loading, ready with its lanes, or failed."""

    def __init__(self, need: Need):
        self.need = need
        self.loaded: concurrent.futures.Future[Encoder] = concurrent.futures.Future()
        self.lanes: dict[str, Lane] = {}

    @property
    def state(self) -> str:
        """ "loading", "ready", or "failed: why"."""
        if not self.loaded.done():
            return "loading"
        error = self.loaded.exception()
        return "ready" if error is None else f"failed: {why(error, self.need)}"

    async def wait(self, seconds: float) -> None:
        """Until it is loaded or has failed, so long at most."""
        loop, done = asyncio.get_running_loop(), asyncio.Event()

        def tell(_: object) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(done.set)

        self.loaded.add_done_callback(tell)
        with contextlib.suppress(TimeoutError, asyncio.TimeoutError):
            await asyncio.wait_for(done.wait(), seconds)


def why(error: BaseException, need: Need) -> str:
    """Why an encoder did not load, in one line, without the server's paths."""
    line = " ".join(str(error).split()) or type(error).__name__
    return line.replace(need.name, need.name.rstrip("/").rsplit("/", 1)[-1])[:500]


class Encoders:
    """All encoders that the indexes need. Its methods belong to one event loop."""

    def __init__(self, override: str | None, precision: str, plan: Plan):
        self._override, self._precision, self._plan = override, precision, plan
        self._slots: dict[Need, Slot] = {}
        self._loading = threading.Lock()  # one after the other: two at once would take as long, and more memory
        self._closed = False

    def slot(self, index: Any) -> Slot | None:
        """The encoder of an index, which begins to load where it is new; None where the index has none."""
        need = need_of(index, self._override)
        if need is None:
            return None
        if need not in self._slots:
            self._slots[need] = Slot(need)
            threading.Thread(target=self._load, args=(self._slots[need],), name="encoder", daemon=True).start()
        return self._slots[need]

    def state(self, index: Any) -> str:
        """ "none", "loading", "ready" or "failed: why"."""
        need = need_of(index, self._override)
        slot = None if need is None else self._slots.get(need)
        return "none" if need is None else "loading" if slot is None else slot.state

    def keep(self, indexes: Iterable[Any]) -> None:
        """Let go of the encoders that none of these indexes needs."""
        needed = {need_of(index, self._override) for index in indexes}
        gone = [slot for slot in self._slots.values() if slot.need not in needed and slot.loaded.done()]
        self._slots = {need: slot for need, slot in self._slots.items() if slot not in gone}
        for lane in _lanes_of(gone).keys() - _lanes_of(self._slots.values()).keys():
            lane.close()

    def close(self) -> list[Lane]:
        """Take nothing more; returns the lanes, to be joined. An encoder that is still loading is not waited for."""
        self._closed = True
        lanes = list(_lanes_of(self._slots.values()))
        for lane in lanes:
            lane.close()
        return lanes

    def _load(self, slot: Slot) -> None:
        with self._loading:
            if self._closed:
                return
            try:
                other = self._same(slot.need)
                encoder = other.loaded.result() if other else load(slot.need, self._precision, self._plan.image)
                _check(encoder, slot.need)
            except BaseException as error:
                log.error("encoder %s: %s", slot.need.name, " ".join(str(error).split()))
                slot.loaded.set_exception(error)
                return
            slot.lanes = other.lanes if other else _lanes(encoder, self._plan)
            slot.loaded.set_result(encoder)
            if self._closed:  # while it was loading
                self.close()

    def _same(self, need: Need) -> Slot | None:
        """A slot whose encoder is the one that is needed."""
        for slot in list(self._slots.values()):
            if slot.state != "ready" or (encoder := slot.loaded.result()).dim != need.dim:
                continue
            if encoder.fingerprint == need.fingerprint or (need.fingerprint is None and slot.need.name == need.name):
                return slot
        return None


def _check(encoder: Encoder, need: Need) -> None:
    """ValueError where an encoder is not the one whose vectors the index holds."""
    if need.fingerprint is not None and encoder.fingerprint != need.fingerprint:
        raise ValueError(
            f"encoder {need.name} has fingerprint {encoder.fingerprint[:12]}…, the index holds vectors of "
            f"{need.fingerprint[:12]}…; serve it with the encoder that embedded it, or embed and build with this one"
        )
    if encoder.dim != need.dim:
        raise ValueError(
            f"encoder {need.name} makes vectors of {encoder.dim} dimensions, the index holds {need.dim}; name the "
            "encoder that embedded it with --encoder"
        )


def _lanes(encoder: Encoder, plan: Plan) -> dict[str, Lane]:
    """The towers' threads: one each, so that a text does not wait for pictures."""
    begin = getattr(encoder, "begin", lambda threads: None)

    def lane(name: str, embed: Embed, most: int, threads: int) -> Lane:
        return Lane(name, lambda _, items: _several(embed, items), most, begin=lambda: begin(threads))

    return {
        "text": lane("text", encoder.embed_texts, TEXTS, plan.text),
        "image": lane("image", encoder.embed_images, IMAGES, plan.image),
    }


def _lanes_of(slots: Iterable[Slot]) -> dict[Lane, None]:
    return dict.fromkeys(lane for slot in slots for lane in slot.lanes.values())


def _several(embed: Embed, items: list[list[Any]]) -> list[np.ndarray]:
    """Embed lists of texts or images as one; back come the rows of each list."""
    rows = embed([one for item in items for one in item])
    ends = np.cumsum([len(item) for item in items])
    return [rows[end - len(item) : end] for item, end in zip(items, ends, strict=True)]
