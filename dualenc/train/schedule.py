"""The learning rate's schedule, and how many steps it spans."""

from __future__ import annotations

import math

import dualenc.torchvision_ops  # noqa: F401  (before Lightning)

import pytorch_lightning as pl


def total_steps(trainer: pl.Trainer) -> float:
    """Optimizer steps of a whole fit, however much of it is done.

    Lightning's `estimated_stepping_batches` would build the training loader on the spot, before a checkpoint has told
    where it starts: a resumed epoch would begin anew.
    """
    batches, limit = trainer.datamodule.batches, trainer.limit_train_batches  # type: ignore[attr-defined]
    if isinstance(limit, int) or batches == math.inf:
        batches = min(batches, limit if isinstance(limit, int) else math.inf)
    else:
        batches = int(batches * limit)
    epochs = trainer.max_epochs if trainer.max_epochs not in (None, -1) else math.inf
    return min(batches * epochs, trainer.max_steps if trainer.max_steps != -1 else math.inf)


def warmup_cosine(step: int, warmup: int, total: int) -> float:
    """The learning rate's factor at a step: linear to 1 over `warmup` steps, then half a cosine to 0 at `total`."""
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, total - warmup)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
