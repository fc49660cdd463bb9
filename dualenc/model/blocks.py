"""A tower's parts in the order its input takes them: stem, blocks, head. All parts are lists of the model's parameter names."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import dualenc.torchvision_ops  # noqa: F401  (before open_clip)

from open_clip.hf_model import HFTextEncoder
from open_clip.modified_resnet import ModifiedResNet
from open_clip.timm_model import TimmModel
from open_clip.transformer import TextTransformer, VisionTransformer
from torch import nn

SIDES = ("image", "text")
TEMPERATURE = ("logit_scale", "logit_bias")  # of neither tower


class Tower(NamedTuple):
    """Parameter names of a tower's parts.

    stem: patch or token embedding and positions. blocks: the i-th block's, first to last: a transformer layer, a residual
    block of a ResNet, or what timm calls a group. head: final norm, pooling and projection.
    """

    stem: list[str]
    blocks: list[list[str]]
    head: list[str]

    def depth(self) -> dict[str, int]:
        """Parameter name -> distance from the top: 0 in the head, 1 in the last block, len(blocks) + 1 in the stem."""
        parts = [self.head, *reversed(self.blocks), self.stem]
        return {name: depth for depth, part in enumerate(parts) for name in part}


def tower_of(model: nn.Module, side: str) -> nn.Module:
    """The module that is the tower of a side, "image" or "text"; CLIP's own text tower is the model itself."""
    return model.visual if side == "image" else getattr(model, "text", model)  # type: ignore[return-value]


def tower_names(model: nn.Module, side: str) -> list[str]:
    """The parameter names of a tower, in the model's order."""
    names = [name for name, _ in model.named_parameters()]
    if side == "image" or hasattr(model, "text"):
        return [name for name in names if name.startswith(prefix(model, side))]
    return [name for name in names if name not in TEMPERATURE and not name.startswith("visual.")]


def prefix(model: nn.Module, side: str) -> str:
    """What a tower's parameter names begin with in the model: "visual.", "text." or, for CLIP's own text tower, nothing."""
    return "visual." if side == "image" else "text." if hasattr(model, "text") else ""


def divide(model: nn.Module, side: str) -> Tower:
    """The parts of a tower, "image" or "text": every parameter is in one of them. ValueError for a tower of unknown build."""
    tower, names, start = tower_of(model, side), tower_names(model, side), prefix(model, side)
    if isinstance(tower, VisionTransformer):
        stem = ["conv1", "class_embedding", "positional_embedding", "ln_pre"]
        return _sorted(names, start, stem, _numbered("transformer.resblocks", tower.transformer.resblocks))
    if isinstance(tower, ModifiedResNet):
        stem = [f"{kind}{number}" for kind in ("conv", "bn") for number in (1, 2, 3)]
        stages = ((f"layer{number}", getattr(tower, f"layer{number}")) for number in (1, 2, 3, 4))
        return _sorted(names, start, stem, [block for stage in stages for block in _numbered(*stage)])
    if isinstance(tower, TimmModel) and hasattr(tower.trunk, "group_matcher"):
        return _timm(tower, names, start)
    if isinstance(tower, HFTextEncoder):
        return _hugging_face(tower, names, start)
    if isinstance(tower, TextTransformer) or (tower is model and hasattr(model, "token_embedding")):
        layers: Any = tower.transformer.resblocks  # type: ignore[union-attr]
        stem = ["token_embedding", "positional_embedding", "cls_emb"]
        return _sorted(names, start, stem, _numbered("transformer.resblocks", layers))
    raise _unknown(side, type(tower).__name__)


def _numbered(name: str, layers: Iterable[nn.Module]) -> list[str]:
    return [f"{name}.{number}" for number, _ in enumerate(layers)]


def _sorted(names: list[str], start: str, stem: Iterable[str], blocks: Iterable[str]) -> Tower:
    """Names by the module or parameter that they lie in; what is in neither the stem nor a block is in the head."""

    def within(name: str, parts: Iterable[str]) -> bool:
        return any(name == start + part or name.startswith(f"{start}{part}.") for part in parts)

    in_blocks = [[name for name in names if within(name, [block])] for block in blocks]
    in_stem = [name for name in names if within(name, stem)]
    taken = {*in_stem, *(name for block in in_blocks for name in block)}
    return Tower(in_stem, in_blocks, [name for name in names if name not in taken])


def _timm(tower: TimmModel, names: list[str], start: str) -> Tower:
    """timm's own groups: the first is the stem; what is not numbered in the last ones (norm, pooling) is in the head."""
    from timm.models import group_parameters

    grouped = group_parameters(tower.trunk, tower.trunk.group_matcher())
    groups = [[f"{start}trunk.{name}" for name in grouped[number]] for number in sorted(grouped)]
    stem, blocks = groups[0], groups[1:]
    while blocks and not (numbered := [name for name in blocks[-1] if any(map(str.isdigit, name.split(".")))]):
        blocks.pop()
    if blocks:
        blocks[-1] = numbered
    taken = {*stem, *(name for block in blocks for name in block)}
    return Tower(stem, blocks, [name for name in names if name not in taken])


def _hugging_face(tower: HFTextEncoder, names: list[str], start: str) -> Tower:
    """The list of layers that the model, or its encoder, holds: what is registered before it is the stem."""
    inner: Any = tower.transformer
    encoder = getattr(inner, "encoder", inner)
    place = "transformer." + ("encoder." if encoder is not inner else "")
    found = [(name, child) for name, child in encoder.named_children() if isinstance(child, nn.ModuleList)]
    if len(found) != 1 or not len(found[0][1]):
        raise _unknown("text", type(inner).__name__)
    tower_parts = _sorted(names, start, [], _numbered(place + found[0][0], found[0][1]))
    first = names.index(tower_parts.blocks[0][0])
    head = [name for name in tower_parts.head if names.index(name) > first]
    return Tower(names[:first], tower_parts.blocks, head)


def _unknown(side: str, kind: str) -> ValueError:
    return ValueError(
        f"the {side} tower ({kind}) is of a build whose blocks are not known, so it cannot be trained in part; set "
        f"model.{side}_blocks to null or 0, and model.layer_decay to 1.0"
    )
