"""How many samples a second each part of a loader manages: for `dualenc data bench`."""

from __future__ import annotations

import copy
import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from dualenc.data.dataset import Batches, ImageCache
from dualenc.data.keys import Keys
from dualenc.data.loader import make_loader
from dualenc.data.order import BatchOrder
from dualenc.data.sample import KINDS, Sample
from dualenc.data.shards import Source
from dualenc.images import BadImage

TAKE = 32  # samples handled between two looks at the clock
KEPT = 512  # samples at most that are kept for the next part
BATCH_SECONDS = 0.25  # the loader's batches are cut to about this much work of one process, so that many are seen


def rate(part: Callable[[], int], seconds: float) -> float:
    """Units a second of a part that returns how many it handled, called for at least `seconds` after once for nothing."""
    part()
    handled, start = 0, time.perf_counter()
    while (taken := time.perf_counter() - start) < seconds or not handled:
        handled += part()
    return handled / taken


def batches_rate(batches: Iterable[dict[str, Any]], workers: int, seconds: float) -> tuple[float, dict[str, Any]]:
    """Samples a second of a loader once each worker has given its first batch, and one batch.

    Batches are counted in rounds of one from each worker: the first ones to come were begun before the clock.
    """
    turn = max(1, workers)
    stream = _again_and_again(batches)
    for _ in range(turn):
        batch = next(stream)
    seen, start = 0, time.perf_counter()
    while (taken := time.perf_counter() - start) < seconds or not seen:
        seen += sum(len(next(stream)["key"]) for _ in range(turn))
    return seen / taken, batch


def _again_and_again(batches: Iterable[Any]) -> Iterator[Any]:
    while True:
        empty = True
        for batch in batches:
            empty = False
            yield batch
        if empty:
            raise ValueError(
                "the training data gave no batch, so there is nothing to measure; use a smaller data.batch_size"
            )


class Parts:
    """A training loader over local shards, taken apart. Each method handles some samples and returns how many.

    dataset, order: the loader's. Samples are those of the epochs to come, none twice as long as there are others: what the
    disk has to give is measured, not what the system still remembers.
    """

    def __init__(self, dataset: Batches, order: BatchOrder):
        self.dataset, self.batch_size = dataset, order.batch_size
        self.places = _places(order)
        self.samples: list[tuple[int, int, Sample]] = []
        self.rows: list[dict[str, Any]] = []
        self._kinds = dataset.kinds

    def read(self) -> int:
        for position, epoch in itertools.islice(self.places, TAKE):
            try:
                self.samples.append((position, epoch, self.dataset.source.sample(position, self._kinds)))
            except OSError:
                continue  # what cannot be read takes its time, too
        del self.samples[:-KEPT]
        self._turn = itertools.cycle(self.samples)
        return TAKE

    def decode(self) -> int:
        """Decoding, augmentation and the choice of captions; of a cached image, the last two."""
        cache = self.dataset.cache
        for position, epoch, sample in itertools.islice(self._turn, TAKE):
            try:
                image = None if cache is None else cache[position]
            except BadImage:
                continue
            row = self.dataset.prepare(sample, epoch, position, 0, image)
            if row["reason"] is None:
                self.rows.append(row)
        del self.rows[:-KEPT]
        return TAKE

    def tokenize(self) -> int:
        rows = self.some(TAKE)
        self.dataset.collate.tokenizer([caption for row in rows for caption in row["captions"]])
        return TAKE

    def collate(self) -> int:
        """All that a batch needs but tokens."""
        blank = copy.copy(self.dataset.collate)
        blank.tokenizer = _NoWords()  # type: ignore[assignment]
        return len(blank(self.some(TAKE))["key"])

    def together(self, size: int = TAKE) -> int:
        """A batch, from the disk on."""
        return len(self.dataset[list(itertools.islice(self.places, size))]["key"])

    def some(self, count: int) -> list[dict[str, Any]]:
        """Rows that can be used, the same ones again where there are fewer. ValueError without any."""
        if not self.rows:
            raise ValueError(
                f"{self.dataset.source.path}: none of the samples tried can be used, so there is nothing to measure; "
                "`dualenc data check` says what is wrong"
            )
        return [self.rows[i % len(self.rows)] for i in range(count)]

    def rates(self, workers: int, prefetch: int, seconds: float, done: Callable[[], Any]) -> dict[str, float]:
        """Samples a second of each part alone, of all together in this process, and of the loader with its workers."""
        found = {}
        for part in (self.read, self.decode, self.tokenize, self.collate):
            found[part.__name__] = rate(part, seconds if part in (self.read, self.decode) else seconds / 3)
            done()
        one_process = 1 / sum(1 / each for each in found.values())
        size = max(1, min(self.batch_size, int(one_process * BATCH_SECONDS)))
        found["together"] = found["loader"] = rate(lambda: self.together(size), seconds)
        done()
        if workers:
            order: Any = (list(itertools.islice(self.places, size)) for _ in itertools.count())
            data = self.dataset
            settings: Any = {"cache": data.cache, "block": data.block, "prefetch": prefetch}
            loader = make_loader(data.source, data.prepare, order, workers, all_captions=False, **settings)
            found["loader"], _ = batches_rate(loader, workers, seconds)
        done()
        return found


def with_small_cache(dataset: Batches, order: BatchOrder, side: int, decode: str) -> tuple[Batches, BatchOrder]:
    """A data set of a few samples whose images are cached: what the whole one costs, without the wait for it to fill."""
    positions = np.unique([position for position, _ in itertools.islice(_places(order), KEPT)])
    few = _Few(dataset.source, positions)
    cached = Batches(few, dataset.prepare, all_captions=False, cache=ImageCache(few, side, decode))
    size = min(order.batch_size, len(few))
    return cached, BatchOrder(len(few), size, lambda epoch: np.random.default_rng(epoch).permutation(len(few)))


def _places(order: BatchOrder) -> Iterator[tuple[int, int]]:
    """(position, epoch) of one epoch after the other."""
    for epoch in itertools.count():
        order.set_epoch(epoch)
        for batch in order:
            yield from batch


class _NoWords:
    """Stands in for a tokenizer, at no cost."""

    truncated = 0

    def __call__(self, captions: list[str]) -> np.ndarray:
        return np.zeros((len(captions), 2), dtype=np.int64)


class _Few(Source):
    """Some of the samples of another source."""

    def __init__(self, source: Source, positions: np.ndarray):
        keys = Keys.of(source.keys[int(i)] for i in positions)
        super().__init__(source.path, keys, {}, source.names, source.origin[positions])
        self._source, self._positions = source, positions.tolist()

    def sample(self, i: int, kinds: Sequence[str] = KINDS) -> Sample:
        return self._source.sample(self._positions[i], kinds)

    def location(self, i: int, kind: str = "image") -> tuple[str, int, int] | None:
        return self._source.location(self._positions[i], kind)

    def _files(self) -> list[tuple[str, int]]:
        return self._source._files()
