"""The Lightning DataModule: shards in, batches out, the same for any number of workers and ranks."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import dualenc.torchvision_ops  # noqa: F401  (before Lightning)

import numpy as np
import pytorch_lightning as pl
from torch.utils.data import DataLoader

from dualenc.data.collate import Collate
from dualenc.data.dataset import ImageCache
from dualenc.data.hard import Neighbours, hard_order, read_neighbours
from dualenc.data.loader import make_loader, most_captions, warn_of_missing
from dualenc.data.order import BatchOrder, epoch_order, refuse_another_order, weighted_counts, weighted_order
from dualenc.data.prepare import Prepare
from dualenc.data.resume import digest, go_on
from dualenc.data.settings import check_settings, check_streamed, refuse_same_shard
from dualenc.data.shards import Source, open_source
from dualenc.data.stream.loader import StreamLoader, StreamOptions, make_stream_loader, peek
from dualenc.data.stream.remote import expand, is_remote
from dualenc.data.transforms import Augment

log = logging.getLogger("dualenc")


class PairData(pl.LightningDataModule):
    """Pairs of images and captions.

    Args:
        train: shards to train on: a folder, a tar, a pattern such as train-{000..009}.tar, or a list of these. Where one
            is https://, s3://, gs://, hf:// or pipe:, all are read as streams.
        val: shards for validation (Recall@K with all captions); without them nothing is validated.
        test: shards for `dualenc test`.
        zeroshot: shards with KEY.cls beside classnames.txt (and zeroshot_classification_templates.txt); validation
            then reports zero-shot accuracy as well.
        weights: how much of each batch comes from each item of `train`, in proportion; null shows all samples of all.
        batch_size: samples per optimizer step over all ranks together.
        workers: loader processes per rank.
        prefetch: batches that each worker prepares ahead.
        seed: fixes, with the epoch, the order of samples and every random draw.
        shuffle_block: for slow disks: samples that are read as one stretch and shuffled among a few such stretches; null
            shuffles fully.
        cache: keep all training images in memory, decoded once, their shorter side at most this many pixels; null decodes anew.
        captions: captions of each image in a training batch, drawn anew each epoch; all are its positives. "all" takes
            as many as the sample with most has.
        caption_fields: where training captions are drawn from, with probabilities, such as {txt: 0.5, synthetic: 0.5}:
            txt is KEY.txt, other names are fields of KEY.json; null takes KEY.txt.
        decode: fast decodes a training JPEG at the smallest scale that its crop needs, exact decodes it whole.
        image_store: a store of the training images that model.start_from embedded; training takes its embeddings and reads
            no image, so the image tower must be frozen (LiT: Zhai et al. 2022). Validation decodes images as ever.
        hard_negatives: a file of `dualenc data mine`; batches then bring samples and their hard negatives together.
        hard_share: share of a batch that is hard negatives of its other samples, as far as there are enough, 0.5 unless
            given; 1 brings all of each sample.
        augment: training augmentation.
        stream: reading what is not local.
        spec: size, normalisation and vocabulary; filled in from the model.
    """

    def __init__(
        self,
        train: str | list[str] | None = None,
        val: str | list[str] | None = None,
        test: str | list[str] | None = None,
        zeroshot: str | None = None,
        weights: list[float] | None = None,
        batch_size: int = 256,
        workers: int = 2,
        prefetch: int = 2,
        seed: int = 0,
        shuffle_block: int | None = None,
        cache: int | None = None,
        captions: int | str = 1,
        caption_fields: dict[str, float] | None = None,
        decode: str = "fast",
        image_store: str | None = None,
        hard_negatives: str | None = None,
        hard_share: float | None = None,
        augment: Augment = Augment(),  # noqa: B008  (never changed; the default is the command line's documentation)
        stream: StreamOptions = StreamOptions(),  # noqa: B008  (likewise)
        spec: dict[str, Any] | None = None,
    ):
        super().__init__()
        self.paths = {"train": train, "val": val, "test": test, "zeroshot": zeroshot}
        self.weights, self.batch_size, self.workers, self.prefetch = weights, batch_size, workers, prefetch
        self.seed, self.shuffle_block, self.cache_side = seed, shuffle_block, cache
        self.captions: int | str = captions
        self.fields = caption_fields
        self.decode, self.augment, self.stream, self.spec = decode, augment, stream, spec
        self.image_store, self.hard_negatives = image_store, hard_negatives
        self.hard_share = 0.5 if hard_share is None and hard_negatives is not None else hard_share
        check_settings(self)
        self.sources: dict[str, Source] = {}
        self.streams: list[list[str]] | None = None  # the shards of each item of `train`, where they are streams
        self._cache: ImageCache | None = None
        self._digest = ""  # of the training shards
        self._mined: Neighbours | None = None
        self._before: dict[str, Any] = {}  # the data settings of the run that a checkpoint is of

    def train_items(self) -> list[str]:
        """`train` as a list."""
        train = self.paths["train"]
        return train if isinstance(train, list) else [train] if train else []

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
            if name == "train" and any(is_remote(item) for item in self.train_items()):
                self._open_streams()
            elif path is not None and name not in self.sources:
                self.sources[name] = open_source(path)
                for reason, names in self.sources[name].problems.items():
                    log.warning("%s: %d dropped: %s (first: %s)", name, len(names), reason, names[0])
        if stage == "fit" and self.streams is None:
            self._prepare_train()

    def _open_streams(self) -> None:
        check_streamed(self)
        if self.stream.cache is not None:
            # what cannot be made is told before any worker starts
            Path(self.stream.cache).mkdir(parents=True, exist_ok=True)
        self.streams = [expand([item]) for item in self.train_items()]
        refuse_same_shard(self.streams)
        for shards in self.streams:
            peek(shards)

    def _prepare_train(self) -> None:
        if self.captions == "all":
            self.captions = most_captions(self.sources["train"])
        if self.fields is not None:
            warn_of_missing(self.sources["train"], self.fields)
        self._digest = self.sources["train"].digest()
        if self.hard_negatives is not None:
            self._mined = read_neighbours(self.hard_negatives, self.sources["train"].keys)
        if self.weights is not None:
            _ = self.batches  # weights that cannot be met are an error before any work
        if self.cache_side and self._cache is None:
            self._cache = ImageCache(self.sources["train"], self.cache_side, self.decode)

    @property
    def names(self) -> list[str]:
        """What counts per source go under, one for each item of `train`; known after `setup`."""
        return self.train_items() if self.streams is not None else self.sources["train"].names

    @property
    def listed(self) -> dict[tuple[int, str], int]:
        """Samples that listing the training shards left out, by (number of the source, reason)."""
        return {} if self.streams is not None else self.sources["train"].problem_counts

    def left_over(self, shown: int) -> dict[str, int]:
        """Samples of the epoch just over that were neither seen nor dropped; shown: how many were one or the other."""
        assert self.trainer is not None
        left = {"incomplete_batch": self.trainer.train_dataloader.sampler.incomplete}  # type: ignore[union-attr]
        if self.streams is not None:
            return left
        rest = self._samples() - left["incomplete_batch"] - shown
        if rest > 0:  # trainer.max_steps, limit_train_batches, …
            left["not_reached"] = rest
        if self.weights is not None:
            left["other_epochs"] = len(self.sources["train"]) - self._samples()
        return left

    @property
    def batches(self) -> float:
        """Batches of a training epoch, known after `setup`; infinity for streams, whose length nobody knows."""
        return float("inf") if self.streams is not None else self._samples() // self.batch_size

    def _samples(self) -> int:
        source = self.sources["train"]
        if self.weights is None:
            return len(source)
        return sum(weighted_counts(np.bincount(source.origin, minlength=len(self.weights)).tolist(), self.weights))

    def train_dataloader(self) -> DataLoader | StreamLoader:
        """Batches of the current epoch; a resumed run starts after the last batch it had finished."""
        assert self.trainer is not None
        epoch, done = go_on(self.trainer)
        if done:
            self._check_resumed()
        assert isinstance(self.captions, int)
        pixels = self.image_store is None
        prepare = Prepare(self._spec(), self.augment, self.seed, self.captions, self.fields, self.decode, pixels)
        place = {"epoch": epoch, "start": done, "rank": self.trainer.global_rank, "ranks": self.trainer.world_size}
        if self.streams is not None:
            return make_stream_loader(
                self.streams,
                self.weights,
                prepare,
                Collate(prepare.spec, all_captions=False, captions=self.captions),
                options=self.stream,
                batch_size=self.batch_size,
                seed=self.seed,
                workers=self.workers,
                prefetch=self.prefetch,
                **place,
            )
        return make_loader(
            self.sources["train"],
            prepare,
            BatchOrder(self._samples(), self.batch_size, self._order, **place),
            self.workers,
            all_captions=False,
            cache=self._cache,
            block=self.shuffle_block if self.weights is None else None,  # a mixture leaves gaps in what is read
            prefetch=self.prefetch,
        )

    def _order(self, epoch: int) -> np.ndarray:
        """The positions that a training epoch shows, in its order."""
        source = self.sources["train"]
        if self.weights is not None:
            return weighted_order(source.origin, self.weights, self.seed, epoch, self.shuffle_block)
        order = epoch_order(len(source), self.seed, epoch, self.shuffle_block)
        if self._mined is None or self.hard_share is None:
            return order
        return hard_order(order, self._mined, self.batch_size, self.hard_share)

    def val_dataloader(self) -> list[DataLoader]:
        return [self._evaluation(name) for name in ("val", "zeroshot") if name in self.sources]

    def test_dataloader(self) -> DataLoader:
        return self._evaluation("test")

    def _evaluation(self, name: str) -> DataLoader:
        source, trainer = self.sources[name], self.trainer
        rank, ranks = (trainer.global_rank, trainer.world_size) if trainer is not None else (0, 1)
        order = BatchOrder(len(source), self.batch_size, rank=rank, ranks=ranks)
        return make_loader(source, Prepare(self._spec()), order, self.workers, all_captions=True)

    def _spec(self) -> dict[str, Any]:
        if self.spec is None:
            raise ValueError(
                "data.spec is not set: PairData needs the encoder's input spec (dualenc.model.spec.input_spec)"
            )
        return self.spec

    def state_dict(self) -> dict[str, Any]:
        """What fixes the order of samples, in plain types; the position is Lightning's count of batches."""
        about: dict[str, Any] = {"seed": self.seed, "batch_size": self.batch_size, "weights": self.weights}
        if self.streams is not None:
            assert self.trainer is not None
            own = {"ranks": self.trainer.world_size, "workers": self.workers, "buffer": self.stream.buffer}
            return about | own | {"shards": digest(self.streams)}
        hard = (self._mined.digest, self.hard_share) if self._mined is not None else (None, None)
        about |= dict(zip(("hard_negatives", "hard_share"), hard, strict=True))
        return about | {"shuffle_block": self.shuffle_block, "shards": self._digest}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._before = state_dict

    def _check_resumed(self) -> None:
        """In the middle of an epoch, settings that would give another order than it was begun with are refused."""
        refuse_another_order(self._before, self.state_dict())
