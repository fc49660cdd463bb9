"""Captions: our tokenizer against open_clip's, and what padding to 77 tokens costs the text tower."""

from __future__ import annotations

import dualenc.torchvision_ops  # noqa: F401  (before open_clip)

import numpy as np
import torch
from open_clip.tokenizer import SimpleTokenizer
from timing import interleaved, medians, progress, seconds

from dualenc.data.text import make_tokenizer
from dualenc.model.folder import model_config
from dualenc.model.spec import tokenizer_spec
from dualenc.model.towers import build, text_features, text_features_sorted

BATCH = 256
MODEL = "ViT-B-32"
SET = 2560  # captions of a whole set: more change nothing but the time it takes


def text(captions: list[str], repeats: int) -> dict[str, float | int]:
    """Microseconds a caption of both tokenizers, each new for every repeat (cold), and once more (warm)."""
    batches = [captions[i : i + BATCH] for i in range(0, len(captions), BATCH)]
    spec = tokenizer_spec(SimpleTokenizer(), pad_to_longest=True)
    ours, theirs = make_tokenizer(spec), SimpleTokenizer()
    for batch in batches:
        short, whole = ours(batch), theirs(batch).numpy()
        assert np.array_equal(short, whole[:, : short.shape[1]]) and not whole[:, short.shape[1] :].any(), batch
    progress(f"text: the ids of all {len(captions):,} captions are open_clip's")
    taken: dict[str, list[float]] = {}
    for repeat in range(repeats):
        progress(f"text: {repeat + 1} of {repeats}")
        made = {"ours": make_tokenizer(spec), "open_clip": SimpleTokenizer()}
        for state in ("cold", "warm"):
            for name, tokenizer in made.items():
                one = seconds(lambda run=tokenizer: [run(batch) for batch in batches])
                taken.setdefault(f"{name}_{state}_us", []).append(one)
    times = medians(taken, len(captions))
    gains = {s: round(times[f"open_clip_{s}_us"] / times[f"ours_{s}_us"], 2) for s in ("cold", "warm")}
    return {"captions": len(captions), "different_ids": 0, **times, **{f"gain_{s}": gain for s, gain in gains.items()}}


def tower(captions: list[str], repeats: int, batch: int = BATCH, several: int = SET) -> dict[str, float | int]:
    """Milliseconds a caption of the text tower of ViT-B-32 (random weights, no gradients).

    Padded to 77, where the time does not depend on the captions: one random batch. Padded to the longest: the same batch.
    Sorted: a set of `several` captions that the batch is part of. Another batch and another set in each repeat.
    """
    model = _tower()
    tokenizer = SimpleTokenizer()
    rng = np.random.default_rng(0)
    taken: dict[str, list[float]] = {}
    worst = 0.0
    for repeat in range(repeats):
        chosen = [captions[i] for i in rng.permutation(len(captions))[:several]]
        tokens = tokenizer(chosen)
        longest = int(tokens[:batch].ne(0).any(dim=0).nonzero().max()) + 1
        rows: dict[str, torch.Tensor] = {}
        ways = {
            "padded_ms": lambda t=tokens, r=rows: r.update(padded=text_features(model, t[:batch])),
            "longest_ms": lambda t=tokens, r=rows, n=longest: r.update(longest=text_features(model, t[:batch, :n])),
            "sorted_ms": lambda t=tokens, r=rows: r.update(sorted=text_features_sorted(model, t)),
        }
        with torch.inference_mode():
            one = interleaved(ways, 1, f"tower: {repeat + 1} of {repeats}, step")
        for name, times in one.items():
            taken.setdefault(name, []).append(times[0] / (len(tokens) if name == "sorted_ms" else len(tokens[:batch])))
        errors = [(rows["padded"] - rows[n][:batch]).abs().max().item() for n in ("longest", "sorted")]
        worst = max(worst, *errors)
        assert worst <= 1e-5, f"outputs differ by {worst}"
    times = medians(taken, 1, 1e3)
    return {
        "model": MODEL,
        "batch": batch,
        "set": several,
        "largest_difference": worst,
        **times,
        "gain_longest": round(times["padded_ms"] / times["longest_ms"], 2),
        "gain_sorted": round(times["padded_ms"] / times["sorted_ms"], 2),
    }


def _tower() -> torch.nn.Module:
    cfg = model_config(MODEL)
    cfg["vision_cfg"]["layers"] = 1  # not used
    torch.manual_seed(0)
    return build(cfg, {}).eval()
