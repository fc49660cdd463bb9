"""Two ranks' contrastive loss: all texts gathered, as dualenc does, against texts that travel round a ring (gloo).

The ring holds two blocks of texts at a time instead of all of them. Each block goes round with the sums of its columns;
in the backward pass it goes round again with its gradient. The next block travels while one is computed.
"""

from __future__ import annotations

import multiprocessing
import statistics
import tempfile
from typing import Any

RANKS = 2
SCALE = 14.3


def ring(image: Any, text: Any, tile: int = 1024) -> tuple[Any, Any]:
    """Gradients (b, D) of the global loss by this rank's unit rows. exp() of logits as they are: SCALE is small enough."""
    import torch
    import torch.distributed as dist

    rank, b = dist.get_rank(), len(image)
    weight = 0.5 / (b * RANKS)
    blocks = [slice(start, min(start + tile, b)) for start in range(0, b, tile)]

    def pass_on(*given: Any) -> tuple[list[Any], list[Any]]:
        """Sends to the next rank, receives from the one before: what will have come, and what to wait for."""
        came = [torch.empty_like(x) for x in given]
        after, before = (rank + 1) % RANKS, (rank - 1) % RANKS
        waiting = [dist.isend(x, after) for x in given] + [dist.irecv(x, before) for x in came]
        return came, waiting

    def done(waiting: list[Any]) -> None:
        for each in waiting:
            each.wait()

    row, column, block = image.new_zeros(b), image.new_zeros(b), text
    for _ in range(RANKS):
        came, waiting = pass_on(block)
        for r in blocks:
            x = image[r] * SCALE
            for c in blocks:
                u = torch.mm(x, block[c].T).exp_()
                row[r] += u.sum(1)
                column[c] += u.sum(0)
        (column,), others = pass_on(column)
        done(waiting + others)
        block = came[0]
    d_image, d_block = torch.zeros_like(image), torch.zeros_like(text)
    for _ in range(RANKS):
        came, waiting = pass_on(block, column)
        for r in blocks:
            x = image[r] * SCALE
            for c in blocks:
                g = torch.mm(x, block[c].T).exp_().mul_((weight / row[r]).unsqueeze(1) + weight / column[c])
                d_image[r].addmm_(g, block[c])
                d_block[c].addmm_(g.T, x)
        (d_block,), others = pass_on(d_block)
        done(waiting + others)
        block, column = came
    d_image.mul_(SCALE).sub_(text, alpha=2 * weight * SCALE)
    return d_image, d_block.sub_(image, alpha=2 * weight * SCALE)


def rank_process(rank: int, place: str, batch: int, dim: int, repeats: int) -> dict[str, Any]:
    """Seconds of both ways by turns, and how far their gradients are apart."""
    import torch
    import torch.distributed as dist

    from dualenc.model.losses import contrastive_loss

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{place}", rank=rank, world_size=RANKS)
    generator = torch.Generator().manual_seed(rank)
    b = batch // RANKS
    sides = [torch.nn.functional.normalize(torch.randn(b, dim, generator=generator), dim=1) for _ in "it"]
    image, text = (x.clone().requires_grad_() for x in sides)
    found: dict[str, Any] = {}

    def gather() -> None:
        loss = contrastive_loss(image, text, torch.tensor(SCALE), tile=1024, ranks=True)
        found["gather"] = torch.autograd.grad(loss / RANKS, (image, text))

    def passing() -> None:
        found["ring"] = ring(*sides)

    from timing import seconds

    taken: dict[str, list[float]] = {"gather": [], "ring": []}
    for repeat in range(-1, repeats):  # the first pair is not counted
        for name, way in (("gather", gather), ("ring", passing)):
            dist.barrier()
            one = seconds(way)
            if repeat >= 0:
                taken[name].append(one)
    apart = max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(found["gather"], found["ring"], strict=True))
    dist.destroy_process_group()
    return {"seconds": taken, "relative_difference": apart}


def measure(batch: int, dim: int, repeats: int) -> dict[str, Any]:
    """Medians of the slower rank's seconds, which is what a step waits for."""
    with tempfile.TemporaryDirectory() as folder, multiprocessing.get_context("spawn").Pool(RANKS) as pool:
        given = [(rank, f"{folder}/group", batch, dim, repeats) for rank in range(RANKS)]
        both = pool.starmap(rank_process, given, chunksize=1)
    taken = {
        name: [round(max(pair), 3) for pair in zip(*(one["seconds"][name] for one in both), strict=True)]
        for name in both[0]["seconds"]
    }
    middle = {name: statistics.median(all_of) for name, all_of in taken.items()}
    return {
        "batch": batch,
        "ranks": RANKS,
        "seconds": taken,
        "gather_over_ring": round(middle["gather"] / middle["ring"], 3),
        "relative_difference": max(one["relative_difference"] for one in both),
        "texts_held": {"gather": batch, "ring": 2 * batch // RANKS},
    }
