"""Prompts that begin alike, embedded with what they have in common computed once.

A causal text tower sees only what stands before a token, so two prompts have equal rows up to where they part. A pack of
prompts is the tree of their tokens, laid out as one text: each token stands once, at its own position, and attends to its
ancestors alone; the sums are the same.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dualenc.model.towers import pads_to_longest, prefix

NODES = 384  # tokens of a pack: the more, the more is shared, and the longer attention takes
TRIED = 8  # prompts that are embedded both ways, to see that this tower can do it
ALIKE = 1e-5  # difference of two unit rows' values
_ANYWHERE = "none"  # open_clip's name for a text tower that gives every token's row


class Pack(NamedTuple):
    """A tree of n tokens, of T prompts."""

    tokens: np.ndarray  # (n,) ids, each after its ancestors
    depth: np.ndarray  # (n,) its position in its prompts
    sees: np.ndarray  # (n, n) bool: itself and its ancestors
    ends: np.ndarray  # (T,) where each prompt ends


def embed_prompts(encoder: Any, texts: Sequence[str]) -> np.ndarray:
    """`encoder.embed_texts(texts)`, to 1e-5, in less time where many begin alike.

    On a CPU, for towers that `pads_to_longest`; others, few prompts, and those that fill the context, take the ordinary
    way.
    """
    if encoder.device.type != "cpu" or not pads_to_longest(encoder.model):
        return encoder.embed_texts(texts)
    tokens = encoder.tokenizer(list(texts))  # (T, context)
    short = np.flatnonzero(tokens[:, -1].numpy() == 0)
    if len(short) <= TRIED:
        return encoder.embed_texts(texts)
    long = np.setdiff1d(np.arange(len(texts)), short)
    rows = np.empty((len(texts), encoder.dim), np.float32)
    some = short[:TRIED]
    with torch.inference_mode():
        rows[some] = encoder.embed_texts([texts[i] for i in some])
        tried = prefix(features(encoder.model, tokens[some]), encoder.dim).float().numpy()
        if not np.abs(tried - rows[some]).max(initial=0) <= ALIKE:
            return encoder.embed_texts(texts)
        rows[short] = prefix(features(encoder.model, tokens[short]), encoder.dim).float().numpy()
    if len(long):
        rows[long] = encoder.embed_texts([texts[i] for i in long])
    return rows


def features(model: Any, tokens: Tensor, nodes: int = NODES) -> Tensor:
    """Unit embeddings (T, D) of token ids (T, L) that end before L and are padded with zeros; `pads_to_longest(model)`."""
    text = getattr(model, "text", model)
    tower = copy.copy(text)  # shares all weights with `text`
    tower._parameters, tower._buffers = dict(text._parameters), dict(text._buffers)
    positions = tower._parameters.pop("positional_embedding").data
    mask = tower._buffers.pop("attn_mask")
    tower.pool_type = tower.text_pool_type = _ANYWHERE
    ids = tokens.numpy()
    order = np.lexsort(ids.T[::-1])
    rows = []
    for pack in packs(ids[order], nodes):
        tower.positional_embedding = positions[torch.from_numpy(pack.depth)]
        tower.attn_mask = torch.zeros_like(mask[:1, :1]).masked_fill(~torch.from_numpy(pack.sees), float("-inf"))
        some = torch.from_numpy(pack.tokens)[None]
        each = tower.encode_text(some) if hasattr(tower, "encode_text") else tower(some)  # (1, n, D)
        rows.append(F.normalize(each[0, torch.from_numpy(pack.ends)], dim=-1))
    return torch.cat(rows)[torch.from_numpy(np.argsort(order))]


def packs(ids: np.ndarray, nodes: int = NODES) -> Iterator[Pack]:
    """The prompts (T, L), sorted and padded with zeros, as trees of at most `nodes` tokens (one prompt may have more)."""
    lengths = ids.shape[1] - (ids[:, ::-1] != 0).argmax(axis=1)  # a zero within is a token: CLIP's "!"
    parts = np.concatenate([ids[:-1] != ids[1:], np.ones((1, ids.shape[1]), bool)])  # the last: nothing follows it
    common = np.concatenate([[0], parts.argmax(axis=1)[:-1]])  # with the one before
    common[np.concatenate([[False], ~parts[:-1].any(axis=1)])] = ids.shape[1]  # the same prompt again
    start = 0
    while start < len(ids):
        new = lengths[start:] - np.minimum(common[start:], lengths[start:])
        new[0] = lengths[start]
        count = max(1, int(np.searchsorted(np.cumsum(new), nodes, side="right")))
        yield _pack(ids[start : start + count], lengths[start : start + count], new[:count])
        start += count


def _pack(ids: np.ndarray, lengths: np.ndarray, new: np.ndarray) -> Pack:
    size, at = int(new.sum()), 0
    tokens, depth = np.empty(size, np.int64), np.empty(size, np.int64)
    sees, ends = np.zeros((size, size), bool), np.empty(len(ids), np.int64)
    path = np.zeros(ids.shape[1], np.int64)  # where the tokens of the prompt lie
    for number, (row, length, fresh) in enumerate(zip(ids, lengths.tolist(), new.tolist(), strict=True)):
        for place in range(length - fresh, length):
            tokens[at], depth[at], path[place] = row[place], place, at
            sees[at, path[: place + 1]] = True
            at += 1
        ends[number] = path[length - 1]
    return Pack(tokens, depth, sees, ends)
