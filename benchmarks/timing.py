"""Measuring several ways of doing the same thing side by side, so that a busy moment of the machine hits all alike."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any


def seconds(call: Callable[[], Any]) -> float:
    """How long one call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def interleaved(ways: Mapping[str, Callable[[], Any]], repeats: int, label: str) -> dict[str, list[float]]:
    """Seconds of each way in each repeat; one after the other within a repeat, forwards and backwards by turns."""
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for repeat in range(repeats):
        progress(f"{label}: {repeat + 1} of {repeats}")
        for name in list(ways) if repeat % 2 == 0 else reversed(ways):
            taken[name].append(seconds(ways[name]))
    return taken


def medians(taken: Mapping[str, list[float]], units: int, scale: float = 1e6) -> dict[str, float]:
    """Median seconds × scale of one of `units` that a call handles."""
    return {name: round(statistics.median(times) / units * scale, 3) for name, times in taken.items()}


def progress(text: str) -> None:
    """A line for who waits."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()
