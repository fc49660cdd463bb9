"""The index engine against its peers and its promises: python benchmarks/index.py [--only PART] [--store FLICKR8K_STORE]

Seven parts, one after the other with two threads: all sides of a comparison in the same run on the same vectors, by
turns, medians of seven. Writes results/index.json, each part with its command, machine, versions and date; --only
measures one and keeps the others. Peers get environments of their own in --peers (made with pip, once). A run of reduced
size (--rows) or fewer repeats is a trial and needs --out.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = "2"  # before FAISS loads

from goals import table
from index_data import SETS
from record import RESULTS, entry
from timing import progress

from dualenc.files import write_json

PARTS = {  # part: the module whose `measure(options)` it is
    "autofaiss": "index_autofaiss",
    "graphs": "index_graphs",
    "cross_modal": "index_cross_modal",
    "size": "index_size",
    "filters": "index_filters",
    "flickr8k": "index_flickr8k",
    "recipes": "index_kinds",
}
REPEATS = 7


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    """The command line; a trial that would overwrite the record is refused."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=PARTS, action="append", help="one part (may be given several times)")
    parser.add_argument("--store", type=Path, help="a store of Flickr8k embeddings, for the part flickr8k")
    parser.add_argument("--peers", type=Path, default=Path("runs/peers"), help="environments (default runs/peers)")
    parser.add_argument(
        "--scratch", type=Path, help="where the part size may lay some 6 GB (default: temporary folder)"
    )
    parser.add_argument(
        "--recipes", nargs="+", default=["auto", "ivf_pq"], help="of the part size: auto, and compressed ones"
    )
    parser.add_argument("--filtered", nargs="+", default=["ivf", "hnsw", "ivf_pq"], help="of the part filters")
    parser.add_argument(
        "--sets", nargs="+", choices=SETS, default=list(SETS), help="of the parts autofaiss and graphs (default both)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the data (default 0)")
    parser.add_argument("--rows", type=int, help="a trial with so many rows; needs --out")
    parser.add_argument("--repeats", type=int, default=REPEATS, help=f"of every timing (default {REPEATS})")
    parser.add_argument(
        "--out", type=Path, default=RESULTS / "index.json", help="the record (default results/index.json)"
    )
    options = parser.parse_args(words)
    parts = options.only or [part for part in PARTS if part != "flickr8k" or options.store]
    if "flickr8k" in parts and options.store is None:
        parser.error("flickr8k needs --store, the embeddings that `dualenc embed` made")
    if (options.rows or options.repeats != REPEATS) and options.out == RESULTS / "index.json":
        parser.error("--rows or --repeats makes a trial; give --out, results/index.json is for whole runs")
    options.parts = parts
    return options


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure the parts asked for; each is in the record as soon as it is done. Returns the whole record."""
    kept = json.loads(options.out.read_text(encoding="utf-8")) if options.out.exists() else {}
    for part in options.parts:
        progress(f"{part} …")
        kept[part] = entry(importlib.import_module(PARTS[part]).measure(options))
        write_json(options.out, {name: kept[name] for name in PARTS if name in kept})
    return kept


def main() -> None:
    options = arguments()
    record = run(options)
    if "recipes" in options.parts and options.out == RESULTS / "index.json":
        importlib.import_module("index_kinds").render()
    sys.stdout.write(f"{table(record, options.parts)}\n")


if __name__ == "__main__":
    main()
