"""The tiled losses against open_clip's: python benchmarks/loss.py [--only SECTION] [--batch 16384] [--threads 2]

softmax, sigmoid: seconds forward and backward, by turns in one process (medians of --repeats), and peak extra memory, each
in a process of its own after a small call of the same loss: VmHWM, reset before the call, less VmRSS before it (Linux).
large: ours alone at --large, time and memory. exact: float64 gradients by tiles less those of one matrix, every option,
and open_clip's where it has it. ranks: two processes of one thread, gathering all texts against passing them round in a
ring, at --rank-batch. Writes results/loss.json; --only measures one section and keeps what is recorded of the others.
"""

from __future__ import annotations

import argparse
import datetime
import json
import multiprocessing
import os
import statistics
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

SECTIONS = ("softmax", "sigmoid", "large", "exact", "ranks")
SCALE, BIAS = 14.3, -10.0  # 1 / 0.07, where training starts; SigLIP's own bias
TARGETS = (  # section, figure, at most, what it is
    ("softmax", "memory_share", 0.05, "softmax, peak extra memory, ours over ClipLoss's"),
    ("softmax", "time_share", 1.1, "softmax, seconds, ours over ClipLoss's"),
    ("large", "softmax/extra_mib", 4096.0, "softmax at B = 65,536, peak extra MiB"),
    ("exact", "largest_difference", 1e-10, "float64 gradients, every option, tiles less one matrix"),
)


def losses(name: str) -> dict[str, Callable[..., Any]]:
    """Ours and open_clip's of one name: (image, text, scale, bias) → scalar."""
    import dualenc.torchvision_ops  # noqa: F401  (before open_clip)

    from open_clip.loss import ClipLoss, SigLipLoss

    from dualenc.model.losses import contrastive_loss, sigmoid_loss

    if name == "softmax":
        clip = ClipLoss()
        return {"dualenc": lambda i, t, s, b: contrastive_loss(i, t, s), "open_clip": lambda i, t, s, b: clip(i, t, s)}
    return {"dualenc": sigmoid_loss, "open_clip": SigLipLoss()}


def inputs(batch: int, dim: int, dtype: Any = None) -> list[Any]:
    """Unit rows of two sides, scale and bias, all of which are trained."""
    import torch

    generator = torch.Generator().manual_seed(0)
    dtype = dtype or torch.float32
    sides = [
        torch.nn.functional.normalize(torch.randn(batch, dim, generator=generator, dtype=dtype), dim=1) for _ in "it"
    ]
    return [x.requires_grad_() for x in (*sides, torch.tensor(SCALE, dtype=dtype), torch.tensor(BIAS, dtype=dtype))]


def step(loss: Callable[..., Any], given: list[Any]) -> None:
    """Forward and backward from gradients that are not there yet."""
    for x in given:
        x.grad = None
    loss(*given).backward()


def status(field: str) -> float:
    """MiB of this process, from /proc."""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(field))
    return int(line.split()[1]) / 1024


def memory(name: str, whose: str, batch: int, dim: int, threads: int) -> dict[str, float]:
    """Peak MiB above the inputs of one forward and backward, and its seconds; for a process of its own."""
    import torch
    from timing import seconds

    torch.set_num_threads(threads)
    loss = losses(name)[whose]
    step(loss, inputs(64, dim))
    given = inputs(batch, dim)
    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    taken = seconds(lambda: step(loss, given))
    return {"extra_mib": round(status("VmHWM") - before, 1), "seconds": round(taken, 3)}


def alone(function: Callable[..., Any], *given: Any) -> Any:
    """What a function gives in a new process."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        return process.submit(function, *given).result()


def times(name: str, batch: int, dim: int, threads: int, repeats: int) -> dict[str, list[float]]:
    """Seconds of both sides, by turns."""
    import torch
    from timing import interleaved

    torch.set_num_threads(threads)
    given = inputs(batch, dim)
    ways = {whose: lambda loss=loss: step(loss, given) for whose, loss in losses(name).items()}
    for way in ways.values():
        way()
    return interleaved(ways, repeats, f"{name}, B = {batch}")


def compare(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Both sides of one loss."""
    size = options.batch, options.dim, options.threads
    taken = alone(times, name, *size, options.repeats)
    extra = {whose: alone(memory, name, whose, *size)["extra_mib"] for whose in taken}
    middle = {whose: statistics.median(all_of) for whose, all_of in taken.items()}
    return {
        "batch": options.batch,
        "threads": options.threads,
        "seconds": {whose: [round(x, 3) for x in all_of] for whose, all_of in taken.items()},
        "extra_mib": extra,
        "time_share": round(middle["dualenc"] / middle["open_clip"], 3),
        "memory_share": round(extra["dualenc"] / max(extra["open_clip"], 0.1), 4),
    }


def exact(batch: int, dim: int, tile: int) -> dict[str, Any]:
    """Largest difference of float64 gradients: by tiles less of one matrix, and less open_clip's where it has the option."""
    import torch

    from dualenc.model.losses import Pairs, contrastive_loss, sigmoid_loss

    rows = torch.arange(batch)
    group = torch.where(rows % 17 == 5, -1, rows // 2)
    marks = {"image_marks": torch.stack([group % 61, group % 53], 1), "text_marks": group % 61}
    ways: dict[str, dict[str, Any]] = {
        "plain": {},
        "label smoothing": {"label_smoothing": 0.1},
        "several positives": {"pairs": Pairs(group, group)},
        "masked false negatives": {"pairs": Pairs(group, group, **marks)},
        "prefixes": {"dims": (dim // 8, dim // 2, dim)},
        "all": {"label_smoothing": 0.1, "pairs": Pairs(group, group, **marks), "dims": (dim // 8, dim)},
    }
    found: dict[str, Any] = {}
    for name, ours in (("softmax", contrastive_loss), ("sigmoid", sigmoid_loss)):
        for way, settings in ways.items():
            if name == "sigmoid" and "label_smoothing" in settings:
                settings = {k: v for k, v in settings.items() if k != "label_smoothing"}
                if not settings:
                    continue
            given = inputs(batch, dim, torch.float64)
            needed = given if name == "sigmoid" else given[:3]
            by = [torch.autograd.grad(ours(*needed, tile=n, **settings), needed) for n in (0, tile)]
            found[f"{name}, {way}"] = difference(*by)
        theirs = torch.autograd.grad(losses(name)["open_clip"](*given), needed)
        by_tiles = torch.autograd.grad(ours(*needed, tile=tile), needed)
        found[f"{name}, open_clip"] = difference(theirs, by_tiles)
    return {"batch": batch, "tile": tile, "largest_difference": max(found.values()), "gradients": found}


def difference(some: Any, others: Any) -> float:
    return max(float((a - b).abs().max()) for a, b in zip(some, others, strict=True))


def measure(section: str, options: argparse.Namespace) -> dict[str, Any]:
    """One section's figures."""
    if section in ("softmax", "sigmoid"):
        return compare(section, options)
    if section == "large":
        size = options.large, options.dim, options.threads
        return {"batch": options.large} | {
            name: alone(memory, name, "dualenc", *size) for name in ("softmax", "sigmoid")
        }
    if section == "exact":
        return alone(exact, min(512, options.batch), options.dim, 100)
    import loss_ranks

    return loss_ranks.measure(options.rank_batch, options.dim, options.repeats)


def table(results: dict[str, Any]) -> str:
    """What was wanted and what was measured."""
    lines = [f"{'':<60}{'at most':>10}{'measured':>12}"]
    for section, figure, most, text in TARGETS:
        value = results.get(section)
        for part in figure.split("/"):
            value = None if value is None else value[part]
        if value is not None:
            lines.append(f"{text:<60}{most:>10.3g}{value:>12.3g}{'' if value <= most else '   MISSED'}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=SECTIONS, help="one section")
    parser.add_argument("--batch", type=int, default=16384, help="rows of the comparison (default 16384)")
    parser.add_argument("--large", type=int, default=65536, help="rows of ours alone (default 65536)")
    parser.add_argument("--rank-batch", type=int, default=8192, help="rows of two ranks together (default 8192)")
    parser.add_argument("--dim", type=int, default=512, help="embedding dimension (default 512)")
    parser.add_argument("--threads", type=int, default=2, help="of each side (default 2)")
    parser.add_argument("--repeats", type=int, default=3, help="pairs of every timing (default 3)")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(options.threads)  # for the processes that measure, and for the record
    from record import RESULTS, record

    path = RESULTS / "loss.json"
    results = json.loads(path.read_text(encoding="utf-8"))["results"] if path.exists() else {}
    for section in [options.only] if options.only else SECTIONS:
        results[section] = measure(section, options) | {"date": datetime.date.today().isoformat()}
        record("loss", {name: results[name] for name in SECTIONS if name in results})
    sys.stdout.write(f"{table(results)}\n")


if __name__ == "__main__":
    main()
