"""Towers: building an open_clip model from a name or from sizes, and what goes through it."""

from __future__ import annotations

import copy
import dataclasses
import difflib
import functools
from collections.abc import Callable
from typing import Any

import dualenc.torchvision_ops  # noqa: F401  (before open_clip)

import open_clip
import torch
import torch.nn.functional as F
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg, CustomTextCLIP
from open_clip.transform import PreprocessCfg, merge_preprocess_dict
from torch import Tensor, nn
from torch.func import functional_call

MODEL_KEYS = ("embed_dim", "vision_cfg", "text_cfg", "quick_gelu", "custom_text", "init_logit_scale", "init_logit_bias")


def check_config(model_cfg: dict[str, Any], preprocess_cfg: dict[str, Any]) -> None:
    """Raise ValueError for a key that open_clip's model or preprocessing would not know, naming the nearest one."""
    known = {
        "model": (model_cfg, MODEL_KEYS),
        "vision_cfg": (model_cfg.get("vision_cfg", {}), [f.name for f in dataclasses.fields(CLIPVisionCfg)]),
        "text_cfg": (model_cfg.get("text_cfg", {}), [f.name for f in dataclasses.fields(CLIPTextCfg)]),
        "preprocess": (preprocess_cfg, [f.name for f in dataclasses.fields(PreprocessCfg)]),
    }
    for place, (given, names) in known.items():
        for key in given:
            if key not in names:
                near = difflib.get_close_matches(key, names, 1)
                hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(names)}"
                raise ValueError(f"{place}: unknown key {key!r}, so the towers cannot be built; {hint}")
    if preprocess_cfg.get("resize_mode", "shortest") not in ("shortest", "longest", "squash"):
        raise ValueError(
            f"preprocess.resize_mode {preprocess_cfg['resize_mode']!r} must be shortest, longest or squash"
        )


def build(model_cfg: dict[str, Any], preprocess_cfg: dict[str, Any]) -> nn.Module:
    """An open_clip model with random weights. model_cfg, preprocess_cfg: as in open_clip_config.json."""
    check_config(model_cfg, preprocess_cfg)
    cfg = copy.deepcopy(model_cfg)  # open_clip edits what it is given
    custom = cfg.pop("custom_text", False) or "hf_model_name" in cfg["text_cfg"]
    cfg["vision_cfg"]["timm_model_pretrained"] = False
    if "hf_model_name" in cfg["text_cfg"]:
        cfg["text_cfg"]["hf_model_pretrained"] = False
    model = (CustomTextCLIP if custom else CLIP)(**cfg)
    size = cfg["vision_cfg"].get("image_size", 224)
    preprocess = merge_preprocess_dict(PreprocessCfg(), preprocess_cfg) | {"size": size}
    open_clip.model.set_model_preprocess_cfg(model, preprocess)
    return model


def image_features(model: Any, images: Tensor) -> Tensor:
    """Unit embeddings (B, D) of uint8 images (B, 3, H, W); normalised here, on their device, by the model's own mean and std."""
    cfg = model.visual.preprocess_cfg
    dtype = model.logit_scale.dtype  # float32; float64 in tests
    mean, std = (_per_channel(tuple(cfg[k]), dtype, images.device) for k in ("mean", "std"))
    images = images.contiguous(memory_format=torch.channels_last)  # convolutions are faster so, on CPU and GPU alike
    pixels = images.to(mean.dtype).div_(255).sub_(mean).div_(std)  # torchvision's order of operations: equal bits
    return F.normalize(model.encode_image(pixels), dim=-1)


@functools.lru_cache(maxsize=64)
def _per_channel(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """(3, 1, 1) on the device; kept, as a copy from the host would make a GPU wait at every step."""
    with torch.inference_mode(False):
        return torch.tensor(values, dtype=dtype, device=device).view(3, 1, 1)


class _EncodeText(nn.Module):
    def __init__(self, model: Any):
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> Tensor:
        return self.model.encode_text(tokens)


def text_features(model: Any, tokens: Tensor) -> Tensor:
    """Unit embeddings (B, D) of token ids (B, L). L may be shorter than the context where `pads_to_longest(model)`."""
    text = getattr(model, "text", model)
    length = tokens.shape[1]
    if length == getattr(text, "context_length", length):
        return F.normalize(model.encode_text(tokens), dim=-1)
    prefix = "model.text." if text is not model else "model."
    shorter = {prefix + "positional_embedding": text.positional_embedding[:length]}
    shorter[prefix + "attn_mask"] = text.attn_mask[:length, :length]
    # tie_weights: looking for tied weights walks through both towers, which one short text would wait for
    return F.normalize(functional_call(_EncodeText(model), shorter, (tokens,), tie_weights=False), dim=-1)


def text_features_sorted(
    model: Any, tokens: Tensor, chunk: int = 64, tower: Callable[[Tensor], Tensor] | None = None
) -> Tensor:
    """Unit embeddings (T, D) of token ids (T, L), as `text_features` gives them, in less time.

    Where `pads_to_longest(model)`: shortest first, `chunk` captions at a time, each chunk cut at its own longest, and the
    rows put back in the order given. Zeros pad; the end of text is not zero. tower: what does the model's work there
    (`dualenc.model.traced`).
    """
    if not len(tokens):
        return text_features(model, tokens)
    if not pads_to_longest(model):
        return torch.cat([text_features(model, part) for part in tokens.split(chunk)])
    lengths = tokens.shape[1] - tokens.flip(1).ne(0).to(torch.uint8).argmax(dim=1)
    lengths, order = lengths.cpu().sort(stable=True)  # one wait for the device, not one for each chunk
    parts = zip(order.to(tokens.device).split(chunk), lengths.split(chunk), strict=True)
    tower = tower or functools.partial(text_features, model)
    rows = torch.cat([tower(tokens[rows, : int(length[-1])]) for rows, length in parts])
    return rows[order.argsort().to(rows.device)]


def prefix(rows: Tensor, dim: int) -> Tensor:
    """The first `dim` of the dimensions of unit rows (N, D), as unit rows again."""
    return rows if rows.shape[-1] == dim else F.normalize(rows[..., :dim], dim=-1)


def pads_to_longest(model: Any) -> bool:
    """True where padding after the end of text changes nothing: causal attention, pooled at the end of text."""
    text = getattr(model, "text", model)
    pool = getattr(text, "pool_type", getattr(model, "text_pool_type", None))
    causal = getattr(text, "attn_mask", None) is not None
    return causal and pool in ("argmax", "eos") and getattr(text, "cls_emb", None) is None
