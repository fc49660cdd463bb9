"""What cutting a batch into 8 costs and saves: python benchmarks/train_accumulate.py SHARDS [--batch 64] [--pieces 8]

A step of `dualenc fit` with model.accumulate 8 against one with 1, the same batch and towers (ViT-B-32 at 224 px), each in a
process of its own, by turns. Time: medians. Memory: the most that autograd keeps for backward passes at any time of a step,
counted tensor by tensor (train_inside.Saved), which is what accumulation is there to save; weights, gradients and optimizer
state are the same for both. Writes results/train_accumulate.json.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from typing import Any

from record import record
from timing import interleaved

MODEL = "ViT-B-32"
TARGETS = (
    ("time", 1.6, "time a sample, cut into pieces over in one"),
    ("memory", 0.25, "kept for backward, cut into pieces over in one"),
)


def measure(shards: str, batch: int, pieces: int, repeats: int, threads: int, towers: dict[str, Any]) -> dict[str, Any]:
    """Seconds of a step and MiB kept for backward, in one and in pieces, and their ratios."""
    import train_inside

    common = train_inside.words(
        **towers, trainer__accelerator="cpu", trainer__devices=1, data__train=shards, data__batch_size=batch
    )
    ways = {
        "in_one": train_inside.Process(common, 2, threads),
        "in_pieces": train_inside.Process([*common, f"--model.accumulate={pieces}"], 2, threads),
    }
    try:
        kept = {name: way.step("saved") for name, way in ways.items()}  # the first step, which is slower, is not timed
        taken = interleaved({name: way.step for name, way in ways.items()}, repeats, "accumulate")
    finally:
        for way in ways.values():
            way.end()
    pairs = zip(taken["in_pieces"], taken["in_one"], strict=True)
    return {
        "batch": batch,
        "pieces": pieces,
        "seconds": {name: [round(one, 4) for one in times] for name, times in taken.items()},
        "samples_per_second": {name: round(batch / statistics.median(times), 2) for name, times in taken.items()},
        "kept_mib": {name: round(most / 2**20, 3) for name, most in kept.items()},
        "time": round(statistics.median(a / b for a, b in pairs), 3),
        "memory": round(kept["in_pieces"] / kept["in_one"], 4),
    }


def table(results: dict[str, Any]) -> str:
    """What was wanted and what was measured."""
    lines = [f"{'':<66}{'wanted':>9}{'measured':>10}"]
    for name, target, text in TARGETS:
        wanted, missed = f"<= {target:g}", "" if results[name] <= target else "   MISSED"
        lines.append(f"{text:<66}{wanted:>9}{results[name]:>10.3g}{missed}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards", help="Flickr8k's train split, as `dualenc data pack` wrote it")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--pieces", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--toy", action="store_true", help="tiny towers, to see that it runs")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = f"{options.threads}"  # before torch is imported
    import train_step

    towers = (
        {f"model__{name}": value for name, value in train_step.TOY.items()} if options.toy else {"model__name": MODEL}
    )
    found = measure(options.shards, options.batch, options.pieces, options.repeats, options.threads, towers)
    record("train_accumulate", {"model": "toy" if options.toy else MODEL} | found)
    sys.stdout.write(f"{table(found)}\n")


if __name__ == "__main__":
    main()
