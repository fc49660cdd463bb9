"""Which captions of a batch belong to which images, and which are no negatives of them."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dualenc.model.losses import Pairs


def pairs_of(batch: dict[str, Any], rank: int, positives: str, mask: bool) -> Pairs:
    """What the losses need to know of this rank's rows; rows that are not valid are left out.

    positives: "each", a caption belongs to its own image, and the K captions of an image are K losses; "group", all
    captions of a batch that belong to one image, or to images of equal keys, are positives of one loss.
    mask: captions that equal one of an image's own are no negatives of it, and images of equal keys are one.
    """
    tokens, valid = captions_of(batch), batch["valid"]
    rows, count = tokens.shape[:2]
    number = torch.arange(rank * rows, (rank + 1) * rows, device=valid.device)
    group = batch["group"] if mask or positives == "group" else number
    group = torch.where(valid, group, -1)
    text = group.unsqueeze(1).expand(rows, count)
    marks = caption_marks(tokens) if mask else None
    flat = positives == "group"
    return Pairs(
        image=group,
        text=text.flatten() if flat else text,
        image_marks=marks,
        text_marks=marks.flatten() if flat and marks is not None else marks,
    )


def captions_of(batch: dict[str, Any]) -> Tensor:
    """Token ids (B, K, L) of a training batch."""
    return batch["texts"] if "texts" in batch else batch["text"].unsqueeze(1)


def caption_marks(tokens: Tensor) -> Tensor:
    """One int64 for each row of token ids (..., L): equal rows have equal marks, others practically never (2^-64).

    Zeros at the end change nothing, so the length to which a batch is padded does not either.
    """
    return (tokens * _factors(tokens.shape[-1], tokens.device)).sum(-1)


@functools.lru_cache(maxsize=64)
def _factors(length: int, device: torch.device) -> Tensor:
    drawn = np.random.default_rng(0).integers(-(2**63), 2**63, size=length, dtype=np.int64)
    return torch.from_numpy(drawn).to(device)
