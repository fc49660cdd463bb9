"""Large batches on small memory: one contrastive loss over rows that were embedded piece by piece (GradCache, Gao et al. 2021).

The gradient is that of the whole batch: the towers are run twice, once without graph for the embeddings that the loss needs,
once with graph, piece by piece, to carry the loss's gradient from the embeddings to the weights. Nothing is divided by the
number of pieces.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any

import dualenc.torchvision_ops  # noqa: F401  (before Lightning)

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from pytorch_lightning.strategies import ParallelStrategy
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from dualenc.model.blocks import SIDES, tower_names
from dualenc.model.ranks import rank_and_ranks

NOT_ROWS = (
    "all_text",
    "text_row",
    "dropped",
)  # entries of a batch that may have as many items as it has rows, by chance
FARTHEST = 0.02  # between a row's unit embeddings of both passes; bfloat16 compiled in two ways stays well below
Embed = Callable[[dict[str, Any]], Tensor]


class CachedFeatures:
    """Embeddings of a batch as leaves of a graph of their own, and the second pass that takes their gradients on.

    embed: for each side, "image" and "text", what embeds a piece of the batch: (b, D) and (b, K, D). batch: this rank's, with
    B rows. pieces: forward passes that it is cut into; ValueError where B does not divide by it. model: both towers. context:
    what a pass runs in, entered anew for each piece of the second pass (autocast, a default dtype); the first is in it already.

    image (B, D), text (B, K, D): ask for gradients where the tower is trained. Call `backward` after the loss's own. Batch
    norm normalises by the rows of a piece; its running statistics move in the first pass only.
    """

    def __init__(
        self,
        embed: Mapping[str, Embed],
        batch: dict[str, Any],
        pieces: int,
        model: nn.Module,
        context: Callable[[], AbstractContextManager[Any]] = contextlib.nullcontext,
    ):
        self._embed, self._model, self._context = embed, model, context
        self._device = batch["valid"].device
        self._parts = cut(batch, pieces)
        self._random: list[dict[str, RandomState]] = []  # of each piece: how the generators stood before each tower
        rows: dict[str, list[Tensor]] = {side: [] for side in SIDES}
        with torch.no_grad():
            for part in self._parts:
                self._random.append({})
                for side in SIDES:
                    self._random[-1][side] = random_state(self._device)
                    rows[side].append(embed[side](part))
        torch.clear_autocast_cache()  # older torch keeps weights there that were cast without graph (pytorch issue 158232)
        self._leaves = {side: torch.cat(rows[side]).requires_grad_(is_trained(model, side)) for side in SIDES}
        self.image, self.text = (self._leaves[side] for side in SIDES)

    def backward(self, check: bool = False) -> None:
        """Run each piece again as it was run before, and add its share to the gradients of the towers; then, with several
        ranks, take the mean of all gradients over them, in one collective.

        A tower that is frozen, or whose embeddings the loss did not depend on, is not run again. check: RuntimeError where the
        second pass gives other embeddings than the first (a device waits once for this).
        """
        after, farthest = random_state(self._device), torch.zeros((), device=self._device)
        with statistics_kept(self._model):
            for side, leaf in self._leaves.items():
                if leaf.grad is None:
                    continue
                shares = zip(
                    self._parts, self._random, *(t.chunk(len(self._parts)) for t in (leaf, leaf.grad)), strict=True
                )
                for part, states, before, gradient in shares:
                    set_random_state(states[side], self._device)
                    with self._context(), torch.enable_grad():
                        rows = self._embed[side](part)
                    rows.backward(gradient)
                    farthest = torch.maximum(farthest, (rows.detach() - before.detach()).norm(dim=-1).max().float())
        set_random_state(after, self._device)
        if check and farthest > FARTHEST:
            raise RuntimeError(
                f"the second pass of model.accumulate {len(self._parts)} gave embeddings {farthest.item():.2g} away from those "
                "of the first, so gradients would be wrong; set model.compile false, or model.accumulate 1"
            )
        average(self._model)


def check_pieces(pieces: int, batch_size: int, ranks: int) -> None:
    """ValueError for a batch (of all ranks) that cannot be cut into equal pieces."""
    if batch_size % (ranks * pieces):
        least = ranks * pieces
        raise ValueError(
            f"data.batch_size {batch_size} does not divide by {least} ({ranks} ranks × model.accumulate {pieces}), so its "
            f"pieces would differ in size; set it to {max(least, batch_size // least * least)} or another multiple of {least}"
        )


def cut(batch: dict[str, Any], pieces: int) -> list[dict[str, Any]]:
    """A batch of B rows as `pieces` batches of B / pieces, in order; what is not per row is in all of them."""
    count = len(batch["valid"])
    check_pieces(pieces, count, 1)
    share = count // pieces

    def is_rows(name: str, value: Any) -> bool:
        sized = isinstance(value, list) or (isinstance(value, Tensor) and value.ndim > 0)
        return sized and name not in NOT_ROWS and len(value) == count

    return [
        {name: value[i : i + share] if is_rows(name, value) else value for name, value in batch.items()}
        for i in range(0, count, share)
    ]


def is_trained(model: nn.Module, side: str) -> bool:
    """Whether any parameter of a tower is trained."""
    return any(model.get_parameter(name).requires_grad for name in tower_names(model, side))


@contextlib.contextmanager
def statistics_kept(model: nn.Module) -> Iterator[None]:
    """Batch norm normalises by a batch's own rows, as in training, but its running statistics stay as they are."""
    moving = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.training and m.track_running_stats]
    for module in moving:
        module.track_running_stats = False
    try:
        yield
    finally:
        for module in moving:
            module.track_running_stats = True


def reduced_once(trainer: pl.Trainer, pieces: int) -> AbstractContextManager[Any]:
    """What an optimizer's step with its passes runs in: with several pieces no pass is reduced over ranks by itself, but all
    of them together by `CachedFeatures.backward`."""
    strategy = trainer.strategy
    return (
        strategy.block_backward_sync()
        if pieces > 1 and isinstance(strategy, ParallelStrategy)
        else contextlib.nullcontext()
    )


def average(model: nn.Module) -> None:
    """Give all ranks the mean of their gradients, and of the statistics of batch norm that move: one collective per dtype."""
    ranks = rank_and_ranks()[1]
    if ranks == 1:
        return
    normalised = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.training and m.track_running_stats]
    tensors = [p.grad for p in model.parameters() if p.grad is not None]
    tensors += [t for m in normalised for t in (m.running_mean, m.running_var) if t is not None]
    for dtype in sorted({t.dtype for t in tensors}, key=str):
        alike = [t for t in tensors if t.dtype == dtype]
        flat = torch.cat([t.reshape(-1) for t in alike]).div_(ranks)  # before the sum, which float16 may not hold
        dist.all_reduce(flat)
        for tensor, mean in zip(alike, flat.split([t.numel() for t in alike]), strict=True):
            tensor.copy_(mean.view(tensor.shape))


RandomState = list[Tensor]


def random_state(device: torch.device) -> RandomState:
    """How the generators stand that dropout on a device may draw from: the CPU's, and its own."""
    states = [torch.get_rng_state()]
    return states if device.type == "cpu" else [*states, torch.get_device_module(device).get_rng_state(device)]


def set_random_state(states: RandomState, device: torch.device) -> None:
    """Put the generators back to where `random_state` found them."""
    torch.set_rng_state(states[0])
    if device.type != "cpu":
        torch.get_device_module(device).set_rng_state(states[1], device)
