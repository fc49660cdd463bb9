"""Run by `test_gather.py` in two processes: the gradients that each rank has after DDP's average, into OUT/RANK.pt."""

import os
import sys

import dualenc.torchvision_ops  # noqa: F401  (before open_clip)

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from dualenc.train.module import ContrastiveModule


class Step(nn.Module):
    """training_step as forward, which is what DDP averages the gradients of."""

    def __init__(self, module: ContrastiveModule):
        super().__init__()
        self.module = module

    def forward(self, batch: dict) -> torch.Tensor:
        return self.module.training_step(batch, 0)


def gradients(settings: dict, state: dict, batch: dict, parallel: bool) -> dict:
    module = ContrastiveModule(**settings).double()
    module.load_state_dict(state)
    step = DistributedDataParallel(Step(module)) if parallel else Step(module)
    loss = step(batch)
    loss.backward()
    return {"loss": loss.item()} | {k: p.grad for k, p in module.named_parameters()}


def slices(batch: dict, rank: int, ranks: int) -> dict:
    share = len(batch["valid"]) // ranks
    rows = slice(rank * share, (rank + 1) * share)
    return {k: v if k == "truncated" else v[rows] for k, v in batch.items()}


def main(folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank, ranks = dist.get_rank(), dist.get_world_size()
    cases = torch.load(os.path.join(folder, "cases.pt"), weights_only=True)
    found = {}
    for name, case in cases.items():
        found[name] = gradients(case["settings"], case["state"], slices(case["batch"], rank, ranks), parallel=True)
    torch.save({"gradients": found}, os.path.join(folder, f"{rank}.pt"))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
