"""A sample's bytes to a row of a batch: pixels, captions, label; or the reason why it has none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from dualenc.data.order import PADDING, sample_rng
from dualenc.data.sample import BadSample, Sample
from dualenc.data.transforms import Augment, drop_words, training
from dualenc.images import BadImage
from dualenc.pixels import evaluation


class Prepare:
    """Samples to rows. A sample that cannot be used gives a row all the same, with its reason: batches keep their shape.

    Training (`augment` given): `captions` of its captions, drawn by (seed, epoch, key), all different where there are as
    many; a sample without any is unusable. fields: where captions are drawn from, with probabilities: "txt" for KEY.txt,
    any other name for that field of KEY.json; fields that a sample lacks leave their share to the others.
    Otherwise: all captions of KEY.txt, and open_clip's evaluation preprocessing.
    decode: "fast" decodes a JPEG at the smallest scale that its crop needs, "exact" decodes it whole.
    pixels: False leaves images out of training rows (None in their place): whoever trains has their embeddings.
    """

    def __init__(
        self,
        spec: dict[str, Any],
        augment: Augment | None = None,
        seed: int = 0,
        captions: int = 1,
        fields: Mapping[str, float] | None = None,
        decode: str = "exact",
        pixels: bool = True,
    ):
        self.spec, self.augment, self.seed, self.captions = spec, augment, seed, captions
        self.fields, self.decode, self.pixels = fields or {"txt": 1.0}, decode, pixels

    def __call__(
        self, sample: Sample, epoch: int, position: int = PADDING, origin: int = 0, image: Image.Image | None = None
    ) -> dict[str, Any]:
        """The row of a sample; image: its picture, where it is already decoded."""
        try:
            pixels: np.ndarray | None
            picture = sample.parts.get("image", b"") if image is None else image
            if self.augment is None:
                sample.metadata()  # a store keeps it, so it must be readable
                captions, label = sample.captions(), sample.label()
                pixels = evaluation(picture, self.spec["image"], self.decode)
            else:
                rng = sample_rng(self.seed, epoch, sample.key)
                captions, label = self._drawn(sample, rng), sample.label()
                spec = self.spec["image"]
                pixels = training(picture, spec, self.augment, rng, self.decode) if self.pixels else None
        except (BadSample, BadImage) as error:
            return self.unusable(position, sample.key, str(error), origin)
        return self._row(position, sample.key, pixels, captions, label, None, origin)

    def unusable(self, position: int, key: str, reason: str, origin: int = 0) -> dict[str, Any]:
        """The row of a sample that cannot be used."""
        blank = np.zeros((*self.spec["image"]["size"], 3), dtype=np.uint8) if self.pixels else None
        return self._row(position, key, blank, [], None, reason, origin)

    def _row(self, *values: Any) -> dict[str, Any]:
        names = ("position", "key", "image", "captions", "label", "reason", "origin")
        return dict(zip(names, values, strict=True))

    def _drawn(self, sample: Sample, rng: np.random.Generator) -> list[str]:
        found = {name: captions for name in self.fields if (captions := sample.captions(name))}
        if not found:
            raise BadSample("missing caption")
        shares = np.array([self.fields[name] for name in found])
        counts = [self.captions] if len(found) == 1 else rng.multinomial(self.captions, shares / shares.sum())
        drawn = []
        for captions, count in zip(found.values(), counts, strict=True):
            drawn += [captions[i] for i in np.resize(rng.permutation(len(captions)), count)]
        if len(found) > 1:
            drawn = [drawn[i] for i in rng.permutation(len(drawn))]  # the first one stands for the sample
        if self.augment is not None and self.augment.word_dropout:
            drawn = [drop_words(caption, self.augment.word_dropout, rng) for caption in drawn]
        return drawn
