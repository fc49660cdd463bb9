"""Contrastive losses over a whole batch. B: batch, D: embedding dimension; row i of one side belongs to row i of the other."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def contrastive_loss(image: Tensor, text: Tensor, logit_scale: Tensor) -> Tensor:
    """Symmetric temperature-scaled cross-entropy (InfoNCE), as in CLIP (Radford et al. 2021, figure 3).

    image, text: (B, D) unit rows; logit_scale: scalar, already exponentiated. Returns a scalar: the mean of the
    image→text and the text→image cross-entropy. ValueError when shapes differ or B is 0.
    """
    _check_pairs(image, text)
    logits = logit_scale * image @ text.T  # (B, B)
    target = torch.arange(len(image), device=image.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def sigmoid_loss(image: Tensor, text: Tensor, logit_scale: Tensor, logit_bias: Tensor) -> Tensor:
    """Pairwise sigmoid loss, as in SigLIP (Zhai et al. 2023, algorithm 1).

    image, text: (B, D) unit rows; logit_scale (already exponentiated) and logit_bias: scalars. Returns a scalar:
    the sum over all B² pairs, divided by B. ValueError when shapes differ or B is 0.
    """
    _check_pairs(image, text)
    logits = logit_scale * image @ text.T + logit_bias  # (B, B)
    sign = 2 * torch.eye(len(image), dtype=logits.dtype, device=logits.device) - 1
    return -F.logsigmoid(sign * logits).sum() / len(image)


def _check_pairs(image: Tensor, text: Tensor) -> None:
    if image.ndim != 2 or image.shape != text.shape or not len(image):
        raise ValueError(
            f"image {tuple(image.shape)} and text {tuple(text.shape)} must be equal (B, D) with B > 0: "
            "row i of one is the pair of row i of the other; leave out samples that lack either"
        )
