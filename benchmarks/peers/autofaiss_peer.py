"""autofaiss with its defaults; it chooses the kind of index and the setting itself."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from autofaiss import build_index


class Peer:
    def __init__(self, threads: int):
        self.threads = threads
        faiss.omp_set_num_threads(threads)

    def build(self, rows: str, folder: str) -> dict[str, Any]:
        """Everything by default but the paths, the threads and the log."""
        rows = np.load(rows, allow_pickle=False)
        names = {"index_path": str(Path(folder) / "knn.index"), "index_infos_path": str(Path(folder) / "infos.json")}
        start = time.perf_counter()
        self.index, infos = build_index(rows, nb_cores=self.threads, verbose=30, **names)
        seconds = time.perf_counter() - start
        if self.index is None:
            raise RuntimeError("autofaiss returned no index")
        faiss.omp_set_num_threads(self.threads)
        what = {name: str(infos[name]) for name in ("index_key", "index_param") if name in infos}
        return {"seconds": seconds, "save_seconds": 0.0, "what": what}  # it saves while it builds

    def set(self, setting: Any) -> None:
        if setting is not None:
            raise ValueError(f"setting={setting!r}; autofaiss has chosen its own")

    def search(self, queries: np.ndarray, k: int) -> np.ndarray:
        return self.index.search(queries, k)[1]
