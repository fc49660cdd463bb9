"""The recipes side by side on synthetic embeddings: python benchmarks/index_kinds.py [--table]

50,000 x 128 unit rows in 750 clusters behind one common offset ("images"), and queries near the clusters behind another
offset ("texts": out of the images' distribution, as a text tower's are). Each recipe is built for ANN recall 0.95 on
1,000 texts, then measured on 1,000 others. Writes results/index_kinds.json and the table in index/README.md; --table
writes the table alone, from the record that is there.
"""

from __future__ import annotations

import json
import os
import re
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"  # before FAISS loads: one core's times compare between machines

import numpy as np
from record import RESULTS, record

from dualenc.index import Index, exact_search

README = Path(__file__).parent.parent / "index" / "README.md"
BLOCK = re.compile(r"(<!-- measured -->\n).*?(<!-- /measured -->)", re.DOTALL)
ROWS, DIM, CLUSTERS, K = 50_000, 128, 750, 10
RECIPES: dict[str, tuple[Any, str]] = {
    "flat": ("flat", "texts"),
    "hnsw": ("hnsw", "texts"),
    "ivf": ("ivf", "texts"),
    "ivf, not centred": ({"build": {"kind": "ivf", "centred": False}}, "texts"),
    "ivf, tuned on its own rows": ("ivf", "rows"),
}


def vectors(count: int = ROWS, clusters: int = CLUSTERS, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(images (N, D), more images (1,000, D), texts (2,000, D)), unit rows."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(clusters, DIM))
    here, there = rng.normal(size=DIM), 1.5 * rng.normal(size=DIM)

    def near(rows: int, pull: float, spread: float, offset: np.ndarray) -> np.ndarray:
        x = pull * centres[rng.integers(clusters, size=rows)] + spread * rng.normal(size=(rows, DIM)) + offset
        return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)

    return near(count, 1.0, 0.5, here), near(1000, 1.0, 0.5, here), near(2000, 0.5, 0.6, there)


def recall(index: Index, queries: np.ndarray, best: np.ndarray) -> float:
    """ANN recall@10 against exact search's row numbers."""
    found, _ = index.search(queries, K)
    shared = [len(set(mine) & set(theirs)) for mine, theirs in zip(found.tolist(), best.tolist(), strict=True)]
    return round(sum(shared) / best.size, 4)


def seconds(call: Any, times: int) -> float:
    """Median seconds of one call, after one that does not count."""
    call()
    taken = []
    for _ in range(times):
        start = time.perf_counter()
        call()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def measure(name: str, images: np.ndarray, more: np.ndarray, texts: np.ndarray, best: dict[str, Any]) -> dict[str, Any]:
    """Build one recipe and measure it on queries it has not seen."""
    recipe, tuned_on = RECIPES[name]
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        queries = texts[:1000] if tuned_on == "texts" else None
        index = Index.build(images, Path(folder) / "index", recipe=recipe, recall=0.95, queries=queries)
        built = time.perf_counter() - start
        singles = [seconds(lambda query=query: index.search(query, K), 1) for query in texts[1000:1100]]
        return {
            "build_seconds": round(built, 2),
            "setting": index.manifest["search"],
            "recall_reported": index.manifest["ann_recall"]["value"],
            "recall_texts": recall(index, texts[1000:], best["texts"]),
            "recall_images": recall(index, more, best["images"]),
            "single_ms": round(statistics.median(singles) * 1e3, 3),
            "batch_queries_per_second": round(1000 / seconds(lambda: index.search(texts[1000:], K), 7)),
            "bytes_per_vector": index.manifest["bytes"]["per_vector"],
        }


def compare(images: np.ndarray, more: np.ndarray, texts: np.ndarray) -> dict[str, Any]:
    """Every recipe, measured."""
    best = {"texts": exact_search(texts[1000:], images, K)[0], "images": exact_search(more, images, K)[0]}
    return {name: measure(name, images, more, texts, best) for name in RECIPES}


def table() -> str:
    """The table of index/README.md in Markdown, from the record."""
    entry = json.loads((RESULTS / "index_kinds.json").read_text(encoding="utf-8"))
    lines = [
        "| recipe | setting | ANN recall@10, unseen texts | unseen images | one query, ms | queries/s, batch of 1,000 | "
        "bytes a vector | build, s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, row in entry["results"]["recipes"].items():
        setting = ", ".join(f"{knob} {value}" for knob, value in row["setting"].items()) or "none"
        recalls = f"{row['recall_texts']:.3f} | {row['recall_images']:.3f}"
        speed = f"{row['single_ms']:.2f} | {row['batch_queries_per_second']:,}"
        size = f"{row['bytes_per_vector']:,.0f} | {row['build_seconds']:.1f}"
        lines.append(f"| {name} | {setting} | {recalls} | {speed} | {size} |")
    where = (
        f"{entry['machine']['processor']}, {entry['machine']['threads']} thread, faiss {entry['versions']['faiss-cpu']}"
    )
    return "\n".join([*lines, "", f"`{entry['command']}`, {entry['date']}: {where}."]) + "\n"


def main() -> None:
    if "--table" not in sys.argv:
        shape = {"rows": ROWS, "dim": DIM, "clusters": CLUSTERS, "target": 0.95, "k": K}
        record("index_kinds", {"data": shape, "recipes": compare(*vectors())})
    text = README.read_text(encoding="utf-8")
    README.write_text(BLOCK.sub(lambda found: found[1] + table() + found[2], text), encoding="utf-8")


if __name__ == "__main__":
    main()
