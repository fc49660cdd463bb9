"""The shipped recipes side by side, for the table in index/README.md: part "recipes" of benchmarks/index.py.

50,000 x 128 unit rows in 750 clusters behind one common offset ("images"), and queries near the clusters behind another
offset ("texts": out of the images' distribution, as a text tower's are). Each recipe is built for ANN recall 0.95 on
1,000 texts, then measured on 1,000 others.
"""

from __future__ import annotations

import json
import re
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from index_data import Clusters, K, Side, recall
from index_measure import BATCH, REPEATS, built, by_turns, chosen, ours
from record import RESULTS
from timing import progress

from dualenc.index import Index, exact_search

ROOT = Path(__file__).parent.parent
README = ROOT / "index" / "README.md"
BLOCK = re.compile(r"(<!-- measured -->\n).*?(<!-- /measured -->)", re.DOTALL)
ROWS, DIM, CLUSTERS, TARGET = 50_000, 128, 750, 0.95
IMAGES, TEXTS = Side(0.5, offset=1.0), Side(0.6, pull=0.5, offset=1.5, number=2)
RECIPES: dict[str, tuple[Any, str]] = {  # name in the table: recipe, what it is tuned on
    **{path.stem: (path.stem, "texts") for path in sorted((ROOT / "index").glob("*.yaml"))},
    "ivf, not centred": ({"build": {"kind": "ivf", "centred": False}}, "texts"),
    "ivf, tuned on held-out images": ("ivf", "images"),
}


def vectors(count: int = ROWS, clusters: int = CLUSTERS, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(images (N, D), more images (1,000, D), texts (2,000, D)), unit rows."""
    where = Clusters(clusters, DIM, seed=seed)
    images, more = (IMAGES.draw(where, rows, stream)[0] for stream, rows in enumerate((count, BATCH)))
    return images, more, TEXTS.draw(where, 2 * BATCH)[0]


def compare(images: np.ndarray, more: np.ndarray, texts: np.ndarray, repeats: int = REPEATS) -> dict[str, Any]:
    """Every recipe, built and then timed by turns; one that cannot reach the recall says so instead."""
    best = {"texts": exact_search(texts[BATCH:], images, K)[0], "images": exact_search(more, images, K)[0]}
    rows: dict[str, Any] = {}
    indexes: dict[str, Index] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, (recipe, tuned_on) in RECIPES.items():
            queries = texts[:BATCH] if tuned_on == "texts" else None
            out = Path(folder) / name
            try:
                index, seconds = built(images, out, recipe=recipe, recall=TARGET, queries=queries)
            except ValueError as error:
                rows[name] = {"failed": str(error)}
                continue
            indexes[name], rows[name] = index, {"build_seconds": seconds, **described(index, out)}
            rows[name]["recall_texts"] = recall(index.search(texts[BATCH:], K)[0], best["texts"])
            rows[name]["recall_images"] = recall(index.search(more, K)[0], best["images"])
            progress(f"recipes: {name} built in {seconds} s")
        ways = {name: ours(index, texts[BATCH:]) for name, index in indexes.items()}
        for name, times in by_turns(ways, "recipes", repeats).items():
            rows[name] |= times
    return rows


def described(index: Index, folder: Path) -> dict[str, Any]:
    """What was made, and the bytes of the FAISS file a row: codes, ids, lists or graph."""
    size = sum(file.stat().st_size for file in folder.glob("*.faiss"))
    return {**chosen(index), "bytes_per_vector": round(size / len(index), 1)}


def measure(options: Any) -> dict[str, Any]:
    """The part's results."""
    rows = options.rows or ROWS
    sets = vectors(rows, max(8, CLUSTERS * rows // ROWS), options.seed)
    data = {"rows": rows, "dim": DIM, "clusters": CLUSTERS, "seed": options.seed}
    return {"data": data, "target": TARGET, "k": K, "recipes": compare(*sets, options.repeats), "goals": []}


def table() -> str:
    """The table of index/README.md in Markdown, from the record."""
    entry = json.loads((RESULTS / "index.json").read_text(encoding="utf-8"))["recipes"]
    lines = [
        "| recipe | setting | ANN recall@10, unseen texts | unseen images | one query, ms | queries/s, batch of 1,000 | "
        "bytes a vector | build, s |",
        "|---|---|---|---|---|---|---|---|",
        *(line(name, row) for name, row in entry["results"]["recipes"].items()),
    ]
    machine = entry["machine"]
    where = f"{machine['processor']}, {machine['threads']} threads, faiss {entry['versions']['faiss-cpu']}"
    return "\n".join([*lines, "", f"`{entry['command']}`, {entry['date']}: {where}."]) + "\n"


def line(name: str, row: dict[str, Any]) -> str:
    """One recipe's line."""
    if "failed" in row:
        return f"| {name} | recall {TARGET} is out of its reach | | | | | | |"
    setting = ", ".join(f"{knob} {value}" for knob, value in row["search"].items()) or "none"
    recalls = f"{row['recall_texts']:.3f} | {row['recall_images']:.3f}"
    speed = f"{row['single_ms']:.2f} | {row['queries_per_second']:,.0f}"
    return f"| {name} | {setting} | {recalls} | {speed} | {row['bytes_per_vector']:,.0f} | {row['build_seconds']:.1f} |"


def render() -> None:
    """Write the table into index/README.md."""
    text = README.read_text(encoding="utf-8")
    README.write_text(BLOCK.sub(lambda found: found[1] + table() + found[2], text), encoding="utf-8")
