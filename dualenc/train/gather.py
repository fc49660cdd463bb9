"""What all ranks have, on every rank: features with their gradients, so that the loss is that of one process; and counts."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.nn.functional import all_gather


def gather_rows(image: Tensor, text: Tensor, valid: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """image: (B/W, D), text: (B/W, K·D), valid: (B/W,) of each of W ranks → the same for the whole batch B, in rank order.

    Every rank then computes the whole loss. Backward of the gather sums the gradients of W equal losses, and DDP
    divides by W: encoders and temperature get exactly the gradients of one process on the whole batch.
    """
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return image, text, valid
    packed = torch.cat([image, text, valid.to(image.dtype).unsqueeze(1)], dim=1)  # one collective
    whole = torch.cat(all_gather(packed))
    dim = image.shape[1]
    return whole[:, :dim], whole[:, dim:-1], whole[:, -1] > 0.5


def gathered(value: Any) -> list[Any]:
    """The value of every rank; only arrays and plain types of our own pass through."""
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return [value]
    parts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, value)
    return parts
