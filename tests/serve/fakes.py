"""A fake encoder, whose unit rows follow from the text or the pixels alone, without torch; and a small index of its."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

DIM = 16
FINGERPRINT = "fa4e" * 16


def fake_row(data: bytes, dim: int = DIM) -> np.ndarray:
    """(D,) float32 unit row, of some bytes always the same."""
    seed = int.from_bytes(hashlib.sha256(data).digest()[:8], "big")
    row = np.random.default_rng(seed).standard_normal(dim)
    return (row / np.linalg.norm(row)).astype(np.float32)


class FakeEncoder:
    """Stands where the engine has an encoder. `calls`: how many items each call of a tower got."""

    logit_scale = 100.0
    text_seconds = float("inf")
    path = "fake"

    def __init__(self, dim: int = DIM, fingerprint: str = FINGERPRINT):
        self.dim, self.fingerprint = dim, fingerprint
        self.calls: list[int] = []

    def short(self, text: str) -> bool:
        return len(text) <= 16

    def embed_texts(self, texts: Any) -> np.ndarray:
        self.calls.append(len(texts))
        return np.stack([fake_row(text.encode(), self.dim) for text in texts])

    def embed_images(self, images: Any) -> np.ndarray:
        self.calls.append(len(images))
        return np.stack([fake_row(image.convert("RGB").tobytes(), self.dim) for image in images])


def use_fake_encoders(monkeypatch: Any) -> list[FakeEncoder]:
    """Every encoder that a service loads from now on is a fake one, of the dim and fingerprint that its index needs; they
    are in the list that is returned, as they come."""
    made: list[FakeEncoder] = []

    def load(need: Any, precision: str, threads: int) -> FakeEncoder:
        made.append(FakeEncoder(need.dim, need.fingerprint or FINGERPRINT))
        return made[-1]

    monkeypatch.setattr("dualenc.serve.encoders.load", load)
    return made


def small_rows(n: int, dim: int = DIM, seed: int = 0) -> np.ndarray:
    """(n, D) float32 unit rows."""
    rows = np.random.default_rng(seed).standard_normal((n, dim))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def small_index(out: Path, n: int = 50, encoder: Any = "fake", seed: int = 0, **more: Any) -> Any:
    """A flat index of n rows with metadata, in a moment. encoder: "fake", None, or what `Index.build` takes."""
    from dualenc.index import Index

    rows = [
        {"key": f"{i:04d}", "caption": f"picture number {i}", "colour": ("red", "blue")[i % 2], "n": i}
        for i in range(n)
    ]
    given = FakeEncoder() if encoder == "fake" else encoder
    return Index.build(small_rows(n, seed=seed), out, metadata=rows, recipe="flat", encoder=given, **more)
