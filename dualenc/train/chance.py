"""Chance in a training step that depends on nothing a checkpoint would have to hold."""

from __future__ import annotations

import hashlib
import os
from typing import Any

import dualenc.torchvision_ops  # noqa: F401  (before Lightning)

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback


class SameChance(Callback):
    """Seeds torch before every step from (seed, step, rank): dropout is then the same whether or not the run was interrupted
    before, although checkpoints hold no state of random generators, and differs between ranks.

    Args:
        seed: of the run; unless given, what `seed_everything` was set to, or 0.
    """

    def __init__(self, seed: int | None = None):
        self.seed = int(os.environ.get("PL_GLOBAL_SEED", 0)) if seed is None else seed

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        torch.manual_seed(step_seed(self.seed, trainer.global_step, trainer.global_rank))


def step_seed(seed: int, step: int, rank: int) -> int:
    """A seed of 63 bits that depends on all three: hashed, as neighbouring seeds are no independent streams."""
    digest = hashlib.blake2b(f"{seed}/{step}/{rank}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
