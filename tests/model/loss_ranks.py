"""Run by `test_loss_ranks.py`: both losses of every case in groups of 1, 2 and 4 processes, into OUT/WORLD-RANK.pt.

The processes are forked from this one, which has imported torch already. A linear tower on either side stands for the
encoders: its gradients are averaged over the ranks, as DDP and FSDP do.
"""

from __future__ import annotations

import os
import sys
import traceback
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import normalize

from dualenc.model.losses import Pairs
from tests.model.loss_cases import Case, D, both, cases, features

WORLDS = (1, 2, 4)
TILES = (0, 3)
NARROW = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def slices(case: Case, rank: int, ranks: int) -> Case:
    """The part of a case that a rank has."""

    def own(x: Tensor | None) -> Tensor | None:
        return None if x is None else x[rank * len(x) // ranks : (rank + 1) * len(x) // ranks]

    pairs = case.pairs
    if pairs is not None:
        pairs = Pairs(own(pairs.image), own(pairs.text), own(pairs.image_marks), own(pairs.text_marks))
    return replace(case, image=own(case.image), text=own(case.text), pairs=pairs)


def values_and_gradients(case: Case, tile: int, ranks: bool, dtype: torch.dtype = torch.float64) -> list[list[Tensor]]:
    """For both losses: the value, and what the mean over ranks leaves as gradients of two towers, scale and bias."""
    found = []
    for which in (0, 1):
        towers = [features(D, D, seed=seed).requires_grad_() for seed in (11, 12)]
        scale, bias = (torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (case.scale, case.bias))
        image, text = (normalize(x @ w, dim=-1).to(dtype) for x, w in zip((case.image, case.text), towers, strict=True))
        loss = both(case, image, text, scale, bias, tile=tile, ranks=ranks)[which]
        (3 * loss).backward()
        gradients = [x.grad for x in (*towers, scale, bias) if x.grad is not None]
        if ranks:
            for gradient in gradients:
                dist.all_reduce(gradient)
                gradient /= dist.get_world_size()
        found.append([loss.detach(), *gradients])
    return found


def one_tower(rank: int, ranks: int, length: int) -> list[Tensor]:
    """Only one of two towers is trained: the other's gradient is asked for by no rank, and none waits for it."""
    image, text = features(length, D), features(length, D, seed=1)
    own = slice(rank * length // ranks, (rank + 1) * length // ranks)
    found = []
    for tile in TILES:
        for trained in (0, 1):
            pair = [normalize(x[own], dim=1) for x in (image, text)]
            pair[trained].requires_grad_()
            both(Case(*pair), *pair, torch.tensor(10.0), torch.tensor(-5.0), tile=tile, ranks=True)[0].backward()
            found.append(pair[trained].grad)
    return found


def measure(rank: int, ranks: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/group{ranks}", rank=rank, world_size=ranks)
    found: dict = {}
    for name, case in cases().items():
        for tile in TILES:
            found[f"{name}, tile {tile}"] = values_and_gradients(slices(case, rank, ranks), tile, ranks=True)
    for name, dtype in NARROW.items():
        case = slices(cases()["all options"], rank, ranks)
        found[name] = values_and_gradients(case, 3, ranks=True, dtype=dtype)
    found["one tower"] = one_tower(rank, ranks, 8)
    torch.save(found, folder / f"{ranks}-{rank}.pt")
    dist.destroy_process_group()


def main(folder: Path) -> int:
    failed = 0
    for ranks in WORLDS:
        children = []
        for rank in range(ranks):
            child = os.fork()
            if not child:
                try:
                    measure(rank, ranks, folder)
                except BaseException:
                    traceback.print_exc()
                    os._exit(1)
                os._exit(0)
            children.append(child)
        failed += sum(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0 for child in children)
    return failed


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
