"""usearch with its defaults: connectivity 16, expansion_add 128, and bfloat16 unless `dtype` says otherwise."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
from usearch.index import Index


class Peer:
    def __init__(self, threads: int):
        self.threads = threads

    def build(self, rows: str, folder: str, dtype: str | None = None) -> dict[str, Any]:
        rows = np.load(rows, allow_pickle=False)
        start = time.perf_counter()
        self.index = Index(ndim=rows.shape[1], metric="ip", dtype=dtype)  # unit rows: the inner product is the cosine
        self.index.add(np.arange(len(rows)), rows, threads=self.threads)
        built = time.perf_counter()
        self.index.save(str(Path(folder) / "usearch.bin"))
        saved = time.perf_counter() - built
        names = ("connectivity", "expansion_add", "dtype", "hardware_acceleration")
        what = {name: str(getattr(self.index, name)) for name in names}
        return {"seconds": built - start, "save_seconds": saved, "what": what}

    def set(self, setting: Any) -> None:
        self.index.expansion_search = int(setting)

    def search(self, queries: np.ndarray, k: int) -> np.ndarray:
        threads = self.threads if len(queries) > 1 else 1
        return np.asarray(self.index.search(queries, k, threads=threads).keys).reshape(len(queries), k)
