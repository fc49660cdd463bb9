"""Steps of `dualenc fit` one at a time: its own loop, optimizer and callbacks, on batches that were prepared before.

What lies between two batches that the loop asks for is one whole step, and it is what the benchmarks of training time; only
loading is left out.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import multiprocessing
import os
import socket
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any
from unittest import mock

import dualenc.torchvision_ops  # noqa: F401  (before Lightning)

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities import rank_zero_only

from dualenc.cli import quiet
from dualenc.data.module import PairData
from dualenc.train.run import run

Batch = dict[str, Any]
Feed = Callable[[list[Batch], Any], Iterator[Batch]]
MANY = 10**6


class _Over(Exception):
    """No error: ends a fit before its epoch's bookkeeping."""


class FirstLoss(pl.Callback):
    """The loss of the first step that it sees."""

    loss: float | None = None

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, *_: Any) -> None:
        if self.loss is None:
            self.loss = float(outputs["loss"])


class _Fed:
    """A training loader of known length, so that Lightning fetches no batch ahead of the step before it."""

    def __init__(self, batches: Iterator[Batch]):
        self._batches = batches

    def __len__(self) -> int:
        return MANY

    def __iter__(self) -> Iterator[Batch]:
        yield from self._batches
        raise _Over


def words(**settings: Any) -> list[str]:
    """Options of `dualenc fit`; a dot in a name is written as two underlines.

    >>> words(data__batch_size=4, model__vision={"width": 8})
    ['--data.batch_size=4', '--model.vision={"width": 8}']
    """
    return [
        f"--{name.replace('__', '.')}={value if isinstance(value, str) else json.dumps(value)}"
        for name, value in settings.items()
    ]


def fit(options: Sequence[str], count: int, feed: Feed) -> None:
    """`dualenc fit` in this process until `feed` ends. feed(batches, module) gets the first `count` training batches as the
    data module makes them, and yields a batch for each step; it goes on once that step is over. Nothing is kept.
    """
    loader = PairData.train_dataloader

    def prepared(data: PairData) -> Any:
        batches = list(itertools.islice(loader(data), count))
        assert len(batches) == count, f"only {len(batches)} batches in an epoch, {count} are needed"
        return _Fed(feed(batches, data.trainer.lightning_module))  # type: ignore[union-attr]

    quiet()
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(_Over):
        fixed = words(
            trainer__default_root_dir=f"{folder}/run",
            trainer__enable_progress_bar=False,
            trainer__enable_model_summary=False,
            trainer__max_steps=MANY,
            data__workers=0,
            data__val=None,
            data__test=None,
        )
        with mock.patch.object(PairData, "train_dataloader", prepared):
            run(["fit", *options, *fixed])


class Process:
    """`dualenc fit` in a process of its own that takes a step whenever it is told to; forked, so it starts at once."""

    def __init__(self, options: Sequence[str], count: int, threads: int, ranks: Mapping[str, str] | None = None):
        context = multiprocessing.get_context("fork")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(
            target=_obey, args=(theirs, self._pipe, list(options), count, threads, dict(ranks or {})), daemon=True
        )
        self._process.start()
        theirs.close()

    def begin(self, way: str = "step") -> None:
        """Start one step. way: "step", or "saved" to count what it keeps for the backward pass."""
        self._pipe.send(way)

    def finish(self) -> Any:
        """Wait for it: None, or what was counted. RuntimeError where the process has failed."""
        try:
            return self._pipe.recv()
        except (EOFError, ConnectionError):
            raise RuntimeError("a training process ended before its step did; its message is above") from None

    def step(self, way: str = "step") -> Any:
        self.begin(way)
        return self.finish()

    def end(self) -> None:
        with contextlib.suppress(OSError):
            self._pipe.send(None)
        self._process.join(60)
        self._process.kill()


def together(processes: Sequence[Process], steps: int = 1) -> None:
    """So many steps of each, all at the same time."""
    for process in processes:
        for _ in range(steps):
            process.begin()
    for process in processes:
        for _ in range(steps):
            process.finish()


def group(options: Sequence[str], count: int, ranks: int) -> list[Process]:
    """One training on several ranks over gloo, a thread each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": f"{port}", "TORCHELASTIC_RUN_ID": "benchmark"}
    common |= {"WORLD_SIZE": f"{ranks}", "LOCAL_WORLD_SIZE": f"{ranks}", "GROUP_RANK": "0"}
    wider = [*options, *words(trainer__devices=ranks, trainer__strategy="ddp")]
    own = [common | {"RANK": f"{rank}", "LOCAL_RANK": f"{rank}"} for rank in range(ranks)]
    return [Process(wider, count, 1, environment) for environment in own]


def _obey(pipe: Any, other: Any, options: list[str], count: int, threads: int, environment: dict[str, str]) -> None:
    other.close()
    os.environ.update(environment)
    rank_zero_only.rank = int(environment.get("RANK", 0))  # was read when Lightning was imported, before the fork
    torch.set_num_threads(threads)

    def feed(batches: list[Batch], module: Any) -> Iterator[Batch]:
        for batch in itertools.cycle(batches):
            way = pipe.recv()
            if way is None:
                return
            with Saved(module) if way == "saved" else contextlib.nullcontext() as saved:
                yield batch
            pipe.send(saved and saved.most)

    status = 0
    try:
        fit(options, count, feed)
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stderr.flush()
    os._exit(status)


class Saved(torch.autograd.graph.saved_tensors_hooks):
    """Within it, counts the bytes that autograd keeps for backward passes: of each storage once, a module's weights left out.

    most: the most at any time. It is exact where a process's memory is not: allocators keep what they once had.
    """

    def __init__(self, module: torch.nn.Module) -> None:
        self.now = self.most = 0
        self._held: dict[int, int] = {}  # storage -> how many saved tensors are views of it
        self._weights = {t.untyped_storage().data_ptr() for t in [*module.parameters(), *module.buffers()]}
        super().__init__(self._pack, lambda held: held.tensor)

    def __enter__(self) -> Saved:
        super().__enter__()
        return self

    def _pack(self, tensor: torch.Tensor) -> Any:
        storage = tensor.untyped_storage()
        place, size = storage.data_ptr(), storage.nbytes()
        if place in self._weights:
            return _Held(tensor, lambda: None)
        self._held[place] = self._held.get(place, 0) + 1
        if self._held[place] == 1:
            self.now += size
            self.most = max(self.most, self.now)

        def freed() -> None:
            self._held[place] -= 1
            if not self._held[place]:
                del self._held[place]
                self.now -= size

        return _Held(tensor.detach(), freed)


class _Held:
    def __init__(self, tensor: torch.Tensor, freed: Callable[[], None]):
        self.tensor, self._freed = tensor, freed

    def __del__(self) -> None:
        self._freed()
