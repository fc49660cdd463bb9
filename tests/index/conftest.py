"""Data that looks like embeddings: clusters and a common offset; texts lie near the clusters, behind another offset."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from dualenc.embed import Store, StoreWriter, open_store


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@dataclass(frozen=True)
class Data:
    images: np.ndarray  # (N, D)
    texts: np.ndarray  # (T, D), out of the images' distribution


def _make_data(rows: int, dim: int, texts: int, seed: int = 0) -> Data:
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(max(2, rows // 50), dim))
    here, there = rng.normal(size=dim), rng.normal(size=dim) * 1.5
    images = centres[rng.integers(len(centres), size=rows)] + 0.5 * rng.normal(size=(rows, dim)) + here
    captions = 0.5 * centres[rng.integers(len(centres), size=texts)] + 0.6 * rng.normal(size=(texts, dim)) + there
    return Data(unit(images), unit(captions))


@pytest.fixture(scope="session")
def make_data() -> Callable[..., Data]:
    return _make_data


@pytest.fixture(scope="session")
def data() -> Data:
    return _make_data(2000, 32, 300)


@pytest.fixture(scope="session")
def make_store() -> Callable[..., Store]:
    """Write a store of one or more parts; texts[i] belongs to image i modulo N."""

    def make(folder: Path, data: Data, fingerprint: str | None = "f" * 64, parts: int = 2) -> Store:
        import pyarrow as pa

        rows = len(data.images)
        bounds = [round(rows * part / parts) for part in range(parts + 1)]
        dim = data.images.shape[1]
        plan = {"bounds": bounds, "dim": dim, "dtype": "float16", "fingerprint": fingerprint, "encoder": "runs/e"}
        writer = StoreWriter(folder, plan)
        owner = np.arange(len(data.texts)) % rows
        for part in range(parts):
            first, last = bounds[part], bounds[part + 1]
            mine = np.flatnonzero((owner >= first) & (owner < last))
            keys = pa.array([f"image {row}" for row in range(first, last)], pa.string())
            captions = pa.array([f"text {row}" for row in mine], pa.string())
            writer.write_part(
                part,
                data.images[first:last],
                data.texts[mine],
                pa.table({"key": keys, "number": pa.array(range(first, last), pa.int64())}),
                pa.table({"caption": captions, "image_row": owner[mine] - first}),
            )
        assert writer.finish()
        return open_store(folder)

    return make
