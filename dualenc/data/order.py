"""The order of samples: a function of (seed, epoch) alone, cut into equal contiguous slices for ranks.

What a batch asks of the data set is a list of (position, epoch) pairs, so that loader workers hold no state and the
order is the same for any number of workers and ranks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

PADDING = -1  # a position that stands for no sample, where the last evaluation batch must be equal on all ranks
WINDOW = 8  # blocks whose samples a block shuffle mixes


def epoch_order(n: int, seed: int, epoch: int, block: int | None = None) -> np.ndarray:
    """A permutation of range(n): each sample once.

    block: shuffle blocks of that many neighbours, and the samples of WINDOW blocks among themselves: a slow disk then
    reads stretches instead of single samples.
    """
    rng = np.random.default_rng([seed, epoch])
    if block is None:
        return rng.permutation(n)
    blocks = np.split(np.arange(n), np.arange(block, n, block))
    shuffled = [blocks[i] for i in rng.permutation(len(blocks))]
    windows = [np.concatenate(shuffled[i : i + WINDOW]) for i in range(0, len(shuffled), WINDOW)]
    return np.concatenate([rng.permutation(window) for window in windows])


def weighted_counts(sizes: Sequence[int], weights: Sequence[float]) -> list[int]:
    """How many samples of each source an epoch shows: in proportion to the weights, as many as the scarcest allows.

    ValueError for weights of which one is not positive, or that leave a source without a sample.
    """
    if len(weights) != len(sizes) or not all(0 < w < float("inf") for w in weights):
        raise ValueError(
            f"weights {list(weights)} for {len(sizes)} sources: give one positive number for each, or the proportions of "
            "the mixture would be undefined"
        )
    unit = min(size / weight for size, weight in zip(sizes, weights, strict=True))
    counts = [min(size, int(unit * weight + 1e-6)) for size, weight in zip(sizes, weights, strict=True)]
    if not all(counts):
        raise ValueError(
            f"weights {list(weights)} for sources of {list(sizes)} samples leave one of them out of every epoch; "
            "choose weights closer to each other"
        )
    return counts


def weighted_order(
    origin: np.ndarray, weights: Sequence[float], seed: int, epoch: int, block: int | None = None
) -> np.ndarray:
    """Positions of one epoch of a weighted mixture: no sample twice; what an epoch leaves out, the next ones show first.

    origin (N,): the source of each sample, 0 .. len(weights) - 1. Each source is cut anew into as many disjoint parts as
    it has whole ones, an epoch shows one of them, and when all were shown it is cut anew.
    """
    chosen = []
    sizes = np.bincount(origin, minlength=len(weights)).tolist()
    for number, count in enumerate(weighted_counts(sizes, weights)):
        parts = sizes[number] // count
        cycle, part = divmod(epoch, parts)
        shuffled = np.random.default_rng([seed, cycle, number, 1]).permutation(np.flatnonzero(origin == number))
        chosen.append(shuffled[part * count : (part + 1) * count])
    positions = np.sort(np.concatenate(chosen))
    return positions[epoch_order(len(positions), seed, epoch, block)]


def sample_rng(seed: int, epoch: int, key: str) -> np.random.Generator:
    """The generator of every random draw for one sample in one epoch (crop, flip, colour, which caption)."""
    digest = hashlib.blake2b(f"{seed}:{epoch}:{key}".encode("utf-8", "surrogateescape"), digest_size=16).digest()
    return np.random.default_rng(int.from_bytes(digest, "little"))


class BatchOrder:
    """A batch sampler over n samples for one rank; `batch_size` is the global one.

    Training (`order` given: an epoch's number to n positions): the last n mod batch_size of them are left out (`incomplete`).
    Otherwise every sample is shown once, in order; the last batch is padded to a multiple of the ranks.
    `start` skips that many batches of the first epoch iterated: a resumed run goes on where it stopped. `first` is the
    position of the first sample: n samples from there on.
    """

    def __init__(
        self,
        n: int,
        batch_size: int,
        order: Callable[[int], np.ndarray] | None = None,
        *,
        rank: int = 0,
        ranks: int = 1,
        epoch: int = 0,
        start: int = 0,
        first: int = 0,
    ):
        check_batch_size(batch_size, ranks)
        if order is not None and n < batch_size:
            raise ValueError(
                f"batch_size {batch_size} is larger than the data set ({n} samples), so no batch can be formed; "
                f"set data.batch_size to {n} or less"
            )
        self.n, self.batch_size, self.order, self.rank, self.ranks = n, batch_size, order, rank, ranks
        self.epoch, self.start, self.first = epoch, start, first
        self.incomplete = n % batch_size if order is not None else 0

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning before each epoch."""
        if epoch != self.epoch:
            self.epoch, self.start = epoch, 0

    def __len__(self) -> int:
        return self.n // self.batch_size if self.order is not None else -(-self.n // self.batch_size)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        positions = np.arange(self.first, self.first + self.n) if self.order is None else self.order(self.epoch)
        for number in range(self.start, len(self)):
            batch = positions[number * self.batch_size : (number + 1) * self.batch_size]
            batch = np.pad(batch, (0, -len(batch) % self.ranks), constant_values=PADDING)
            share = len(batch) // self.ranks
            yield [(int(i), self.epoch) for i in batch[self.rank * share : (self.rank + 1) * share]]


def check_batch_size(batch_size: int, ranks: int) -> None:
    """ValueError where the global batch does not divide by the ranks."""
    if batch_size % ranks:
        raise ValueError(
            f"batch_size {batch_size} does not divide by {ranks} ranks, so their slices would differ; "
            f"use {batch_size // ranks * ranks or ranks} or another multiple of {ranks}"
        )


def refuse_another_order(before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """ValueError where settings that fix an epoch's order are not those that it was begun with."""
    for name, value in before.items():
        if now.get(name) != value:
            files = name in ("shards", "hard_negatives")  # told by their digests, which would help nobody
            was = "other ones" if files else f"{value}, now {now.get(name)}"
            raise ValueError(
                f"the checkpoint stands in the middle of an epoch with {name} {was}: samples would be repeated and others "
                "never seen; resume with what it was, or from a checkpoint at an epoch's end"
            )
