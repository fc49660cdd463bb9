"""The Lightning DataModule: shards in, batches out, the same for any number of workers and ranks."""

from __future__ import annotations

import logging
from typing import Any

import dualenc.torchvision_ops  # noqa: F401  (before Lightning)

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from dualenc.data.dataset import Batches, ImageCache, Pairs
from dualenc.data.order import BatchOrder
from dualenc.data.shards import Source, open_source
from dualenc.data.transforms import Augment

log = logging.getLogger("dualenc")


class PairData(pl.LightningDataModule):
    """Pairs of images and captions.

    Args:
        train: shards to train on: a folder, a tar, a pattern such as train-{000..009}.tar, or a list of these.
        val: shards for validation (Recall@K with all captions); without them nothing is validated.
        test: shards for `dualenc test`.
        zeroshot: shards with KEY.cls beside classnames.txt (and zeroshot_classification_templates.txt); validation
            then reports zero-shot accuracy as well.
        batch_size: samples per optimizer step over all ranks together.
        workers: loader processes per rank.
        seed: fixes, with the epoch, the order of samples and every random draw.
        cache: keep all training images in memory, decoded once, their shorter side at most this many pixels; null decodes anew.
        captions: captions of each image in a training batch, drawn anew each epoch; all are its positives.
        augment: training augmentation.
        spec: size, normalisation and vocabulary; filled in from the model.
    """

    def __init__(
        self,
        train: str | list[str] | None = None,
        val: str | list[str] | None = None,
        test: str | list[str] | None = None,
        zeroshot: str | None = None,
        batch_size: int = 256,
        workers: int = 2,
        seed: int = 0,
        cache: int | None = None,
        captions: int = 1,
        augment: Augment = Augment(),  # noqa: B008  (never changed; the default is the command line's documentation)
        spec: dict[str, Any] | None = None,
    ):
        super().__init__()
        for name, value, least in (("batch_size", batch_size, 1), ("workers", workers, 0), ("captions", captions, 1)):
            if value < least:
                raise ValueError(f"data.{name} is {value}, so nothing could be read; use {least} or more")
        if cache is not None and spec is not None and cache < max(spec["image"]["size"]):
            raise ValueError(
                f"data.cache {cache} is smaller than the model's images ({max(spec['image']['size'])} px), which would be "
                "blurred by enlarging; set it to that size or more"
            )
        self.paths = {"train": train, "val": val, "test": test, "zeroshot": zeroshot}
        self.batch_size, self.workers, self.seed, self.cache_side = batch_size, workers, seed, cache
        self.augment, self.captions, self.spec = augment, captions, spec
        self.sources: dict[str, Source] = {}
        self._cache: ImageCache | None = None

    def setup(self, stage: str) -> None:
        """Open the sources of a stage; a missing or empty one is an error before any work."""
        wanted = {"fit": ("train", "val", "zeroshot"), "validate": ("val", "zeroshot"), "test": ("test",)}.get(
            stage, ()
        )
        required = {"fit": "train", "validate": "val", "test": "test"}.get(stage)
        for name in wanted:
            path = self.paths[name]
            if path is None and name == required:
                raise ValueError(f"data.{name} is not set, so there is nothing to {stage}; name a folder of shards")
            if path is not None and name not in self.sources:
                self.sources[name] = open_source(path)
                for reason, names in self.sources[name].problems.items():
                    log.warning("%s: %d dropped: %s (first: %s)", name, len(names), reason, names[0])
        if stage == "fit" and self.cache_side and self._cache is None:
            self._cache = ImageCache(self.sources["train"], self.cache_side)

    @property
    def batches(self) -> int:
        """Batches of a training epoch, known after `setup`."""
        return len(self.sources["train"]) // self.batch_size

    def train_dataloader(self) -> DataLoader:
        """Batches of the current epoch; a resumed run starts after the last batch it had finished."""
        assert self.trainer is not None
        progress: Any = self.trainer.fit_loop.epoch_loop.batch_progress
        done = progress.current.processed  # a crash may have begun one more
        over = progress.is_last_batch and 0 < done == progress.current.ready  # written with an epoch's last batch
        epoch = self.trainer.current_epoch + int(over)
        pairs = Pairs(self.sources["train"], self._spec(), self.augment, self.seed, self._cache, self.captions)
        return self._loader(pairs, shuffle=True, epoch=epoch, start=0 if over else done)

    def val_dataloader(self) -> list[DataLoader]:
        return [self._evaluation(name) for name in ("val", "zeroshot") if name in self.sources]

    def test_dataloader(self) -> DataLoader:
        return self._evaluation("test")

    def _evaluation(self, name: str) -> DataLoader:
        return self._loader(Pairs(self.sources[name], self._spec()), shuffle=False)

    def _spec(self) -> dict[str, Any]:
        if self.spec is None:
            raise ValueError(
                "data.spec is not set: PairData needs the encoder's input spec (dualenc.model.spec.input_spec)"
            )
        return self.spec

    def _loader(self, pairs: Pairs, *, shuffle: bool, epoch: int = 0, start: int = 0) -> DataLoader:
        trainer = self.trainer
        rank, ranks = (trainer.global_rank, trainer.world_size) if trainer is not None else (0, 1)
        order = BatchOrder(
            len(pairs),
            self.batch_size,
            rank=rank,
            ranks=ranks,
            seed=self.seed,
            shuffle=shuffle,
            epoch=epoch,
            start=start,
        )
        return make_loader(pairs, order, self.workers, all_captions=not shuffle)


def make_loader(pairs: Pairs, order: BatchOrder, workers: int, all_captions: bool) -> DataLoader:
    """A DataLoader whose batches are those of `order`."""
    return DataLoader(
        Batches(pairs, all_captions),
        sampler=order,
        batch_size=None,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available(),
    )
