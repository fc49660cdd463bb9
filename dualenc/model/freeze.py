"""Training a part of the towers: what is frozen has no gradient, no moving statistics and no dropout."""

from __future__ import annotations

import dualenc.torchvision_ops  # noqa: F401  (before open_clip)

from open_clip.transformer import PatchDropout
from torch import nn

from dualenc.model.blocks import SIDES, divide, tower_names, tower_of


def freeze(model: nn.Module, image_blocks: int | None = None, text_blocks: int | None = None) -> None:
    """Freeze each tower but its last n blocks and what follows them (final norm, projection).

    image_blocks, text_blocks: None trains all of that tower, its stem included; 0 freezes it whole, projection included
    (LiT, Zhai et al. 2022, does so to the image tower). The temperature stays trainable. ValueError: a number below 0 or
    above the number of blocks, both towers frozen, or a tower of unknown build.
    """
    wanted = dict(zip(SIDES, (image_blocks, text_blocks), strict=True))
    check_blocks(image_blocks, text_blocks)
    frozen = [name for side, count in wanted.items() if count is not None for name in _below(model, side, count)]
    for name in frozen:
        model.get_parameter(name).requires_grad_(False)


def check_blocks(image_blocks: int | None, text_blocks: int | None) -> None:
    """ValueError for numbers that no model could have, before there is one."""
    for side, count in zip(SIDES, (image_blocks, text_blocks), strict=True):
        if count is not None and count < 0:
            raise ValueError(
                f"model.{side}_blocks is {count}, but a tower cannot train fewer than 0 blocks; set null (train all), "
                "0 (freeze the tower) or the number of its last blocks to train"
            )
    if image_blocks == text_blocks == 0:
        raise ValueError(
            "model.image_blocks and model.text_blocks are both 0, so nothing but the temperature would be trained; set one "
            "of them to null or to the number of last blocks to train"
        )


def _below(model: nn.Module, side: str, count: int) -> list[str]:
    """Names of the parameters below a tower's last `count` blocks; of all its parameters for 0."""
    if count == 0:
        return tower_names(model, side)
    tower = divide(model, side)
    if count > len(tower.blocks):
        raise ValueError(
            f"model.{side}_blocks is {count}, but the {side} tower has {len(tower.blocks)} blocks; set at most that many, "
            "or null to train all of the tower, with what lies before its blocks"
        )
    return [name for name, depth in tower.depth().items() if depth > count]


def keep_frozen_eval(model: nn.Module) -> None:
    """Put what is frozen into eval mode, for after `model.train()`: batch norm keeps its statistics, dropout does nothing.

    A module is frozen when it has parameters and none of them is trained; one without parameters (dropout, activation)
    goes with the one before it. Patch dropout is on while anything in its tower is trained: it was asked for by itself,
    and what it spares is the work of the blocks.
    """
    if not model.training:
        return
    for side in SIDES:
        trained = any(model.get_parameter(name).requires_grad for name in tower_names(model, side))
        before = trained  # whether the last module that has parameters is trained
        for module in _modules(model, side):
            own = [parameter.requires_grad for parameter in module.parameters()]
            leaf = next(module.children(), None) is None
            if own and (leaf or not any(own)):
                before = any(own)
            if isinstance(module, PatchDropout):
                module.train(trained)
            elif (own and not any(own)) or (not own and leaf and not before):
                module.eval()
    for module in model.modules():  # peft keeps its dropout beside the frozen weight, of which it is no part
        if hasattr(module, "lora_dropout"):
            module.lora_dropout.train()  # type: ignore[union-attr,operator]


def _modules(model: nn.Module, side: str) -> list[nn.Module]:
    """A tower's modules in the model's order."""
    tower = tower_of(model, side)
    if tower is not model:
        return list(tower.modules())
    return [module for name, module in model.named_modules() if name and name.split(".")[0] != "visual"]
