"""The search server against clip-retrieval's `back`, /healthz and its promises: python benchmarks/serve.py [--only PART]

Seven parts, one after the other, on two cores: a demo-like encoder (random weights) and 100,000 rows that the first run
makes in --scratch, a second process that asks on loopback (serve_load.py), all sides of a comparison in the same run by
turns, medians of rounds. clip-retrieval gets an environment of its own in --peers (made with pip, once). Writes
results/serve.json, each part with its command, machine, versions and date; --only measures some parts and keeps the
others. `soak` runs only where it is named. A trial with fewer requests (--share) needs --out.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
from pathlib import Path
from typing import Any

from goals import table
from record import PACKAGES, RESULTS, entry
from timing import progress

from dualenc.files import write_json

PARTS = {  # part: the module and the function that measure it
    "speed": ("serve_speed", "measure_speed"),
    "peer": ("serve_speed", "measure_peer"),
    "start": ("serve_start", "measure"),
    "clients": ("serve_long", "measure_clients"),
    "kill": ("serve_long", "measure_kill"),
    "page": ("serve_page", "measure"),
    "soak": ("serve_long", "measure_soak"),
}
LONG = ("soak",)  # only where it is named
SERVING = ("fastapi", "starlette", "uvicorn", "pydantic")
CORES, ROUNDS = 2, 7


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    """The command line; a trial that would overwrite the record is refused."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=PARTS, action="append", help="one part (may be given several times)")
    parser.add_argument("--peers", type=Path, default=Path("runs/peers"), help="environments (default runs/peers)")
    parser.add_argument(
        "--scratch", type=Path, default=Path("runs/serve"), help="encoder, indexes, logs: 400 MB (default runs/serve)"
    )
    parser.add_argument("--threads", type=int, default=CORES, help=f"of each server (default {CORES})")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"of every timing (default {ROUNDS})")
    parser.add_argument("--rows", type=int, help="a trial with so many rows; needs --out")
    parser.add_argument("--share", type=float, default=1.0, help="a trial with that share of the requests; needs --out")
    parser.add_argument(
        "--out", type=Path, default=RESULTS / "serve.json", help="the record (default results/serve.json)"
    )
    options = parser.parse_args(words)
    if (options.rows or options.rounds != ROUNDS or options.share != 1) and options.out == RESULTS / "serve.json":
        parser.error("--rows, --rounds or --share makes a trial; give --out, results/serve.json is for whole runs")
    options.parts = options.only or [part for part in PARTS if part not in LONG]
    options.count = lambda whole: max(round(whole * options.share), 1)
    return options


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure the parts asked for; each is in the record as soon as it is done. Returns the whole record."""
    import serve_data

    kept = json.loads(options.out.read_text(encoding="utf-8")) if options.out.exists() else {}
    scratch = options.scratch.resolve()
    found = serve_data.assets(scratch, options.rows or serve_data.ROWS)
    for part in options.parts:
        progress(f"{part} …")
        module, function = PARTS[part]
        measure = getattr(importlib.import_module(module), function)
        results = measure(options, found, found.plain.parent)
        kept[part] = entry(results, PACKAGES + SERVING, cores_used=len(os.sched_getaffinity(0)))
        write_json(options.out, {name: kept[name] for name in PARTS if name in kept})
    return kept


def main() -> None:
    options = arguments()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])  # all processes of the measurement share these
    record = run(options)
    sys.stdout.write(f"{table(record, options.parts)}\n")


if __name__ == "__main__":
    main()
