"""What 8 bits cost: Recall@K of an encoder and of its quantised towers, on the same pixels and tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import dualenc.torchvision_ops  # noqa: F401  (before open_clip)

import numpy as np
import torch
from tqdm import tqdm

from dualenc.data.loader import make_loader
from dualenc.data.order import BatchOrder
from dualenc.data.prepare import Prepare
from dualenc.data.shards import Source
from dualenc.evaluate.metrics import retrieval_metrics
from dualenc.model.encoder import DualEncoder
from dualenc.model.towers import image_features, text_features_sorted

Tower = Callable[[np.ndarray], np.ndarray]


def quantised_recall(
    encoder: DualEncoder,
    towers: Mapping[str, Tower],
    source: Source,
    *,
    batch_size: int = 64,
    workers: int = 2,
    ks: Sequence[int] = (1, 5, 10),
) -> dict[str, dict[str, float]]:
    """{"float": metrics, "int8": metrics} as `retrieval_metrics` gives them; a k above the gallery is left out.

    encoder: the float one, on the CPU. towers: {"image": uint8 (B, 3, H, W) -> unit rows (B, D), "text": int64
    (B, context) -> unit rows (B, D)}. Each picture is decoded once for both. ValueError for data without pairs.
    """
    for name, value, least in (("batch_size", batch_size, 1), ("workers", workers, 0)):
        if value < least:
            raise ValueError(f"{name} is {value}, so no recall could be measured; use {least} or more")
    context = encoder.tokenizer.context_length
    rows: dict[str, list[np.ndarray]] = {f"{kind} {side}": [] for kind in ("float", "int8") for side in towers}
    image_row: list[np.ndarray] = []
    seen = 0
    loader = make_loader(source, Prepare(encoder.spec), BatchOrder(len(source), batch_size), workers, all_captions=True)
    with torch.inference_mode(), tqdm(total=len(source), desc="measuring recall", unit="img", disable=None) as bar:
        for batch in loader:
            valid, owner = batch["valid"], batch["text_row"]
            pixels, tokens = batch["image"][valid], batch["all_text"][valid[owner]]
            if len(pixels):
                rows["float image"].append(image_features(encoder.model, pixels).float().numpy())
                rows["int8 image"].append(towers["image"](pixels.numpy()))
            if len(tokens):
                rows["float text"].append(text_features_sorted(encoder.model, tokens).float().numpy())
                padded = np.pad(tokens.numpy(), ((0, 0), (0, context - tokens.shape[1])))
                rows["int8 text"].append(towers["text"](padded))
                place = seen + valid.cumsum(0) - 1  # (B,) among all images that decode
                image_row.append(place[owner[valid[owner]]].numpy())
            seen += len(pixels)
            bar.update(len(batch["key"]))
    if not image_row:
        raise ValueError(f"{source.path}: no image with a caption, so no recall can be measured; name data with pairs")
    joined = {name: np.concatenate(parts) for name, parts in rows.items()}
    return {
        kind: retrieval_metrics(
            joined[f"{kind} image"], joined[f"{kind} text"], np.concatenate(image_row), ks, strict=False
        )
        for kind in ("float", "int8")
    }
