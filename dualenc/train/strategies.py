"""Which ways to train give the whole batch's gradient exactly; the others are refused."""

from __future__ import annotations

import dualenc.torchvision_ops  # noqa: F401  (before Lightning)

import pytorch_lightning as pl
from pytorch_lightning.callbacks import GradientAccumulationScheduler
from pytorch_lightning.strategies import DDPStrategy, SingleDeviceStrategy, Strategy

KNOWN = (SingleDeviceStrategy, DDPStrategy)  # and none of their kinds: a subclass may reduce otherwise


def check_strategy(trainer: pl.Trainer, pieces: int = 1) -> None:
    """ValueError for a strategy or callback under which a step's gradient is not known to be that of the whole batch.

    One device, and DDP under all of its names in Lightning, are compared with one process in the tests. pieces:
    model.accumulate.
    """
    strategy = trainer.strategy
    if type(strategy) not in KNOWN:
        raise ValueError(
            f"trainer.strategy {type(strategy).__name__} has not been shown to give the gradients of the whole batch, so a run "
            "could be wrong without a sign; set it to ddp, or to auto for one device"
        )
    if changed := _changes_the_mean(strategy):
        raise ValueError(
            f"trainer.strategy has {changed}, so gradients would not be the mean over ranks and those of the whole batch be "
            "lost; leave it out"
        )
    if pieces > 1 and getattr(strategy, "_ddp_kwargs", {}).get("static_graph"):
        raise ValueError(
            f"static_graph in trainer.strategy beside model.accumulate {pieces}: DDP would wait for gradients that come later; "
            "leave one of them out"
        )
    if any(isinstance(callback, GradientAccumulationScheduler) for callback in trainer.callbacks):  # type: ignore[attr-defined]
        raise ValueError(
            "GradientAccumulationScheduler in trainer.callbacks: the loss would see only a part of the batch as negatives, "
            "another gradient than the whole batch's; remove it and set model.accumulate"
        )


def _changes_the_mean(strategy: Strategy) -> str | None:
    """The setting of DDP, if any, with which ranks exchange something else than their gradients' mean."""
    for setting in ("ddp_comm_hook", "ddp_comm_wrapper", "model_averaging_period"):
        if getattr(strategy, f"_{setting}", None) is not None:  # Lightning keeps them so
            return setting
    return None
