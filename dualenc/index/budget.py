"""What a caller asks of an index beside recall: so many bytes, so much time for one query."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any


class OutOfReach(ValueError):
    """Recall, memory or time out of reach; the message says the best that can be had."""


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


def check_memory(
    needed: int, memory: int | None, recipe: str, rows: int, dim: int, others: Mapping[str, int] | None = None
) -> None:
    """ValueError when an index of `needed` bytes is above `memory`.

    others: bytes that other recipes would need for the same rows; the message names those that fit.
    """
    if memory is not None and needed > memory:
        fit = [f"{name} ({size:,} bytes)" for name, size in (others or {}).items() if size <= memory]
        cure = f"take recipe {_either(fit)}" if fit else "index fewer rows"
        raise ValueError(
            f"{recipe} needs {needed:,} bytes for {rows:,} x {dim}, above memory={memory:,}; raise memory, or {cure}"
        )


def check_latency(
    measured: float, latency: float | None, recipe: str, setting: dict[str, int], others: Sequence[str] = ()
) -> None:
    """ValueError when one query took longer than asked, in seconds. others: recipes that may be faster."""
    if latency is not None and measured > latency:
        at = f" at {in_words(setting)}" if setting else ""
        raise OutOfReach(
            f"{recipe}{at} takes {measured * 1e3:.3g} ms for one query, above latency={latency * 1e3:.3g} ms; "
            f"ask for less recall or more time, or take {f'recipe {_either(others)}' if others else 'another recipe'}"
        )


def in_words(setting: dict[str, int]) -> str:
    """A search's setting as a message says it.

    >>> in_words({"nprobe": 8, "rerank": 4})
    'nprobe 8, rerank 4'
    """
    return ", ".join(f"{knob} {value}" for knob, value in setting.items())


def _either(names: Sequence[str]) -> str:
    return " or ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
