"""AdamW's parameter groups, with a learning rate per block, and AdamW itself in its fused form where there is one."""

from __future__ import annotations

from typing import Any

import dualenc.torchvision_ops  # noqa: F401  (before open_clip)

import torch
from torch import nn

from dualenc.model.blocks import SIDES, divide
from dualenc.model.finetune import check_layer_decay

FUSED = ("cpu", "cuda")  # devices whose fused kernel is known to agree


def parameter_groups(
    model: nn.Module, lr: float, weight_decay: float, layer_decay: float = 1.0
) -> list[dict[str, Any]]:
    """AdamW's groups of the parameters that are trained, those with the highest rate first.

    The rate is lr · layer_decay^d (ELECTRA, Clark et al. 2020; BEiT, Bao et al. 2022), d counted from the top of each tower:
    0 for the head and the temperature, 1 for the last block, the number of blocks + 1 for the stem. Matrices decay by
    weight_decay; gains, biases and temperature (fewer than two dimensions) do not. ValueError: a layer_decay outside (0, 1],
    or one below 1 for towers of unknown build.
    """
    check_layer_decay(layer_decay)
    depths: dict[str, int] = {}
    if layer_decay < 1:
        for side in SIDES:
            depths |= divide(model, side).depth()
    groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((depths.get(name, 0), parameter.ndim < 2), []).append(parameter)
    return [
        {"params": members, "lr": lr * layer_decay**depth, "weight_decay": 0.0 if plain else weight_decay}
        for (depth, plain), members in sorted(groups.items(), key=lambda item: item[0])
    ]


def make_optimizer(groups: list[dict[str, Any]], betas: tuple[float, float] = (0.9, 0.98)) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter 2019) over groups that carry their own rates; one kernel for all where the device has it."""
    fused = all(parameter.device.type in FUSED for group in groups for parameter in group["params"])
    optimizer = torch.optim.AdamW(groups, betas=betas, eps=1e-8, fused=fused)
    # The fused step could also undo fp16's loss scale itself. Lightning then refuses to clip gradients, for bf16 too, which
    # has no such scale; with this the scaler does it, before the gradients are clipped.
    optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined]
    return optimizer
