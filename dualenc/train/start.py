"""The towers that a training run starts with."""

from __future__ import annotations

import math
from typing import Any

import dualenc.torchvision_ops  # noqa: F401  (before open_clip)

import torch

from dualenc.model import folder
from dualenc.model.towers import build, check_config

TEMPERATURE = {"softmax": 0.07, "sigmoid": 0.1}  # initial ones, of CLIP and of SigLIP


def towers(
    start_from: str | None,
    name: str | None,
    sizes: dict[str, Any],
    preprocess: dict[str, Any],
    loss: str,
    temperature: float | None,
) -> folder.Loaded:
    """Trained towers (`start_from`), an architecture of open_clip's by `name`, or random towers of the `sizes` that
    ContrastiveModule takes. ValueError for towers that `loss` cannot train."""
    if start_from is None:
        return _random(
            folder.model_config(name) if name is not None else _config(**sizes), preprocess, loss, temperature
        )
    loaded = folder.load(start_from)
    check_config({}, preprocess)
    loaded.model.visual.preprocess_cfg.update(preprocess)  # type: ignore[union-attr,operator]
    if temperature is not None:
        torch.nn.init.constant_(loaded.model.logit_scale, -math.log(temperature))  # type: ignore[arg-type]
    if loss == "sigmoid" and getattr(loaded.model, "logit_bias", None) is None:
        raise ValueError(
            f"{start_from}: has no logit bias, so the sigmoid loss cannot train it; use model.loss softmax"
        )
    return loaded


def _config(
    embed_dim: int | None, vision: dict[str, Any] | None, text: dict[str, Any] | None, quick_gelu: bool
) -> dict[str, Any]:
    return {
        "embed_dim": embed_dim or 256,
        "vision_cfg": vision,
        "text_cfg": text or {},
        "quick_gelu": quick_gelu,
        "custom_text": vision is not None and "timm_model_name" in vision,
    }


def _random(
    model_cfg: dict[str, Any], preprocess: dict[str, Any], loss: str, temperature: float | None
) -> folder.Loaded:
    model_cfg["init_logit_scale"] = -math.log(TEMPERATURE[loss] if temperature is None else temperature)
    if loss == "sigmoid":
        model_cfg["init_logit_bias"] = -10.0  # Zhai et al. 2023, 3.2: all pairs begin as negatives
    return folder.Loaded(build(model_cfg, preprocess), folder.make_tokenizer(model_cfg["text_cfg"]), model_cfg, {})
