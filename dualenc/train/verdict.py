"""What measured rates mean: which side of a training run waits for the other, and what to set."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

LINES = {
    "read": "reading",
    "decode": "decoding and augmentation",
    "tokenize": "tokenising",
    "collate": "collating",
    "together": "all of these, one process",
    "loader": "the loader",
    "step": "the training step",
}


@dataclasses.dataclass(frozen=True)
class Verdict:
    """rates: samples/s by part, None where parts of a stream cannot be told apart. settings: what they were measured under.

    bottleneck: "data" or "compute". expected: samples/s of training, as far as both sides do not share cores.
    workers_needed: data.workers at which the loader would keep up; None where none would help. text: all this in a sentence.
    """

    rates: dict[str, float | None]
    settings: dict[str, Any]
    bottleneck: str
    expected: float
    workers_needed: int | None
    text: str

    def to_json(self) -> dict[str, Any]:
        return {
            "samples_per_second": {name: None if rate is None else round(rate, 1) for name, rate in self.rates.items()},
            "expected": round(self.expected, 1),
            "bottleneck": self.bottleneck,
            "workers_needed": self.workers_needed,
            "verdict": self.text,
            "settings": self.settings,
        }

    def __str__(self) -> str:
        rows, batch = self.settings["step_samples"], self.settings["batch_size"] // self.settings["devices"]
        notes = {
            "loader": f"{self.settings['workers']} workers",
            "step": f"{self.settings['accelerator']}, {rows}{f' of {batch}' if rows < batch else ''} samples",
        }
        lines = [
            f"{LINES[name]:<28}{rate:>10,.0f} samples/s" + (f"   {notes[name]}" if name in notes else "")
            for name, rate in self.rates.items()
            if rate is not None
        ]
        return "\n".join([*lines, self.text])


def judge(rates: dict[str, float | None], settings: dict[str, Any]) -> Verdict:
    """rates: "loader" and "step", samples/s, and the parts, or None for them. settings: "workers", "cores", and what would
    help: "cache", "decode", "stream"."""
    loader, step, workers = rates["loader"], rates["step"], settings["workers"]
    assert loader and step
    one = rates["together"] or loader / max(1, workers)  # of one process
    by_turns = workers == 0
    expected = 1 / (1 / loader + 1 / step) if by_turns else min(loader, step)
    bottleneck = "data" if loader < step else "compute"
    needed = math.ceil(step / min(one, loader / max(1, workers))) if bottleneck == "data" else None
    speeds = f"the step takes {step:,.0f} samples/s, the loader gives {loader:,.0f}"
    if by_turns:
        share = step / (loader + step)
        speeds += f" in turn with it (data.workers 0), so that {share:.0%} of the time goes into loading"
    if bottleneck == "compute":
        return Verdict(rates, settings, bottleneck, expected, None, f"{speeds}: compute is the bottleneck")
    text = f"{speeds}: data is the bottleneck; {_cure(needed or 1, settings, rates)}"
    return Verdict(rates, settings, bottleneck, expected, needed, text)


def _cure(needed: int, settings: dict[str, Any], rates: dict[str, float | None]) -> str:
    local = not settings["stream"]
    cures = []
    if needed <= settings["cores"]:
        cures.append(f"raise data.workers to at least {needed}")
    if local and settings["cache"] is None:
        cures.append("set data.cache, which keeps decoded images in memory")
    if local and settings["cache"] is None and settings["decode"] == "exact":
        cures.append("set data.decode fast")
    slowest = min((rate, name) for name, rate in rates.items() if rate is not None and name != "step")
    if slowest[1] == "read":
        cures.append("set data.shuffle_block, or copy the shards to a faster disk: reading is the slowest part")
    if needed > settings["cores"]:
        have = settings["cores"]
        cures.append(f"run where there are more than these {have} cores: {needed} loader processes would keep up")
    return ", or ".join(cures)
