"""Two ranks on two cores: python benchmarks/train_ranks.py SHARDS [--config flickr8k] [--batch 256]

Steps of `dualenc fit`, one thread each, by turns: one process alone; two processes that know nothing of each other; one
training on two ranks (DDP over gloo) that gives each rank as many samples as the process alone has; and one on two ranks
that shares the process's batch. What two processes gain is what the machine has to give; efficiency is the gain of two ranks
over that. Loading is left out. Writes results/train_ranks.json.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from collections.abc import Sequence
from typing import Any

from record import record
from timing import interleaved

TARGETS = (
    ("efficiency", 0.85, "gain of two ranks over that of two processes"),
    ("efficiency_same_batch", None, "the same where two ranks share one process's batch"),
)


def measure(options: Sequence[str], batch: int, repeats: int, steps: int) -> dict[str, Any]:
    """Samples/s each way, gains over one process, efficiency. options: of `dualenc fit`; steps: of each turn."""
    import train_inside

    cpu = [*options, *train_inside.words(trainer__accelerator="cpu")]
    small, large = ([*cpu, *train_inside.words(data__batch_size=n)] for n in (batch, 2 * batch))
    alone = [train_inside.Process([*small, "--trainer.devices=1"], 2, 1) for _ in range(2)]
    ranks, shared = train_inside.group(large, 2, 2), train_inside.group(small, 2, 2)
    ways = {"one": alone[:1], "two": alone, "ranks": ranks, "ranks_same_batch": shared}
    samples = {"one": batch, "two": 2 * batch, "ranks": 2 * batch, "ranks_same_batch": batch}
    try:
        for processes in ways.values():
            train_inside.together(processes)  # the first step is slower
        turns = {name: lambda p=processes: train_inside.together(p, steps) for name, processes in ways.items()}
        taken = interleaved(turns, repeats, "ranks")
    finally:
        for process in [*alone, *ranks, *shared]:
            process.end()
    rates = {name: [samples[name] * steps / one for one in times] for name, times in taken.items()}
    gains = {
        name: [rate / one for rate, one in zip(rates[name], rates["one"], strict=True)]
        for name in rates
        if name != "one"
    }

    def efficiency(name: str) -> float:
        return round(statistics.median(a / b for a, b in zip(gains[name], gains["two"], strict=True)), 3)

    return {
        "batch": batch,
        "samples_per_second": {name: round(statistics.median(values), 2) for name, values in rates.items()},
        "gain": {name: round(statistics.median(values), 3) for name, values in gains.items()},
        "efficiency": efficiency("ranks"),
        "efficiency_same_batch": efficiency("ranks_same_batch"),
    }


def table(results: dict[str, Any]) -> str:
    """What was wanted and what was measured."""
    lines = [f"{'':<66}{'wanted':>9}{'measured':>10}"]
    for name, target, text in TARGETS:
        wanted = f">= {target:g}" if target else ""
        missed = "   MISSED" if target and results[name] < target else ""
        lines.append(f"{text:<66}{wanted:>9}{results[name]:>10.3g}{missed}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards", help="Flickr8k's train split, as `dualenc data pack` wrote it")
    parser.add_argument("--config", default="flickr8k", help="the towers and the recipe (default flickr8k)")
    parser.add_argument("--batch", type=int, default=256, help="of one process (default 256)")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--steps", type=int, default=2, help="of each turn (default 2)")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported
    words = ["--config", options.config, f"--data.train={options.shards}", "--data.cache=null"]
    found = measure(words, options.batch, options.repeats, options.steps)
    record("train_ranks", {"config": options.config} | found)
    sys.stdout.write(f"{table(found)}\n")


if __name__ == "__main__":
    main()
