"""What is wrong with a model's settings, told before any work."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

CHOICES = {
    "loss": ("softmax", "sigmoid"),
    "positives": ("each", "group"),
    "non_finite": ("stop", "skip"),
}
LEAST = {"lr": 0, "weight_decay": 0, "warmup_steps": 0, "tile": 0, "accumulate": 1}


def check_settings(given: Mapping[str, Any]) -> None:
    """ValueError for settings of ContrastiveModule that are out of range, or of which one would have no effect."""
    for name, known in CHOICES.items():
        if given[name] not in known:
            raise ValueError(f"model.{name} {given[name]!r} is unknown; use {' or '.join(known)}")
    for name, least in LEAST.items():
        if given[name] is not None and not given[name] >= least:
            raise ValueError(f"model.{name} is {given[name]}, but it cannot be below {least}; set {least} or more")
    if not 0 <= given["label_smoothing"] < 1:
        raise ValueError(f"model.label_smoothing is {given['label_smoothing']}, but it is a share; use 0 to below 1")
    if given["temperature"] is not None and not given["temperature"] > 0:
        raise ValueError(f"model.temperature is {given['temperature']}, but logits are divided by it; set it above 0")
    if not all(0 <= beta < 1 for beta in given["betas"]):
        raise ValueError(f"model.betas {list(given['betas'])} are decay rates; use two from 0 to below 1")
    if not given["max_logit_scale"] >= 1:
        raise ValueError(
            f"model.max_logit_scale is {given['max_logit_scale']}, below the scale's own lower bound of 1; set 1 or more"
        )
    _check_towers(given)
    if given["label_smoothing"] and given["loss"] == "sigmoid":
        raise ValueError("model.label_smoothing has no effect with model.loss sigmoid; remove one of them")


def _check_towers(given: Mapping[str, Any]) -> None:
    if sum(given[name] is not None for name in ("start_from", "name", "vision")) != 1:
        raise ValueError(
            "give exactly one of model.start_from, model.name, or model.vision with model.text: the towers"
        )
    if given["vision"] is None:
        for name in ("text", "embed_dim", "quick_gelu"):
            if given[name]:
                other = "name" if given["name"] else "start_from"
                raise ValueError(f"model.{name} has no effect beside model.{other}; remove one of them")


def prefixes(asked: Sequence[int] | None, dim: int) -> list[int] | None:
    """The lengths that a Matryoshka loss takes: those asked for, and D; None where none are.

    ValueError for lengths that are not ascending or not within D.
    """
    if asked is None:
        return None
    if not (asked and list(asked) == sorted(set(asked)) and asked[0] >= 1):
        raise ValueError(f"model.matryoshka {list(asked)} must be ascending lengths of 1 or more, such as [64, 128]")
    if asked[-1] > dim:
        raise ValueError(
            f"model.matryoshka {list(asked)}: embeddings have {dim} dimensions, so {asked[-1]} is no prefix of them; "
            f"use {dim} at most"
        )
    return sorted({*asked, dim})
