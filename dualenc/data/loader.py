"""Loader processes over an indexed source."""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterable
from typing import Any

import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

from dualenc.data.dataset import Batches, ImageCache
from dualenc.data.order import BatchOrder
from dualenc.data.prepare import Prepare
from dualenc.data.sample import BadSample
from dualenc.data.shards import Source

log = logging.getLogger("dualenc")

MOST_CAPTIONS = 100
FIRST = 1000  # samples that are looked at for caption fields


def most_captions(source: Source) -> int:
    """The most captions that any sample has in KEY.txt, at least 1. ValueError above MOST_CAPTIONS: every batch would be
    as large as that one sample makes it."""
    most = 1
    for i in tqdm(range(len(source)), desc="counting captions", unit="sample", disable=None):
        try:
            most = max(most, len(source.sample(i, ("txt", "json")).captions()))
        except (BadSample, OSError):
            continue  # counted when it is its turn
        if most > MOST_CAPTIONS:
            raise ValueError(
                f"{source.keys[i]} has {most} captions, and with data.captions all every sample of a batch would be shown with "
                "as many; set data.captions to a number"
            )
    return most


def warn_of_missing(source: Source, fields: Iterable[str]) -> None:
    """Log the caption fields that none of the first FIRST samples has: a misspelt one would never be drawn."""
    missing = set(fields)
    for i in range(min(len(source), FIRST)):
        try:
            sample = source.sample(i, ("txt", "json"))
            missing = {name for name in missing if not sample.captions(name)}
        except (BadSample, OSError):
            continue
        if not missing:
            return
    for name in sorted(missing):
        log.warning(
            "no caption in %r among the first %d samples, so others take its share; check its name", name, FIRST
        )


def unchanged(batch: Any) -> Any:
    """A batch as the data set gives it."""
    return batch


def outlive_a_signal(_: int = 0) -> None:
    """For a worker: the first SIGTERM passes. Whoever stops a whole group of processes means the trainer, which still needs
    batches up to its checkpoint; a second one, such as DataLoader sends to a worker that hangs, ends the worker."""
    signal.signal(signal.SIGTERM, lambda number, _: signal.signal(number, signal.SIG_DFL) and None)


def make_loader(
    source: Source,
    prepare: Prepare,
    order: BatchOrder,
    workers: int,
    *,
    all_captions: bool,
    cache: ImageCache | None = None,
    block: int | None = None,
    prefetch: int = 2,
) -> DataLoader:
    """A DataLoader whose batches are those of `order`."""
    return DataLoader(
        Batches(source, prepare, all_captions=all_captions, cache=cache, block=block),
        sampler=order,
        batch_size=None,
        collate_fn=unchanged,  # DataLoader's own would walk every list of a batch
        num_workers=workers,
        persistent_workers=workers > 0,
        worker_init_fn=outlive_a_signal,
        prefetch_factor=prefetch if workers else None,
        pin_memory=torch.cuda.is_available(),
    )
