"""Checkpoints that are whole or not there, written at every epoch's end and, if wanted, every n steps or minutes."""

from __future__ import annotations

from typing import Any

import dualenc.torchvision_ops  # noqa: F401  (before Lightning)

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.plugins.io import TorchCheckpointIO

from dualenc.files import whole_file


class WholeFiles(TorchCheckpointIO):
    """Writes beside the target and renames: Lightning's own way goes through the system's temporary folder, and a move
    from there to another disk is a copy, which a kill would leave half done in place of the last checkpoint."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        with whole_file(path) as partial:
            torch.save(checkpoint, partial)


class Clock(ModelCheckpoint):
    """Writes last.ckpt within an epoch: every n steps or minutes, or after each validation. Not after an epoch's last batch:
    the epoch's own is written then, once its validation and its counts are in it."""

    def on_train_batch_end(self, trainer: pl.Trainer, *hook: Any) -> None:
        if not trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            super().on_train_batch_end(trainer, *hook)

    def on_validation_end(self, trainer: pl.Trainer, *hook: Any) -> None:
        if not trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            super().on_validation_end(trainer, *hook)


def last_checkpoints(settings: Any) -> list[ModelCheckpoint]:
    """Callbacks that write last.ckpt: at every epoch's end, after validation within one, and by steps and by time where
    these are set.

    Lightning's `save_last` writes one only when there is a new best, and one callback of its kind has only one clock.
    settings: the `checkpoint` part of a config.
    """
    common = {"dirpath": settings.dirpath, "filename": "last", "enable_version_counter": False}
    clocks = [{name: settings[name]} for name in ("every_n_train_steps", "train_time_interval")]
    return [
        ModelCheckpoint(save_on_train_epoch_end=True, **common),
        Clock(save_on_train_epoch_end=False, **common),
        *(Clock(**when, **common) for when in clocks if None not in when.values()),
    ]
