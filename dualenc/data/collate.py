"""Rows to a batch (DESIGN: "Batch")."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from dualenc.data.text import make_tokenizer


def key_group(key: str) -> int:
    """A number for a key, 0 .. 2^63 - 1: equal for equal keys on every machine, another for others (but once in 2^63 pairs)."""
    digest = hashlib.blake2b(key.encode("utf-8", "surrogateescape"), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


class Collate:
    """A list of rows to a batch: `image` uint8 (B, 3, H, W), channels last in memory, `text` int64 (B, L) of first captions,
    `key`, `group` int64 (B,) the keys' numbers (`key_group`), `valid` (B,), `label` int64 (B,) where all have one, `position`
    int64 (B,) in the source, `reason` why a row is not valid, `origin` which of several sources it comes from, `truncated`
    how many captions were cut at the context.

    Rows without pixels (`Prepare`'s `pixels`) make a batch without `image`.
    captions K > 1: also `texts` int64 (B, K, L), of which the first is `text`.
    all_captions: also `all_text` int64 (T, L) with `text_row` int64 (T,), the row of the batch that each belongs to.
    """

    def __init__(self, spec: dict[str, Any], all_captions: bool, captions: int = 1):
        self.tokenizer = make_tokenizer(spec["text"])
        self.all_captions, self.captions = all_captions, captions

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        before = self.tokenizer.truncated
        images = [r["image"] for r in rows if r["image"] is not None]
        batch: dict[str, Any] = {"image": torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)} if images else {}
        batch |= {
            "text": torch.from_numpy(self.tokenizer([(r["captions"] or [""])[0] for r in rows])),
            "key": [r["key"] for r in rows],
            "group": torch.tensor([key_group(r["key"]) for r in rows], dtype=torch.int64),
            "valid": torch.tensor([r["reason"] is None for r in rows]),
            "position": torch.tensor([r["position"] for r in rows]),
            "reason": [r["reason"] for r in rows],
            "origin": [r["origin"] for r in rows],
        }
        if all(r["label"] is not None for r in rows if r["reason"] is None):
            batch["label"] = torch.tensor([-1 if r["label"] is None else r["label"] for r in rows])
        if self.captions > 1 and not self.all_captions:
            before = self.tokenizer.truncated  # the first captions are among them: count no caption twice
            tokens = self.tokenizer([c for r in rows for c in r["captions"] or [""] * self.captions])
            batch["texts"] = torch.from_numpy(tokens).view(len(rows), self.captions, -1)  # one shape on all ranks
        if self.all_captions:
            before = self.tokenizer.truncated
            owned = [(caption, row) for row, r in enumerate(rows) for caption in r["captions"]]
            batch["all_text"] = torch.from_numpy(self.tokenizer([caption for caption, _ in owned]))
            batch["text_row"] = torch.tensor([row for _, row in owned], dtype=torch.int64)
        batch["truncated"] = self.tokenizer.truncated - before
        return batch
