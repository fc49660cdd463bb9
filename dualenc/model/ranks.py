"""Losses over the rows of several processes (torch.distributed's default group): exact gradients under a mean over ranks.

Each rank has an equal contiguous slice of the batch, and computes its own images against all texts: a 1/W of the work.
DDP and FSDP average the gradients of the ranks, so each rank's are W times its own share of the whole gradient.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable


def rank_and_ranks() -> tuple[int, int]:
    """This process's number and how many there are; (0, 1) without a process group."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def all_texts(text: Tensor, ids: list[Tensor], dtype: torch.dtype) -> tuple[Tensor, list[Tensor]]:
    """text: (t, …) features of this rank, ids: int64 tensors → the same of all W ranks in order, (W·t, …), in one collective.

    Features keep their type on the way and become `dtype` then; their gradient is summed over ranks in `dtype`.
    """
    whole, *others = _AllTexts.apply(text, dtype, *ids)
    return whole, others


class _AllTexts(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, text: Tensor, dtype: torch.dtype, *ids: Tensor) -> tuple[Tensor, ...]:
        ctx.like = text.dtype
        parts = [*ids, text]  # eight-byte ids first: each part begins at a multiple of its own size
        packed = torch.cat([part.contiguous().flatten().view(torch.uint8) for part in parts])
        whole = _gather(packed)  # (W, bytes)
        found, start = [], 0
        for part in parts:
            end = start + part.numel() * part.element_size()
            rows = whole[:, start:end].contiguous().view(part.dtype)
            found.append(rows.view(-1, *part.shape[1:]))
            start = end
        ctx.mark_non_differentiable(*found[:-1])
        return found[-1].to(dtype), *found[:-1]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, *_: Any) -> tuple[Any, ...]:
        ranks = dist.get_world_size()
        own = gradient.new_empty(len(gradient) // ranks, *gradient.shape[1:])
        dist.reduce_scatter(own, list(gradient.contiguous().chunk(ranks)))
        return own.to(ctx.like), None, *(None for _ in ctx.needs_input_grad[2:])


def log_sum_over_ranks(part: Tensor) -> Tensor:
    """part: each rank's log-sum-exp of a column over its own rows → over the rows of all ranks, equal on all of them.

    Backward gives each rank the gradient of its own rows only.
    """
    return _LogSum.apply(part)


class _LogSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, part: Tensor) -> Tensor:
        whole = torch.logsumexp(_gather(part), 0)
        share = torch.where(part > -torch.inf, (part - whole).exp(), 0)
        ctx.save_for_backward(share)
        return whole

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (share,) = ctx.saved_tensors
        return gradient * share


def sum_over_ranks(part: Tensor) -> Tensor:
    """Counts of each rank → their sum, bit for bit equal on all ranks; no gradient."""
    return _gather(part.detach()).sum(0)


def total(own: Tensor, common: Tensor) -> Tensor:
    """own: scalar, this rank's share of the loss; common: scalar, what all ranks have alike → the loss, equal on all ranks.

    Backward multiplies by the number of ranks, because the mean over ranks that follows divides by it.
    """
    return _Total.apply(own, common)


class _Total(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, own: Tensor, common: Tensor) -> Tensor:
        shares = _gather(own)
        ctx.ranks = len(shares)
        return shares.sum() + common

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        return gradient * ctx.ranks, gradient * ctx.ranks


def _gather(part: Tensor) -> Tensor:
    """Equal shapes of W ranks → (W, *shape), in rank order."""
    ranks = dist.get_world_size()
    whole = part.new_empty(ranks, *part.shape)
    dist.all_gather(list(whole.unbind()), part.detach().contiguous())
    return whole
