"""How long a server takes to answer after its process begins, beside a plain process that loads the same encoder."""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from index_measure import goal
from serve_data import Assets, texts
from serve_side import ours
from serve_speed import rows
from timing import progress

PLAIN = {  # programs that say "ready" once the encoder is loaded
    "import torch, open_clip": "import dualenc.torchvision_ops, torch, open_clip",
    "and open_clip's loading": """
import dualenc.torchvision_ops, torch, open_clip
model, _, preprocess = open_clip.create_model_and_transforms("local-dir:{folder}")
tokenizer = open_clip.get_tokenizer("local-dir:{folder}")
model.eval()""",
    "and DualEncoder.load": """
import dualenc.torchvision_ops, torch, open_clip
from dualenc import DualEncoder
DualEncoder.load("{folder}", device="cpu")""",
}
PLAINEST = "and open_clip's loading"  # the quickest of those that load it: what the server is compared with


def plain(code: str, threads: int) -> float:
    """Seconds from the start of a Python process until it has done `code`."""
    start = time.perf_counter()
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, "-c", f"{code}\nprint('ready', flush=True)"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout
        while (line := process.stdout.readline()) and line != "ready\n":
            pass
        seconds = time.perf_counter() - start
    if not line:
        raise RuntimeError(f"the plain process failed with {process.returncode}; stderr says why")
    return seconds


def server(found: Assets, scratch: Path, threads: int) -> dict[str, float]:
    """Seconds from the start of `dualenc serve`: /healthz, a search by vector, a search by text."""
    vector = {"embedding": rows(found)[0], "k": 10}
    with ours({"plain": found.plain}, scratch, threads) as each:
        return {
            "/healthz": each.seconds_until("/healthz"),
            "search by vector": each.seconds_until("/search", vector),
            "search by text": each.seconds_until("/search", {"text": texts(0, 1)[0], "k": 10}, pause=0.02),
        }


def measure(options: argparse.Namespace, found: Assets, scratch: Path) -> dict[str, Any]:
    """Rounds of all of them by turns; files are in memory from a first round, which does not count."""
    taken: dict[str, list[float]] = {}
    for each in range(-1, max(options.rounds - 2, 1)):
        progress(f"start: {each + 1} of {options.rounds - 2}")
        for code in list(PLAIN) if each % 2 else reversed(PLAIN):
            seconds = plain(PLAIN[code].format(folder=found.encoder), options.threads)
            taken.setdefault(code, []).append(seconds)
        for what, seconds in server(found, scratch, options.threads).items():
            taken.setdefault(what, []).append(seconds)
    counted = {what: seconds[1:] for what, seconds in taken.items()}
    middle = {what: statistics.median(seconds) for what, seconds in counted.items()}
    more = statistics.median(a / b for a, b in zip(counted["search by text"], counted[PLAINEST], strict=True))
    return {
        "seconds": {what: [round(one, 3) for one in seconds] for what, seconds in counted.items()},
        "goals": [
            goal("/healthz after the process's start, s", middle["/healthz"], most=2),
            goal("search by vector after the process's start, s", middle["search by vector"], most=2),
            goal("search by text, over a plain process that loads the encoder", more, most=1.3),
        ],
    }
