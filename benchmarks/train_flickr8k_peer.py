"""A plain open_clip training loop on Flickr8k: python benchmarks/train_flickr8k_peer.py SHARDS OUT [--epochs 9] [--seed 0]

What train_flickr8k.py compares with: open_clip's CLIP of the same sizes, its ClipLoss, its training and evaluation
transforms as they come, its tokenizer, one of an image's captions at random, AdamW without decay of gains and biases as
open_clip's own script has it. Images are decoded once and held in memory. The weights with the best mean Recall@K on
SHARDS/val are written to OUT as an open_clip folder. Of dualenc it uses the metric alone.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import random
import tarfile
from pathlib import Path
from typing import Any

import dualenc.torchvision_ops  # noqa: F401  (before open_clip)

import open_clip
import torch
import torch.nn.functional as F
from open_clip.tokenizer import SimpleTokenizer
from open_clip.transform import image_transform
from PIL import Image
from safetensors.torch import save_file

from dualenc.evaluate.metrics import retrieval_metrics
from dualenc.files import whole_folder

MODEL: dict[str, Any] = {
    "embed_dim": 256,
    "vision_cfg": {"layers": [2, 2, 2, 2], "width": 16, "image_size": 64, "head_width": 64},
    "text_cfg": {"context_length": 24, "vocab_size": 49408, "width": 128, "heads": 4, "layers": 2},
    "quick_gelu": False,
}
LR, DECAY, BETAS, WARMUP = 1e-3, 0.2, (0.9, 0.98), 20

Pairs = list[tuple[Image.Image, list[str]]]


def read(folder: Path) -> Pairs:
    """Decoded images with their captions."""
    members: dict[str, dict[str, bytes]] = {}
    for shard in sorted(folder.glob("*.tar")):
        with tarfile.open(shard) as tar:
            for member in tar:
                key, _, suffix = member.name.partition(".")
                members.setdefault(key, {})[suffix] = tar.extractfile(member).read()  # type: ignore[union-attr]
    pairs = []
    for parts in members.values():
        data = next(data for suffix, data in parts.items() if suffix in ("jpg", "jpeg", "png"))
        pairs.append((Image.open(io.BytesIO(data)).convert("RGB"), parts["txt"].decode().splitlines()))
    return pairs


def factor(step: int, steps: int) -> float:
    """Of the learning rate: linear warm-up, then half a cosine."""
    if step < WARMUP:
        return (step + 1) / WARMUP
    return 0.5 * (1 + math.cos(math.pi * (step - WARMUP) / max(1, steps - WARMUP)))


def optimizer_of(model: torch.nn.Module) -> torch.optim.Optimizer:
    """open_clip_train/main.py: gains, biases and the temperature are not decayed."""

    def plain(name: str, p: torch.Tensor) -> bool:
        return p.ndim < 2 or any(part in name for part in ("bn", "ln", "bias", "logit_scale"))

    named = list(model.named_parameters())
    groups = [
        {"params": [p for name, p in named if plain(name, p)], "weight_decay": 0.0},
        {"params": [p for name, p in named if not plain(name, p)], "weight_decay": DECAY},
    ]
    return torch.optim.AdamW(groups, lr=LR, betas=BETAS)


@torch.no_grad()
def mean_recall(model: Any, pairs: Pairs, transform: Any, tokenizer: Any) -> float:
    """Mean of Recall@1, 5 and 10 both ways: what `dualenc fit` chooses its checkpoint by."""
    model.eval()
    images = [
        F.normalize(model.encode_image(torch.stack([transform(image) for image, _ in pairs[i : i + 250]])), dim=-1)
        for i in range(0, len(pairs), 250)
    ]
    tokens = tokenizer([caption for _, captions in pairs for caption in captions])
    texts = [F.normalize(model.encode_text(part), dim=-1) for part in tokens.split(250)]
    rows = [row for row, (_, captions) in enumerate(pairs) for _ in captions]
    ks = [k for k in (1, 5, 10) if k <= len(pairs)]
    scores = retrieval_metrics(torch.cat(images).numpy(), torch.cat(texts).numpy(), rows, ks=ks)
    recalls = [value for name, value in scores.items() if "recall@" in name]
    return sum(recalls) / len(recalls)


def fit(train: Pairs, val: Pairs, options: argparse.Namespace) -> tuple[dict[str, torch.Tensor], float]:
    """The weights with the best validation score, and that score."""
    random.seed(options.seed)
    torch.manual_seed(options.seed)
    model = open_clip.model.CLIP(**MODEL).to(memory_format=torch.channels_last)
    size = MODEL["vision_cfg"]["image_size"]
    augment, transform = image_transform(size, is_train=True), image_transform(size, is_train=False)
    tokenizer = SimpleTokenizer(context_length=MODEL["text_cfg"]["context_length"])
    tokens = [tokenizer(captions) for _, captions in train]
    loss_of, optimizer = open_clip.ClipLoss(), optimizer_of(model)
    batches = len(train) // options.batch_size
    steps, step, best = batches * options.epochs, 0, (-1.0, {})
    for epoch in range(options.epochs):
        model.train()
        order = torch.randperm(len(train)).tolist()
        for batch in range(batches):
            rows = order[batch * options.batch_size : (batch + 1) * options.batch_size]
            image = torch.stack([augment(train[row][0]) for row in rows]).to(memory_format=torch.channels_last)
            text = torch.stack([random.choice(list(tokens[row])) for row in rows])
            for group in optimizer.param_groups:
                group["lr"] = LR * factor(step, steps)
            optimizer.zero_grad()
            loss = loss_of(*model(image, text))
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            with torch.no_grad():
                model.logit_scale.clamp_(0, math.log(100))
            step += 1
        print(f"epoch {epoch}: loss {loss.item():.3f}", flush=True)
        if (epoch + 1) % options.validate_every == 0:
            score = mean_recall(model, val, transform, tokenizer)
            print(f"epoch {epoch}: mean recall {score:.4f}", flush=True)
            if score > best[0]:
                best = (score, {name: value.detach().clone() for name, value in model.state_dict().items()})
    return best[1], best[0]


def save(weights: dict[str, torch.Tensor], folder: Path) -> None:
    """An open_clip folder ("local-dir:FOLDER"), whole or not at all."""
    mean, std = open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD
    preprocess = {"mean": list(mean), "std": list(std), "interpolation": "bicubic", "resize_mode": "shortest"}
    with whole_folder(folder) as partial:
        (partial / "open_clip_config.json").write_text(json.dumps({"model_cfg": MODEL, "preprocess_cfg": preprocess}))
        save_file({k: v.contiguous() for k, v in weights.items()}, partial / "open_clip_model.safetensors")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--epochs", type=int, default=9)
    parser.add_argument("--validate-every", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    weights, score = fit(read(options.shards / "train"), read(options.shards / "val"), options)
    save(weights, options.out)
    print(f"written to {options.out} (mean recall on val {score:.4f})")


if __name__ == "__main__":
    main()
