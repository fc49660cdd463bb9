"""Training on shards that are read once, from start to end: the batches of a rank, out of its loader workers' turns."""

from __future__ import annotations

import collections
import itertools
import logging
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.distributed
from torch.utils.data import DataLoader

from dualenc.data.collate import Collate
from dualenc.data.loader import outlive_a_signal, unchanged
from dualenc.data.order import PADDING, check_batch_size
from dualenc.data.prepare import Prepare
from dualenc.data.stream.batches import BATCH, DRY, REST, StreamBatches, StreamOptions
from dualenc.data.stream.samples import peek, usable_workers

__all__ = ["StreamLoader", "StreamOptions", "make_stream_loader", "peek"]

log = logging.getLogger("dualenc")


class StreamLoader:
    """Batches of one rank, epoch after epoch; no length, for nobody knows it.

    An epoch lasts until no rank can fill its share. A rank that is out before gives its last rows and then rows that are
    not valid ("padding"), so that all ranks make the same steps. `incomplete`: samples of this rank that the epoch just
    over left out, since all ranks' leftovers together were no batch. A batch's `dropped` lists (source, reason, how many)
    of what was lost in reading up to it.

    any_rank(flag): whether the flag is set on any rank; every rank must call it.
    """

    def __init__(
        self,
        batches: StreamBatches,
        loader: DataLoader,
        any_rank: Callable[[bool], bool],
        *,
        epoch: int = 0,
        start: int = 0,
    ):
        self.batches, self.loader, self.any_rank = batches, loader, any_rank
        self.epoch, self.start, self.incomplete = epoch, start, 0

    @property
    def sampler(self) -> StreamLoader:
        """Where Lightning looks for `set_epoch`."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning before each epoch."""
        if epoch != self.epoch:
            self.epoch, self.start = epoch, 0

    def __iter__(self) -> Iterator[dict[str, Any]]:
        self.batches.place[:] = torch.tensor([self.epoch, self.start])
        self.incomplete = 0
        start = self.start
        rows: list[dict[str, Any]] = []
        dropped: list[tuple[int, str, int]] = []
        shares = self._shares(rows, dropped)
        held: dict[str, Any] | None = None  # a batch is given when the next one is known: it may be the last
        for number in itertools.count():
            share = next(shares, None)
            if number >= start and not self.any_rank(share is not None):
                break
            if share is None:
                share = rows + self._padding(self.batches.share - len(rows))
                rows.clear()
            if number < start:
                dropped.clear()
                continue
            if held is not None:
                yield held
            held = self._collated(share) | {"dropped": list(dropped)}
            dropped.clear()
        self.incomplete = len(rows)
        if held is not None:
            held["dropped"] += dropped
            yield held
        elif not start:
            self._complain(len(rows), dropped)

    def _shares(self, rows: list[dict[str, Any]], dropped: list[tuple[int, str, int]]) -> Iterator[Any]:
        """This rank's full shares in order: a batch, rows for one, or () for one that was passed over undecoded.

        rows: what the workers had left and no share was made of so far; dropped: what was lost in reading so far.
        """
        share, going = self.batches.share, max(self.loader.num_workers, 1)
        for kind, brought, lost in self.loader:
            dropped += lost
            if kind == REST:
                rows += brought
                going -= 1
                if len(rows) >= share:
                    full, rows[:share] = rows[:share], []
                    yield full
            elif kind != DRY:
                yield brought if kind == BATCH else ()
            if not going:
                return

    def _padding(self, count: int) -> list[dict[str, Any]]:
        return [self.batches.prepare.unusable(PADDING, "", "padding")] * count

    def _collated(self, share: Any) -> dict[str, Any]:
        return share if isinstance(share, dict) else self.batches.collate(share)

    def _complain(self, left: int, dropped: list[tuple[int, str, int]]) -> None:
        """ValueError where an epoch had no batch at all."""
        counts: collections.Counter[str] = collections.Counter()
        for _, reason, count in dropped:
            counts[reason] += count
        lost = ", ".join(f"{reason}: {count}" for reason, count in counts.items())
        shards = sum(len(urls) for urls in self.batches.sources)
        if not left:
            raise ValueError(
                f"no sample could be read from any of {shards} shards ({lost or 'they are empty'}); check them"
            )
        size = self.batches.share * self.batches.ranks
        raise ValueError(
            f"batch_size {size} is larger than what an epoch of these {shards} shards gives ({left} samples on this rank"
            f"{'; ' + lost if lost else ''}), so no batch can be formed; "
            f"set data.batch_size to {left * self.batches.ranks} or less"
        )


def make_stream_loader(
    sources: Sequence[Sequence[str]],
    weights: Sequence[float] | None,
    prepare: Prepare,
    collate: Collate,
    *,
    options: StreamOptions,
    batch_size: int,
    seed: int,
    workers: int,
    prefetch: int = 2,
    epoch: int = 0,
    start: int = 0,
    rank: int = 0,
    ranks: int = 1,
) -> StreamLoader:
    """Loader workers over streams.

    sources: the shards of each source. weights: how much of each batch comes from each of them; without, all samples of
    all come. batch_size: over all ranks. start: batches of `epoch` that are already done.
    """
    check_batch_size(batch_size, ranks)
    scarcest = min(map(len, sources)) if weights is not None else sum(map(len, sources))
    usable = usable_workers(scarcest, ranks, workers)
    if usable < workers:
        log.warning("%d shards for %d ranks: %d instead of %d workers on each", scarcest, ranks, usable, workers)
    place = torch.zeros(2, dtype=torch.int64).share_memory_()  # workers that stay for the next epoch see it change
    where = {"seed": seed, "rank": rank, "ranks": ranks, "place": place}
    batches = StreamBatches(sources, weights, prepare, collate, options, share=batch_size // ranks, **where)
    loader = DataLoader(
        batches,
        batch_size=None,
        collate_fn=unchanged,  # DataLoader's own would make tensors and lists of what rows and counts are
        num_workers=usable,
        persistent_workers=usable > 0,
        worker_init_fn=outlive_a_signal,
        prefetch_factor=prefetch if usable else None,
        pin_memory=torch.cuda.is_available(),
    )
    return StreamLoader(batches, loader, bool if ranks == 1 else _on_any_rank, epoch=epoch, start=start)


_group: tuple[Any, Any] = (lambda: None, None)  # a reference to all ranks' group, and the one made beside it


def _on_any_rank(flag: bool) -> bool:
    """Whether a flag is set on any rank, over a group that needs no accelerator and that all loaders share."""
    global _group
    world = torch.distributed.group.WORLD
    if _group[0]() is not world:
        _group = weakref.ref(world), torch.distributed.new_group(backend="gloo")
    shared = torch.tensor([int(flag)])
    torch.distributed.all_reduce(shared, op=torch.distributed.ReduceOp.MAX, group=_group[1])
    return bool(shared.item())
