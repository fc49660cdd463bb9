"""Encoders as a server runs them: in float32, or in a smaller type where that is quicker and costs next to nothing.

Small encoders gain little from smaller types. Large ones gain much from bfloat16 on processors that multiply it, with nearly
the same rows; int8 is as quick there, and moves rows further. So "auto" is bfloat16 for large encoders on such processors, and
never int8, which is left to those who measured it on their own data.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from dualenc.data.text import make_tokenizer
from dualenc.model.encoder import DualEncoder
from dualenc.serve.encoders import Need

log = logging.getLogger("dualenc.serve")

LARGE = 30_000_000  # weights from which on matrix products are most of the time
CLOSE = 0.99  # least cosine between a row of the smaller type and float32's
PROBES = ("a dog", "two people ride their bicycles along the river on a sunny day")
TEXTS = [f"{number} dogs and a red bicycle by the river on a sunny day" for number in range(8)]
SHORT = 16  # tokens, about as many as TEXTS have: what longer ones take, they do not tell
SLOW = 0.002  # seconds a text from which a tower is not looked at any longer


class Served:
    """An encoder in the precision that a server was told. Its methods may be called by several threads at once."""

    def __init__(self, encoder: DualEncoder, precision: str):
        """precision: auto, float32, bfloat16 or int8. ValueError: a type in which this encoder does not work."""
        self._encoder, self.dim, self.fingerprint = encoder, encoder.dim, encoder.fingerprint
        self.logit_scale = float(encoder.model.logit_scale.detach().exp())  # type: ignore[operator]
        self._tokens = _tokenizer(encoder)
        self.precision = _chosen(encoder) if precision == "auto" else precision
        if self.precision in CASTS:
            self._cast()
        traced = encoder.trace_text()
        self._probe()  # the first pass of a tower takes longer than those after it
        # a tower without a graph works in one thread at a time, as its weights are put in its place for each batch
        self.text_seconds = self._text_seconds() if traced else math.inf

    def begin(self, threads: int) -> None:
        """Called in each thread that embeds, before it does."""
        torch.set_num_threads(threads)

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """(T, D) float32 unit rows."""
        with torch.inference_mode():
            tokens = torch.from_numpy(self._tokens(texts)).to(self._encoder.device)
            return self._unit(self._encoder.text_features(tokens).float().cpu().numpy())

    def embed_images(self, images: Sequence[Any]) -> np.ndarray:
        """(N, D) float32 unit rows of PIL images. ValueError: one that does not decode."""
        return self._unit(self._encoder.embed_images(images))

    def short(self, text: str) -> bool:
        """Whether `text_seconds` holds for a text: it has no more tokens than those that were timed, about."""
        return len(np.trim_zeros(self._tokens([text])[0], "b")) <= SHORT  # zeros pad

    def _text_seconds(self) -> float:
        """What one of eight texts takes that one thread embeds together, at best."""
        threads, best = torch.get_num_threads(), math.inf
        torch.set_num_threads(1)
        try:
            for _ in range(5):
                start = time.perf_counter()
                self.embed_texts(TEXTS)
                best = min(best, (time.perf_counter() - start) / len(TEXTS))
                if best > SLOW:
                    break
        finally:
            torch.set_num_threads(threads)
        return best

    def _unit(self, rows: np.ndarray) -> np.ndarray:
        # a row that was normalised in bfloat16 is up to 0.4 % off
        return rows if self.precision == "float32" else rows / np.linalg.norm(rows, axis=1, keepdims=True)

    def _probe(self) -> np.ndarray:
        """(3, D) rows of two texts and an image of noise."""
        noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
        return np.concatenate([self.embed_texts(PROBES), self.embed_images([Image.fromarray(noise)])])

    def _cast(self) -> None:
        """Make the towers' weights smaller, and see whether the rows stay where they were."""
        before = self._unit(self._probe())
        CASTS[self.precision](self._encoder.model)
        try:
            close = float((before * self._probe()).sum(axis=1).min())
            fault = f"its rows differ (cosine {close:.3f} with those of float32)" if not close >= CLOSE else ""
        except (RuntimeError, TypeError) as error:
            fault = " ".join(str(error).split())[:200]
        if fault:
            raise ValueError(f"--precision {self.precision} does not work with this encoder: {fault}; use float32")


def _tokenizer(encoder: DualEncoder) -> Callable[[Sequence[str]], np.ndarray]:
    """Texts to token ids as loader workers do it, in less time than open_clip's, which holds Python's lock; open_clip's where
    workers could not have it."""
    try:
        return make_tokenizer(encoder.spec["text"])
    except ValueError:
        return lambda texts: encoder.tokenizer(list(texts)).numpy()


def _chosen(encoder: DualEncoder) -> str:
    """bfloat16 where it is quicker: large towers, and a processor that multiplies it."""
    if encoder.device.type == "cuda":
        quick = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        flags = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
        quick = any(getattr(torch.cpu, flag, lambda: False)() for flag in flags)
    large = sum(weight.numel() for weight in encoder.model.parameters()) >= LARGE
    return "bfloat16" if quick and large else "float32"


def _bfloat16(model: Any) -> None:
    """All weights; but pixels are normalised in float32, which goes by the type of the temperature."""
    scale = model.logit_scale.data
    model.bfloat16()
    model.logit_scale.data = scale
    model.visual.register_forward_pre_hook(lambda _, arguments: (arguments[0].to(torch.bfloat16), *arguments[1:]))


def _int8(model: Any) -> None:
    """The large matrices of the blocks that open_clip builds, each batch's inputs quantised as it comes."""
    quantised = torch.ao.nn.quantized.dynamic.Linear
    found = [block.mlp for block in model.modules() if isinstance(getattr(block, "mlp", None), nn.Sequential)]
    layers = [(mlp, name) for mlp in found for name, layer in mlp.named_children() if type(layer) is nn.Linear]
    if not layers:
        raise ValueError("--precision int8 finds no layer to quantise in this encoder; use float32 or bfloat16")
    for mlp, name in layers:
        layer = getattr(mlp, name)
        layer.qconfig = torch.ao.quantization.default_dynamic_qconfig
        small = quantised.from_float(layer)
        small.int8_original_dtype = torch.float32  # where open_clip looks for the type of what goes in
        setattr(mlp, name, small)


CASTS: dict[str, Callable[[Any], None]] = {"bfloat16": _bfloat16, "int8": _int8}


def load_encoder(need: Need, precision: str, threads: int) -> Served:
    """Load an encoder, on so many of torch's threads. ValueError, OSError: why it cannot be."""
    torch.set_num_threads(threads)
    known: dict[str, Any] = {} if need.fingerprint is None else {"fingerprint": need.fingerprint, "dim": need.dim}
    served = Served(DualEncoder.load(need.name, **known), precision)
    log.info("encoder %s is ready, in %s", need.name, served.precision)
    return served
