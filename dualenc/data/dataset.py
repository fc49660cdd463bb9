"""Samples of a source as tensors, and their batches (DESIGN: "Batch")."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from dualenc.data.order import PADDING, sample_rng
from dualenc.data.shards import UNREADABLE, BadSample, Source
from dualenc.data.text import make_tokenizer
from dualenc.data.transforms import Augment, drop_words, evaluation, to_uint8, training
from dualenc.images import BadImage, decode


class Pairs(torch.utils.data.Dataset):
    """Samples by (position, epoch). A sample that cannot be used keeps its row, with its reason.

    Training (`augment` given): `captions` of its captions, drawn by (seed, epoch, key), all different where there are as
    many; a sample without any is unusable.
    Otherwise: all captions, and open_clip's evaluation preprocessing.
    """

    def __init__(
        self,
        source: Source,
        spec: dict[str, Any],
        augment: Augment | None = None,
        seed: int = 0,
        cache: ImageCache | None = None,
        captions: int = 1,
    ):
        self.source, self.spec, self.augment, self.seed, self.cache = source, spec, augment, seed, cache
        self.captions = captions

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, place: tuple[int, int]) -> dict[str, Any]:
        position, epoch = place
        if position == PADDING:
            return self._unusable(PADDING, "", "padding")
        key = self.source.keys[position]
        try:
            captions = self.source.captions(position)
            label = self.source.label(position)
            if self.augment is None:
                self.source.metadata(position)  # a store keeps it, so it must be readable
                image = evaluation(self._image(position), self.spec["image"])
            else:
                if not captions:
                    raise BadSample("missing caption")
                rng = sample_rng(self.seed, epoch, key)
                captions = [captions[i] for i in np.resize(rng.permutation(len(captions)), self.captions)]
                if self.augment.word_dropout:
                    captions = [drop_words(caption, self.augment.word_dropout, rng) for caption in captions]
                image = training(self._image(position), self.spec["image"], self.augment, rng)
        except (BadSample, BadImage) as error:
            return self._unusable(position, key, str(error))
        except OSError:
            return self._unusable(position, key, UNREADABLE)
        return {
            "position": position,
            "key": key,
            "image": to_uint8(image),
            "captions": captions,
            "label": label,
            "reason": None,
        }

    def _image(self, position: int) -> Image.Image:
        return decode(self.source.image_bytes(position)) if self.cache is None else self.cache[position]

    def _unusable(self, position: int, key: str, reason: str) -> dict[str, Any]:
        blank = np.zeros((3, *self.spec["image"]["size"]), dtype=np.uint8)
        return {"position": position, "key": key, "image": blank, "captions": [], "label": None, "reason": reason}


class Batches(torch.utils.data.Dataset):
    """Whole batches: what `BatchOrder` yields goes in, a collated batch comes out."""

    def __init__(self, pairs: Pairs, all_captions: bool):
        self.pairs, self.collate = pairs, Collate(pairs.spec, all_captions, pairs.captions)

    def __getitem__(self, places: list[tuple[int, int]]) -> dict[str, Any]:
        return self.collate([self.pairs[place] for place in places])


class Collate:
    """A list of samples to a batch: `image` uint8 (B, 3, H, W), `text` int64 (B, L) of first captions, `key`, `valid` (B,),
    `label` int64 (B,) where all have one, `position` int64 (B,) in the source, `reason` why a row is not valid.

    captions K > 1: also `texts` int64 (B, K, L), of which the first is `text`.
    all_captions: also `all_text` int64 (T, L) with `text_row` int64 (T,), the row of the batch that each belongs to.
    """

    def __init__(self, spec: dict[str, Any], all_captions: bool, captions: int = 1):
        self.tokenizer = make_tokenizer(spec["text"])
        self.all_captions, self.captions = all_captions, captions

    def __call__(self, samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        before = self.tokenizer.truncated
        batch: dict[str, Any] = {
            "image": torch.from_numpy(np.stack([s["image"] for s in samples])),
            "text": torch.from_numpy(self.tokenizer([(s["captions"] or [""])[0] for s in samples])),
            "key": [s["key"] for s in samples],
            "valid": torch.tensor([s["reason"] is None for s in samples]),
            "position": torch.tensor([s["position"] for s in samples]),
            "reason": [s["reason"] for s in samples],
        }
        if all(s["label"] is not None for s in samples if s["reason"] is None):
            batch["label"] = torch.tensor([-1 if s["label"] is None else s["label"] for s in samples])
        if self.captions > 1 and not self.all_captions:
            before = self.tokenizer.truncated  # the first captions are among them: count no caption twice
            tokens = self.tokenizer([c for s in samples for c in s["captions"] or [""] * self.captions])
            batch["texts"] = torch.from_numpy(tokens).view(len(samples), self.captions, -1)  # one shape on all ranks
        if self.all_captions:
            before = self.tokenizer.truncated
            owned = [(caption, row) for row, s in enumerate(samples) for caption in s["captions"]]
            batch["all_text"] = torch.from_numpy(self.tokenizer([caption for caption, _ in owned]))
            batch["text_row"] = torch.tensor([row for _, row in owned], dtype=torch.int64)
        batch["truncated"] = self.tokenizer.truncated - before
        return batch


class ImageCache:
    """All images of a source, decoded once and kept as uint8 with their shorter side at most `side` pixels.

    One flat shared-memory tensor, so that loader workers share it. Images that do not decode keep their reason.
    """

    def __init__(self, source: Source, side: int):
        self.reasons: dict[int, str] = {}
        pixels, self.sizes = [], np.zeros((len(source), 2), dtype=np.int32)
        for i in tqdm(range(len(source)), desc="decoding images into the cache", unit="img", disable=None):
            try:
                image = decode(source.image_bytes(i))
            except (BadImage, OSError) as error:
                self.reasons[i] = str(error) if isinstance(error, BadImage) else UNREADABLE
                continue
            scale = side / min(image.size)
            if scale < 1:
                image = image.resize(
                    (round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC
                )
            self.sizes[i] = image.size
            pixels.append(np.asarray(image).reshape(-1))
        ends = np.cumsum(self.sizes.astype(np.int64).prod(axis=1) * 3)
        self.starts = np.concatenate([[0], ends[:-1]])
        self.pixels = torch.from_numpy(np.concatenate(pixels) if pixels else np.zeros(0, np.uint8)).share_memory_()

    def __getitem__(self, position: int) -> Image.Image:
        if position in self.reasons:
            raise BadImage(self.reasons[position])
        width, height = (int(x) for x in self.sizes[position])
        start = int(self.starts[position])
        flat = self.pixels[start : start + width * height * 3].numpy()
        return Image.fromarray(flat.reshape(height, width, 3))
