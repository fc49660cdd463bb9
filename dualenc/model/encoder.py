"""DualEncoder: both towers with their preprocessing and tokenizer, ready to embed."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import dualenc.torchvision_ops  # noqa: F401  (before open_clip)

import numpy as np
import torch
from PIL import Image
from torch import nn

from dualenc.images import open_image, to_rgb
from dualenc.model import folder
from dualenc.model.spec import input_spec
from dualenc.model.towers import image_features, prefix, text_features_sorted
from dualenc.model.traced import traced_text
from dualenc.pixels import FAST, evaluation

log = logging.getLogger("dualenc")

PIECE = 65_536  # captions whose tokens are in memory at once, and that are sorted by length among themselves


class DualEncoder:
    """Embeds images and captions into one space.

    Attributes: `dim` D; `fingerprint` (see DESIGN, "Encoder folder"); `path` what it was loaded from; `model`,
    `tokenizer` open_clip's own; `spec` what loader workers need; `decode` how images are decoded: "exact", or "fast", which
    takes large JPEGs at a part of their sides and stays within 1/255 in the mean.

    dim: cut embeddings at that many dimensions, and make them unit rows again: for encoders that were trained so
    (Matryoshka, Kusupati et al. 2022).
    """

    def __init__(
        self,
        loaded: folder.Loaded,
        path: str = "",
        device: str | torch.device | None = None,
        decode: str = "exact",
        dim: int | None = None,
    ):
        if decode not in FAST:
            raise ValueError(f"decode {decode!r} is unknown; use {' or '.join(FAST)}")
        _check_device(device)
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        whole = int(loaded.model_cfg["embed_dim"])
        if dim is not None and not 1 <= dim <= whole:
            raise ValueError(f"dim {dim}: embeddings of this encoder have {whole} dimensions; use 1 to {whole}")
        self.dim = dim or whole  # D, the width of an embedding
        self.model: nn.Module = loaded.model.eval()
        self.tokenizer, self.model_cfg, self.provenance = loaded.tokenizer, loaded.model_cfg, loaded.provenance
        self.path, self.decode = path, decode
        way = decode, None if self.dim == whole else dim
        self.fingerprint = folder.fingerprints(self.model, self.tokenizer, [way])[0]
        self.model.to(self.device)
        self._text_tower: Callable[[torch.Tensor], torch.Tensor] | None = None

    @classmethod
    def load(
        cls,
        name: str | Path,
        device: str | torch.device | None = None,
        decode: str = "exact",
        fingerprint: str | None = None,
        dim: int | None = None,
    ) -> DualEncoder:
        """Load an encoder folder, a training .ckpt, "NAME:TAG", "NAME:random", "NAME:FILE" or "hf-hub:org/repo" (open_clip's).

        fingerprint, dim: those of a store or an index it is to be used with; where that was made with the fast decode or
        with embeddings cut at `dim`, so is the encoder. ValueError or FileNotFoundError with one line when it is none of
        these, or damaged. Nothing is unpickled.
        """
        if not str(name):
            raise ValueError("the encoder's name is empty; name a folder, a .ckpt or an open_clip NAME:TAG")
        path = str(Path(name).resolve()) if Path(name).exists() else str(name)
        loaded = folder.load(str(name))
        if fingerprint is not None:
            ways = list(itertools.product(FAST, (None, dim)))
            marks = dict(zip(folder.fingerprints(loaded.model, loaded.tokenizer, ways), ways, strict=True))
            decode, dim = marks.get(fingerprint, (decode, None))
        return cls(loaded, path, device, decode, dim)

    def save(self, path: str | Path, replace: bool = False) -> str:
        """Write an encoder folder; returns the fingerprint."""
        loaded = folder.Loaded(self.model, self.tokenizer, self.model_cfg, self.provenance)
        return folder.save_folder(path, loaded, replace=replace)

    @cached_property
    def spec(self) -> dict[str, Any]:
        """Plain values for loader workers (`dualenc.model.spec.input_spec`)."""
        return input_spec(self.model, self.tokenizer)

    def image_features(self, images: torch.Tensor) -> torch.Tensor:
        """Unit rows (B, dim) of uint8 images (B, 3, H, W) that `spec` describes."""
        return prefix(image_features(self.model, images), self.dim)

    def text_features(self, tokens: torch.Tensor, chunk: int = 64) -> torch.Tensor:
        """Unit rows (T, dim) of token ids (T, L), `chunk` captions at a time."""
        return prefix(text_features_sorted(self.model, tokens, chunk, self._text_tower), self.dim)

    def trace_text(self) -> bool:
        """Let the text tower run as one graph, where it can (`dualenc.model.traced`); the weights must stay as they are."""
        self._text_tower = traced_text(self.model)
        return self._text_tower is not None

    def embed_images(self, images: Sequence[str | Path | Image.Image], batch_size: int = 64) -> np.ndarray:
        """Embed files or PIL images, which are treated alike. Returns (N, D) float32, unit rows.

        ValueError (`dualenc.images.BadImage`) names a file that does not decode; OSError one that cannot be read.
        """

        def pixels(picture: Any) -> np.ndarray:
            if isinstance(picture, str | Path):
                return open_image(picture, lambda data: evaluation(data, self.spec["image"], self.decode))
            return evaluation(to_rgb(picture)[0], self.spec["image"], self.decode)

        def batch(part: Sequence[Any]) -> torch.Tensor:
            stacked = torch.from_numpy(np.stack([pixels(picture) for picture in part])).permute(0, 3, 1, 2)
            return self.image_features(stacked.to(self.device))

        return self._embed(batch, _several(images), batch_size)

    def embed_texts(self, texts: Sequence[str], batch_size: int = 256) -> np.ndarray:
        """Embed captions, those of a length together. Returns (N, D) float32, unit rows, in the order given.

        Captions longer than the context are cut at it, and counted in the log.
        """
        cut = 0

        def piece(part: Sequence[str]) -> torch.Tensor:
            nonlocal cut
            tokens = self.tokenizer(list(part))  # (T, context)
            full = [text for text, last in zip(part, tokens[:, -1].tolist(), strict=True) if last]
            if hasattr(self.tokenizer, "encode"):
                cut += sum(len(self.tokenizer.encode(text)) + 2 > tokens.shape[1] for text in full)
            return self.text_features(tokens.to(self.device), batch_size)

        rows = self._embed(piece, _several(texts), batch_size * -(-PIECE // batch_size))
        if cut:
            log.warning("%d captions were cut at the context of %d tokens", cut, self.tokenizer.context_length)
        return rows

    def _embed(self, batch: Callable[[Any], torch.Tensor], items: Sequence[Any], batch_size: int) -> np.ndarray:
        rows = np.empty((len(items), self.dim), dtype=np.float32)
        with torch.inference_mode():
            for start in range(0, len(items), batch_size):
                part = items[start : start + batch_size]
                rows[start : start + len(part)] = batch(part).float().cpu().numpy()
        return rows


def _check_device(device: str | torch.device | None) -> None:
    """ValueError for a device that is unknown, or that this machine or this build of torch has not."""
    try:
        torch.empty(0, device=device or "cpu")
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        why = str(error).strip().splitlines()[0][:100]
        raise ValueError(f"device {str(device)!r} cannot be used here ({why}); use cpu, or leave it out") from error


def _several(items: Any) -> Sequence[Any]:
    if isinstance(items, str | Path | Image.Image):
        raise TypeError(f"{items!r} is one item, and its letters or pixels would be taken for many; pass a list")
    return items
