"""Retrieval against CLIP_benchmark's `evaluate`, on speed and memory; and a set that it could not hold."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import evaluate_side
import numpy as np
from index_measure import goal
from timing import progress

OURS = Path(__file__).parent / "evaluate_ours.py"
IMAGES, CAPTIONS, DIM = 5_000, 5, 512
LARGE_IMAGES, LARGE_DIM, GIB = 100_000, 256, 1024.0  # MiB in a GiB
KS = (1, 5, 10)
WAYS = {"image_retrieval": "text_to_image", "text_retrieval": "image_to_text"}  # its names, ours


def measure(options: Any) -> dict[str, Any]:
    """Both sides by turns, each round in fresh processes."""
    images = round(IMAGES * options.size)
    with tempfile.TemporaryDirectory(dir=options.scratch) as name:
        folder = Path(name)
        write(folder, images, DIM, options.seed)
        rounds: dict[str, list[dict[str, Any]]] = {"dualenc": [], "clip_benchmark": []}
        for repeat in range(options.rounds):
            progress(f"retrieval: {repeat + 1} of {options.rounds}")
            for side in list(rounds) if repeat % 2 == 0 else reversed(list(rounds)):
                rounds[side].append(once(side, folder, options))
    found = {side: middle(some) for side, some in rounds.items()}
    ours, theirs = found["dualenc"], found["clip_benchmark"]
    return {
        "data": {"images": images, "captions": CAPTIONS * images, "dim": DIM, "dtype": "float32", "seed": options.seed},
        "sides": found,
        "goals": [
            goal("largest difference of a recall", differs(ours["metrics"], theirs["metrics"]), most=1e-6),
            goal("memory over CLIP_benchmark's", ours["extra_mib"] / theirs["extra_mib"], most=0.1),
            goal("times as fast as CLIP_benchmark", theirs["seconds"] / ours["seconds"], least=3),
        ],
    }


def measure_large(options: Any) -> dict[str, Any]:
    """Memory with all rows, a tenth of either side asking the whole other one; time from a tenth of the captions."""
    images = round(LARGE_IMAGES * options.size)
    share = 1.0 if options.whole else 0.1
    with tempfile.TemporaryDirectory(dir=options.scratch) as name:
        folder = Path(name)
        write(folder, images, LARGE_DIM, options.seed)
        progress(f"large: {share:g} of the captions")
        found = once("dualenc", folder, options, "--share", str(share))
    whole = found["seconds"] / share + found["interval_seconds"]
    how = "measured" if options.whole else "extrapolated from a tenth of the captions"
    who = "all ask" if options.whole else "a tenth of either side asks all of the other"
    return {
        "data": {"images": images, "captions": CAPTIONS * images, "dim": LARGE_DIM, "dtype": "float32"},
        **found,
        "whole_seconds": round(whole, 1),
        "time": how,
        "goals": [
            goal(f"peak memory, GiB ({who}; time {how}: {whole / 60:.1f} minutes)", found["peak_mib"] / GIB, most=4)
        ],
    }


def write(folder: Path, images: int, dim: int, seed: int) -> None:
    """images.npy, texts.npy (unit rows, float32) and image_row.npy: each image has its captions near it, in order."""
    rng = np.random.default_rng(seed)
    rows = unit(rng.standard_normal((images, dim), dtype=np.float32))
    np.save(folder / "images.npy", rows)
    texts = np.lib.format.open_memmap(folder / "texts.npy", "w+", np.float32, (images * CAPTIONS, dim))
    for start in range(0, images, 10_000):
        own = np.repeat(rows[start : start + 10_000], CAPTIONS, axis=0)
        noise = unit(rng.standard_normal(own.shape, dtype=np.float32))
        texts[start * CAPTIONS : start * CAPTIONS + len(own)] = unit(own + 5 * noise)
    texts.flush()
    np.save(folder / "image_row.npy", np.repeat(np.arange(images), CAPTIONS))


def once(side: str, folder: Path, options: Any, *more: str) -> dict[str, Any]:
    """One side, once: {"metrics", "seconds", "extra_mib", "peak_mib", …}."""
    out = folder / f"{side}.json"
    if side == "clip_benchmark":
        evaluate_side.run(options.peers, "retrieval", folder, out, options.threads)
    else:
        command = [sys.executable, OURS, folder, out, "--threads", str(options.threads), *more]
        subprocess.run(command, check=True, env=evaluate_side.environment(options.threads))
    found = json.loads(out.read_text(encoding="utf-8"))
    progress(f"  {side}: {found['seconds']:.2f} s, {found['extra_mib']:.0f} MiB")
    return found


def middle(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians of the rounds; what each round took beside them."""
    figures = {name: [each[name] for each in rounds] for name in ("seconds", "extra_mib")}
    medians = {name: round(statistics.median(values), 3) for name, values in figures.items()}
    return rounds[-1] | medians | {"rounds": {name: [round(v, 3) for v in some] for name, some in figures.items()}}


def differs(ours: dict[str, float], theirs: dict[str, float]) -> float:
    return max(
        abs(ours[f"{own}/recall@{k}"] - theirs[f"{other}_recall@{k}"]) for other, own in WAYS.items() for k in KS
    )


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)
