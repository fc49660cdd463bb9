"""DualEncoder: both towers with their preprocessing and tokenizer, ready to embed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import dualenc.torchvision_ops  # noqa: F401  (before open_clip)

import numpy as np
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from torch import nn

from dualenc.images import open_image, to_rgb
from dualenc.model import folder
from dualenc.model.spec import input_spec
from dualenc.model.towers import pads_to_longest, text_features

log = logging.getLogger("dualenc")


class DualEncoder:
    """Embeds images and captions into one space.

    Attributes: `dim` D; `fingerprint` (see DESIGN, "Encoder folder"); `path` what it was loaded from; `model`,
    `tokenizer` open_clip's own; `spec` what loader workers need.
    """

    def __init__(self, loaded: folder.Loaded, path: str = "", device: str | torch.device | None = None):
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.model: nn.Module = loaded.model.eval()
        self.tokenizer, self.model_cfg, self.provenance = loaded.tokenizer, loaded.model_cfg, loaded.provenance
        self.path = path
        self.fingerprint = folder.fingerprint(self.model, self.tokenizer)
        self.model.to(self.device)
        self._preprocess = image_transform_v2(PreprocessCfg(**self.model.visual.preprocess_cfg), is_train=False)  # type: ignore

    @classmethod
    def load(cls, name: str | Path, device: str | torch.device | None = None) -> DualEncoder:
        """Load an encoder folder, a training .ckpt, "NAME:TAG", "NAME:random", "NAME:FILE" or "hf-hub:org/repo" (open_clip's).

        ValueError or FileNotFoundError with one line when it is none of these, or damaged. Nothing is unpickled.
        """
        local = Path(name).exists()
        return cls(folder.load(str(name)), str(Path(name).resolve()) if local else str(name), device)

    def save(self, path: str | Path, replace: bool = False) -> str:
        """Write an encoder folder; returns the fingerprint."""
        loaded = folder.Loaded(self.model, self.tokenizer, self.model_cfg, self.provenance)
        return folder.save_folder(path, loaded, replace=replace)

    @property
    def dim(self) -> int:
        """D, the width of an embedding."""
        return int(self.model_cfg["embed_dim"])

    @cached_property
    def spec(self) -> dict[str, Any]:
        """Plain values for loader workers (`dualenc.model.spec.input_spec`)."""
        return input_spec(self.model, self.tokenizer)

    def embed_images(self, images: Sequence[str | Path | Image.Image], batch_size: int = 64) -> np.ndarray:
        """Embed files or PIL images, which are treated alike. Returns (N, D) float32, unit rows.

        ValueError (`dualenc.images.BadImage`) names a file that does not decode; OSError one that cannot be read.
        """

        def batch(part: Sequence[Any]) -> torch.Tensor:
            pictures = [open_image(x) if isinstance(x, str | Path) else to_rgb(x)[0] for x in part]
            pixels = torch.stack([self._preprocess(picture) for picture in pictures])
            features = self.model.encode_image(pixels.to(self.device))  # type: ignore[operator]
            return torch.nn.functional.normalize(features, dim=-1)

        return self._embed(batch, _several(images), batch_size)

    def embed_texts(self, texts: Sequence[str], batch_size: int = 256) -> np.ndarray:
        """Embed captions. Returns (N, D) float32, unit rows. Captions longer than the context are cut at it."""
        shorten = pads_to_longest(self.model)

        def batch(part: Sequence[str]) -> torch.Tensor:
            tokens = self.tokenizer(list(part))  # (B, context)
            full = [text for text, last in zip(part, tokens[:, -1], strict=True) if last]
            if cut := sum(
                len(self.tokenizer.encode(text)) + 2 > tokens.shape[1]
                for text in full
                if hasattr(self.tokenizer, "encode")
            ):
                log.warning("%d captions were cut at the context of %d tokens", cut, tokens.shape[1])
            if shorten:  # zeros pad; the end of text is not zero
                tokens = tokens[:, : int(tokens.any(dim=0).nonzero().max()) + 1]
            return text_features(self.model, tokens.to(self.device))

        return self._embed(batch, _several(texts), batch_size)

    def _embed(self, batch: Callable[[Any], torch.Tensor], items: Sequence[Any], batch_size: int) -> np.ndarray:
        rows = np.empty((len(items), self.dim), dtype=np.float32)
        with torch.inference_mode():
            for start in range(0, len(items), batch_size):
                part = items[start : start + batch_size]
                rows[start : start + len(part)] = batch(part).float().cpu().numpy()
        return rows


def _several(items: Any) -> Sequence[Any]:
    if isinstance(items, str | Path | Image.Image):
        raise TypeError(f"{items!r} is one item, and its letters or pixels would be taken for many; pass a list")
    return items
