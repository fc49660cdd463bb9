"""SIGTERM and its like: training stops at the end of a step, what it has learnt is written, and the run exits with 0.

Lightning's own way ends the run without saving, and asks the device at every step of several ranks whether to stop, which
waits for all that was queued there. Both are replaced here.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dualenc.torchvision_ops  # noqa: F401  (before Lightning)

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.utilities.exceptions import SIGTERMException


@dataclass
class _Heard:
    """What the handler, which runs between any two instructions, and the callback tell each other."""

    owner: int = 0  # the process that saves; forked ones inherit the handler
    name: str = ""  # of the first signal that came
    waits: bool = False  # for the end of a step, rather than stopping on the spot
    validating: bool = False


_heard = _Heard()


@contextlib.contextmanager
def caught() -> Iterator[None]:
    """While a fit is prepared and runs, SIGTERM (outside SLURM, which has its own use for them, also SIGUSR1 and SIGUSR2)
    asks it to stop. Before the first step it stops at once, as SystemExit(0); then `StopAtSignal` decides.

    Does nothing outside the main thread, where Python allows no handlers.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    names = ["SIGTERM"] if "SLURM_JOB_ID" in os.environ else ["SIGTERM", "SIGUSR1", "SIGUSR2"]
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    numbers = [n for n in numbers if n == signal.SIGTERM or signal.getsignal(n) == signal.SIG_DFL]
    _reset(os.getpid())
    before = {number: signal.signal(number, _hear) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _reset(0)


def _reset(owner: int) -> None:
    _heard.owner, _heard.name, _heard.waits, _heard.validating = owner, "", False, False


def _hear(number: int, _: Any) -> None:
    if os.getpid() != _heard.owner:  # forked from the one that is meant; loaders' workers have a handler of their own
        if number == signal.SIGTERM:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
    elif not _heard.name:  # a second one changes nothing: a checkpoint may be half written
        _heard.name = signal.Signals(number).name
        if not _heard.waits:
            _say(f"stopped by {_heard.name} before the first step, so there is nothing to save")
            raise SystemExit(0)
        if _heard.validating:
            _say(f"{_heard.name}: training stops after this validation")


def _say(line: str) -> None:
    os.write(2, f"\n{line}\n".encode())  # logging and buffered streams must not be entered twice, as a handler may


class StopAtSignal(Callback):
    """Stops a fit within `caught` at the end of a step, on all ranks the same one, when a signal came on any of them.

    A step after which an epoch ends or a validation is due is no place to resume from: then the stop comes after the
    epoch's own checkpoint, or one step after the validation. A run whose last step is done comes to its end. It has to
    stand after the callbacks whose state belongs into the checkpoint.

    Args:
        path: the checkpoint to write, that `--ckpt_path last` finds.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._stops, self._agreement = False, _Agreement(1)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage == "fit" and signal.getsignal(signal.SIGTERM) is _hear:
            connector: Any = trainer._signal_connector
            connector._sigterm_notifier_fn = lambda *_: None  # would end the run without a checkpoint
            loop: Any = trainer.fit_loop.epoch_loop
            loop._broadcast_sigterm_tensor = lambda: None  # would wait for the device at every step
            _heard.waits = trainer.world_size > 1  # one rank alone must not leave the others waiting

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        _heard.waits = True
        self._stops, self._agreement = False, _Agreement(trainer.world_size)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        _heard.validating = True

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        _heard.validating = False

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self._stops = self._stops or self._agreement.ask(bool(_heard.name))
        loop: Any = trainer.fit_loop.epoch_loop
        if self._stops and not loop._is_training_done and not loop._should_check_val_fx(trainer.fit_loop._data_fetcher):
            self._save(trainer)
            trainer._signal_connector.received_sigterm = True  # Lightning then leaves, once this step is in the log

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._stops = self._stops or (trainer.world_size == 1 and bool(_heard.name))
        if self._stops and not _over(trainer):
            trainer._signal_connector.received_sigterm = True  # Lightning leaves after the epoch's own checkpoint

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._agreement.finish()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        if isinstance(exception, SIGTERMException) and self._stops:
            self._tell(trainer)

    def _save(self, trainer: pl.Trainer) -> None:
        trainer.save_checkpoint(self.path)

    def _tell(self, trainer: pl.Trainer) -> None:
        if trainer.is_global_zero:
            name, step = _heard.name or "a signal to another rank", trainer.global_step
            _say(f"stopped by {name} after step {step}; {self.path} is written; go on with --ckpt_path last")


class _Agreement:
    """Whether any rank wants to stop. Each step's answers travel while the next step is computed, between CPUs, so that
    nobody waits and no device is asked; the decision is one step late and the same on all ranks."""

    def __init__(self, ranks: int):
        self._group = dist.new_group(backend="gloo") if ranks > 1 else None
        self._flag, self._work = torch.zeros(1, dtype=torch.int32), None

    def ask(self, mine: bool) -> bool:
        if self._group is None:
            return mine
        if self.finish():
            return True
        self._flag = torch.tensor([int(mine)], dtype=torch.int32)
        self._work = dist.all_reduce(self._flag, dist.ReduceOp.MAX, self._group, async_op=True)
        return False

    def finish(self) -> bool:
        """Wait for the answers under way; True when one of them was yes."""
        if self._work is not None:
            self._work.wait()
            self._work = None
        return bool(self._flag)


def _over(trainer: pl.Trainer) -> bool:
    """Whether the epoch that ends is the last one."""
    epochs, steps = trainer.max_epochs, trainer.max_steps
    by_epochs = epochs is not None and epochs != -1 and trainer.current_epoch + 1 >= epochs
    return by_epochs or (steps != -1 and trainer.global_step >= steps)
