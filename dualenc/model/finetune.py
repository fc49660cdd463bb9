"""What of given towers is trained, and how: all of it is settled here, before the first step."""

from __future__ import annotations

import dualenc.torchvision_ops  # noqa: F401  (before open_clip)

import torch
from open_clip.timm_model import TimmModel
from open_clip.transformer import PatchDropout, VisionTransformer
from torch import Tensor, nn

from dualenc.model.blocks import SIDES, divide, tower_of
from dualenc.model.freeze import check_blocks, freeze, keep_frozen_eval
from dualenc.model.lora import Lora, add_lora, check_lora


def check_training(
    image_blocks: int | None = None,
    text_blocks: int | None = None,
    lora: Lora | None = None,
    patch_dropout: float = 0.0,
    layer_decay: float = 1.0,
) -> None:
    """ValueError for settings of ContrastiveModule that no towers could be trained with, before any are loaded."""
    check_blocks(image_blocks, text_blocks)
    if lora is not None:
        check_lora(lora, image_blocks, text_blocks)
    check_layer_decay(layer_decay)
    if not 0 <= patch_dropout < 1:
        raise ValueError(
            f"model.patch_dropout is {patch_dropout}, which is no share of patches that leaves any; set 0 to below 1, "
            "such as 0.5"
        )
    if patch_dropout and (image_blocks == 0 or (lora is not None and "image" not in lora.towers)):
        raise ValueError(
            f"model.patch_dropout is {patch_dropout}, but the image tower is frozen, so fewer patches would only make its "
            "embeddings worse; set it to 0"
        )


def check_layer_decay(layer_decay: float) -> None:
    """ValueError for a factor that is not above 0 and at most 1."""
    if not 0 < layer_decay <= 1:
        raise ValueError(
            f"model.layer_decay is {layer_decay}, but it is the factor from one block's learning rate to that of the block "
            "below; set it above 0 and at most 1, such as 0.75 (1: all blocks alike)"
        )


def prepare(
    model: nn.Module,
    image_blocks: int | None = None,
    text_blocks: int | None = None,
    lora: Lora | None = None,
    patch_dropout: float = 0.0,
    layer_decay: float = 1.0,
    grad_checkpointing: bool = False,
) -> None:
    """Make towers ready for training, in place: see `freeze`, `add_lora`, `set_patch_dropout`, `set_grad_checkpointing`.

    They are left in train mode but for what is frozen; Lightning sets no mode itself. ValueError for settings that these
    towers cannot be trained with.
    """
    check_training(image_blocks, text_blocks, lora, patch_dropout, layer_decay)
    if layer_decay < 1:
        for side in SIDES:
            divide(model, side)  # refuses towers of unknown build
    freeze(model, image_blocks, text_blocks)
    if lora is not None:
        add_lora(model, lora)
    if patch_dropout:
        set_patch_dropout(model, patch_dropout)
    if grad_checkpointing:
        set_grad_checkpointing(model)
    model.train()
    keep_frozen_eval(model)


class DroppedPatches(PatchDropout):
    """open_clip's patch dropout, drawn on the device of the patches: drawn on the host it makes a GPU wait at every step."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.prob == 0:
            return x
        first, patches = x[:, :1], x[:, 1:]  # the class token stays
        kept = max(1, int(patches.shape[1] * (1 - self.prob)))
        order = torch.rand(patches.shape[:2], device=x.device).argsort(dim=1)[:, :kept]
        return torch.cat([first, patches.gather(1, order.unsqueeze(-1).expand(-1, -1, x.shape[2]))], dim=1)


def set_patch_dropout(model: nn.Module, share: float) -> None:
    """In training, show the image tower only a random 1 - share of each image's patches (FLIP, Li et al. 2023, 3.1).

    It is no part of the model's configuration: an encoder folder says nothing of it, and embedding shows all patches.
    ValueError: a share outside [0, 1), or an image tower without patches that can be left out.
    """
    check_training(patch_dropout=share)
    tower = tower_of(model, "image")
    if not isinstance(tower, VisionTransformer):
        kind = type(tower.trunk if isinstance(tower, TimmModel) else tower).__name__
        raise ValueError(
            f"model.patch_dropout is {share}, but only open_clip's own vision transformers can leave patches out, and this "
            f"image tower is a {kind}; set it to 0"
        )
    tower.patch_dropout = DroppedPatches(share).train(tower.training)


def set_grad_checkpointing(model: nn.Module) -> None:
    """Keep only the blocks' inputs for the backward pass and compute the rest again (Chen et al. 2016).

    ValueError for an image tower that open_clip or timm cannot do it for; open_clip itself goes on without a word.
    """
    tower = tower_of(model, "image")
    if isinstance(tower, TimmModel):
        try:
            tower.trunk.set_grad_checkpointing(True)
        except Exception as error:  # timm: an AssertionError, or no such method
            raise ValueError(_no_checkpointing(type(tower.trunk).__name__)) from error
    elif not isinstance(tower, VisionTransformer):
        raise ValueError(_no_checkpointing(type(tower).__name__))
    model.set_grad_checkpointing(True)  # type: ignore[operator]


def _no_checkpointing(kind: str) -> str:
    return (
        f"model.grad_checkpointing is true, but open_clip has none for this image tower, a {kind}, so no memory would be "
        "saved; set it to false, and model.accumulate to 2 or more to save memory"
    )
