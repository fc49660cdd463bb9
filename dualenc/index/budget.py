"""What a caller asks of an index beside recall: so many bytes, so much time for one query."""

from __future__ import annotations

import math
import re
from typing import Any

_BYTES = {
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
    "tib": 2**40,
}
_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0}


def parse_bytes(memory: Any) -> int | None:
    """2_000_000_000, "2GB", "1.5 GiB" -> bytes; None stays None."""
    return None if memory is None else int(_parse(memory, _BYTES, "b", "memory", "2GB"))


def parse_seconds(latency: Any) -> float | None:
    """0.005, "5ms", "0.1 s" -> seconds; None stays None."""
    return None if latency is None else _parse(latency, _SECONDS, "s", "latency", "5ms")


def _parse(value: Any, units: dict[str, float] | dict[str, int], default: str, name: str, example: str) -> float:
    match = re.fullmatch(r"\s*([0-9.]+(?:[eE][-+]?[0-9]+)?)\s*([a-zA-Z]*)\s*", str(value))
    try:
        amount = float(match[1]) * units[(match[2] or default).lower()] if match else math.nan
    except (KeyError, ValueError):
        amount = math.nan
    if not (amount > 0 and math.isfinite(amount)):
        raise ValueError(f'{name}={value!r} is no amount; write a number above 0, or one like "{example}"')
    return amount


def check_memory(needed: int, memory: int | None, kind: str, rows: int, dim: int) -> None:
    """ValueError when an index of `needed` bytes is above `memory`."""
    if memory is not None and needed > memory:
        least = rows * (4 * dim + 8)
        cure = (
            f"raise memory, or take recipe flat ({least:,} bytes)"
            if least <= memory
            else "raise memory, or index fewer rows"
        )
        raise ValueError(f"{kind} needs {needed:,} bytes for {rows:,} x {dim}, above memory={memory:,}; {cure}")


def check_latency(measured: float, latency: float | None, kind: str, setting: str) -> None:
    """ValueError when one query took longer than asked, in seconds."""
    if latency is not None and measured > latency:
        raise ValueError(
            f"{kind}{setting} takes {measured * 1e3:.3g} ms for one query, above latency={latency * 1e3:.3g} ms; "
            "ask for less recall or more time, or take another recipe"
        )
