"""What loader workers need to know of an encoder, as plain lists and numbers: no class of ours or of open_clip crosses over."""

from __future__ import annotations

from typing import Any

import dualenc.torchvision_ops  # noqa: F401  (before open_clip)

from open_clip import tokenizer as oc
from torch import nn

from dualenc.model.towers import pads_to_longest

CLEANERS = {getattr(oc, f"_clean_{name}"): name for name in ("lower", "whitespace", "canonicalize")}


def input_spec(model: nn.Module, tokenizer: Any) -> dict[str, Any]:
    """{"image": {"size": [H, W], "mean", "std", "interpolation", "resize_mode", "fill_color"}, "text": tokenizer spec}."""
    cfg = dict(model.visual.preprocess_cfg)  # type: ignore[union-attr,arg-type]
    size = cfg["size"]
    image = {k: list(v) if isinstance(v, tuple) else v for k, v in cfg.items() if k not in ("mode", "size")}
    image["size"] = [size, size] if isinstance(size, int) else list(size)
    return {"image": image, "text": tokenizer_spec(tokenizer, pads_to_longest(model))}


def tokenizer_spec(tokenizer: Any, pad_to_longest: bool) -> dict[str, Any]:
    """The plain form of an open_clip tokenizer, for `dualenc.data.text.make_tokenizer`.

    SimpleTokenizer, or HFTokenizer over a fast tokenizer; ValueError for others, and for special modes of these.
    """
    if isinstance(tokenizer, oc.HFTokenizer) and (fast := _fast_spec(tokenizer)):
        return fast
    if not isinstance(tokenizer, oc.SimpleTokenizer) or tokenizer.reduction_fn is not None:
        raise ValueError(
            f"{type(tokenizer).__name__} cannot be carried to loader workers: only CLIP's byte-pair tokenizer and fast "
            "Hugging Face ones can; embed with DualEncoder.embed_images and embed_texts, which take any open_clip encoder"
        )
    return {
        "context_length": tokenizer.context_length,
        "pad_to_longest": pad_to_longest,
        "clean": CLEANERS[tokenizer.clean_fn],
        "pattern": tokenizer.pat.pattern,
        "symbols": list(tokenizer.encoder),
        "bytes": [tokenizer.byte_encoder[b] for b in range(256)],
        "merges": [list(merge) for merge in tokenizer.bpe_ranks],
        "specials": [tokenizer.decoder[i] for i in tokenizer.all_special_ids],
    }


def _fast_spec(tokenizer: oc.HFTokenizer) -> dict[str, Any] | None:
    """An HFTokenizer as its library's own JSON; None where that would not give its ids."""
    inner = getattr(tokenizer, "tokenizer", None)
    backend = getattr(inner, "backend_tokenizer", None)
    if inner is None or backend is None or inner.pad_token_id is None or tokenizer.tokenizer_mode == "clips":
        return None
    return {
        "context_length": tokenizer.context_length,
        "clean": CLEANERS[tokenizer.clean_fn],
        "json": backend.to_str(),
        "pad": inner.pad_token_id,
        "pad_side": inner.padding_side,
        "cut_side": inner.truncation_side,
        "blank": inner.sep_token_id if tokenizer.strip_sep_token else None,
    }
