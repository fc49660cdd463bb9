"""The order of samples: a function of (seed, epoch) alone, cut into equal contiguous slices for ranks.

What a batch asks of the data set is a list of (position, epoch) pairs, so that loader workers hold no state and the
order is the same for any number of workers and ranks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np

PADDING = -1  # a position that stands for no sample, where the last evaluation batch must be equal on all ranks


def epoch_order(n: int, seed: int, epoch: int) -> np.ndarray:
    """A permutation of range(n): each sample once."""
    return np.random.default_rng([seed, epoch]).permutation(n)


def sample_rng(seed: int, epoch: int, key: str) -> np.random.Generator:
    """The generator of every random draw for one sample in one epoch (crop, flip, colour, which caption)."""
    digest = hashlib.blake2b(f"{seed}:{epoch}:{key}".encode("utf-8", "surrogateescape"), digest_size=16).digest()
    return np.random.default_rng(int.from_bytes(digest, "little"))


class BatchOrder:
    """A batch sampler over n samples for one rank; `batch_size` is the global one.

    Training (`shuffle`): the last n mod batch_size samples of the epoch's order are left out (`incomplete`).
    Otherwise every sample is shown once, in order; the last batch is padded to a multiple of the ranks.
    `start` skips that many batches of the first epoch iterated: a resumed run goes on where it stopped. `first` is the
    position of the first sample: n samples from there on.
    """

    def __init__(
        self,
        n: int,
        batch_size: int,
        *,
        shuffle: bool,
        rank: int = 0,
        ranks: int = 1,
        seed: int = 0,
        epoch: int = 0,
        start: int = 0,
        first: int = 0,
    ):
        if batch_size % ranks:
            raise ValueError(
                f"batch_size {batch_size} does not divide by {ranks} ranks, so their slices would differ; "
                f"use {batch_size // ranks * ranks or ranks} or another multiple of {ranks}"
            )
        if shuffle and n < batch_size:
            raise ValueError(
                f"batch_size {batch_size} is larger than the data set ({n} samples), so no batch can be formed; "
                f"set data.batch_size to {n} or less"
            )
        self.n, self.batch_size, self.rank, self.ranks = n, batch_size, rank, ranks
        self.seed, self.shuffle, self.epoch, self.start, self.first = seed, shuffle, epoch, start, first
        self.incomplete = n % batch_size if shuffle else 0

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning before each epoch."""
        if epoch != self.epoch:
            self.epoch, self.start = epoch, 0

    def __len__(self) -> int:
        return self.n // self.batch_size if self.shuffle else -(-self.n // self.batch_size)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order = epoch_order(self.n, self.seed, self.epoch) if self.shuffle else np.arange(self.n)
        for number in range(self.start, len(self)):
            batch = order[number * self.batch_size : (number + 1) * self.batch_size]
            batch = np.pad(batch + self.first, (0, -len(batch) % self.ranks), constant_values=PADDING)
            share = len(batch) // self.ranks
            yield [(int(i), self.epoch) for i in batch[self.rank * share : (self.rank + 1) * share]]
