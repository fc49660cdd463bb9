"""Settings of the data module that cannot work, refused before any work."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

from dualenc.data.stream.transport import shown
from dualenc.data.transforms import Augment
from dualenc.pixels import FAST

if TYPE_CHECKING:
    from dualenc.data.module import PairData


def check_settings(data: PairData) -> None:
    """ValueError for settings under which nothing, or something else than was meant, would be read."""
    least = {"batch_size": 1, "workers": 0, "prefetch": 1, "shuffle_block": 1, "captions": 1, "seed": 0}
    for name, bound in least.items():
        value = getattr(data, name)
        free = value is None or (name == "captions" and value == "all")
        if not free and not (isinstance(value, int) and value >= bound):
            all_too = ", or all" if name == "captions" else ""
            raise ValueError(f"data.{name} is {value}, so no batch could be made; use {bound} or more{all_too}")
    if data.decode not in FAST:
        raise ValueError(f"data.decode {data.decode!r} is unknown; use {' or '.join(FAST)}")
    if data.fields is not None and (not data.fields or not all(0 < p < float("inf") for p in data.fields.values())):
        raise ValueError(
            f"data.caption_fields {data.fields}: a field without a probability above 0 is never drawn; set one or leave it out"
        )
    if data.fields is not None and data.captions == "all":
        raise ValueError("data.captions all counts the lines of KEY.txt, not data.caption_fields; set a number")
    if data.cache_side is not None and data.spec is not None and data.cache_side < max(data.spec["image"]["size"]):
        raise ValueError(
            f"data.cache {data.cache_side} is smaller than the model's images ({max(data.spec['image']['size'])} px), "
            "which would be blurred by enlarging; set it to that size or more"
        )
    if data.weights is not None and not all(0 < weight < float("inf") for weight in data.weights):
        raise ValueError(
            f"data.weights {data.weights}: only positive numbers are proportions of a batch; leave others out"
        )
    if data.weights is not None and len(data.weights) != len(data.train_items()):
        raise ValueError(
            f"data.weights has {len(data.weights)} numbers and data.train {len(data.train_items())} items; give one for each"
        )
    _check_image_store(data)
    _check_hard_negatives(data)


def _check_image_store(data: PairData) -> None:
    """ValueError for what cannot be done to images that are not there."""
    if data.image_store is None:
        return
    if data.cache_side is not None:
        raise ValueError(
            f"data.cache {data.cache_side} keeps decoded images, and with data.image_store none is decoded; leave it out"
        )
    if asked := _changes_pixels(data.augment):
        raise ValueError(
            f"data.augment.{asked} changes images, and data.image_store has their embeddings alone; leave it out "
            "(word_dropout may stay)"
        )


def _changes_pixels(augment: Augment) -> str | None:
    """The first setting, neither the default nor off, that changes images; None where none does."""
    default, off = Augment(), Augment(scale=(1.0, 1.0), ratio=(1.0, 1.0))
    for name, value in dataclasses.asdict(augment).items():
        plain = tuple(value) if isinstance(value, list) else value
        helps = name in ("color_jitter_prob", "rand_augment_magnitude")  # nothing by themselves
        if name != "word_dropout" and not helps and plain not in (getattr(default, name), getattr(off, name)):
            return name
    return None


def _check_hard_negatives(data: PairData) -> None:
    """ValueError for orders that hard negatives cannot be brought into."""
    if data.hard_negatives is None:
        if data.hard_share is not None:
            raise ValueError(
                f"data.hard_share {data.hard_share} has no effect without data.hard_negatives; give it, or leave both out"
            )
        return
    if data.hard_share is None or not 0 < data.hard_share <= 1:
        raise ValueError(
            f"data.hard_share is {data.hard_share}, but it is a share of each batch; use a number above 0 and at most 1"
        )
    for name, value in {"weights": data.weights, "shuffle_block": data.shuffle_block}.items():
        if value is not None:
            raise ValueError(
                f"data.{name} {value} orders samples in its own way, which data.hard_negatives would undo; leave one of them out"
            )


def check_streamed(data: PairData) -> None:
    """ValueError for settings that need local shards."""
    needs = {"cache": data.cache_side, "shuffle_block": data.shuffle_block, "hard_negatives": data.hard_negatives}
    if data.captions == "all":
        raise ValueError(
            "data.captions all must look at every sample first, which a stream does not allow; set a number"
        )
    for name, value in needs.items():
        if value is not None:
            raise ValueError(
                f"data.{name} {value} needs local shards, and data.train is read as a stream; leave it out"
            )


def refuse_same_shard(streams: Sequence[Sequence[str]]) -> None:
    """ValueError where two items name one shard, whose samples an epoch would then show twice."""
    named = collections.Counter(url for urls in streams for url in set(urls))
    if twice := [url for url, count in named.items() if count > 1]:
        raise ValueError(
            f"data.train: {shown(twice[0])} is in two items, so an epoch would show it twice; name it once"
        )
