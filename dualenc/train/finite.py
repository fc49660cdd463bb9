"""Steps whose loss or gradient is not finite change nothing: the update is left out on the device, and told later."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable
from typing import Any

import dualenc.torchvision_ops  # noqa: F401  (before Lightning)

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from pytorch_lightning.callbacks import Callback
from torch import Tensor, nn

log = logging.getLogger("dualenc")

NAMED = 8  # keys of a batch, in a message
MOST_IN_A_ROW = 20  # steps left out one after another, after which training stops whatever the setting
CURE = "lower model.lr, lengthen model.warmup_steps or set trainer.gradient_clip_val"


def total_norm(parameters: Iterable[nn.Parameter]) -> Tensor:
    """The Euclidean norm of all gradients together, a scalar on their device."""
    grads = [p.grad for p in parameters if p.grad is not None]
    return torch.nn.utils.get_total_norm(grads) if grads else torch.zeros(())


class NonFinite(Callback):
    """Leaves out every step whose loss or gradient norm is NaN or infinite: weights, optimizer state and the statistics of
    batch norm stay as they were, on all ranks alike. (The step counts for the learning rate's schedule.)

    A fused optimizer reads the flag on its device (`optimizer.found_inf`, made for torch's GradScaler), so nothing waits for
    the device: what happened is looked at when metrics are logged, before a checkpoint and at an epoch's end; on a CPU,
    where there is nothing to wait for, at every step. An optimizer that is not fused is asked at every step.

    Under 16-bit precision with a GradScaler, gradients overflow now and then: the scaler leaves those steps out and lowers
    its scale. They are counted apart (`train/overflow_steps`), until there are MOST_IN_A_ROW of them in a row.

    Args:
        action: "stop" raises ValueError with the step and the keys of its batch; "skip" warns and goes on, until
            MOST_IN_A_ROW steps in a row were left out.
    """

    def __init__(self, action: str):
        if action not in ("stop", "skip"):
            raise ValueError(f"model.non_finite {action!r} is unknown; use stop or skip")
        self.action = action
        self.steps, self.overflows, self._row = 0, 0, 0
        self.norm = self.skipped = torch.zeros(())  # of the latest step: gradient norm; 1 where the update was left out
        self._loss = torch.zeros(())
        self._pending: list[tuple[int, list[str], int, Tensor]] = []  # see `on_before_optimizer_step`
        self._keys: list[str] = []  # of the step under way: the first ones, and how many there are
        self._rows = 0
        self._kept: list[tuple[Tensor, Tensor]] = []  # batch norm's statistics, and what they were before the step

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        norms = [m for m in pl_module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        self._kept = [(b, b.detach().clone()) for m in norms for b in m.buffers(recurse=False)]

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, _: int) -> None:
        self._keys, self._rows = list(batch["key"][:NAMED]), len(batch["key"])
        for buffer, kept in self._kept:
            kept.copy_(buffer)

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor) -> None:
        self._loss = loss.detach()

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Any) -> None:
        """Before clipping, which would make all gradients NaN by a norm that is: harmless, as none is used."""
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self.norm = total_norm(parameters).to(self._loss.device)
        loss, norm = (~torch.isfinite(x) for x in (self._loss, self.norm))
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        ours = loss if scaler is not None else loss | norm
        flags = torch.stack([ours, loss | norm]).float()
        if trainer.world_size > 1:
            dist.all_reduce(flags, dist.ReduceOp.MAX)  # on the device: nobody waits for it here
        ours, self.skipped = flags[0], flags[1]
        if scaler is None and optimizer.defaults.get("fused"):
            optimizer.found_inf = ours
        elif bool(ours):
            for parameter in parameters:
                parameter.grad = None
        for buffer, kept in self._kept:
            buffer.copy_(torch.where(ours.bool(), kept, buffer))
        values = torch.stack([ours, self.skipped, self._loss.float(), self.norm.float()])
        self._pending.append((trainer.global_step, self._keys, self._rows, values))

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        logged = trainer._logger_connector.should_update_logs
        if logged or pl_module.device.type == "cpu":
            self.look(trainer)
        if logged and (self.steps or self.overflows):
            pl_module.log("train/non_finite_steps", float(self.steps))
            if getattr(trainer.precision_plugin, "scaler", None) is not None:
                pl_module.log("train/overflow_steps", float(self.overflows))

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.look(trainer)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self.look(trainer)
        checkpoint["callbacks"][self.state_key] = self.state_dict()  # Lightning took it before that look

    def look(self, trainer: pl.Trainer) -> None:
        """Count the steps that were left out since the last look, and tell. ValueError as the class says."""
        pending, self._pending = self._pending, []
        if not pending:
            return
        told = []
        rows = torch.stack([values for *_, values in pending]).tolist()  # waits for the device, once for all of them
        for (step, keys, count, _), (ours, skipped, loss, norm) in zip(pending, rows, strict=True):
            self.overflows += int(skipped and not ours)
            self.steps += int(ours)
            self._row = self._row + 1 if skipped else 0
            what = f"{_what(loss, norm)} at step {step} (batch: {_named(keys, count * trainer.world_size)})"
            if ours:
                told.append(what)
            if (ours and self.action == "stop") or self._row == MOST_IN_A_ROW:
                raise ValueError(self._stopped(what, bool(ours)))
        if told and trainer.is_global_zero:
            log.warning("left out, as they would have spoilt the weights: %s", "; ".join(told))

    def _stopped(self, told: str, ours: bool) -> str:
        if ours and self.action == "stop":
            return (
                f"{told}, so training stops before it spoils the weights; {CURE}, or model.non_finite skip to go on without "
                "such steps"
            )
        return f"{told}, the last of {MOST_IN_A_ROW} steps in a row that were left out, so nothing is learnt; {CURE}"

    def state_dict(self) -> dict[str, int]:
        return {"steps": self.steps, "overflows": self.overflows, "row": self._row}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.steps, self.overflows, self._row = state["steps"], state["overflows"], state["row"]


def _what(loss: float, norm: float) -> str:
    if math.isfinite(loss):
        return f"the gradient's norm is {norm}"
    return f"the loss is {loss}"


def _named(keys: list[str], count: int) -> str:
    """The first keys of a batch of `count` samples."""
    more = count - len(keys)
    return ", ".join(keys) + (f" and {more:,} more" if more else "")
