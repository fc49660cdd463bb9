"""Where the time of a training step goes: python benchmarks/train_profile.py --config CONFIG [--steps 8] [OPTIONS of fit]

The steps of `dualenc fit` with all its callbacks, on batches that were made before, under torch's profiler; two steps before
them are not counted, and none of them is logged. Writes results/train_profile.json: milliseconds a step in forward, backward,
optimizer (clipping and callbacks included) and the rest, the operators by their own time, and how often a step waits for
the device to hand over a number (item() and what does the same inside; a fused optimizer on a CPU reads its own counters so).
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterator
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before anything loads OpenMP: one core's times compare between machines

from record import record
from train_inside import Batch, fit, words

import pytorch_lightning as pl  # isort: skip  (train_inside has the cure that goes before)
import torch  # isort: skip

WAITS = ("aten::_local_scalar_dense", "aten::nonzero", "aten::equal")  # the first stands behind every item()
BEFORE, TOP = 2, 15


class Phases(pl.Callback):
    """Seconds between the hooks of a step."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(("forward", "backward", "optimizer", "rest"), 0.0)
        self._last = time.perf_counter()

    def _until(self, phase: str) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        now = time.perf_counter()
        self.seconds[phase] += now - self._last
        self._last = now

    def on_train_batch_start(self, *_: Any) -> None:
        self._until("rest")

    def on_before_backward(self, *_: Any) -> None:
        self._until("forward")

    def on_after_backward(self, *_: Any) -> None:
        self._until("backward")

    def on_train_batch_end(self, *_: Any) -> None:
        self._until("optimizer")


def measure(options: list[str], steps: int) -> dict[str, Any]:
    """Figures of `steps` steps of `dualenc fit` with these options."""
    found: dict[str, Any] = {}

    def feed(batches: list[Batch], module: Any) -> Iterator[Batch]:
        yield from batches[:BEFORE]
        phases = Phases()
        module.trainer.callbacks.append(phases)
        yield from batches[BEFORE : BEFORE + steps]
        seconds = {name: round(1000 * taken / steps, 3) for name, taken in phases.seconds.items()}
        module.trainer.callbacks.remove(phases)
        yield from batches[:1]  # the callbacks' list changed
        kinds = [torch.profiler.ProfilerActivity.CPU]
        kinds += [torch.profiler.ProfilerActivity.CUDA] if module.device.type == "cuda" else []
        with torch.profiler.profile(activities=kinds) as profile:
            yield from batches[BEFORE : BEFORE + steps]
        found.update(milliseconds=seconds, device=module.device.type, batch_size=len(batches[0]["key"]), steps=steps)
        found.update(_operators(profile.key_averages(), steps, module.device.type))
        found["waits_a_step"] = {name: _waits(profile.events(), name) / steps for name in WAITS}

    silent = words(trainer__log_every_n_steps=10**6)
    fit([*options, *silent], BEFORE + steps, feed)
    return found


def _operators(events: Any, steps: int, device: str) -> dict[str, Any]:
    """The operators with the largest own time."""
    attribute = "self_device_time_total" if device == "cuda" else "self_cpu_time_total"
    whole = sum(getattr(event, attribute) for event in events)
    largest = sorted(events, key=lambda event: -getattr(event, attribute))[:TOP]
    top = [
        {
            "name": event.key,
            "share": round(getattr(event, attribute) / whole, 4),
            "milliseconds": round(getattr(event, attribute) / 1000 / steps, 3),
            "calls": event.count / steps,
        }
        for event in largest
    ]
    return {"operators": top}


def _waits(events: Any, name: str) -> int:
    """Calls of an operator that waits for the device, but for those within a fused optimizer's own kernel."""
    found = 0
    for event in events:
        above = event.cpu_parent if event.name == name else None
        while above is not None and "_fused_" not in above.name:
            above = above.cpu_parent
        found += event.name == name and above is None
    return found


def table(results: dict[str, Any]) -> str:
    """Milliseconds of a step by phase, then the operators with the largest own time."""
    whole = sum(results["milliseconds"].values())
    lines = [f"{'':<44}{'ms a step':>12}{'share':>9}{'calls':>8}"]
    for name, taken in results["milliseconds"].items():
        lines.append(f"{name:<44}{taken:>12.2f}{taken / whole:>9.1%}")
    for one in results["operators"]:
        lines.append(f"{one['name'][:42]:<44}{one['milliseconds']:>12.2f}{one['share']:>9.1%}{one['calls']:>8.0f}")
    waits = sum(results["waits_a_step"].values())
    return "\n".join([*lines, f"waits for the device, a step ({results['device']}): {waits:g}"])


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--config", required=True)
    parser.add_argument("--steps", type=int, default=8)
    options, more = parser.parse_known_args(arguments)
    figures = measure(["--config", options.config, *more], options.steps)
    record("train_profile", figures)
    print(table(figures))
    return figures


if __name__ == "__main__":
    main()
