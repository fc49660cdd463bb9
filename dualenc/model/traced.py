"""The text tower as one graph, for servers: between the operations of a module PyTorch takes Python's lock and gives it back,
a hundred times for one short text, and each time waits for whatever other thread holds it."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dualenc.model.towers import pads_to_longest, text_features

log = logging.getLogger("dualenc")

SHAPES = ((1, 2), (3, 7), (2, 5), (9, 4))  # (texts, tokens) that a graph is tried on
ALIKE = 1e-5  # difference of two rows' values, in float32


def traced_text(model: Any) -> Callable[[Tensor], Tensor] | None:
    """`text_features(model, ·)` as one graph, for any number of texts and of tokens; None where this tower has no such graph.

    For a model in evaluation, whose weights stay as they are and need no gradients any more: they are constants of the
    graph. Call it under `torch.inference_mode()`.
    """
    if not pads_to_longest(model) or any(parameter.is_cuda for parameter in model.parameters()):
        return None  # a GPU is kept waiting by what starts its kernels, not by the lock
    text = getattr(model.requires_grad_(False), "text", model)
    end = text.vocab_size - 1  # the end of text: the highest number, which pooling looks for
    try:
        with torch.inference_mode(), warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", torch.jit.TracerWarning
            )  # branches on shapes: SHAPES are to show what they do
            graph = torch.jit.trace(_cut_to_length(text), (_tokens(2, 3, end),), check_trace=False)

            def features(tokens: Tensor) -> Tensor:
                with torch.jit.optimized_execution(False):  # else it is compiled anew for shape after shape
                    return graph(tokens)

            tried = [_tokens(texts, length, end) for texts, length in SHAPES if length <= text.context_length]
            off = max(float((features(some) - text_features(model, some)).abs().max()) for some in tried)
    except (RuntimeError, AttributeError, TypeError) as error:
        log.info("the text tower has no graph: %s", " ".join(str(error).split())[:200])
        return None
    most = ALIKE if model.logit_scale.dtype == text.positional_embedding.dtype else 4 * torch.finfo(torch.bfloat16).eps
    if not off <= most:
        log.info("the text tower's graph is off by %.1g: it is not used", off)
        return None
    return features


def _cut_to_length(text: Any) -> Callable[[Tensor], Tensor]:
    """The tower as a function whose positions and mask are cut to the tokens' length within the graph."""
    cut = copy.copy(text)  # shares all weights with `text`
    cut._parameters, cut._buffers = dict(text._parameters), dict(text._buffers)
    positions, mask = cut._parameters.pop("positional_embedding").data, cut._buffers.pop("attn_mask")

    def features(tokens: Tensor) -> Tensor:
        length = tokens.shape[1]
        cut.positional_embedding, cut.attn_mask = positions[:length], mask[:length, :length]
        encoded = cut.encode_text(tokens) if hasattr(cut, "encode_text") else cut(tokens)
        return F.normalize(encoded, dim=-1)

    return features


def _tokens(texts: int, length: int, end: int) -> Tensor:
    """(texts, length) token ids, as different as rows of texts are."""
    tokens = torch.arange(1, texts * length + 1).view(texts, length) % (end - 1) + 1
    tokens[:, -1] = end
    return tokens
