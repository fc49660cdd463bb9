"""Flickr8k with a fifth of its captions at the wrong image, in halves; and how well scores tell which those are."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from tqdm import tqdm

from dualenc.data.sample import Sample
from dualenc.data.shards import Source, open_source
from dualenc.data.write import shards
from dualenc.files import whole_folder, write_json

SHARE, SEED = 0.2, 6  # of the captions; of which of them, and where each goes
HALVES = ("half0", "half1")


def write_noisy(clean: Path, out: Path, share: float = SHARE, seed: int = SEED) -> None:
    """Write `out`/noisy, `out`/half0 and `out`/half1: the shards `clean` with some captions moved, and its two halves.

    `out`/shuffled.json: [key, caption number] of each caption that stands at an image that is not its own.
    """
    source = open_source(clean)
    captions = [source.sample(i, ("txt", "json")).captions() for i in range(len(source))]
    moved, slots = shuffle(captions, share, seed)
    order = np.random.default_rng(seed).permutation(len(source))
    parts = {"noisy": np.arange(len(source))} | {
        name: np.sort(order[half :: len(HALVES)]) for half, name in enumerate(HALVES)
    }
    with whole_folder(out) as folder:
        for name, rows in parts.items():
            write_part(source, moved, rows, folder / name / "train")
        write_json(folder / "shuffled.json", [[source.keys[i], number] for i, number in slots])


def shuffle(captions: list[list[str]], share: float, seed: int) -> tuple[list[list[str]], list[tuple[int, int]]]:
    """Captions of each image, `share` of them dealt anew among themselves so that none stays at its image; and which.

    Permutations are drawn until one leaves no caption at an image that it belongs to.
    """
    places = [(i, number) for i, some in enumerate(captions) for number in range(len(some))]
    rng = np.random.default_rng(seed)
    chosen = np.sort(rng.permutation(len(places))[: round(share * len(places))])
    owner = np.array([places[place][0] for place in chosen])
    for _ in range(10_000):
        dealt = rng.permutation(len(chosen))
        if (owner[dealt] != owner).all():
            break
    else:
        raise ValueError(f"{len(chosen)} captions of {len(set(owner))} images cannot change places; shuffle fewer")
    moved = [list(some) for some in captions]
    for place, other in zip(chosen, chosen[dealt], strict=True):
        (i, number), (j, from_number) = places[place], places[other]
        moved[i][number] = captions[j][from_number]
    return moved, [places[place] for place in chosen]


def write_part(source: Source, captions: list[list[str]], rows: Iterable[int], out: Path) -> None:
    """The samples `rows` of `source` as shards, images as they are, with these captions."""
    with shards(out) as writer:
        for i in tqdm(list(map(int, rows)), desc=out.parent.name, unit="img", disable=None):
            sample: Sample = source.sample(i, ("image",))
            text = "\n".join(captions[i]).encode()
            writer.write({"__key__": sample.key, "jpg": sample.parts["image"], "txt": text})


def shuffled_of(folder: Path, keys: list[str], numbers: list[int]) -> np.ndarray:
    """(T,) bool: which of the captions (key, number) were moved, of all that `write_noisy` moved in these images."""
    slots = {(key, number) for key, number in json.loads((folder / "shuffled.json").read_text(encoding="utf-8"))}
    return np.array([pair in slots for pair in zip(keys, numbers, strict=True)])


def detection(value: np.ndarray, wrong: np.ndarray) -> dict[str, float]:
    """How well low values tell the wrong pairs: ROC AUC (ties count half) and average precision (ties: the worst order).

    >>> found = detection(np.array([0.1, 0.2, 0.3, 0.4]), np.array([True, False, True, False]))
    >>> found["roc_auc"], round(found["average_precision"], 4)
    (0.75, 0.8333)
    """
    levels, place = np.unique(value, return_inverse=True)
    bad, good = (np.bincount(place[side], minlength=len(levels)) for side in (wrong, ~wrong))
    wins = (bad * (good[::-1].cumsum()[::-1] - good / 2)).sum()
    order = np.lexsort((wrong, value))
    hits = wrong[order].cumsum()
    precision = hits / np.arange(1, len(value) + 1)
    return {
        "roc_auc": float(wins / (wrong.sum() * (~wrong).sum())),
        "average_precision": float(precision[wrong[order]].mean()),
    }


def found_at(dropped: np.ndarray, wrong: np.ndarray) -> dict[str, float | int]:
    """Precision and recall of the wrong pairs among those that were dropped.

    >>> found_at(np.array([True, True, False]), np.array([True, False, True]))
    {'dropped': 2, 'precision': 0.5, 'recall': 0.5}
    """
    both = int((dropped & wrong).sum())
    return {
        "dropped": int(dropped.sum()),
        "precision": both / max(1, int(dropped.sum())),
        "recall": both / int(wrong.sum()),
    }


def two_normals(value: np.ndarray, rounds: int = 500) -> float:
    """Where two normal distributions that were fitted to `value` are equally likely: below it, the lower one is likelier.

    Expectation maximisation (Dempster, Laird & Rubin 1977) from the lowest fifth and the rest; it knows no share.
    """
    value = np.asarray(value, np.float64)
    low = value <= np.quantile(value, 0.2)
    weight, mean = np.array([0.2, 0.8]), np.array([value[low].mean(), value[~low].mean()])
    spread = np.array([value[low].std(), value[~low].std()]) + 1e-9
    for _ in range(rounds):
        log = -0.5 * ((value[:, None] - mean) / spread) ** 2 - np.log(spread) + np.log(weight)
        part = np.exp(log - log.max(axis=1, keepdims=True))
        part /= part.sum(axis=1, keepdims=True)
        total, before = part.sum(axis=0), mean
        weight, mean = total / len(value), (part * value[:, None]).sum(axis=0) / total
        spread = np.sqrt((part * (value[:, None] - mean) ** 2).sum(axis=0) / total) + 1e-9
        if np.abs(mean - before).max() < 1e-6 * spread.max():
            break
    return _crossing(weight, mean, spread)


def _crossing(weight: np.ndarray, mean: np.ndarray, spread: np.ndarray) -> float:
    """Where weight[0] N(mean[0], spread[0]) = weight[1] N(mean[1], spread[1]), between the means; by halving."""

    def ahead(x: float) -> float:  # log of the first over the second
        log = np.log(weight / spread) - 0.5 * ((x - mean) / spread) ** 2
        return float(log[0] - log[1])

    low, high = sorted(map(float, mean))
    if ahead(low) * ahead(high) > 0:  # one is likelier throughout: nothing tells them apart
        return math.nan
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if (ahead(middle) > 0) == (ahead(low) > 0) else (low, middle)
    return low
