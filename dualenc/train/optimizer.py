"""AdamW's parameter groups, with a learning rate per block, and AdamW itself in its fused form where there is one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import dualenc.torchvision_ops  # noqa: F401  (before open_clip)

import torch
from torch import nn

from dualenc.model.blocks import SIDES, divide
from dualenc.model.finetune import check_layer_decay

FUSED = ("cpu", "cuda")  # devices whose fused kernel is known to agree


def parameter_groups(
    model: nn.Module,
    lr: float,
    weight_decay: float,
    layer_decay: float = 1.0,
    betas: Sequence[float] = (0.9, 0.98),
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
        {
            "params": members,
            "lr": lr * layer_decay**depth,
            "weight_decay": 0.0 if plain else weight_decay,
            "betas": tuple(betas),
        }
        for (depth, plain), members in sorted(groups.items(), key=lambda item: item[0])
    ]


def make_optimizer(groups: list[dict[str, Any]]) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter 2019) over `parameter_groups`; one kernel for all where the device has it."""
    fused = all(parameter.device.type in FUSED for group in groups for parameter in group["params"])
    optimizer = torch.optim.AdamW(groups, eps=1e-8, fused=fused)
    # The fused step could also undo fp16's loss scale itself. Lightning then refuses to clip gradients, for bf16 too, which
    # has no such scale; with this the scaler does it, before the gradients are clipped.
    optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined]
    return optimizer


def take_rates(checkpoint: dict[str, Any], groups: list[dict[str, Any]]) -> None:
    """Put the rates of `groups` into a checkpoint that is about to be resumed, which would bring back its own: learning
    rates (as far along their schedule), weight decay and betas. ValueError where it was trained with other groups."""
    for state in checkpoint.get("optimizer_states", []):
        sizes = [[len(group["params"]) for group in given] for given in (state["param_groups"], groups)]
        if sizes[0] != sizes[1]:
            raise ValueError(
                f"the checkpoint trained {sum(sizes[0])} parameters in {len(sizes[0])} groups, and now {sum(sizes[1])} are in "
                f"{len(sizes[1])}: what is frozen, or model.layer_decay, is not what it was; set it back, or begin anew with "
                "model.start_from"
            )
        for theirs, ours in zip(state["param_groups"], groups, strict=True):
            if theirs["initial_lr"] != ours["lr"]:
                theirs["lr"] = ours["lr"] * (theirs["lr"] / theirs["initial_lr"] if theirs["initial_lr"] else 1.0)
                theirs["initial_lr"] = ours["lr"]
            theirs["weight_decay"], theirs["betas"] = ours["weight_decay"], ours["betas"]
    for schedule in checkpoint.get("lr_schedulers", []):
        schedule["base_lrs"] = [group["lr"] for group in groups]
