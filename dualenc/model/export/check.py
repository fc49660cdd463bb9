"""What every export shares: the packages it needs, the inputs it is tried on before it appears, and the note it leaves."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dualenc.files import write_json
from dualenc.model.encoder import DualEncoder
from dualenc.model.folder import NOTE, preprocess_of, tokenizer_of, versions
from dualenc.model.towers import image_features, text_features

TOLERANCE = 1e-4  # of unit rows: what float32 sums in another order may differ by, and no more
BATCHES = (1, 2, 5)  # an export that was traced at one batch size must hold at others
CAPTIONS = (
    "a",
    "a small red circle left of a large blue square",
    "Two dogs' owners don't agree: they're 3.5 metres apart!",
    "un café à Zürich, naïve and très cher",
    "a very long caption of many words that goes on " * 40,  # longer than any context: it is cut there
)


class Probe(NamedTuple):
    """Inputs that an export is tried on, and what the encoder makes of them."""

    pictures: list[Image.Image]  # N = 5, of the model's size
    pixels: Tensor  # (N, 3, H, W) uint8, the same
    captions: Sequence[str]  # T = 5
    tokens: Tensor  # (T, context) int64
    image_rows: np.ndarray  # (N, D) float32
    text_rows: np.ndarray  # (T, D) float32


def need(*packages: str) -> None:
    """ImportError with one line where an optional package is missing."""
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(
            f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not installed, and this export needs "
            "it; pip install 'dualenc[export]'"
        )


def probe(encoder: DualEncoder) -> Probe:
    """Random pictures and captions of several lengths with their embeddings. ValueError unless the encoder is on the CPU."""
    if encoder.device.type != "cpu":
        raise ValueError(
            f"the encoder is on {encoder.device}, and exports are traced and compared on the CPU; load it with device='cpu'"
        )
    height, width = preprocess_of(encoder.model)["size"]
    pixels = np.random.default_rng(0).integers(0, 256, (max(BATCHES), height, width, 3), dtype=np.uint8)
    planes = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()
    tokens = encoder.tokenizer(list(CAPTIONS))
    with torch.inference_mode():
        images, texts = image_features(encoder.model, planes), text_features(encoder.model, tokens)
    pictures = [Image.fromarray(picture) for picture in pixels]
    return Probe(pictures, planes, CAPTIONS, tokens, images.numpy(), texts.numpy())


def compare(name: str, run: Callable[[int], np.ndarray], expected: np.ndarray, tolerance: float = TOLERANCE) -> float:
    """The largest |difference| between `expected` (N, D) and run(n), the first n rows, over several batch sizes n.

    ValueError above `tolerance`, for other shapes and for NaN.
    """
    worst = 0.0
    for batch in BATCHES:
        rows = np.asarray(run(batch))
        if rows.shape != expected[:batch].shape:
            raise ValueError(
                f"the exported {name} tower gives {rows.shape} for {expected[:batch].shape}, so nothing was written; report it"
            )
        gap = float(np.abs(rows - expected[:batch]).max())
        worst = gap if np.isnan(gap) else max(worst, gap)
        if not worst <= tolerance:
            raise ValueError(
                f"the exported {name} tower differs from the encoder by {gap:.1e} in a batch of {batch}, more than "
                f"{tolerance:.0e}, so nothing was written; use another format, and report it"
            )
    return worst


def write_note(out: Path, encoder: DualEncoder, kind: str, checked: dict[str, Any], **more: Any) -> None:
    """dualenc.json: which encoder this is, and how far the export is from it."""
    note = {
        "export": kind,
        "fingerprint": encoder.fingerprint,
        "encoder": encoder.path,
        "dim": encoder.dim,
        "checked": checked,
        "preprocessing": preprocess_of(encoder.model),
        "tokenizer": tokenizer_of(encoder.tokenizer),
        "training": encoder.provenance,
        "versions": versions(),
    }
    write_json(out / NOTE, note | more)
