"""hnswlib with the parameters of its documentation's examples: M 16, ef_construction 200."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import hnswlib
import numpy as np

M, EF_CONSTRUCTION = 16, 200


class Peer:
    def __init__(self, threads: int):
        self.threads = threads

    def build(self, rows: str, folder: str) -> dict[str, Any]:
        rows = np.load(rows, allow_pickle=False)
        start = time.perf_counter()
        self.index = hnswlib.Index(space="ip", dim=rows.shape[1])  # unit rows: the inner product is the cosine
        self.index.init_index(max_elements=len(rows), M=M, ef_construction=EF_CONSTRUCTION)
        self.index.set_num_threads(self.threads)
        self.index.add_items(rows, np.arange(len(rows)))
        built = time.perf_counter()
        self.index.save_index(str(Path(folder) / "hnswlib.bin"))
        saved = time.perf_counter() - built
        what = {"M": M, "ef_construction": EF_CONSTRUCTION}
        return {"seconds": built - start, "save_seconds": saved, "what": what}

    def set(self, setting: Any) -> None:
        self.index.set_ef(int(setting))

    def search(self, queries: np.ndarray, k: int) -> np.ndarray:
        return self.index.knn_query(queries, k)[0]
