"""Stores of given rows, for tests."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from dualenc.embed.store import open_store
from dualenc.embed.store_writer import StoreWriter


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def write_store(folder, keys, images, texts=None, image_row=None, parts=1, dtype="float32", fingerprint="f" * 64):
    """A store of unit rows images (N, D) and texts (T, D) in so many parts; image_row (T,) rises."""
    texts = np.zeros((0, images.shape[1]), np.float32) if texts is None else texts
    image_row = np.zeros(0, np.int64) if image_row is None else np.asarray(image_row)
    bounds = np.linspace(0, len(keys), parts + 1).astype(int).tolist()
    plan = {"bounds": bounds, "dim": images.shape[1], "dtype": dtype, "fingerprint": fingerprint, "encoder": "e"}
    writer = StoreWriter(folder, plan)
    for part in range(parts):
        low, high = bounds[part : part + 2]
        some = (image_row >= low) & (image_row < high)
        metadata = pa.table({"key": pa.array(keys[low:high], pa.string())})
        text_metadata = pa.table({"image_row": pa.array(image_row[some] - low, pa.int64())})
        writer.write_part(part, images[low:high], texts[some], metadata, text_metadata)
    assert writer.finish()
    return open_store(folder)
