"""Run by `test_kill.py` in processes of their own, which may be killed: `dualenc fit`, noting what each step was shown."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
from pathlib import Path

import dualenc.torchvision_ops  # noqa: F401  (before Lightning)

import torch
from pytorch_lightning.utilities import rank_zero_only

from dualenc.cli import main
from dualenc.data.module import PairData
from dualenc.train.module import ContrastiveModule


def fit(words: list[str], notes: str, environment: dict[str, str]) -> None:
    """`dualenc fit` with these words. Every step of rank r of R becomes a line of NOTES.R.r: its number, then for each row the
    key and a hash of pixels and tokens. What it says goes to NOTES-errors."""
    os.dup2(os.open(f"{notes}-errors", os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
    os.environ.update(environment)
    multiprocessing.set_start_method("fork", force=True)  # loader workers as in any other process, not by a server
    rank_zero_only.rank = int(environment.get("RANK", 0))  # was read when Lightning was imported, before the fork
    torch.set_num_threads(1)
    step, setup = ContrastiveModule.training_step, PairData.setup

    def told(self: PairData, stage: str) -> None:
        os.write(2, b"preparing\n")
        setup(self, stage)

    PairData.setup = told  # type: ignore[method-assign]

    def noted(self: ContrastiveModule, batch: dict, number: int) -> torch.Tensor:
        loss = step(self, batch, number)
        rows = [[key, mark(*row)] for key, *row in zip(batch["key"], batch["image"], batch["text"], strict=True)]
        with open(f"{notes}.{self.trainer.world_size}.{self.global_rank}", "a") as file:
            file.write(json.dumps([self.global_step, rows]) + "\n")
        return loss

    ContrastiveModule.training_step = noted  # type: ignore[method-assign]
    os._exit(main(["fit", *words]))


def mark(pixels: torch.Tensor, tokens: torch.Tensor) -> str:
    """A hash of one row, whatever its batch was padded to."""
    ids = tokens[: int(tokens.nonzero().max()) + 1]
    return hashlib.sha256(pixels.contiguous().numpy().tobytes() + ids.numpy().tobytes()).hexdigest()[:16]


def steps(notes: str, ranks: int | None = None) -> dict[int, list]:
    """The rows of each step, over all ranks. A step that was shown again after a kill must have been shown the same,
    by as many ranks or by others."""
    found: dict[int, list] = {}
    for count in [ranks] if ranks else (1, 2, 4):
        paths = [Path(f"{notes}.{count}.{rank}") for rank in range(count)]
        if not all(path.exists() for path in paths):
            continue
        shown: list[dict[int, list]] = []
        for path in paths:
            shown.append({})
            for line in path.read_text().splitlines():
                step, rows = json.loads(line)
                assert shown[-1].setdefault(step, rows) == rows, f"step {step} was shown something else another time"
        for step in set.intersection(*map(set, shown)):
            rows = [row for rank in shown for row in rank[step]]
            assert found.setdefault(step, rows) == rows, f"step {step} was shown something else to {count} ranks"
    return found
