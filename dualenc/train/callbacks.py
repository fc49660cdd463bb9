"""Callbacks: the progress bar's rate, settings that would give wrong gradients, and the encoder folder at the end."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

import dualenc.torchvision_ops  # noqa: F401  (before Lightning)

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, ModelCheckpoint, TQDMProgressBar

from dualenc.model.folder import load_weights, save_folder
from dualenc.train.accumulate import check_pieces
from dualenc.train.strategies import check_strategy

log = logging.getLogger("dualenc")


class Progress(TQDMProgressBar):
    """Lightning's bar, with samples per second since the epoch's start in place of the version number."""

    def on_train_epoch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        super().on_train_epoch_start(trainer, *_)
        self._start, self._first = time.monotonic(), trainer.global_step

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        logged = trainer._logger_connector.should_update_logs
        if logged and (loss := trainer.callback_metrics.get("train/loss")) is not None:
            self._loss = float(loss)  # waits for the device, as logging at this step does anyway
        if hasattr(self, "_loss"):
            metrics["train/loss"] = f"{self._loss:.3f}"
        steps = trainer.global_step - getattr(self, "_first", trainer.global_step)
        if steps and isinstance(batch := getattr(trainer.datamodule, "batch_size", None), int):  # type: ignore[attr-defined]
            metrics["samples/s"] = f"{steps * batch / (time.monotonic() - self._start):.0f}"
        return metrics


class ExactGradients(Callback):
    """Refuses settings under which a contrastive gradient would silently differ from that of the whole batch."""

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        if trainer.accumulate_grad_batches != 1:
            raise ValueError(
                f"trainer.accumulate_grad_batches is {trainer.accumulate_grad_batches}: the loss would see only a part of "
                "the batch as negatives, another gradient than the whole batch's; set it to 1 and data.batch_size to what fits"
            )
        module: Any = pl_module
        batch, pieces, ranks = trainer.datamodule.batch_size, module.accumulate, trainer.world_size  # type: ignore[attr-defined]
        normalised = any(isinstance(m, torch.nn.modules.batchnorm._BatchNorm) for m in module.modules())
        check_strategy(trainer, pieces)
        check_pieces(pieces, batch, ranks)
        _check_rows(batch, ranks * pieces, normalised)
        if ranks > 1 and normalised:
            by = "the rows of all ranks" if torch.cuda.is_available() else "each rank's own rows"
            log.warning("batch norm normalises by %s; everything else is exactly one process's gradient", by)


def _check_rows(batch: int, pieces: int, normalised: bool) -> None:
    """ValueError for batches of which nothing can be learnt; normalised: by batch norm."""
    if batch < 2:
        raise ValueError(
            f"data.batch_size is {batch}: a pair alone has no negatives, so nothing is learnt; set 2 or more"
        )
    if batch // pieces < 2 and normalised:
        raise ValueError(
            f"data.batch_size {batch} in {pieces} pieces leaves batch norm one row to normalise by; use fewer ranks or a lower "
            "model.accumulate"
        )


class KeepLogs(Callback):
    """Writes out what is logged whenever a checkpoint is written: a run that is killed and resumed lacks no row."""

    def on_save_checkpoint(self, trainer: pl.Trainer, *_: Any) -> None:
        for logger in trainer.loggers:
            logger.save()


class WriteEncoder(Callback):
    """At the end of fit, writes the encoder folder from the best checkpoint (by the monitored score), or the last weights.

    Args:
        folder: where the encoder folder goes.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.is_global_zero or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        if trainer.global_step == 0:
            log.warning("no step was made, so no encoder is written; raise trainer.max_epochs or max_steps")
            return
        best = next((c for c in trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint) and c.monitor), None)
        module: Any = pl_module
        if best is not None and best.best_model_path:
            checkpoint = torch.load(best.best_model_path, map_location="cpu", weights_only=True)
            state = {k[6:]: v for k, v in checkpoint["state_dict"].items() if k.startswith("model.")}
            load_weights(module.model, state, best.best_model_path)
            loaded = module.loaded()._replace(provenance=checkpoint["dualenc"]["training"])
            score = f", {best.monitor} {float(best.best_model_score):.4f}" if best.best_model_score is not None else ""
        else:
            loaded, score = module.loaded(), ""
        save_folder(self.folder, loaded, replace=True)
        log.warning("encoder written to %s (step %s%s)", self.folder, loaded.provenance["steps"], score)
