"""A tiny encoder made of words and samples embedded with it: no torch, no weights, the same on every machine."""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image


class WordEncoder:
    """Texts are sums of fixed random vectors, one per word: texts with words in common lie near each other."""

    dim = 32

    def __init__(self):
        self.calls = []

    def embed_texts(self, texts):
        self.calls.append(list(texts))
        rows = np.array([sum((_vector(word) for word in text.split()), np.full(self.dim, 1e-3)) for text in texts])
        return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


class ConstantEncoder:
    dim = 32

    def embed_texts(self, texts):
        return np.full((len(texts), self.dim), self.dim**-0.5, np.float32)


def _vector(word):
    seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:8], "little")
    return np.random.default_rng(seed).standard_normal(WordEncoder.dim)


@dataclass
class Samples:
    images: np.ndarray
    texts: np.ndarray
    image_row: np.ndarray
    metadata: pa.Table
    text_metadata: pa.Table


@pytest.fixture
def encoder():
    return WordEncoder()


@pytest.fixture
def constant_encoder():
    return ConstantEncoder()


@pytest.fixture
def samples(tmp_path):
    """samples(captions, images=None, **columns): an image's embedding is its first caption's unless given."""

    def make(captions, images=None, **columns):
        encoder = WordEncoder()
        first = [own[0] for own in captions]
        flat = [text for own in captions for text in own]
        row = np.array([i for i, own in enumerate(captions) for _ in own], np.int64)
        shard = tmp_path / "images.bin"
        offsets, sizes = [], []
        with open(shard, "wb") as file:
            for i in range(len(captions)):
                data = io.BytesIO()
                Image.new("RGB", (40, 30), (40 * i % 256, 90, 160)).save(data, "PNG")
                offsets.append(file.tell())
                sizes.append(len(data.getvalue()))
                file.write(data.getvalue())
        metadata = {
            "key": [f"k{i}" for i in range(len(captions))],
            "caption": first,
            "image_path": [str(shard)] * len(captions),
            "image_offset": offsets,
            "image_size": sizes,
            **columns,
        }
        text_metadata = {"key": [f"k{i}" for i in row], "caption": flat, "image_row": row}
        return Samples(
            encoder.embed_texts(first) if images is None else np.asarray(images, np.float32),
            encoder.embed_texts(flat),
            row,
            pa.table(metadata),
            pa.table(text_metadata),
        )

    return make
