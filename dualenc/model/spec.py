"""What loader workers need to know of an encoder, as plain lists and numbers: no class of ours or of open_clip crosses over."""

from __future__ import annotations

from typing import Any

import dualenc.torchvision_ops  # noqa: F401  (before open_clip)

from open_clip import tokenizer as oc
from torch import nn

from dualenc.model.towers import pads_to_longest


def input_spec(model: nn.Module, tokenizer: Any) -> dict[str, Any]:
    """{"image": {"size": [H, W], "mean", "std", "interpolation", "resize_mode", "fill_color"}, "text": tokenizer spec}."""
    cfg = dict(model.visual.preprocess_cfg)  # type: ignore[union-attr,arg-type]
    size = cfg["size"]
    image = {k: list(v) if isinstance(v, tuple) else v for k, v in cfg.items() if k not in ("mode", "size")}
    image["size"] = [size, size] if isinstance(size, int) else list(size)
    return {"image": image, "text": tokenizer_spec(tokenizer, pads_to_longest(model))}


def tokenizer_spec(tokenizer: Any, pad_to_longest: bool) -> dict[str, Any]:
    """The plain form of an open_clip SimpleTokenizer (for `dualenc.data.text.Tokenizer`)."""
    if not isinstance(tokenizer, oc.SimpleTokenizer) or tokenizer.reduction_fn is not None:
        raise ValueError(
            f"{type(tokenizer).__name__} cannot be carried to loader workers: only CLIP's byte-pair tokenizer can; "
            "embed with DualEncoder.embed_images and embed_texts, which take any open_clip encoder"
        )
    names = {getattr(oc, f"_clean_{name}"): name for name in ("lower", "whitespace", "canonicalize")}
    return {
        "context_length": tokenizer.context_length,
        "pad_to_longest": pad_to_longest,
        "clean": names[tokenizer.clean_fn],
        "pattern": tokenizer.pat.pattern,
        "symbols": list(tokenizer.encoder),
        "bytes": [tokenizer.byte_encoder[b] for b in range(256)],
        "merges": [list(merge) for merge in tokenizer.bpe_ranks],
        "specials": [tokenizer.decoder[i] for i in tokenizer.all_special_ids],
    }
