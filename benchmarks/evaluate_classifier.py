"""Making a zero-shot classifier, tokenising included, against open_clip's builder; and reading one that was kept."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import dualenc.torchvision_ops  # noqa: F401  (before open_clip)

import numpy as np
import open_clip
import torch
from evaluate_side import environment
from index_measure import goal
from timing import interleaved, progress

from dualenc.evaluate.zeroshot.classifier import classifier
from dualenc.model.encoder import DualEncoder
from dualenc.model.names import class_names, templates

ENCODER, CLASSES, WHOLE, ALIKE = "ViT-B-32:random", 20, 1000, 1e-5
KEPT = """import json, sys, time
from dualenc.evaluate.zeroshot.classifier import classifier
with open(sys.argv[4]) as file:
    names, prompts = json.load(file)

class Encoder:
    dim, fingerprint = int(sys.argv[2]), sys.argv[3]
    def embed_texts(self, texts):
        raise SystemExit("the classifier was not kept")

start = time.perf_counter()
rows = classifier(Encoder(), names, prompts, sys.argv[1])
print(time.perf_counter() - start, *rows.shape)
"""


class Drawn:
    """An encoder whose rows are random: fills the cache with a classifier of the true size in seconds."""

    def __init__(self, encoder: Any):
        self.dim, self.fingerprint = encoder.dim, encoder.fingerprint

    def embed_texts(self, texts: list[str]) -> np.ndarray:
        return np.random.default_rng(len(texts)).standard_normal((len(texts), self.dim)).astype(np.float32)


def measure(options: Any) -> dict[str, Any]:
    """open_clip gets the same weights from an encoder folder, its own model and tokenizer; both by turns, two threads."""
    torch.set_num_threads(options.threads)
    encoder = DualEncoder.load(ENCODER, device="cpu")
    names, prompts = class_names("imagenet"), templates("imagenet")
    some = names[: max(2, round(CLASSES * options.size))]
    with tempfile.TemporaryDirectory(dir=options.scratch) as name:
        folder = Path(name)
        encoder.save(folder / "encoder")
        model = open_clip.create_model(f"local-dir:{folder / 'encoder'}").eval()
        tokenizer = open_clip.get_tokenizer(ENCODER.split(":")[0])
        found: dict[str, np.ndarray] = {}

        def ours() -> None:
            found["dualenc"] = classifier(encoder, some, prompts, cache=None)

        def theirs() -> None:
            found["open_clip"] = open_clip.build_zero_shot_classifier(model, tokenizer, some, prompts).T.numpy()

        classifier(encoder, some[:2], prompts[:2], cache=None)  # what is made once, is made before
        open_clip.build_zero_shot_classifier(model, tokenizer, some[:2], prompts[:2])
        taken = interleaved({"dualenc": ours, "open_clip": theirs}, options.rounds, "classifier")
        progress("classifier: one that was kept")
        classifier(Drawn(encoder), names, prompts, folder / "kept")
        (folder / "prompts.json").write_text(json.dumps([names, prompts]), encoding="utf-8")
        kept = [opened(folder, encoder, options.threads) for _ in range(options.rounds)]
    medians = {side: statistics.median(times) for side, times in taken.items()}
    whole = {side: round(t * WHOLE / len(some) / 60, 1) for side, t in medians.items()}
    said = f"{WHOLE:,} classes, extrapolated: {whole['dualenc']} against {whole['open_clip']} min"
    off = float(np.abs(found["dualenc"] - found["open_clip"]).max())
    return {
        "encoder": ENCODER,
        "classes": len(some),
        "templates": len(prompts),
        "seconds": {side: [round(t, 3) for t in times] for side, times in taken.items()},
        "whole_extrapolated_minutes": whole,
        "kept_seconds": [round(t, 4) for t in kept],
        "goals": [
            goal("largest difference from open_clip's", off, most=ALIKE),
            goal(f"times as fast as open_clip's builder ({said})", medians["open_clip"] / medians["dualenc"], least=5),
            goal("seconds to read a kept classifier of 1,000 classes", statistics.median(kept), most=1),
        ],
    }


def opened(folder: Path, encoder: Any, threads: int) -> float:
    """Seconds in a fresh process that has names and templates, until the classifier of 80,000 prompts is there."""
    about = [folder / "kept", str(encoder.dim), encoder.fingerprint, folder / "prompts.json"]
    words = [sys.executable, "-c", KEPT, *about]
    said = subprocess.run(words, check=True, capture_output=True, text=True, env=environment(threads)).stdout.split()
    assert said[1:] == [str(WHOLE), str(encoder.dim)]
    return float(said[0])
