"""Loader processes over an indexed source."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

from dualenc.data.dataset import Batches, ImageCache
from dualenc.data.order import BatchOrder
from dualenc.data.prepare import Prepare
from dualenc.data.sample import BadSample
from dualenc.data.shards import Source


def most_captions(source: Source) -> int:
    """The most captions that any sample has in KEY.txt, at least 1."""
    most = 1
    for i in tqdm(range(len(source)), desc="counting captions", unit="sample", disable=None):
        try:
            most = max(most, len(source.sample(i, ("txt", "json")).captions()))
        except (BadSample, OSError):
            continue  # counted when it is its turn
    return most


def unchanged(batch: Any) -> Any:
    """A batch as the data set gives it."""
    return batch


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
        prefetch_factor=prefetch if workers else None,
        pin_memory=torch.cuda.is_available(),
    )
