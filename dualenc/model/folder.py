"""Encoders on disk: the encoder folder, training checkpoints, open_clip names; and the fingerprint that tells them apart."""

from __future__ import annotations

import copy
import difflib
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import dualenc.torchvision_ops

import numpy as np
import open_clip
import torch
from open_clip.tokenizer import SimpleTokenizer
from safetensors.torch import load_file, save_file
from torch import nn

import dualenc
from dualenc.files import read_json, sha256, whole_folder, write_json
from dualenc.model.lora import merged_state
from dualenc.model.towers import build

CONFIG, WEIGHTS, NOTE = "open_clip_config.json", "open_clip_model.safetensors", "dualenc.json"


class Loaded(NamedTuple):
    """An open_clip model with what is needed to use it and to write it out again."""

    model: nn.Module
    tokenizer: Any
    model_cfg: dict[str, Any]
    provenance: dict[str, Any]


def fingerprint(model: nn.Module, tokenizer: Any) -> str:
    """SHA-256 over the tensors sorted by name (name, dtype, shape, bytes) and canonical JSON of preprocessing and tokenizer."""
    return fingerprints(model, tokenizer, [("exact", None)])[0]


def fingerprints(model: nn.Module, tokenizer: Any, ways: Iterable[tuple[str, int | None]]) -> list[str]:
    """The fingerprint of an encoder for each of several ways to use it, (decode, dim).

    Images that are decoded any other way than "exact", and embeddings that are cut at `dim` dimensions, are others: both
    are then a part of the preprocessing.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    preprocess, vocabulary = preprocess_of(model), tokenizer_of(tokenizer)
    marks = []
    for decode, dim in ways:
        unlike = ({} if decode == "exact" else {"decode": decode}) | ({} if dim is None else {"dim": dim})
        about = {"preprocess": preprocess | unlike, "tokenizer": vocabulary}
        whole = digest.copy()
        whole.update(json.dumps(about, sort_keys=True, separators=(",", ":")).encode())
        marks.append(whole.hexdigest())
    return marks


def preprocess_of(model: nn.Module) -> dict[str, Any]:
    """The model's preprocessing as plain JSON values; size always [H, W]."""
    cfg = dict(model.visual.preprocess_cfg)  # type: ignore[union-attr,arg-type]
    size = cfg["size"]
    cfg["size"] = [size, size] if isinstance(size, int) else list(size)
    return {k: [float(x) for x in v] if k in ("mean", "std") else v for k, v in cfg.items()}


def tokenizer_of(tokenizer: Any) -> dict[str, Any]:
    """What distinguishes a tokenizer: its class, context length, cleaning and vocabulary (as a hash)."""
    vocabulary = tokenizer.encoder if hasattr(tokenizer, "encoder") else tokenizer.tokenizer.get_vocab()
    listed = json.dumps(sorted(vocabulary.items(), key=lambda item: item[1]))
    return {
        "class": type(tokenizer).__name__,
        "context_length": tokenizer.context_length,
        "clean": tokenizer.clean_fn.__name__.removeprefix("_clean_"),
        "vocabulary": hashlib.sha256(listed.encode()).hexdigest(),
    }


def save_folder(folder: str | Path, loaded: Loaded, replace: bool = False) -> str:
    """Write an encoder folder that open_clip also loads ("local-dir:FOLDER"), whole or not at all; returns the fingerprint.

    FileExistsError when `folder` holds anything, unless `replace`.
    """
    model, tokenizer, model_cfg, provenance = loaded
    mark = fingerprint(model, tokenizer)
    preprocess = preprocess_of(model)
    preprocess["size"] = preprocess["size"][0] if len(set(preprocess["size"])) == 1 else preprocess["size"]
    with whole_folder(folder, replace=replace) as partial:
        cfg = copy.deepcopy(model_cfg)
        cfg.setdefault("quick_gelu", False)  # leaves no trace in the weights, so it is always written
        if hasattr(tokenizer, "save_pretrained"):
            tokenizer.save_pretrained(partial)
        write_json(partial / CONFIG, {"model_cfg": cfg, "preprocess_cfg": preprocess})
        tensors = {k: v.detach().cpu().contiguous().clone() for k, v in model.state_dict().items()}
        save_file(tensors, partial / WEIGHTS)
        note = {
            "fingerprint": mark,
            "config_sha256": sha256(partial / CONFIG),
            "preprocessing": preprocess_of(model),
            "tokenizer": tokenizer_of(tokenizer),
            "training": provenance,
            "versions": versions(),
        }
        write_json(partial / NOTE, note)
    return mark


def load_folder(folder: Path) -> Loaded:
    """Read an encoder folder, ours or any open_clip local-dir with safetensors. ValueError when a file is missing or altered."""
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise ValueError(
                f"{folder}: {name} is missing, so this is no encoder; restore the file or export the encoder again"
            )
    note = read_json(folder / NOTE) if (folder / NOTE).is_file() else {}
    if not isinstance(note, dict):
        raise ValueError(f"{folder}: {NOTE} is not one that dualenc wrote; restore it or export the encoder again")
    if note and note.get("config_sha256") != sha256(folder / CONFIG):
        raise ValueError(
            f"{folder}: {CONFIG} is not the one this encoder was saved with; restore it or export the encoder again"
        )
    config = read_json(folder / CONFIG)
    try:
        model = build(config["model_cfg"], config.get("preprocess_cfg", {}))
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{folder}: {CONFIG} does not describe an encoder ({error!r}); restore it or export the encoder again"
        ) from error
    try:
        state = load_file(folder / WEIGHTS)
    except Exception as error:  # safetensors raises its own type
        raise ValueError(
            f"{folder}: {WEIGHTS} cannot be read ({error}); restore it or export the encoder again"
        ) from error
    load_weights(model, state, str(folder / WEIGHTS))
    text_cfg = config["model_cfg"].get("text_cfg", {})
    local = (
        open_clip.get_tokenizer(f"local-dir:{folder}") if "hf_tokenizer_name" in text_cfg else make_tokenizer(text_cfg)
    )
    loaded = Loaded(model, local, config["model_cfg"], note.get("training", {}))
    if note and note.get("fingerprint") != fingerprint(model, local):
        raise ValueError(
            f"{folder}: {WEIGHTS} does not match the fingerprint in {NOTE}, so it was altered after saving; "
            "restore it or export the encoder again"
        )
    return loaded


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A training checkpoint (.ckpt), memory-mapped. Nothing is unpickled but tensors and plain types."""
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        _ = checkpoint["dualenc"]["model_cfg"], checkpoint["state_dict"]
    except Exception as error:  # torch has many ways to say that a file is none of its own
        kind = type(error).__name__
        raise ValueError(f"{path} is not a checkpoint that `dualenc fit` wrote ({kind}); name another file") from error
    return checkpoint


def load_checkpoint(path: Path) -> Loaded:
    """The encoder inside a training checkpoint (.ckpt), LoRA merged into its weights. ValueError when it is none."""
    checkpoint = read_checkpoint(path)
    about, lora = checkpoint["dualenc"], checkpoint["dualenc"].get("lora")
    state = {k[6:]: v for k, v in checkpoint["state_dict"].items() if k.startswith("model.")}
    model = build(about["model_cfg"], about["preprocess_cfg"])
    load_weights(model, merged_state(state, lora["alpha"] / lora["rank"]) if lora else state, str(path))
    return Loaded(model, make_tokenizer(about["model_cfg"]["text_cfg"]), about["model_cfg"], about["training"])


def load_weights(model: nn.Module, state: dict[str, torch.Tensor], origin: str) -> None:
    """load_state_dict with a one-line error."""
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(
            f"{origin}: the weights do not fit the configuration ({reason}); restore the matching pair"
        ) from error


def load_name(name: str) -> Loaded:
    """An open_clip model: "NAME:TAG", "NAME:random", "NAME:FILE" (weights), or "hf-hub:org/repo". A bare name is refused."""
    if name.startswith("hf-hub:"):
        cfg = open_clip.factory._get_hf_config(name.removeprefix("hf-hub:"))["model_cfg"]
        model = open_clip.create_model(name, require_pretrained=True)
        return Loaded(model, open_clip.get_tokenizer(name), cfg, {"started_from": name})
    base, _, tag = name.partition(":")
    cfg = model_config(base)
    if not tag:
        tags = open_clip.list_pretrained_tags_by_model(base)
        raise ValueError(
            f"{base} names an architecture without weights; say which: {', '.join(f'{base}:{t}' for t in [*tags, 'random'])}"
        )
    if tag == "random":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # one name, one encoder: the fingerprint must not change from run to run
            model = open_clip.create_model(base, pretrained_text=False)
    else:
        tags = open_clip.list_pretrained_tags_by_model(base)
        if tag not in tags and not Path(tag).is_file():
            raise ValueError(
                f"{name}: {tag!r} is neither a file nor one of {base}'s tags ({', '.join(tags) or 'none'})"
            )
        # Trained with QuickGELU under a name without it: open_clip itself only warns, and embeds with another activation
        quick = bool(open_clip.pretrained.get_pretrained_cfg(base, tag).get("quick_gelu", False))
        model = open_clip.create_model(base, pretrained=tag, require_pretrained=True, force_quick_gelu=quick)
        cfg |= {"quick_gelu": True} if quick else {}
    return Loaded(model, open_clip.get_tokenizer(base), cfg, {"started_from": name})


def model_config(name: str) -> dict[str, Any]:
    """open_clip's built-in configuration of an architecture; ValueError names the nearest ones."""
    cfg = open_clip.get_model_config(name)
    if cfg is None:
        near = difflib.get_close_matches(name, open_clip.list_models(), 3)
        hint = f"did you mean {', '.join(near)}?" if near else "see open_clip.list_models()"
        raise ValueError(f"{name!r} is neither an encoder folder, a .ckpt nor an open_clip architecture; {hint}")
    return cfg


def load(name: str) -> Loaded:
    """Whatever `name` is: an encoder folder, a training checkpoint, or an open_clip name."""
    path = Path(name)
    if path.is_dir():
        return load_folder(path)
    if path.suffix == ".ckpt":
        if not path.is_file():
            raise FileNotFoundError(f"{name}: no such checkpoint; check the path")
        return load_checkpoint(path)
    if ":" not in name and ("/" in name or path.exists()):
        raise FileNotFoundError(f"{name}: no such encoder folder; check the path, or give an open_clip NAME:TAG")
    return load_name(name)


def make_tokenizer(text_cfg: dict[str, Any]) -> Any:
    """The tokenizer that a text tower's configuration asks for."""
    if text_cfg.get("hf_tokenizer_name"):
        kwargs = text_cfg.get("tokenizer_kwargs") or {}
        return open_clip.tokenizer.HFTokenizer(
            text_cfg["hf_tokenizer_name"],
            text_cfg.get("context_length", 77),
            tokenizer_mode=text_cfg.get("tokenizer_mode"),
            **kwargs,
        )
    return SimpleTokenizer(
        context_length=text_cfg.get("context_length", 77), **(text_cfg.get("tokenizer_kwargs") or {})
    )


def versions() -> dict[str, str]:
    """The versions that decide what an encoder computes."""
    return {
        "dualenc": dualenc.__version__,
        "torch": torch.__version__,
        "open_clip": open_clip.__version__,
        "numpy": np.__version__,
    }
