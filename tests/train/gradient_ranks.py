"""Run by `test_gradients.py` in processes of their own: gradients of several ranks and pieces beside those of one process."""

from __future__ import annotations

import contextlib
import functools
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import dualenc.torchvision_ops  # noqa: F401  (before Lightning)

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.plugins import Precision
from pytorch_lightning.strategies import DDPStrategy
from pytorch_lightning.utilities import rank_zero_only
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dualenc.data.module import PairData
from dualenc.model import folder
from dualenc.train.accumulate import average
from dualenc.train.module import ContrastiveModule
from tests.small import TEXT, VISION

ROWS, CAPTIONS = 16, 2
TOWERS = {"embed_dim": 8, "vision": VISION["vit"], "text": TEXT | {"vocab_size": 64}}
FEW = {"mask_false_negatives": True, "matryoshka": [3, 8]}
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "label smoothing": {"label_smoothing": 0.2},
    "group": {"positives": "group"},
    "masked": {"mask_false_negatives": True},
    "matryoshka": {"matryoshka": [3, 5, 8]},
    "all": FEW | {"positives": "group", "label_smoothing": 0.1},
    "sigmoid": {"loss": "sigmoid"},
    "sigmoid group": {"loss": "sigmoid", "positives": "group"},
    "sigmoid masked": {"loss": "sigmoid", "mask_false_negatives": True},
    "sigmoid all": FEW | {"loss": "sigmoid", "positives": "group"},
}
CASES = {f"{name}, tile {tile}": options | {"tile": tile} for name, options in OPTIONS.items() for tile in (0, 3)}


tokenizer = functools.cache(lambda: folder.make_tokenizer(TEXT))  # takes longer to make than gradients


class Step(nn.Module):
    """training_step as forward, which is what DDP averages the gradients of."""

    def __init__(self, module: ContrastiveModule):
        super().__init__()
        self.module = module

    def forward(self, batch: dict[str, Any]) -> Tensor:
        return self.module.training_step(batch, 0)


class Quiet(ContrastiveModule):
    def log(self, *_: Any, **__: Any) -> None:
        """There is no trainer to log to."""


def make_batch() -> dict[str, Any]:
    """16 rows of two captions, with equal keys, equal captions and rows that are not valid on several ranks and pieces."""
    generator = torch.Generator().manual_seed(0)
    texts = torch.randint(1, 62, (ROWS, CAPTIONS, 16), generator=generator)
    texts[..., -1] = 63  # the end of text
    texts[5, 0] = texts[9, 1]
    texts[1, 0] = texts[14, 0]
    group = torch.arange(ROWS) + 100
    group[12] = group[3]
    valid = torch.ones(ROWS, dtype=torch.bool)
    valid[[6, 13, 15]] = False
    image = torch.randint(0, 256, (ROWS, 3, 32, 32), dtype=torch.uint8, generator=generator)
    keys = [str(int(g)) for g in group]
    of_rows = {"reason": [None] * ROWS, "origin": [0] * ROWS, "key": keys}
    return {"image": image, "texts": texts, "group": group, "valid": valid, "truncated": 0, **of_rows}


def share(batch: dict[str, Any], rank: int, ranks: int) -> dict[str, Any]:
    rows = slice(rank * ROWS // ranks, (rank + 1) * ROWS // ranks)
    return {name: value if name == "truncated" else value[rows] for name, value in batch.items()}


def gradients(settings: dict[str, Any], batch: dict[str, Any], rank: int = 0, ranks: int = 1) -> dict[str, Tensor]:
    """The loss, and each parameter's gradient after one step's backward pass."""
    torch.manual_seed(1)
    with patch("dualenc.model.folder.make_tokenizer", return_value=tokenizer()):
        module = Quiet(**TOWERS, **settings).double()
    with torch.no_grad():
        for parameter in module.parameters():  # open_clip begins with equal values in places
            parameter.add_(0.1 * torch.randn_like(parameter))
    module._trainer = SimpleNamespace(global_rank=rank, global_step=0, precision_plugin=Precision())  # type: ignore[assignment]
    step: Any = Step(module)
    apart: Any = contextlib.nullcontext()
    if ranks > 1:
        step = DistributedDataParallel(step)
        apart = step.no_sync() if settings.get("accumulate", 1) > 1 else apart
    with apart:
        loss = step(share(batch, rank, ranks))
        module.backward(loss)
    return {"loss": loss.detach()} | {name: p.grad for name, p in module.named_parameters() if p.grad is not None}


def compare(folder: str, names: list[str], rank: int, ranks: int, port: str) -> None:
    """RANKS.RANK.pt: for each case and number of pieces, how far loss and gradients are from those in expected.pt, relatively."""
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=port, RANK=str(rank), WORLD_SIZE=str(ranks))
    dist.init_process_group("gloo")
    expected = torch.load(Path(folder, "expected.pt"), weights_only=True)
    batch = make_batch()
    found = {
        f"{name}, accumulate {pieces}": differences(
            gradients(CASES[name] | {"accumulate": pieces}, batch, rank, ranks), expected[name]
        )
        for name in names
        for pieces in (1, 4)
    }
    torch.save(found, Path(folder, f"{ranks}.{rank}.pt"))
    dist.destroy_process_group()


def differences(found: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, float]:
    """How far each tensor is from the expected one, as a share of its norm; infinite where it is not there."""
    return {
        name: float((found[name] - value).norm() / value.norm()) if name in found else float("inf")
        for name, value in expected.items()
    }


class Watch(Callback):
    """Sizes of all that ranks summed in the second step, and how the image tower was run: (autocast, with graph)."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.runs: list[tuple[bool, bool]] = []
        self._profile: Any = None

    def on_train_batch_start(self, trainer: pl.Trainer, module: pl.LightningModule, batch: Any, number: int) -> None:
        if trainer.global_step == 1:
            self._profile = torch.profiler.profile(record_shapes=True).__enter__()
            self._hook = module.model.visual.register_forward_hook(self._run)  # type: ignore[union-attr]

    def _run(self, *_: Any) -> None:
        self.runs.append((torch.is_autocast_enabled("cpu"), torch.is_grad_enabled()))

    def on_train_batch_end(self, *_: Any) -> None:
        if self._profile is not None:
            self._hook.remove()
            self._profile.__exit__(None, None, None)
            summed = [event.input_shapes[0] for event in self._profile.events() if event.name == "gloo:all_reduce"]
            self.sizes, self._profile = [torch.Size(shape).numel() for shape in summed], None


def fit(data: str, ranks: int, strategy: Any = "auto", precision: str = "64-true", **settings: Any) -> dict[str, Any]:
    """Weights after four steps with clipped gradients, and what was seen of the second."""
    pl.seed_everything(1, verbose=False)
    module, watch = ContrastiveModule(**TOWERS | {"text": TEXT}, **settings), Watch()
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=ranks,
        strategy=strategy,
        precision=precision,
        max_steps=4,
        gradient_clip_val=0.5,
        use_distributed_sampler=False,
        callbacks=[watch],
        **quiet,
    )
    trainer.fit(module, datamodule=PairData(data, batch_size=12, workers=0, spec=module.spec))
    assert trainer.global_step == 4 and trainer.world_size == ranks
    return {"weights": dict(module.model.state_dict()), "sizes": watch.sizes, "runs": watch.runs}


STRATEGIES = {
    "ddp": lambda: "ddp",
    "unused": lambda: "ddp_find_unused_parameters_true",
    "static": lambda: DDPStrategy(static_graph=True),
}
FITS = {  # DDP has no pieces in a static graph: `check_strategy`
    f"{name}, accumulate {pieces}": (name, pieces)
    for name in STRATEGIES
    for pieces in (1, 3)
    if (name, pieces) != ("static", 3)
}


def fit_all(folder: str, data: str, names: list[str], rank: int, port: str) -> None:
    """RANK.pt: `fit` with two ranks of some of FITS."""
    own = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "0"}
    os.environ.update(own, MASTER_ADDR="127.0.0.1", MASTER_PORT=port, TORCHELASTIC_RUN_ID="test")  # as torchrun does
    rank_zero_only.rank = rank  # was read when Lightning was imported, before the fork
    torch.set_num_threads(1)
    each = {name: FITS[name] for name in names}
    found = {name: fit(data, 2, STRATEGIES[kind](), accumulate=pieces) for name, (kind, pieces) in each.items()}
    torch.save(found, Path(folder, f"{rank}.pt"))


def averaged(folder: str, rank: int, port: str) -> None:
    """AVERAGED.RANK.pt: what `average` leaves of gradients and statistics that are rank + 1 and 10 · (rank + 1)."""
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=port, RANK=str(rank), WORLD_SIZE="2")
    dist.init_process_group("gloo")
    model = nn.ModuleList(
        [nn.Linear(3, 2), nn.BatchNorm1d(2), nn.BatchNorm1d(2).eval(), nn.Linear(2, 2).double(), nn.Linear(1, 1)]
    )
    for module in model[:4]:
        for parameter in module.parameters():
            parameter.grad = torch.full_like(parameter, rank + 1)
        for buffer in module.buffers():
            buffer.fill_(10 * (rank + 1))
    average(model)
    torch.save(
        [[p.grad for p in m.parameters()] + list(m.buffers()) for m in model], Path(folder, f"averaged.{rank}.pt")
    )
    dist.destroy_process_group()
