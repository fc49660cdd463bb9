"""Encoders: loaded in the background, once for all indexes whose vectors are theirs, each tower with a lane of its own."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import logging
import math
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from dualenc.serve.gather import Gather
from dualenc.serve.lanes import Lane
from dualenc.serve.quiet import open_libraries, quietly
from dualenc.serve.threads import Plan

log = logging.getLogger("dualenc.serve")

TEXTS, IMAGES = 32, 8  # that go through a tower at once
QUICK, TOGETHER = 0.0004, 8  # seconds that a text may take on the event loop, and how many go together there
RETRY, SELDOM = 30.0, 600.0  # seconds until one that failed is loaded again; twice as many each time, up to SELDOM


class Encoder(Protocol):
    """What the engine needs of an encoder."""

    dim: int
    fingerprint: str
    logit_scale: float  # what cosines are multiplied by before a softmax
    text_seconds: float  # that one of several short texts takes; inf: not where other threads embed texts too

    def short(self, text: str) -> bool:
        """Whether `text_seconds` holds for a text."""

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

    def __init__(self, need: Need, patience: float):
        self.need, self.patience = need, patience
        self.again = math.inf  # time.monotonic() from which on, once it has failed, it is to be replaced
        self.loaded: concurrent.futures.Future[Encoder] = concurrent.futures.Future()
        self.lanes: dict[str, Lane] = {}
        self.quick: Gather | None = None  # for single short texts, where the tower is quick

    @property
    def state(self) -> str:
        """ "loading", "ready" or "failed"; why stands in the log."""
        if not self.loaded.done():
            return "loading"
        return "ready" if self.loaded.exception() is None else "failed"

    async def wait(self, seconds: float) -> None:
        """Until it is loaded or has failed, so long at most."""
        loop, done = asyncio.get_running_loop(), asyncio.Event()

        def tell(_: object) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(done.set)

        self.loaded.add_done_callback(tell)
        with contextlib.suppress(TimeoutError, asyncio.TimeoutError):
            await asyncio.wait_for(done.wait(), seconds)


class Encoders:
    """All encoders that the indexes need. Its methods belong to one event loop."""

    def __init__(self, override: str | None, precision: str, plan: Plan):
        self._override, self._precision, self._plan = override, precision, plan
        self._slots: dict[Need, Slot] = {}
        self._loading = threading.Lock()  # one after the other: two at once would take as long, and more memory
        self._sharing = threading.Lock()  # lanes are handed on, or let go of
        self._closed = False

    def slot(self, index: Any) -> Slot | None:
        """The encoder of an index, which begins to load where it is new, or failed a while ago; None where there is none."""
        need = need_of(index, self._override)
        if need is None:
            return None
        slot = self._slots.get(need)
        if slot is None or time.monotonic() >= slot.again:
            slot = Slot(need, RETRY if slot is None else min(2 * slot.patience, SELDOM))
            self._slots[need] = slot
            threading.Thread(target=self._load, args=(slot,), name="encoder", daemon=True).start()
        return slot

    def state(self, index: Any) -> str:
        """ "none", or the state of its slot."""
        need = need_of(index, self._override)
        if need is not None and need not in self._slots:
            return "loading"
        slot = self.slot(index)  # whoever only asks whether it is ready has it tried again, too
        return "none" if slot is None else slot.state

    def keep(self, indexes: Iterable[Any]) -> None:
        """Let go of the encoders that none of these indexes needs."""
        needed = {need_of(index, self._override) for index in indexes}
        with self._sharing:
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
                encoder = self._shared(slot)
                if encoder is None:
                    encoder = load(slot.need, self._precision, self._plan.image)
                    _check(encoder, slot.need)
                    slot.lanes, slot.quick = _lanes(encoder, self._plan), _quick(encoder)
            except BaseException as error:
                log.error("encoder %s: %s", slot.need.name, " ".join(str(error).split()) or type(error).__name__)
                slot.again = time.monotonic() + slot.patience
                slot.loaded.set_exception(error)
                return
            slot.loaded.set_result(encoder)
            if self._closed:  # while it was loading
                self.close()

    def _shared(self, slot: Slot) -> Encoder | None:
        """An encoder that is there already and is the one that is needed, and its lanes for the slot."""
        need = slot.need
        with self._sharing:
            for other in list(self._slots.values()):
                if other.state != "ready" or (encoder := other.loaded.result()).dim != need.dim:
                    continue
                named = need.fingerprint is None and other.need.name == need.name
                if named or encoder.fingerprint == need.fingerprint:
                    slot.lanes, slot.quick = other.lanes, other.quick
                    return encoder
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


def _quick(encoder: Encoder) -> Gather | None:
    """The event loop as a lane of its own, for a text tower that is quick enough there on one thread."""
    if encoder.text_seconds > QUICK:
        return None
    begin = getattr(encoder, "begin", lambda threads: None)
    return Gather("quick text", encoder.embed_texts, TOGETHER, begin=lambda: begin(1))


def _lanes_of(slots: Iterable[Slot]) -> dict[Lane, None]:
    return dict.fromkeys(lane for slot in slots for lane in slot.lanes.values())


def _several(embed: Embed, items: list[list[Any]]) -> list[np.ndarray]:
    """Embed lists of texts or images as one; back come the rows of each list."""
    rows = embed([one for item in items for one in item])
    ends = np.cumsum([len(item) for item in items])
    return [rows[end - len(item) : end] for item, end in zip(items, ends, strict=True)]
