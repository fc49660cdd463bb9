"""An exponential moving average of the weights, which validation, checkpoints' readers and the encoder folder get.

Lightning's EMAWeightAveraging copies the whole module, frozen towers included, puts the trained weights back before the
module's own validation ends (whose class embeddings would be those of other weights than the images'), and cannot leave
out a step without waiting for the device.
"""

from __future__ import annotations

import logging
from typing import Any

import dualenc.torchvision_ops  # noqa: F401  (before Lightning)

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor, nn

from dualenc.train.finite import NonFinite

log = logging.getLogger("dualenc")

TRAINED = "current_model_state"  # Lightning's own name in a checkpoint whose `state_dict` holds averaged weights


class Average(Callback):
    """avg ← avg + (1 - d)(weights - avg) after each step, d = min(decay, (1 + n) / (10 + n)) after n steps: the first
    steps, which start from random weights, are forgotten soon. Trained parameters and the running statistics of batch norm
    are averaged, in float32 or better; steps that were left out (`NonFinite`) do not enter. No step waits for the device.

    A checkpoint's `state_dict` holds the averages, under `current_model_state` are the weights that training goes on from;
    a resumed run is the uninterrupted one to the bit. It has to stand before the callbacks that write checkpoints.

    Args:
        decay: 0 ≤ decay < 1; None keeps no average, but a checkpoint that has one is resumed from its trained weights.
        guard: what knows which steps were left out; it has to stand before.
    """

    def __init__(self, decay: float | None, guard: NonFinite | None = None):
        if decay is not None and not 0 <= decay < 1:
            raise ValueError(
                f"model.ema is {decay}, but a decay is at least 0 and below 1; leave it out for no average"
            )
        self.decay, self._guard = decay, guard
        self._live: dict[str, Tensor] = {}  # the module's own tensors, by name
        self._average: dict[str, Tensor] = {}
        self._count = torch.zeros(())  # steps that entered, on the device of the weights
        self._loaded: dict[str, Any] | None = None
        self._trained: dict[str, Tensor] = {}  # while validation has the averages in their place
        self._swapped = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.decay is None:
            return
        given = self._loaded or {"average": {}, "count": 0}
        self._loaded = None
        self._live = _averaged(pl_module)
        for name, tensor in self._live.items():
            start = given["average"].get(name, tensor.detach())
            self._average[name] = start.to(tensor.device, _wide(tensor.dtype), copy=True)
        self._count = torch.tensor(float(given["count"]), dtype=torch.float32, device=pl_module.device)

    @torch.no_grad()
    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        if self.decay is None:
            return
        enters = 1 - self._guard.skipped if self._guard is not None else torch.ones((), device=pl_module.device)
        kept = ((1 + self._count) / (10 + self._count)).clamp_max(self.decay)
        self._count = self._count + enters
        weight = (1 - kept) * enters  # 0 leaves every average as it is
        for name, tensor in self._live.items():
            average = self._average[name]
            average.lerp_(tensor.to(average.dtype), weight.to(average.device, average.dtype))

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._average and not self._swapped:
            self._swap()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._swapped:
            self._swap()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        if self._swapped:
            self._swap()

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """What stays in the module, for the encoder folder."""
        with torch.no_grad():
            for name, tensor in _averaged(pl_module).items():
                if name in self._average:
                    tensor.copy_(self._average[name])

    @torch.no_grad()
    def _swap(self) -> None:
        """Trained weights and averages change places. Where weights are narrower than averages, both keep their bits."""
        self._swapped = not self._swapped
        for name, tensor in self._live.items():
            if self._swapped:
                self._trained[name] = tensor.clone()
                tensor.copy_(self._average[name])
            else:
                tensor.copy_(self._trained.pop(name))

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if not self._average:
            return
        state = dict(checkpoint["state_dict"])
        trained = state | (self._trained if self._swapped else {})
        first = {id(p): name for name, p in pl_module.named_parameters()}
        shared = {name: first[id(p)] for name, p in pl_module.named_parameters(remove_duplicate=False)}  # tied weights
        own = {name: shared.get(name, name) for name in state}
        averages = {name: self._average[of].to(state[name].dtype) for name, of in own.items() if of in self._average}
        checkpoint[TRAINED] = {name: trained[name] for name in state}
        checkpoint["state_dict"] = {name: averages.get(name, tensor) for name, tensor in state.items()}
        checkpoint["ema"] = {"count": int(self._count), "average": dict(self._average)}

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        fitting = trainer.state.fn == "fit"
        if TRAINED in checkpoint and fitting:
            pl_module.load_state_dict(checkpoint[TRAINED])
            self._loaded = checkpoint["ema"]
            if self.decay is None:
                log.warning(
                    "the checkpoint's averaged weights are left out, as model.ema is not set; training goes on without"
                )
        elif fitting and self.decay is not None:
            log.warning("the checkpoint has no averaged weights: the average of model.ema starts from its trained ones")


def _averaged(module: nn.Module) -> dict[str, Tensor]:
    """Trained parameters and batch norm's statistics by name, as they stand in `state_dict`."""
    found: dict[str, Tensor] = {name: p for name, p in module.named_parameters() if p.requires_grad}
    for prefix, part in module.named_modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            buffers = part.named_buffers(prefix, recurse=False)
            found |= {name: buffer for name, buffer in buffers if buffer.is_floating_point()}
    return found


def _wide(dtype: torch.dtype) -> torch.dtype:
    """An average moves by less than half precision can tell."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype
