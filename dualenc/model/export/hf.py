"""An encoder as transformers' CLIPModel with its processor, where that class has its architecture.

CLIPModel computes what open_clip's ViT and text transformer compute, under other names: the fused query, key and value
matrix is split in three, projections are transposed. What it has no name for is refused (`clip_parts.py`).
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dualenc.torchvision_ops  # noqa: F401  (before transformers)

import numpy as np
import torch
from torch import Tensor, nn

from dualenc.files import whole_folder, write_json
from dualenc.model.encoder import DualEncoder
from dualenc.model.export.check import Probe, compare, need, probe, write_note
from dualenc.model.export.clip_parts import image_sizes, text_of, text_projection, text_sizes
from dualenc.model.export.tokenizer import END, START, fast_tokenizer, vocabulary
from dualenc.model.folder import preprocess_of

log = logging.getLogger("dualenc")

PACKAGES = ("transformers",)
DIFFERS = (  # what transformers' own classes do otherwise, whatever is written into their files
    "captions: curly quotes, HTML entities and broken UTF-8 are repaired by open_clip and not by CLIPTokenizer; "
    "<|endoftext|> in a caption ends it there",
    "pictures: CLIPImageProcessor resizes with torchvision, so values may differ by 1 of 255 (not with "
    "backend='pil'); where an odd number of pixels is cut away, it may cut one pixel beside; it neither turns pictures by their "
    "EXIF nor puts transparent ones on white",
)
RESAMPLE = {"bilinear": 2, "bicubic": 3}  # Pillow's numbers


def export_hf(encoder: DualEncoder, out: str | Path) -> dict[str, float]:
    """Write a folder for CLIPModel, CLIPProcessor, CLIPImageProcessor and CLIPTokenizer, load it offline and compare.

    Returns the largest |difference| of unit rows, from pictures and captions on: {"image", "text"}. ValueError for an
    encoder that CLIPModel cannot be, naming what it lacks, and for a difference above 1e-4; FileExistsError when `out`
    holds anything; ImportError without transformers.
    """
    need(*PACKAGES)
    cfg = _config(encoder)
    with whole_folder(out) as partial, _silent():
        seen = probe(encoder)
        _write_model(encoder, cfg, partial)
        _write_tokenizer(encoder.tokenizer, partial)
        _write_processor(encoder, partial)
        found = _compare(encoder, partial, seen)
        write_note(partial, encoder, "hf", {"max_difference": found}, differs=DIFFERS)
    if (bias := getattr(encoder.model, "logit_bias", None)) is not None:
        log.warning(
            "CLIPModel has no logit bias: its logits lack the %.4g of this encoder; embeddings and their order are the same",
            bias.item(),
        )
    return found


def _config(encoder: DualEncoder) -> dict[str, Any]:
    """CLIPConfig's arguments; ValueError with one line where there are none."""
    try:
        vision = image_sizes(encoder.model, preprocess_of(encoder.model))
        text = text_sizes(encoder.model, encoder.tokenizer)
    except ValueError as error:
        raise ValueError(
            f"{encoder.path or 'the encoder'} cannot be a CLIPModel of transformers, which has no {error}; "
            "export it with --to onnx"
        ) from error
    both = {"projection_dim": encoder.dim}
    return {"vision_config": vision | both, "text_config": text | both, **both}


def _write_model(encoder: DualEncoder, cfg: dict[str, Any], folder: Path) -> None:
    from transformers import CLIPConfig, CLIPModel

    model: Any = encoder.model
    with torch.random.fork_rng(devices=[]):  # its random weights are replaced
        theirs = CLIPModel(CLIPConfig(**cfg, logit_scale_init_value=model.logit_scale.item()))
    theirs.load_state_dict(hf_state(model))
    theirs.save_pretrained(folder)


def hf_state(model: Any) -> dict[str, Tensor]:
    """An open_clip model's tensors under CLIPModel's names."""
    visual, text = model.visual, text_of(model)
    state = {
        "logit_scale": model.logit_scale.reshape(()),
        "visual_projection.weight": visual.proj.T,
        "text_projection.weight": text_projection(text).T,
        "vision_model.embeddings.class_embedding": visual.class_embedding,
        "vision_model.embeddings.patch_embedding.weight": visual.conv1.weight,
        "vision_model.embeddings.position_embedding.weight": visual.positional_embedding,
        "text_model.embeddings.token_embedding.weight": text.token_embedding.weight,
        "text_model.embeddings.position_embedding.weight": text.positional_embedding,
    }
    norms = {
        "vision_model.pre_layrnorm": visual.ln_pre,
        "vision_model.post_layernorm": visual.ln_post,
        "text_model.final_layer_norm": text.ln_final,
    }
    for name, norm in norms.items():
        state |= _affine(name, norm)
    for tower, part in (("vision_model", visual), ("text_model", text)):
        for number, block in enumerate(part.transformer.resblocks):
            state |= _block(f"{tower}.encoder.layers.{number}", block)
    return {name: tensor.detach().cpu().float().contiguous().clone() for name, tensor in state.items()}


def _block(name: str, block: Any) -> dict[str, Tensor]:
    weights, biases = block.attn.in_proj_weight.chunk(3), block.attn.in_proj_bias.chunk(3)
    state = _affine(f"{name}.self_attn.out_proj", block.attn.out_proj)
    for letter, weight, bias in zip("qkv", weights, biases, strict=True):
        state |= {f"{name}.self_attn.{letter}_proj.weight": weight, f"{name}.self_attn.{letter}_proj.bias": bias}
    parts = {
        "layer_norm1": block.ln_1,
        "layer_norm2": block.ln_2,
        "mlp.fc1": block.mlp.c_fc,
        "mlp.fc2": block.mlp.c_proj,
    }
    for part, module in parts.items():
        state |= _affine(f"{name}.{part}", module)
    return state


def _affine(name: str, module: Any) -> dict[str, Tensor]:
    return {f"{name}.weight": module.weight, f"{name}.bias": module.bias}


def _write_tokenizer(tokenizer: Any, folder: Path) -> None:
    """tokenizer.json, and the older vocab.json and merges.txt. Padding is the end of text, as OpenAI's: id 0, which
    open_clip pads with, is an exclamation mark; causal towers do not see the difference."""
    vocab, merges = vocabulary(tokenizer)
    fast_tokenizer(tokenizer).save(str(folder / "tokenizer.json"))
    write_json(folder / "vocab.json", vocab)
    lines = "".join(f"{left} {right}\n" for left, right in merges)
    (folder / "merges.txt").write_text(f"#version: 0.2\n{lines}", encoding="utf-8")
    special = {"unk_token": END, "bos_token": START, "eos_token": END, "pad_token": END}
    write_json(folder / "special_tokens_map.json", special)
    about = {"tokenizer_class": "CLIPTokenizer", "model_max_length": int(tokenizer.context_length)}
    write_json(folder / "tokenizer_config.json", special | about)


def _write_processor(encoder: DualEncoder, folder: Path) -> None:
    cfg = preprocess_of(encoder.model)
    height, width = cfg["size"]
    squash = cfg["resize_mode"] == "squash"
    about = {
        "image_processor_type": "CLIPImageProcessor",
        "processor_class": "CLIPProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"height": height, "width": width} if squash else {"shortest_edge": height},
        "resample": RESAMPLE[cfg["interpolation"]],
        "do_center_crop": not squash,
        "crop_size": {"height": height, "width": width},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": cfg["mean"],
        "image_std": cfg["std"],
    }
    write_json(folder / "preprocessor_config.json", about)


def _compare(encoder: DualEncoder, folder: Path, seen: Probe) -> dict[str, float]:
    """What was written, read back by transformers and given pictures and captions."""
    from transformers import CLIPModel, CLIPProcessor

    model = CLIPModel.from_pretrained(folder, local_files_only=True).eval()
    processor = CLIPProcessor.from_pretrained(folder, local_files_only=True)

    def rows(part: str, inputs: Any) -> np.ndarray:
        tower, projection = getattr(model, f"{part}_model"), {"vision": "visual", "text": "text"}[part] + "_projection"
        with torch.inference_mode():
            pooled = tower(**inputs).pooler_output
            return nn.functional.normalize(getattr(model, projection)(pooled), dim=-1).numpy()

    def images(n: int) -> np.ndarray:
        return rows("vision", processor(images=seen.pictures[:n], return_tensors="pt"))

    def texts(n: int) -> np.ndarray:
        some = list(seen.captions[:n])
        return rows("text", processor(text=some, padding=True, truncation=True, return_tensors="pt"))

    found = {"image": compare("image", images, seen.image_rows), "text": compare("text", texts, seen.text_rows)}
    ours, theirs = encoder.model.logit_scale.item(), model.logit_scale.item()  # type: ignore[operator,union-attr]
    if not math.isclose(ours, theirs, rel_tol=1e-6):
        raise ValueError(f"the exported temperature is {theirs}, not {ours}, so nothing was written; report it")
    return found


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """transformers without its progress bars, which know nothing of ours."""
    from transformers.utils import logging as theirs

    shown, level = theirs.is_progress_bar_enabled(), theirs.get_verbosity()
    theirs.disable_progress_bar()
    theirs.set_verbosity_error()
    try:
        yield
    finally:
        theirs.set_verbosity(level)
        if shown:
            theirs.enable_progress_bar()
