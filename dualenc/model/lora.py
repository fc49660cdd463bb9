"""LoRA (Hu et al. 2022) on the towers' blocks, through peft: added for training, merged for everything after it.

W x + (alpha / rank) B A x in place of W x, with A (rank, in) random and B (out, rank) zero at first; W stays as it is.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import dualenc.torchvision_ops  # noqa: F401  (before open_clip and peft)

import torch
from open_clip.timm_model import TimmModel
from open_clip.transformer import ResidualAttentionBlock
from torch import Tensor, nn
from torch.func import functional_call

from dualenc.model.blocks import SIDES, TEMPERATURE, prefix, tower_of

PARTS = {"attn": r"attn", "mlp": r"mlp\.(c_fc|c_proj)"}
PARTS_TIMM = {"attn": r"attn\.(qkv|proj)", "mlp": r"mlp\.(fc1|fc2)"}
ADAPTER = "default"  # peft's own name for the only one
A, B = f".lora_A.{ADAPTER}.weight", f".lora_B.{ADAPTER}.weight"


@dataclass(frozen=True)
class Lora:
    """Low-rank matrices beside the weights of the towers' blocks. They and the temperature are trained, nothing else.

    Args:
        rank: width of the matrices; a weight of (out, in) gets rank × (out + in) numbers to train.
        alpha: their product is scaled by alpha / rank.
        dropout: share of an adapted layer's inputs that the matrices do not see in training; of mlp only.
        towers: image, text or both; the other tower is frozen.
        target: attn (attention's input and output projections), mlp (both of its layers) or both.
    """

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    towers: tuple[str, ...] = SIDES
    target: tuple[str, ...] = ("attn", "mlp")


def check_lora(lora: Lora, image_blocks: int | None = None, text_blocks: int | None = None) -> None:
    """ValueError for settings that no model could be trained with, before there is one."""
    if lora.rank < 1:
        raise ValueError(f"model.lora.rank is {lora.rank}, so there is nothing to train; set 1 or more")
    if not 0 < lora.alpha < float("inf"):
        raise ValueError(f"model.lora.alpha is {lora.alpha}, so nothing would be learnt; set it above 0")
    if not 0 <= lora.dropout < 1:
        raise ValueError(f"model.lora.dropout is {lora.dropout}, which is no share of inputs; set 0 to below 1")
    for key, given, known in (("towers", lora.towers, SIDES), ("target", lora.target, tuple(PARTS))):
        wrong = [name for name in given if name not in known]
        if wrong or not given or len(set(given)) < len(given):
            why = "; attn adapts attention as a whole, out_proj included" if "out_proj" in wrong else ""
            raise ValueError(f"model.lora.{key} is {list(given)}; give one or both of {', '.join(known)}{why}")
    if lora.dropout and "attn" in lora.target:
        raise ValueError(
            f"model.lora.dropout is {lora.dropout}, but attention multiplies by its weights at once, and dropout of inputs has "
            "no effect there; set it to 0, or model.lora.target to [mlp]"
        )
    for side, blocks in zip(SIDES, (image_blocks, text_blocks), strict=True):
        if blocks == 0 and side in lora.towers:
            raise ValueError(
                f"model.{side}_blocks is 0, which freezes the {side} tower, but model.lora.towers has it; take {side} out of "
                f"model.lora.towers, or set model.{side}_blocks to null"
            )
        if blocks:
            raise ValueError(
                f"model.{side}_blocks is {blocks}, but LoRA freezes all weights and trains its own matrices in every block; "
                f"set model.{side}_blocks to null, or leave model.lora out"
            )


def add_lora(model: nn.Module, lora: Lora) -> None:
    """Put adapters into the model, in place, and freeze the rest but the temperature (and the bias of the sigmoid loss).

    The embeddings stay what they were until a step is made. The adapters' first values are drawn from torch's own random
    state. ValueError for settings that cannot work and for towers that cannot have it; ImportError without peft.
    """
    check_lora(lora)
    pattern = "|".join(_pattern(model, side, lora) for side in lora.towers)
    peft = _peft()
    config = peft.LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=f"({pattern})", bias="none"
    )
    config._register_custom_module({nn.MultiheadAttention: _attention()})  # peft's hook for layers of one's own
    peft.inject_adapter_in_model(config, model, ADAPTER)
    for name in TEMPERATURE:
        if getattr(model, name, None) is not None:
            getattr(model, name).requires_grad_(True)


def _pattern(model: nn.Module, side: str, lora: Lora) -> str:
    """A regular expression that fits the full names of a tower's modules to adapt. ValueError where it has none."""
    tower, start = tower_of(model, side), re.escape(prefix(model, side))
    layers: Any = getattr(getattr(tower, "transformer", None), "resblocks", [None])
    if all(isinstance(layer, ResidualAttentionBlock) for layer in layers):
        return "|".join(rf"{start}transformer\.resblocks\.\d+\.{PARTS[part]}" for part in lora.target)
    if isinstance(tower, TimmModel) and _plain_vit(tower.trunk):
        return "|".join(rf"{start}trunk\.blocks\.\d+\.{PARTS_TIMM[part]}" for part in lora.target)
    kind = type(tower.trunk if isinstance(tower, TimmModel) else tower).__name__
    rest = [other for other in lora.towers if other != side]
    raise ValueError(
        f"model.lora.towers has {side}, but LoRA is known to work in transformers of open_clip's and timm's plain build, and "
        f"this {side} tower is a {kind}; " + (f"set model.lora.towers to {rest}" if rest else "leave model.lora out")
    )


def _plain_vit(trunk: Any) -> bool:
    """True for timm's VisionTransformer whose layers are called as modules, which is what peft's adapters need."""
    from timm.layers import Attention, Mlp
    from timm.models.vision_transformer import Block, VisionTransformer

    return type(trunk) is VisionTransformer and all(
        type(block) is Block and type(block.attn) is Attention and type(block.mlp) is Mlp for block in trunk.blocks
    )


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise ImportError("model.lora needs peft, which is not installed; pip install 'dualenc[finetune]'") from error
    return peft


@cache
def _attention() -> type[nn.Module]:
    """peft's LoRA of nn.MultiheadAttention, with weights that stay as they are.

    peft's own adds B A to the weights before each forward and takes it away after, which leaves the rounding: frozen
    weights drift, otherwise on each rank. Here the sum is a tensor that only this forward sees, so attention's own
    forward, its fused kernels included, always works with the adapted weights.
    """
    from peft.tuners.lora.layer import MultiheadAttention

    class Attention(MultiheadAttention):  # type: ignore[misc,valid-type]
        def forward(self, query: Tensor, *args: Any, **kwargs: Any) -> Any:
            base: Any = self.get_base_layer()
            # In half precision the change, which is small, would be rounded to a few digits or lost in the sum.
            with torch.autocast(query.device.type, enabled=False):
                weights = {
                    "in_proj_weight": base.in_proj_weight + self.get_delta_weight(ADAPTER),
                    "out_proj.base_layer.weight": base.out_proj.weight + base.out_proj.get_delta_weight(ADAPTER),
                }
            return functional_call(base, weights, (query, *args), kwargs, tie_weights=False)

        def state_dict(self, *args: Any, **kwargs: Any) -> Any:
            return nn.Module.state_dict(self, *args, **kwargs)  # peft's would make new Parameters

        def named_modules(self, *args: Any, **kwargs: Any) -> Any:
            return nn.Module.named_modules(self, *args, **kwargs)  # here too

    return Attention


def merged(model: nn.Module) -> nn.Module:
    """A copy of the model with its adapters merged into the weights: names and shapes are those before `add_lora`.

    The model is not changed. Where it has no adapters, it is returned as it is.
    """
    config: Any = getattr(model, "peft_config", None)
    if config is None:
        return model
    plain = copy.deepcopy(model)
    _unwrap(plain)
    del plain.peft_config
    state = merged_state(model.state_dict(), config[ADAPTER].lora_alpha / config[ADAPTER].r)
    plain.load_state_dict(state)
    return plain


def _unwrap(model: nn.Module) -> None:
    """Put the layers that peft wrapped back in their places."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if hasattr(child, "base_layer"):
                setattr(module, name, child.base_layer)


@torch.no_grad()
def merged_state(state: Mapping[str, Tensor], scale: float) -> dict[str, Tensor]:
    """The state dict of a model with adapters as that of the model without: W + scale · B A, under W's former name.

    scale: alpha / rank. Summed in float64 in the order of the ranks, in steps that every machine rounds alike (products of
    float32 are exact), so that a checkpoint has one fingerprint. peft is not needed.
    """
    plain = {name.replace("base_layer.", ""): value for name, value in state.items() if ".lora_" not in name}
    for name in (name for name in state if name.endswith(A)):
        layer = name.removesuffix(A)
        down, up = state[name].double(), state[layer + B].double()  # (rank, in), (out, rank)
        which = "in_proj_weight" if f"{layer}.base_layer.in_proj_weight" in state else "weight"
        target = f"{layer}.{which}".replace("base_layer.", "")
        change = torch.zeros(up.shape[0], down.shape[1], dtype=torch.float64, device=up.device)
        for one in range(len(down)):
            change.addr_(up[:, one], down[one])
        plain[target] = change.mul_(scale).add_(plain[target]).to(plain[target].dtype)
    return plain
