"""A training step against a plain open_clip loop: python benchmarks/train_step.py SHARDS [--device cpu] [--batch 32]

The same towers (ViT-B-32 at 224 px, random weights), the same pictures and captions, by turns in one process. Ours is a step
of `dualenc fit`, in its own loop with its callbacks: uint8 pictures made floats on the device, captions padded to the batch's
longest, fused AdamW. open_clip's is what its training script does: float pictures as its transform gives them, captions padded
to 77, ClipLoss, torch's AdamW, the temperature clamped. A third turn is ours with captions padded to 77. Loading is left out on
both sides: batches are made before. Writes results/train_step.json.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from record import RESULTS, record
from timing import progress

MODEL, LENGTH = "ViT-B-32", 77
TOY = {  # for the tests
    "embed_dim": 16,
    "vision": {"image_size": 32, "layers": 1, "width": 32, "patch_size": 16, "head_width": 16},
    "text": {"context_length": LENGTH, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}
WAYS = ("ours", "open_clip", "ours_77")
TARGETS = (
    ("gain", 1.2, "samples/s, ours over open_clip's"),
    ("gain_equal_length", 0.95, "the same, captions padded to 77 on both sides"),
)
SHEET = {"H200": 989e12, "H100": 989e12, "A100": 312e12}  # dense bfloat16 FLOP/s by NVIDIA's data sheets
LR, DECAY, BETAS, EPS = 5e-4, 0.2, (0.9, 0.98), 1e-6  # open_clip's defaults for ViTs


class Peer:
    """The loop of open_clip_train's train_one_epoch: forward, ClipLoss, backward, AdamW, clamp."""

    def __init__(self, module: Any, device: Any):
        import open_clip
        import torch

        from dualenc.model.towers import build

        self.model: Any = build(module.model_cfg, {}).to(device).train()
        self.model.load_state_dict(module.model.state_dict())  # the same start
        self.loss_of, self.device = open_clip.ClipLoss(), device
        named = list(self.model.named_parameters())
        plain = {name: p.ndim < 2 or any(x in name for x in ("bn", "ln", "bias", "logit_scale")) for name, p in named}
        groups = [
            {"params": [p for name, p in named if plain[name]], "weight_decay": 0.0},
            {"params": [p for name, p in named if not plain[name]], "weight_decay": DECAY},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=LR, betas=BETAS, eps=EPS)

    def step(self, image: Any, text: Any) -> Any:
        """One step on float pictures (B, 3, H, W) and token ids (B, 77), both on the host; the loss."""
        import torch

        image, text = (t.to(self.device, non_blocking=True) for t in (image, text))
        self.optimizer.zero_grad()
        half = self.device.type == "cuda"
        with torch.enable_grad():
            with torch.autocast("cuda", torch.bfloat16) if half else contextlib.nullcontext():  # its amp_bf16
                loss = self.loss_of(*self.model(image, text))
            loss.backward()
        self.optimizer.step()
        with torch.no_grad():
            self.model.logit_scale.clamp_(0, math.log(100))
        return loss.detach()


def padded(text: Any) -> Any:
    """Token ids (B, L) with zeros up to open_clip's length."""
    import torch

    return torch.nn.functional.pad(text, (0, LENGTH - text.shape[1]))


def as_open_clip(batch: dict[str, Any], module: Any) -> tuple[Any, Any]:
    """The batch that its loader would have made of these pixels and captions: ToTensor, Normalize, 77 tokens."""
    import torch

    cfg = module.model.visual.preprocess_cfg
    mean, std = (torch.tensor(cfg[name]).view(3, 1, 1) for name in ("mean", "std"))
    return ((batch["image"].float() / 255 - mean) / std).contiguous(), padded(batch["text"])


def feed(repeats: int, found: dict[str, Any]) -> Callable[[list[dict[str, Any]], Any], Iterator[dict[str, Any]]]:
    """What to hand to the training loop (train_inside.fit): it takes our steps, and the peer's lie between them."""

    import train_inside

    def steps(batches: list[dict[str, Any]], module: Any) -> Iterator[dict[str, Any]]:
        device = module.device
        peer = Peer(module, device)
        found.update(tokens=[batch["text"].shape[1] for batch in batches[1:]], device=device_name(device))
        first = train_inside.FirstLoss()
        module.trainer.callbacks.append(first)
        taken: dict[str, list[float]] = {way: [] for way in WAYS}
        for repeat in range(-1, repeats):  # the first is slower
            batch = batches[repeat + 1]
            theirs = as_open_clip(batch, module)
            progress(f"step: {repeat + 1} of {repeats}")
            for way in WAYS if repeat % 2 else reversed(WAYS):
                start = now(device)
                if way == "open_clip":
                    loss = peer.step(*theirs)
                else:
                    yield batch | ({"text": padded(batch["text"])} if way == "ours_77" else {})
                taken[way].append(now(device) - start)
            if repeat == -1:
                module.trainer.callbacks.remove(first)
                agree(first.loss, loss.item(), device)
        found["seconds"] = {way: [round(one, 6) for one in times[1:]] for way, times in taken.items()}
        yield from arithmetic(batches[1], as_open_clip(batches[1], module), peer, found)

    return steps


def agree(ours: float, theirs: float, device: Any) -> None:
    """Both sides do the same work only if their first losses, from the same weights, are the same."""
    most = 1e-4 if device.type == "cpu" else 2e-2  # bfloat16
    assert abs(ours - theirs) <= most * abs(theirs), f"the first losses differ: ours {ours}, open_clip's {theirs}"


def now(device: Any) -> float:
    """Seconds, once the device has finished."""
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def device_name(device: Any) -> str:
    import torch

    return torch.cuda.get_device_name() if device.type == "cuda" else "cpu"


def arithmetic(batch: Any, theirs: Any, peer: Peer, found: dict[str, Any]) -> Iterator[Any]:
    """One more step of each side to count its operations, beside what the machine reaches; on a GPU one more of ours, to see
    how much of the time it works, and at what."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    flops = {}
    with FlopCounterMode(display=False) as count:
        yield batch
    flops["ours"] = count.get_total_flops()
    with FlopCounterMode(display=False) as count:
        peer.step(*theirs)
    flops["open_clip"] = count.get_total_flops()
    half = peer.device.type == "cuda"
    peaks = {"matrix_product": product_rate(peer.device, *((8192, torch.bfloat16) if half else (2048, torch.float32)))}
    sheet = [peak for name, peak in SHEET.items() if name in found["device"]]
    peaks |= {"data_sheet": sheet[0]} if sheet else {}
    rate = {way: flops[way] / statistics.median(found["seconds"][way]) for way in flops}
    found["arithmetic"] = {
        "flops_a_step": flops,
        "flops_a_second": {way: round(one) for way, one in rate.items()},
        "peak": {name: round(peak) for name, peak in peaks.items()},
        "mfu": {f"{way} of {name}": round(rate[way] / peak, 4) for way in rate for name, peak in peaks.items()},
    }
    if half:
        start = now(peer.device)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            yield batch
            seconds = now(peer.device) - start
        kernels = sorted(profile.key_averages(), key=lambda event: -event.self_device_time_total)
        busy = sum(event.self_device_time_total for event in kernels) / 1e6
        shares = {event.key[:80]: round(event.self_device_time_total / 1e6 / busy, 4) for event in kernels[:8]}
        found["arithmetic"] |= {"gpu_busy": round(busy / seconds, 4), "kernels": shares}


def product_rate(device: Any, side: int, dtype: Any, times: int = 20) -> float:
    """FLOP/s of square matrix products, the most that can be had here."""
    import torch

    matrix = torch.randn(side, side, device=device, dtype=dtype)
    matrix @ matrix  # the first is slower
    start = now(device)
    for _ in range(times):
        matrix @ matrix
    return times * 2 * side**3 / (now(device) - start)


def measure(shards: str, batch: int, repeats: int, device: str, toy: bool = False) -> dict[str, Any]:
    """Seconds of a step each way, samples/s, and how much faster ours is: medians of the repeats' ratios."""
    import train_inside

    found: dict[str, Any] = {}
    towers = {f"model__{name}": value for name, value in TOY.items()} if toy else {"model__name": MODEL}
    training = {"model__lr": LR, "model__weight_decay": DECAY, "model__betas": BETAS, "model__warmup_steps": 100}
    place = {"trainer__accelerator": device, "trainer__devices": 1, "data__train": shards, "data__batch_size": batch}
    train_inside.fit(train_inside.words(**towers, **training, **place), repeats + 1, feed(repeats, found))
    seconds = found["seconds"]

    def gain(way: str) -> float:
        return round(statistics.median(b / a for a, b in zip(seconds[way], seconds["open_clip"], strict=True)), 3)

    rates = {f"{way}_samples_per_second": round(batch / statistics.median(seconds[way]), 2) for way in WAYS}
    about = {"model": "toy" if toy else MODEL, "batch": batch, "precision": "bf16" if device == "cuda" else "float32"}
    return about | found | rates | {"gain": gain("ours"), "gain_equal_length": gain("ours_77")}


def table(results: dict[str, Any]) -> str:
    """What was wanted and what was measured."""
    lines = [f"{'':<66}{'wanted':>9}{'measured':>10}"]
    for device, found in results.items():
        for name, target, text in TARGETS:
            missed = "" if found[name] >= target else "   MISSED"
            what, wanted = f"{device}, batch {found['batch']}: {text}", f">= {target:g}"
            lines.append(f"{what:<66}{wanted:>9}{found[name]:>10.3g}{missed}")
        shares = ", ".join(f"{way} {share:.1%}" for way, share in found["arithmetic"]["mfu"].items())
        lines.append(f"{device}: share of the arithmetic peak: {shares}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards", help="Flickr8k's train split, as `dualenc data pack` wrote it")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--toy", action="store_true", help="tiny towers, to see that it runs")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = f"{options.threads}"  # before torch is imported
    path = RESULTS / "train_step.json"
    results = json.loads(path.read_text(encoding="utf-8"))["results"] if path.exists() else {}
    found = measure(options.shards, options.batch, options.repeats, options.device, options.toy)
    results[options.device] = found
    record("train_step", results)
    sys.stdout.write(f"{table(results)}\n")


if __name__ == "__main__":
    main()
