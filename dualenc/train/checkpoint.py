"""Checkpoints that are whole or not there, written at every epoch's end and, if wanted, every n steps or minutes; and which
one to go on from."""

from __future__ import annotations

import logging
import time
import zipfile
from pathlib import Path
from typing import Any

import dualenc.torchvision_ops  # noqa: F401  (before Lightning)

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, ModelCheckpoint
from pytorch_lightning.plugins.io import TorchCheckpointIO

from dualenc.files import whole_file
from dualenc.model.folder import read_checkpoint

log = logging.getLogger("dualenc")

ASKED = 10  # steps after which several ranks agree on the time: by a message for which the device waits
LEFT_OVER = 600  # seconds without a write after which a temporary file is that of a process that is dead


class WholeFiles(TorchCheckpointIO):
    """Writes beside the target and renames: Lightning's own way goes through the system's temporary folder, and a move
    from there to another disk is a copy, which a kill would leave half done in place of the last checkpoint."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        try:
            with whole_file(path) as partial:
                torch.save(checkpoint, partial)
        except RuntimeError as error:  # torch's own, of a full disk too, which names no file
            raise RuntimeError(f"{path}: {error}") from error


class Clock(ModelCheckpoint):
    """Writes last.ckpt within an epoch: every n steps or minutes, or after each validation. Not after an epoch's last batch:
    the epoch's own is written then, once its validation and its counts are in it."""

    def on_train_batch_end(self, trainer: pl.Trainer, *hook: Any) -> None:
        if self._train_time_interval and trainer.world_size > 1 and trainer.global_step % ASKED:
            return
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


def newest(folder: str | Path) -> Path:
    """The checkpoint to go on from: the newest last*.ckpt, or, where none of these can be read, the .ckpt of most steps.

    Those that cannot be read are named in a warning; what killed processes left behind is removed. FileNotFoundError:
    there is none; ValueError: none can be read.
    """
    folder = Path(folder)
    _remove_left_over(folder)
    last = sorted(folder.glob("last*.ckpt"), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in last:
        if _steps(path) is not None:
            return path
    others = [
        (steps, path) for path in sorted(set(folder.glob("*.ckpt")) - {*last}) if (steps := _steps(path)) is not None
    ]
    if others:
        return max(others)[1]
    if list(folder.glob("*.ckpt")):
        raise ValueError(
            f"{folder}: no checkpoint there can be read, so there is nothing to go on from; to start again, remove the run's "
            "folder or name another trainer.default_root_dir"
        )
    raise FileNotFoundError(
        f"{folder}: no last.ckpt, so there is nothing to go on from; leave --ckpt_path out to start"
    )


def _steps(path: Path) -> int | None:
    """How many steps a checkpoint has seen; None, and a warning, where it cannot be read."""
    try:
        steps = int(read_checkpoint(path)["global_step"])
        with zipfile.ZipFile(path) as parts:  # torch does not look at their checksums
            damaged = parts.testzip()
    except (ValueError, KeyError, zipfile.BadZipFile):
        damaged = "its head"
    if damaged is None:
        return steps
    log.warning("%s cannot be read (%s is damaged), so it is passed over", path, damaged)
    return None


def _remove_left_over(folder: Path) -> None:
    """Remove what processes that were killed while writing a checkpoint left there."""
    for path in folder.glob(".*.ckpt.*.tmp"):
        if time.time() - path.stat().st_mtime > LEFT_OVER:
            path.unlink(missing_ok=True)


class Moved(Callback):
    """A run whose folder was moved or copied goes on with the best checkpoint that lies there now, and its score."""

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        writer = next((c for c in trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint)), None)
        for state in checkpoint.get("callbacks", {}).values():
            before = state.get("dirpath") if isinstance(state, dict) else None
            if writer is None or before is None or before == writer.dirpath:
                continue
            now = Path(str(writer.dirpath))
            state["dirpath"] = str(now)
            for name in ("best_model_path", "kth_best_model_path", "last_model_path"):
                if state.get(name):
                    state[name] = str(now / Path(state[name]).name)
            best = state.get("best_k_models", {})
            state["best_k_models"] = {str(now / Path(path).name): score for path, score in best.items()}
