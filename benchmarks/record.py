"""Measurements as records: benchmarks/results/<theme>.json with the command, machine, versions and date."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dualenc.files import write_json

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("dualenc", "torch", "open_clip_torch", "pytorch-lightning", "faiss-cpu", "webdataset", "pillow", "numpy")


def record(theme: str, results: dict[str, Any]) -> Path:
    """Write results under a theme; returns the file."""
    path = RESULTS / f"{theme}.json"
    write_json(path, entry(results))
    return path


def entry(results: dict[str, Any], packages: Sequence[str] = PACKAGES, **about: Any) -> dict[str, Any]:
    """Results with the command, the date, the machine (and what else is known `about` it) and versions of packages."""
    words = [Path(word).name if os.path.exists(word) else word for word in sys.argv[1:]]
    return {
        "command": " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *words]),
        "date": datetime.date.today().isoformat(),
        "machine": machine() | about,
        "versions": {name: importlib.metadata.version(name) for name in packages},
        "results": results,
    }


def machine() -> dict[str, Any]:
    """The processor, its cores and threads in use, memory, Python."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        model = next(
            (line.split(":")[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line), model
        )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "processor": model,
        "cores": os.cpu_count(),
        "threads": os.environ.get("OMP_NUM_THREADS", "all"),
        "memory_gib": round(memory, 1),
        "python": platform.python_version(),
        "system": platform.system(),
    }
