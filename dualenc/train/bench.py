"""`dualenc data bench`: whether data or compute is the bottleneck of a training run, measured in seconds."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import dualenc.torchvision_ops  # noqa: F401  (before Lightning)

import pytorch_lightning as pl
import torch
from tqdm import tqdm

from dualenc.data.module import PairData
from dualenc.data.order import check_batch_size
from dualenc.data.speed import Parts, batches_rate, with_small_cache
from dualenc.train.module import ContrastiveModule
from dualenc.train.run import CLI, cli_settings
from dualenc.train.verdict import Verdict, judge

NOWHERE = "dualenc-bench"  # stands for the run's folder, which is not made
TRIAL = 8  # samples of the step that tells how long one of the whole batch would take
STEP_SECONDS = 4.0  # steps that would take longer are measured on a part of the batch


def bench(arguments: Sequence[str], seconds: float = 1.5) -> Verdict:
    """Measure a training run in its parts. arguments: those of `dualenc fit`; seconds: for each part, at least.

    One device's share is measured, in this process and loader processes of its own. Nothing is written: no log, no
    checkpoint. ValueError and the like for what `fit` would refuse.
    """
    cli = _Measured(ContrastiveModule, PairData, **cli_settings(["fit", *arguments]), save_config_callback=None)
    data, trainer = cli.datamodule, cli.trainer
    data.trainer = trainer
    cache, data.cache_side = data.cache_side, None  # filling it is no part of an epoch: see `with_small_cache`
    data.setup("fit")
    with tqdm(total=7 if data.streams is None else 2, desc="measuring", unit="part", disable=None) as bar:
        rates, make = _data_rates(data, cache, seconds, bar.update)
        rates["step"], rows = _step_rate(cli.model, trainer, data, make, seconds)
        bar.update()
    settings = {
        "batch_size": data.batch_size * cli.devices,
        "devices": cli.devices,
        "step_samples": rows,
        "accelerator": trainer.strategy.root_device.type,
        "precision": str(trainer.precision),
        "workers": data.workers,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        "cache": cache,
        "decode": data.decode,
        "stream": data.streams is not None,
    }
    return judge(rates, settings)


class _Measured(CLI):
    """Model, data and trainer as `fit` builds them, but for one device and without anything that is written."""

    devices = 1  # of the run that was asked for

    def before_instantiate_classes(self) -> None:
        config = self.config[self.subcommand]
        self.devices = _devices(config.trainer)
        check_batch_size(config.data.batch_size, self.devices)
        config.data.batch_size //= self.devices
        changes = {
            "devices": 1,
            "num_nodes": 1,
            "strategy": "auto",
            "logger": False,
            "callbacks": None,
            "max_epochs": 1,
        }
        changes |= {"max_steps": 10**9, "max_time": None, "limit_val_batches": 0, "num_sanity_val_steps": 0}
        changes |= {"enable_progress_bar": False, "enable_model_summary": False, "default_root_dir": NOWHERE}
        for name, value in changes.items():
            config.trainer[name] = value
        config.ckpt_path = config.data.val = config.data.zeroshot = None
        super().before_instantiate_classes()
        CLI.fresh = None

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        trainer: Any = super().instantiate_trainer(**kwargs)
        trainer.callbacks = []
        return trainer

    def fit(self, **_: Any) -> None:
        """In place of the trainer's: nothing is trained."""


def _devices(trainer: Any) -> int:
    """How many processes `fit` would train with."""
    devices = trainer.devices
    if isinstance(devices, list):
        return len(devices) * int(trainer.num_nodes)
    if str(devices) in ("auto", "-1"):
        gpus = trainer.accelerator in ("auto", "gpu", "cuda")
        devices = max(1, torch.cuda.device_count()) if gpus else 1
    return int(devices) * int(trainer.num_nodes)


def _data_rates(
    data: PairData, cache: int | None, seconds: float, done: Callable[[], Any]
) -> tuple[dict[str, float | None], Callable[[int], dict[str, Any]]]:
    """Samples/s of the data's parts and of its loader, and a function that makes a batch of some size for the step."""
    loader: Any = data.train_dataloader()
    if data.streams is not None:
        rates: dict[str, float | None] = dict.fromkeys(("read", "decode", "tokenize", "collate", "together"))
        rates["loader"], batch = batches_rate(loader, data.workers, seconds)
        done()
        return rates, lambda rows: _first(batch, rows)
    dataset, order = loader.dataset, loader.sampler
    if cache:
        dataset, order = with_small_cache(dataset, order, cache, data.decode)
    parts = Parts(dataset, order)
    rates = {**parts.rates(data.workers, data.prefetch, seconds, done)}
    return rates, lambda rows: dataset.collate(parts.some(rows))


def _first(batch: dict[str, Any], rows: int) -> dict[str, Any]:
    """The first rows of a batch."""
    of_rows = {name for name, value in batch.items() if hasattr(value, "__len__") and len(value) == len(batch["key"])}
    return {name: value[:rows] if name in of_rows else value for name, value in batch.items()}


def _step_rate(
    module: Any, trainer: Any, data: PairData, make: Callable[[int], dict[str, Any]], seconds: float
) -> tuple[float, int]:
    """Samples/s of forward, backward and optimizer on a batch that is already on the device, and how many it held."""
    pieces = module.accumulate
    trial = min(-(-TRIAL // pieces) * pieces, data.batch_size)
    rate = _fit(module, trainer, data, make(trial), 0.0)
    rows = min(data.batch_size, max(trial, int(rate * STEP_SECONDS) // pieces * pieces))
    return _fit(module, trainer, data, make(rows), seconds), rows


class _Enough(Exception):
    """No error: ends a fit, before its epoch's bookkeeping."""


def _fit(module: Any, trainer: Any, data: PairData, batch: dict[str, Any], seconds: float) -> float:
    """Samples/s of Lightning's own loop over one batch again and again: its precision, clipping and optimizer."""
    device = trainer.strategy.root_device
    batch = {name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in batch.items()}
    clock = _Clock(seconds)
    trainer.callbacks, trainer.datamodule = [clock], data  # whose length the schedule of the learning rate asks for

    def again() -> Iterator[dict[str, Any]]:
        while True:
            yield batch

    with contextlib.suppress(_Enough):
        trainer.fit(module, again())
    return clock.steps * len(batch["key"]) / clock.taken


class _Clock(pl.Callback):
    """Counts steps for some seconds after the first ones, which are slower."""

    def __init__(self, seconds: float):
        self.seconds, self.steps, self.taken = seconds, 0, 0.0
        self._begun, self._start = time.perf_counter(), 0.0

    def on_train_batch_end(self, *_: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        now = time.perf_counter()
        if not self._start:
            if now - self._begun >= self.seconds / 4:
                self._start = now
            return
        self.steps, self.taken = self.steps + 1, now - self._start
        if self.taken >= self.seconds:
            raise _Enough
