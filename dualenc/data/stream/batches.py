"""What a loader worker makes of streams: batches, one turn after the other.

A worker's turns are numbered: turn t is the (t // workers)-th of worker t % workers, and DataLoader hands them on in that
order as long as no worker ends. So a worker whose shards are over goes on with empty turns, and a resumed run knows from
the number of a turn alone that it lies before its start and need not be decoded.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import IterableDataset, get_worker_info

from dualenc.data.collate import Collate
from dualenc.data.prepare import Prepare
from dualenc.data.stream.cache import Cache, size_in_bytes
from dualenc.data.stream.samples import Drawn, Dropped, worker_samples

STREAMED = -2  # the position of a sample that has none
BATCH, SKIPPED, REST, DRY = "batch", "skipped", "rest", "dry"
Turn = tuple[str, Any, list[tuple[int, str, int]]]  # kind, what it brings, (source, reason, how many) dropped before it


@dataclasses.dataclass
class StreamOptions:
    """Reading shards that are not local.

    A sample whose key came before in the epoch cannot be refused as indexed shards do: it is shown, and each worker warns
    once an epoch, as far as it sees both and they are among its first million.

    Args:
        buffer: samples that each worker holds undecoded, to draw the next one from.
        retries: how often a shard is taken up again where its stream broke, after 1, 2, 4, … seconds; then the rest of it is
            left out of the epoch and counted.
        cache: a local folder where whole shards are kept for the next epochs; null keeps none.
        cache_size: the most that this folder may hold, such as 500MB; the shards used longest ago go first.
    """

    buffer: int = 2000
    retries: int = 5
    cache: str | None = None
    cache_size: str = "20GB"

    def __post_init__(self) -> None:
        for name, least in {"buffer": 1, "retries": 0}.items():
            if getattr(self, name) < least:
                raise ValueError(
                    f"data.stream.{name} is {getattr(self, name)}, so nothing could be read; use {least} or more"
                )
        size_in_bytes(self.cache_size, "data.stream.cache_size")

    def open_cache(self) -> Cache | None:
        """The cache, if one is wanted."""
        size = size_in_bytes(self.cache_size, "data.stream.cache_size")
        return None if self.cache is None else Cache(self.cache, size)


class StreamBatches(IterableDataset):
    """The turns of a loader worker, without end: whole batches, then what is left of them once, then nothing.

    sources: the shards of each source; place: a shared tensor (epoch, batches to pass over), read when iteration begins.
    """

    def __init__(
        self,
        sources: Sequence[Sequence[str]],
        weights: Sequence[float] | None,
        prepare: Prepare,
        collate: Collate,
        options: StreamOptions,
        *,
        share: int,
        seed: int,
        rank: int,
        ranks: int,
        place: torch.Tensor,
    ):
        self.sources, self.weights, self.prepare, self.collate = sources, weights, prepare, collate
        self.options, self.share, self.seed, self.rank, self.ranks, self.place = (
            options,
            share,
            seed,
            rank,
            ranks,
            place,
        )

    def __iter__(self) -> Iterator[Turn]:
        info = get_worker_info()
        return self.turns(0, 1) if info is None else self.turns(info.id, info.num_workers)

    def turns(self, worker: int, workers: int) -> Iterator[Turn]:
        """What worker `worker` of `workers` yields: (BATCH, batch), or (SKIPPED, None) for a turn before the start, then
        (REST, rows: fewer than `share`) and (DRY, None) for ever; each with what was dropped since the one before."""
        epoch, start = (int(n) for n in self.place)
        dropped = Dropped()
        options, where = self.options, (self.seed, epoch, self.rank, self.ranks, worker, workers)
        samples = worker_samples(
            self.sources, self.weights, where, options.buffer, dropped, options.retries, options.open_cache()
        )
        for turn in itertools.count(worker, workers):
            drawn = list(itertools.islice(samples, self.share))
            if len(drawn) < self.share:
                break
            if turn < start:
                yield SKIPPED, None, _taken(dropped)
            else:
                yield BATCH, self.collate(self._rows(drawn, epoch)), _taken(dropped)
        yield REST, self._rows(drawn, epoch), _taken(dropped)
        while True:
            yield DRY, None, []

    def _rows(self, drawn: list[Drawn], epoch: int) -> list[dict[str, Any]]:
        return [self.prepare(sample, epoch, STREAMED, source) for source, sample in drawn]


def _taken(dropped: Dropped) -> list[tuple[int, str, int]]:
    counts = [(source, reason, count) for (source, reason), count in dropped.items()]
    dropped.clear()
    return counts
