"""Evaluation against its peers and its promises: python benchmarks/evaluate.py [--only PART] [--peers FOLDER]

Four parts, one after the other with two threads: the same numbers as CLIP_benchmark, scikit-learn and open_clip; speed
and memory of a retrieval, both sides by turns, each round in fresh processes; a retrieval of 100,000 images; a zero-shot
classifier against open_clip's builder. CLIP_benchmark gets an environment of its own in --peers (made with pip, once).
Writes results/evaluate.json, each part with its command, machine, versions and date; --only measures some parts and
keeps the others. A trial (--size, --cases, --rounds) needs --out.
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
        os.environ[name] = "2"  # before numpy loads

from goals import table
from record import PACKAGES, RESULTS, entry
from timing import progress

from dualenc.files import write_json

PARTS = {  # part: the module and the function that measure it
    "same": ("evaluate_same", "measure"),
    "retrieval": ("evaluate_retrieval", "measure"),
    "large": ("evaluate_retrieval", "measure_large"),
    "classifier": ("evaluate_classifier", "measure"),
}
THREADS = 2
WHOLE = {"size": 1.0, "cases": 200, "rounds": 5}  # what makes a record


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    """The command line; a trial that would overwrite the record is refused."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=PARTS, action="append", help="one part (may be given several times)")
    parser.add_argument("--peers", type=Path, default=Path("runs/peers"), help="environments (default runs/peers)")
    parser.add_argument("--scratch", type=Path, help="where up to 700 MB of rows lie (default: temporary folder)")
    parser.add_argument("--whole", action="store_true", help="the part large with all captions, not with a tenth")
    parser.add_argument("--threads", type=int, default=THREADS, help=f"of each side (default {THREADS})")
    parser.add_argument("--seed", type=int, default=0, help="of the data (default 0)")
    parser.add_argument("--rounds", type=int, default=WHOLE["rounds"], help="of every timing (default 5)")
    parser.add_argument("--cases", type=int, default=WHOLE["cases"], help="of each metric (default 200)")
    parser.add_argument("--size", type=float, default=WHOLE["size"], help="a trial with that share of the rows")
    parser.add_argument(
        "--out", type=Path, default=RESULTS / "evaluate.json", help="the record (default results/evaluate.json)"
    )
    options = parser.parse_args(words)
    trial = any(getattr(options, name) != value for name, value in WHOLE.items())
    if trial and options.out == RESULTS / "evaluate.json":
        parser.error("--size, --cases or --rounds makes a trial; give --out, results/evaluate.json is for whole runs")
    options.parts = options.only or list(PARTS)
    return options


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure the parts asked for; each is in the record as soon as it is done. Returns the whole record."""
    kept = json.loads(options.out.read_text(encoding="utf-8")) if options.out.exists() else {}
    for part in options.parts:
        progress(f"{part} …")
        module, function = PARTS[part]
        kept[part] = entry(getattr(importlib.import_module(module), function)(options), PACKAGES)
        write_json(options.out, {name: kept[name] for name in PARTS if name in kept})
    return kept


def main() -> None:
    options = arguments()
    record = run(options)
    sys.stdout.write(f"{table(record, options.parts)}\n")


if __name__ == "__main__":
    main()
