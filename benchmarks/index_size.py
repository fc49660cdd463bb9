"""A million rows: `dualenc index build` in a process of its own, watched; opening; adding; bytes of code."""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from index_data import Clusters, K, Side, described, recall
from index_measure import BATCH, THREADS, by_turns, chosen, goal, ours
from timing import progress, seconds

from dualenc.embed.store import Store, open_store
from dualenc.embed.store_writer import StoreWriter
from dualenc.index import Index, exact_search

ROWS, DIM, CLUSTERS, PART, ADDED = 1_000_000, 512, 10_000, 250_000, 10_000
IMAGES = Side(0.6, vary=0.3, offset=1.0)
TEXTS = Side(0.6, pull=0.7, offset=1.0, number=2)
TARGET, GIB = 0.95, 2**30
OPENS = 5
OPEN = """import sys, time
from dualenc.index.index import Index
start = time.perf_counter()
index = Index.open(sys.argv[1])
print(time.perf_counter() - start)
"""


def measure(options: Any) -> dict[str, Any]:
    """Each recipe of --recipes on one store, which lies in a temporary folder of --scratch."""
    rows = options.rows or ROWS
    clusters = Clusters(max(8, CLUSTERS * rows // ROWS), DIM, decay=0.5, sizes=0.5, seed=options.seed)
    with tempfile.TemporaryDirectory(dir=options.scratch) as name:
        folder = Path(name)
        store = write_store(folder / "store", clusters, rows)
        texts = TEXTS.draw(clusters, BATCH, stream=9)[0]
        progress("size: exact search for the truth")
        best = exact_search(texts, store, K)[0]
        more = IMAGES.draw(clusters, ADDED, stream=99)[0]
        results = {recipe: compare(recipe, folder, texts, best, more, options) for recipe in options.recipes}
    return {
        "data": {"rows": rows, "dim": DIM, "dtype": "float16", "seed": options.seed}
        | {"clusters": described(clusters), "images": described(IMAGES), "texts": described(TEXTS)},
        "k": K,
        "recipes": results,
        "goals": [entry for recipe, found in results.items() for entry in goals(recipe, found)],
    }


def write_store(folder: Path, clusters: Clusters, rows: int) -> Store:
    """Images in parts, and one text for each of the first images of a part, as `dualenc embed` leaves them."""
    bounds = [*range(0, rows, PART), rows]
    plan = {"bounds": bounds, "dim": DIM, "dtype": "float16", "fingerprint": "0" * 64, "encoder": "synthetic"}
    writer = StoreWriter(folder, plan)
    for part in range(writer.parts):
        progress(f"size: part {part + 1} of {writer.parts} of the store")
        images = IMAGES.draw(clusters, bounds[part + 1] - bounds[part], stream=part)[0]
        texts = TEXTS.draw(clusters, min(2 * BATCH, len(images)), stream=part)[0]
        keys = [f"{bounds[part] + row:07d}" for row in range(len(images))]
        captions = [""] * len(images)
        said = pa.table({"key": keys[: len(texts)], "caption": captions[: len(texts)], "image_row": range(len(texts))})
        writer.write_part(part, images, texts, pa.table({"key": keys, "caption": captions}), said)
    assert writer.finish()
    return open_store(folder)


def compare(
    recipe: str, folder: Path, texts: np.ndarray, best: np.ndarray, more: np.ndarray, options: Any
) -> dict[str, Any]:
    """One recipe: built, opened, searched, added to."""
    out = folder / "index"
    verb = [sys.executable, "-m", "dualenc", "index", "build", folder / "store", out]
    built = watched([*verb, "--recipe", recipe, "--recall", str(TARGET)])
    progress(f"size: {recipe} built in {built['seconds']} s, {built['peak_gib']} GiB")
    index = Index.open(out)
    codes = sum(file.stat().st_size for file in out.glob("*.faiss"))
    found = {
        **built,
        **chosen(index),
        "faiss_bytes_per_row": round(codes / len(index), 1),
        "bytes_on_disk": sum(file.stat().st_size for file in out.iterdir()),
        "open_seconds": opened(out),
        "recall": recall(index.search(texts, K)[0], best),
        **by_turns({"index": ours(index, texts)}, f"size, {recipe}", options.repeats)["index"],
    }
    keys = pa.table({"key": [f"added{row}" for row in range(len(more))], "caption": [""] * len(more)})
    found["add_seconds"] = round(seconds(lambda: index.add(more, metadata=keys)), 3)
    shutil.rmtree(out)
    return found


def watched(command: Sequence[str | Path]) -> dict[str, float]:
    """Wall seconds and peak memory of a process. CalledProcessError: it failed.

    `peak_gib` is all of it, pages of memory-mapped files too, as the kernel's high-water mark says; `peak_own_gib` is
    what is no file's, looked at twenty times a second.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": str(THREADS)}
    start = time.perf_counter()
    process = subprocess.Popen(command, env=environment, stdout=sys.stderr)
    peak: dict[str, int] = {"VmHWM": 0, "RssAnon": 0}
    while process.poll() is None:
        for name, kib in memory(process.pid).items():
            peak[name] = max(peak[name], kib)
        time.sleep(0.05)
    taken = time.perf_counter() - start
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    named = {"peak_gib": peak["VmHWM"], "peak_own_gib": peak["RssAnon"]}
    return {"seconds": round(taken, 2), **{name: round(kib * 1024 / GIB, 3) for name, kib in named.items()}}


def memory(process: int) -> dict[str, int]:
    """VmHWM and RssAnon of a process in KiB; {} once it has ended."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return {}
    pairs = (line.split(":") for line in lines if line.startswith(("VmHWM:", "RssAnon:")))
    return {name: int(value.split()[0]) for name, value in pairs}


def opened(folder: Path) -> float:
    """Median seconds of `Index.open` in fresh processes, after the imports; the files are in the page cache."""
    runs = [subprocess.run([sys.executable, "-c", OPEN, folder], check=True, capture_output=True) for _ in range(OPENS)]
    return round(statistics.median(float(run.stdout) for run in runs), 4)


def goals(recipe: str, found: dict[str, Any]) -> list[dict[str, Any]]:
    """What the issue asks for; the bound on bytes is for the compressed recipes, which are named."""
    wanted = [
        goal(f"{recipe}: minutes to build", found["seconds"] / 60, most=20),
        goal(f"{recipe}: peak memory, GiB", found["peak_gib"], most=4),
        goal(f"{recipe}: seconds to open", found["open_seconds"], most=0.2),
        goal(f"{recipe}: ANN recall@{K} on unseen texts", found["recall"], least=TARGET),
        goal(
            f"{recipe}: adding {ADDED:,} rows, share of the build", found["add_seconds"] / found["seconds"], most=0.05
        ),
    ]
    if recipe != "auto":
        wanted.append(goal(f"{recipe}: bytes of the FAISS file a row", found["faiss_bytes_per_row"], most=300))
    return wanted
