"""What is logged of a run while it goes: gradient norm, temperature, speed, waiting for data, memory."""

from __future__ import annotations

import sys
import time
from typing import Any

import dualenc.torchvision_ops  # noqa: F401  (before Lightning)

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback

from dualenc.train.finite import NonFinite

GIB = 1 << 30


class Watch(Callback):
    """Logs, every trainer.log_every_n_steps and at no other step, so that the others wait for no device:

    - `train/grad_norm`: the Euclidean norm of all gradients of that step together, before clipping
    - `train/temperature`: 1 / the logit scale
    - `train/samples_per_second`: of all ranks, since the last time
    - `train/data_wait`: share of that time in which the loop of the first rank waited for its loader, 0..1
    - `train/memory_gib`: the most memory that the process of the first rank (not its loader's workers) has held until now
    - `train/gpu_memory_gib`: the most that its tensors have held on the device, where that is a GPU

    Validation is left out of the times.
    """

    def __init__(self, guard: NonFinite) -> None:
        self._guard = guard  # computes the norm at every step; it has to stand before
        self._begun, self._waited, self._rows, self._out = 0.0, 0.0, 0, 0.0
        self._fetching = self._validating = 0.0
        self._norm = torch.zeros(())

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        loop: Any = trainer.fit_loop.epoch_loop
        before, after = loop._on_before_fetch, loop._on_after_fetch

        def fetch() -> None:
            self._fetching = time.perf_counter()
            before()

        def fetched() -> None:
            after()
            self._waited += time.perf_counter() - self._fetching

        loop._on_before_fetch, loop._on_after_fetch = fetch, fetched  # given to the fetcher when an epoch begins
        self._begin()

    def _begin(self) -> None:
        self._begun, self._waited, self._rows, self._out = time.perf_counter(), 0.0, 0, 0.0

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._validating = time.perf_counter()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._out += time.perf_counter() - self._validating

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Any) -> None:
        if trainer._logger_connector.should_update_logs:
            self._norm = self._guard.norm

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._rows += len(batch["key"]) * trainer.world_size
        if not trainer._logger_connector.should_update_logs:
            return
        scale: Any = pl_module.model.logit_scale  # type: ignore[union-attr]
        pl_module.log("train/grad_norm", self._norm)
        pl_module.log("train/temperature", torch.exp(-scale.detach()))
        taken = max(time.perf_counter() - self._begun - self._out, 1e-9)
        values = {"samples_per_second": self._rows / taken, "data_wait": min(1.0, self._waited / taken)}
        for name, value in (values | memory(pl_module.device)).items():
            pl_module.log(f"train/{name}", value)
        self._begin()


def memory(device: torch.device) -> dict[str, float]:
    """`memory_gib` of this process (not on Windows) and `gpu_memory_gib` of its tensors on a GPU: the most until now."""
    found = {}
    if sys.platform != "win32":
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        found["memory_gib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / GIB
    if device.type == "cuda":
        found["gpu_memory_gib"] = torch.cuda.max_memory_allocated(device) / GIB
    return found
