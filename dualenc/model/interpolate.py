"""Weights between a starting and a tuned encoder: WiSE-FT (Wortsman et al. 2022, arXiv:2109.01903, eq. 1).

A tuned encoder is better at the new task and often worse at what it could do before; on the straight line between both sets
of weights lie encoders that keep much of either.
"""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import dualenc.torchvision_ops  # noqa: F401  (before open_clip)

import torch
from open_clip.model import CLIPTextCfg, CLIPVisionCfg
from torch import Tensor, nn

from dualenc.model.folder import Loaded, preprocess_of, tokenizer_of
from dualenc.model.towers import image_features, text_features

BatchNorm = nn.modules.batchnorm._BatchNorm
# What a model was made or is trained with and what leaves no trace in the function that its weights compute.
NO_MATTER = {"init_logit_scale", "init_logit_bias", "vision_cfg/patch_dropout", "vision_cfg/timm_drop"}
NO_MATTER |= {"vision_cfg/timm_drop_path", "vision_cfg/timm_model_pretrained", "text_cfg/hf_model_pretrained"}


def check_alpha(alpha: float) -> None:
    """ValueError unless 0 <= alpha <= 1."""
    if not 0 <= alpha <= 1:
        raise ValueError(
            f"alpha {alpha:g} lies outside 0..1, so the weights would not lie between the two encoders'; "
            "use 0 (the starting weights) to 1 (the tuned ones), such as 0.5"
        )


def check_alike(start: Loaded, tuned: Loaded, names: tuple[str, str] = ("the start", "the tuned")) -> None:
    """ValueError naming the first difference, unless both are of one architecture, tokenizer and preprocessing."""
    for what, say in (("architecture", architecture), ("tokenizer", _tokenizer), ("preprocessing", _preprocess)):
        one, other = say(start), say(tuned)
        for key in one | other:
            if one.get(key) != other.get(key):
                raise ValueError(
                    f"{names[0]} and {names[1]} differ in their {what}: {key} is {one.get(key)} and {other.get(key)}, so "
                    "nothing lies between them; give the very encoder that the tuning started from"
                )


def architecture(loaded: Loaded) -> dict[str, Any]:
    """What must be equal for weights to be averaged, flat: the configuration with its defaults, each tensor's shape and type."""
    cfg = loaded.model_cfg
    vision = dataclasses.asdict(CLIPVisionCfg(**cfg["vision_cfg"]))
    text = dataclasses.asdict(CLIPTextCfg(**cfg["text_cfg"]))
    flat = {"embed_dim": cfg["embed_dim"], "quick_gelu": bool(cfg.get("quick_gelu"))}
    flat |= {
        f"{tower}/{key}": value
        for tower, part in (("vision_cfg", vision), ("text_cfg", text))
        for key, value in part.items()
    }
    tensors = {f"tensor {k}": f"{list(v.shape)} {v.dtype}" for k, v in loaded.model.state_dict().items()}
    return json.loads(json.dumps({k: v for k, v in flat.items() if k not in NO_MATTER} | tensors))  # tuples as lists


def _tokenizer(loaded: Loaded) -> dict[str, Any]:
    return tokenizer_of(loaded.tokenizer)


def _preprocess(loaded: Loaded) -> dict[str, Any]:
    return json.loads(json.dumps(preprocess_of(loaded.model)))


def interpolate_state(start: Mapping[str, Tensor], tuned: Mapping[str, Tensor], alpha: float) -> dict[str, Tensor]:
    """(1 - alpha) · start + alpha · tuned of every floating-point tensor; integers are the tuned ones'.

    `logit_scale` is stored as its logarithm, so that averaging it as it stands is the geometric mean of the scales;
    `logit_bias` is averaged as it is. The sums are of float64, rounded once: tensors that are equal stay equal bit for bit,
    and so are all of them at 0 (the start, integers too) and at 1.
    """
    check_alpha(alpha)
    if alpha in (0, 1):  # 0 · x + y would lose the sign of a zero, and is no number where x is infinite
        return {name: tensor.clone() for name, tensor in (tuned if alpha else start).items()}
    return {
        name: ((1 - alpha) * start[name].double() + alpha * value.double()).to(value.dtype)
        if value.is_floating_point()
        else value.clone()
        for name, value in tuned.items()
    }


def interpolate(
    start: Loaded,
    tuned: Loaded,
    alpha: float,
    batches: Iterable[Mapping[str, Any]] | None = None,
    device: str | torch.device = "cpu",
) -> Loaded:
    """The encoder at `alpha` between two that `check_alike` passes; neither is changed.

    batches: what `measure_statistics` needs, for alphas between 0 and 1 and towers whose batch norms `stale` names; they are
    not read otherwise. device: where that is done. ValueError: alpha outside 0..1, or batches are needed and not given.
    """
    state = interpolate_state(start.model.state_dict(), tuned.model.state_dict(), alpha)
    layers = stale(start, tuned) if 0 < alpha < 1 else []
    if layers and batches is None:
        raise no_data(layers)
    model = copy.deepcopy(tuned.model)
    model.load_state_dict(state)
    if layers and batches is not None:
        measure_statistics(model.to(device), layers, batches)
    provenance = {"interpolated": {"alpha": alpha}, "start": start.provenance, "tuned": tuned.provenance}
    return tuned._replace(model=model.eval(), provenance=provenance)


def no_data(layers: Sequence[str]) -> ValueError:
    """The error where statistics must be measured again and there is nothing to measure them on."""
    return ValueError(
        f"{len(layers)} batch norms (such as {layers[0]}) hold statistics of activations, which averaged weights change, so "
        "they must be measured again; give data for it: --data SHARDS, such as those of the training"
    )


def stale(start: Loaded, tuned: Loaded) -> list[str]:
    """Names of the batch norms whose running statistics hold for no encoder between the two: those of a tower that the tuning
    changed anything in. A frozen tower's hold as they are."""
    one, other = start.model.state_dict(), tuned.model.state_dict()
    moved = {is_image(name) for name in other if not torch.equal(one[name], other[name])}
    norms = [k for k, m in tuned.model.named_modules() if isinstance(m, BatchNorm) and m.running_mean is not None]
    return [name for name in norms if is_image(name) in moved]


def is_image(name: str) -> bool:
    """Whether a module or tensor of open_clip's models is the image tower's."""
    return name.startswith("visual.")


def measure_statistics(model: nn.Module, layers: Iterable[str], batches: Iterable[Mapping[str, Any]]) -> None:
    """Replace the running mean and variance of batch norms, by name, with means over batches (cumulative averaging).

    The batch norms alone are in train mode: dropout stays off, so that equal batches give equal statistics. Their counts of
    batches stay as they were. batches: `image` uint8 (B, 3, H, W), `text` int64 (B, L) and `valid` bool (B,), as a loader
    gives them; rows that are not valid are left out, and so is a batch with fewer than two others.
    ValueError where no batch is left.
    """
    found = {name: model.get_submodule(name) for name in layers}
    norms = [module for module in found.values() if isinstance(module, BatchNorm)]
    before = [(m.momentum, m.num_batches_tracked.clone()) for m in norms]  # type: ignore[union-attr,operator]
    device = next(model.parameters()).device
    sides = {is_image(name) for name in found}
    model.eval()
    for module in norms:
        module.reset_running_stats()
        module.momentum = None  # torch's word for a mean over all batches so far
        module.train()
    rows = 0
    with torch.no_grad():
        for batch in batches:
            valid = batch["valid"]
            if (count := int(valid.sum())) < 2:
                continue
            if True in sides:
                image_features(model, batch["image"][valid].to(device))
            if False in sides:
                text_features(model, batch["text"][valid].to(device))
            rows += count
    for module, (momentum, tracked) in zip(norms, before, strict=True):
        module.momentum, module.num_batches_tracked = momentum, tracked
        module.eval()
    if not rows:
        raise ValueError(
            "no batch with two images that decode was given, so batch-norm statistics cannot be measured; give more data"
        )
