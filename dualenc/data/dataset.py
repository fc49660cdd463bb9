"""An indexed source as a data set of whole batches, and its images kept in memory."""

from __future__ import annotations

import collections
import functools
import logging
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from dualenc.data.collate import Collate
from dualenc.data.opened import ChangedFile
from dualenc.data.order import PADDING
from dualenc.data.prepare import Prepare
from dualenc.data.sample import CHANGED, KINDS, UNREADABLE
from dualenc.data.shards import Source
from dualenc.images import BadImage, opened

log = logging.getLogger("dualenc")

KINDS_BUT_IMAGE = KINDS[1:]


class Batches(torch.utils.data.Dataset):
    """What `BatchOrder` yields, a list of (position, epoch), goes in; a collated batch comes out.

    block: samples that a block shuffle reads together; the system is asked for the whole block when its first one is due.
    """

    def __init__(
        self,
        source: Source,
        prepare: Prepare,
        *,
        all_captions: bool,
        cache: ImageCache | None = None,
        block: int | None = None,
    ):
        self.source, self.prepare, self.cache, self.block = source, prepare, cache, block
        self.collate = Collate(prepare.spec, all_captions, prepare.captions)
        self.kinds = KINDS if cache is None and prepare.pixels else KINDS_BUT_IMAGE  # what is read of a sample
        self._asked: collections.deque[int] = collections.deque(maxlen=64)

    def __getitem__(self, places: list[tuple[int, int]]) -> dict[str, Any]:
        if self.block:
            self._ask_for({position // self.block for position, _ in places if position != PADDING}, self.block)
        return self.collate([self.row(position, epoch) for position, epoch in places])

    def row(self, position: int, epoch: int = 0) -> dict[str, Any]:
        """One sample, prepared. A sample that cannot be used keeps its row, with its reason."""
        if position == PADDING:
            return self.prepare.unusable(PADDING, "", "padding")
        origin = int(self.source.origin[position])
        try:
            sample = self.source.sample(position, self.kinds)
            image = None if self.cache is None else self.cache[position]
        except (OSError, BadImage) as error:
            return self.prepare.unusable(position, self.source.keys[position], _reason(error), origin)
        return self.prepare(sample, epoch, position, origin, image)

    def _ask_for(self, blocks: set[int], size: int) -> None:
        for block in blocks.difference(self._asked):
            self.source.prefetch(block * size, min((block + 1) * size, len(self.source)))
            self._asked.append(block)


class ImageCache:
    """All images of a source, decoded once and kept as uint8 with their shorter side at most `side` pixels.

    One flat shared-memory tensor, so that loader workers share it. Images that do not decode keep their reason.
    """

    def __init__(self, source: Source, side: int, decode: str = "exact"):
        self.reasons: dict[int, str] = {}
        pixels, self.sizes = [], np.zeros((len(source), 2), dtype=np.int32)
        for i in tqdm(range(len(source)), desc="decoding images into the cache", unit="img", disable=None):
            try:
                picture = _at_most(source.read(i) or b"", side, decode)
            except (BadImage, OSError) as error:
                self.reasons[i] = _reason(error)
                continue
            self.sizes[i] = picture.shape[1::-1]
            pixels.append(picture.reshape(-1))
        ends = np.cumsum(self.sizes.astype(np.int64).prod(axis=1) * 3)
        self.starts = np.concatenate([[0], ends[:-1]])
        self.pixels = torch.from_numpy(np.concatenate(pixels) if pixels else np.zeros(0, np.uint8)).share_memory_()

    def __getitem__(self, position: int) -> Image.Image:
        if position in self.reasons:
            raise BadImage(self.reasons[position])
        width, height = (int(x) for x in self.sizes[position])
        start = int(self.starts[position])
        flat = self.pixels[start : start + width * height * 3].numpy()
        return Image.fromarray(flat.reshape(height, width, 3))


def _reason(error: OSError | BadImage) -> str:
    """Under which name a sample is counted that could not be read."""
    if isinstance(error, BadImage):
        return str(error)
    warn_once(str(error))  # the count names no file
    return CHANGED if isinstance(error, ChangedFile) else UNREADABLE


@functools.lru_cache(64)
def warn_once(text: str) -> None:
    """Log a line the first time that it comes up in a process."""
    log.warning("%s", text)


def _at_most(data: bytes, side: int, decode: str) -> np.ndarray:
    """The pixels (H, W, 3) of a picture whose shorter side is at most `side`."""
    with opened(data) as encoded:
        width, height = encoded.size
        scale = side / min(width, height)
        image = encoded.pixels(1 / scale if scale < 1 and decode == "fast" else 1)
        if scale < 1:
            image = image.resize((round(width * scale), round(height * scale)), Image.Resampling.BICUBIC)
        return np.asarray(image)
