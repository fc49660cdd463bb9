"""Whether an open_clip model is what transformers' CLIPModel is, part by part, and its sizes.

Every function raises ValueError with what CLIPModel does not have, as the end of a sentence ("an attentional pool").
The modules themselves are looked at, not their configuration: what was changed after building shows only there.
"""

from __future__ import annotations

from typing import Any

import dualenc.torchvision_ops  # noqa: F401  (before open_clip)

import torch
from open_clip.transformer import QuickGELU, ResidualAttentionBlock, TextTransformer, VisionTransformer
from torch import Tensor, nn

from dualenc.model.export.tokenizer import is_clip
from dualenc.model.spec import CLEANERS

GELU = {"none": "gelu", "tanh": "gelu_pytorch_tanh"}  # nn.GELU's `approximate` to transformers' names


def require(condition: Any, otherwise: str) -> None:
    """ValueError(otherwise) unless the condition holds."""
    if not condition:
        raise ValueError(otherwise)


def text_of(model: Any) -> Any:
    """What holds the text tower's parts: CustomTextCLIP's own module, or the CLIP itself."""
    return getattr(model, "text", model)


def image_sizes(model: Any, preprocess: dict[str, Any]) -> dict[str, Any]:
    """CLIPVisionConfig's arguments, less the projection's."""
    visual = model.visual
    require(type(visual) is VisionTransformer, f"{type(visual).__name__} image tower")
    for name, sides in (("image size", visual.image_size), ("patch size", visual.patch_size)):
        require(len(set(sides)) == 1, f"rectangular {name} ({sides[0]} x {sides[1]})")
    size, patch = visual.image_size[0], visual.patch_size[0]
    require(visual.attn_pool is None, "attentional pool")
    require(visual.pool_type == "tok", f"image pooling {visual.pool_type!r} (only the class token's)")
    require(isinstance(visual.ln_pre, nn.LayerNorm), "image tower without a norm before its blocks")
    require(isinstance(visual.proj, nn.Parameter), "image tower without a projection")
    require(visual.conv1.bias is None, "bias on the patches' projection")
    require(list(preprocess["size"]) == [size, size], f"preprocessing to {preprocess['size']} for images of {size}")
    require(preprocess["mode"] == "RGB", f"image mode {preprocess['mode']}")
    require(
        preprocess["resize_mode"] in ("shortest", "squash"),
        f"resize_mode {preprocess['resize_mode']!r} in its processor",
    )
    require(
        preprocess["interpolation"] in ("bicubic", "bilinear"), f"interpolation {preprocess['interpolation']!r} here"
    )
    blocks = _blocks(visual.transformer, "image", visual.ln_pre, visual.ln_post)
    return blocks | {"image_size": size, "patch_size": patch, "num_channels": visual.conv1.in_channels}


def text_sizes(model: Any, tokenizer: Any) -> dict[str, Any]:
    """CLIPTextConfig's arguments, less the projection's."""
    text = text_of(model)
    require(text is model or type(text) is TextTransformer, f"{type(text).__name__} text tower")
    require(getattr(text, "cls_emb", None) is None, "class token in its text tower")
    require(is_clip(tokenizer), f"{type(tokenizer).__name__} with other tokens than CLIP's")
    clean = CLEANERS[tokenizer.clean_fn]
    require(clean == "lower", f"tokenizer that cleans captions by {clean!r} (only 'lower')")
    vocab, context = text.token_embedding.weight.shape[0], text.positional_embedding.shape[0]
    require(vocab >= len(tokenizer.encoder), f"vocabulary of {vocab} for a tokenizer of {len(tokenizer.encoder)}")
    require(
        tokenizer.context_length == context, f"context of {tokenizer.context_length} tokens for {context} positions"
    )
    require(text.attn_mask is not None, "bidirectional attention in its text tower")
    causal = torch.full((context, context), float("-inf")).triu(1)
    require(torch.equal(text.attn_mask.detach().cpu().float(), causal), "attention mask of its own in the text tower")
    start, end = tokenizer.all_special_ids
    pool = model.text_pool_type if text is model else text.pool_type
    eos = model.text_eos_id if text is model else text.eos_id
    require(pool in ("argmax", "eos"), f"text pooling {pool!r} (only the end of text's)")
    require(pool == "argmax" or eos == end, f"pooling at token {eos} (the end of text is {end})")
    text_projection(text)
    blocks = _blocks(text.transformer, "text", text.ln_final)
    # 49407, never 2: with 2 CLIPModel falls back to an older way of pooling
    ids = {"bos_token_id": start, "eos_token_id": end, "pad_token_id": end}
    return blocks | ids | {"vocab_size": vocab, "max_position_embeddings": context}


def text_projection(text: Any) -> Tensor:
    """The text tower's projection (width, D)."""
    projection = text.text_projection
    require(projection is not None, "text tower without a projection")
    if isinstance(projection, nn.Linear):
        require(projection.bias is None, "bias on the text projection")
        return projection.weight.T
    return projection


def _blocks(transformer: Any, tower: str, *norms: Any) -> dict[str, Any]:
    """Sizes of one tower's blocks, which must all be alike; norms: its other layer norms."""
    blocks = list(transformer.resblocks)
    require(blocks, f"{tower} tower without blocks")
    for block in blocks:
        _plain(block, tower)
    first = blocks[0]
    norms = (*norms, *(norm for block in blocks for norm in (block.ln_1, block.ln_2)))
    require(
        all(isinstance(n, nn.LayerNorm) and n.weight is not None and n.bias is not None for n in norms),
        f"{tower} tower whose norms are not affine layer norms",
    )
    require(len({norm.eps for norm in norms}) == 1, f"{tower} tower with several epsilons in its norms")
    alike = {(block.attn.num_heads, block.mlp.c_fc.out_features, _activation(block, tower)) for block in blocks}
    require(len(alike) == 1, f"{tower} tower of unlike blocks")
    return {
        "hidden_size": first.attn.embed_dim,
        "intermediate_size": first.mlp.c_fc.out_features,
        "num_hidden_layers": len(blocks),
        "num_attention_heads": first.attn.num_heads,
        "hidden_act": _activation(first, tower),
        "layer_norm_eps": norms[0].eps,
    }


def _plain(block: Any, tower: str) -> None:
    """One block: attention and MLP with biases, added to what goes in, and nothing else."""
    require(type(block) is ResidualAttentionBlock, f"{type(block).__name__} in its {tower} tower")
    require(isinstance(block.ls_1, nn.Identity) and isinstance(block.ls_2, nn.Identity), f"layer scale ({tower} tower)")
    attention = block.attn
    require(type(attention) is nn.MultiheadAttention, f"{type(attention).__name__} as attention ({tower} tower)")
    usual = attention.in_proj_weight is not None and attention.in_proj_bias is not None and attention.bias_k is None
    require(usual and not attention.add_zero_attn, f"attention of this form ({tower} tower)")
    for linear in (block.mlp.c_fc, block.mlp.c_proj):
        require(type(linear) is nn.Linear and linear.bias is not None, f"MLP without biases ({tower} tower)")


def _activation(block: Any, tower: str) -> str:
    activation = block.mlp.gelu
    if isinstance(activation, QuickGELU):
        return "quick_gelu"
    require(type(activation) is nn.GELU, f"{type(activation).__name__} as activation ({tower} tower)")
    return GELU[activation.approximate]
