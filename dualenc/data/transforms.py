"""Training augmentation: encoded images to uint8 arrays (H, W, 3)."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance

from dualenc.images import Encoded, opened
from dualenc.pixels import FAST, resized, rgb


@dataclasses.dataclass
class Augment:
    """Training augmentation.

    Args:
        scale: area of the random crop as a fraction of the image, lowest and highest; [1, 1] takes the image whole.
        ratio: width / height of the random crop, lowest and highest.
        shift: the furthest a picture is moved along each axis, as a fraction of its side, its edges mirrored into the gap.
            Unlike a crop it leaves things as large as evaluation shows them, which small images need
            (Touvron et al. 2019, "Fixing the train-test resolution discrepancy").
        flip: probability of a horizontal flip; 0 where captions say left and right.
        color_jitter: strength of brightness, contrast and saturation changes, each a factor within 1 ± strength, in random order.
        hue: strength of the hue change, as a fraction of the colour circle, within ± hue.
        color_jitter_prob: probability of colour jitter, hue included.
        gray: probability of turning grey.
        rand_augment: operations of RandAugment on each picture (Cubuk et al. 2020), after all else; 0 for none.
        rand_augment_magnitude: strength of these operations, 0 to 30.
        word_dropout: probability of leaving out a word of a training caption (never all of them).
    """

    scale: tuple[float, float] = (0.9, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    shift: float = 0.0
    flip: float = 0.0
    color_jitter: float = 0.0
    hue: float = 0.0
    color_jitter_prob: float = 0.8
    gray: float = 0.0
    rand_augment: int = 0
    rand_augment_magnitude: int = 9
    word_dropout: float = 0.0

    def __post_init__(self) -> None:
        most = {"shift": 0.5, "color_jitter": math.inf, "hue": 0.5, "rand_augment": 14, "rand_augment_magnitude": 30}
        most |= dict.fromkeys(("flip", "color_jitter_prob", "gray", "word_dropout"), 1.0)
        for name, bound in most.items():
            if not 0 <= (value := getattr(self, name)) <= bound:
                raise ValueError(f"augment.{name} is {value}, so no picture could be made; use 0 to {bound:g}")
        for name, bound in (("scale", 1.0), ("ratio", math.inf)):
            low, high = getattr(self, name)
            if not 0 < low <= high <= bound:
                raise ValueError(
                    f"augment.{name} is [{low}, {high}], so no crop could be drawn; give the lowest and then the highest, "
                    f"above 0{f' and at most {bound:g}' if bound < math.inf else ''}"
                )


def training(
    data: bytes | Image.Image,
    spec: dict[str, Any],
    augment: Augment,
    rng: np.random.Generator,
    decode: str = "fast",
) -> np.ndarray:
    """A random crop, resized in the same step, then the rest of `augment`; (H, W, 3) uint8.

    data: an encoded image, or an RGB picture. Every draw comes from `rng`, the same for "fast" and "exact". Raises BadImage.
    """
    height, width = spec["size"]
    picture = opened(data) if isinstance(data, bytes) else data
    box = random_crop(*picture.size, augment, rng)
    if isinstance(picture, Encoded):
        picture, box = _decoded(picture, box, (width, height), FAST[decode])
    pixels = resized(picture, (width, height), spec["interpolation"], box, FAST[decode])
    if augment.shift:
        pixels = _shifted(pixels, augment.shift, rng)
    if rng.random() < augment.flip:
        pixels = pixels[:, ::-1]
    pixels = rgb(pixels)
    if (augment.color_jitter or augment.hue) and rng.random() < augment.color_jitter_prob:
        pixels = np.asarray(_jitter(Image.fromarray(pixels), augment, rng))
    if rng.random() < augment.gray:
        pixels = np.asarray(Image.fromarray(pixels).convert("L").convert("RGB"))
    if augment.rand_augment:
        pixels = np.asarray(_rand_augment(Image.fromarray(pixels), augment, rng))
    return pixels


def _decoded(
    encoded: Encoded, box: tuple[int, int, int, int], wanted: tuple[int, int], fast: bool
) -> tuple[Image.Image, tuple[int, int, int, int]]:
    """A picture in which the part `box` of the whole is no smaller than wanted, and where it lies in it, in whole pixels."""
    left, top, right, bottom = box
    spare = min((right - left) / wanted[0], (bottom - top) / wanted[1])
    decoded = encoded.decoded(spare if fast else 1)
    area, (width, height) = decoded.box, encoded.size
    across, down = (area[2] - area[0]) / width, (area[3] - area[1]) / height
    left, right = (round(area[0] + x * across) for x in (left, right))
    top, bottom = (round(area[1] + y * down) for y in (top, bottom))
    return decoded.image, (left, top, max(right, left + 1), max(bottom, top + 1))


def _shifted(pixels: np.ndarray, furthest: float, rng: np.random.Generator) -> np.ndarray:
    """The picture moved down and to the right by up to a share of its sides, either way, its edges mirrored into the gap."""
    for axis in (1, 0):
        side = pixels.shape[axis]
        most = round(furthest * side)
        places = np.abs(np.arange(side) + int(rng.integers(2 * most + 1)) - most)
        pixels = pixels.take(side - 1 - np.abs(side - 1 - places), axis)
    return pixels


def _jitter(image: Image.Image, augment: Augment, rng: np.random.Generator) -> Image.Image:
    """torchvision's ColorJitter: brightness, contrast, saturation and hue in random order."""
    changes = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
    low, high = max(0.0, 1 - augment.color_jitter), 1 + augment.color_jitter
    for change in rng.permutation(4):
        if change < 3 and augment.color_jitter:
            image = changes[change](image).enhance(rng.uniform(low, high))
        elif change == 3 and augment.hue:
            image = turn_hue(image, rng.uniform(-augment.hue, augment.hue))
    return image


def turn_hue(image: Image.Image, share: float) -> Image.Image:
    """An RGB picture with its hues turned by a share of the colour circle: torchvision's adjust_hue, to the bit."""
    hue, saturation, value = image.convert("HSV").split()
    steps = int(share * 255)
    hue = hue.point([(h + steps) % 256 for h in range(256)])
    return Image.merge("HSV", (hue, saturation, value)).convert("RGB")


def _rand_augment(image: Image.Image, augment: Augment, rng: np.random.Generator) -> Image.Image:
    """torchvision's RandAugment, its draws seeded by one of `rng`'s."""
    import dualenc.torchvision_ops  # noqa: F401  (before torchvision)

    import torch
    from torchvision.transforms import RandAugment

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(int(rng.integers(2**63)))
        return RandAugment(augment.rand_augment, augment.rand_augment_magnitude)(image)


def random_crop(width: int, height: int, augment: Augment, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """The box (left, top, right, bottom) of torchvision's RandomResizedCrop: ten tries, then a centred crop within `ratio`."""
    for _ in range(10):
        how_large, how_wide, x, y = rng.random(4)
        area = width * height * (augment.scale[0] + how_large * (augment.scale[1] - augment.scale[0]))
        ratio = augment.ratio[0] * (augment.ratio[1] / augment.ratio[0]) ** how_wide  # its logarithm is uniform
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(x * (width - w + 1)), int(y * (height - h + 1))
            return left, top, left + w, top + h
    w, h = width, height
    if width / height < augment.ratio[0]:
        h = round(width / augment.ratio[0])
    elif width / height > augment.ratio[1]:
        w = round(height * augment.ratio[1])
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def drop_words(caption: str, probability: float, rng: np.random.Generator) -> str:
    """The caption less some of its words; whole where none would be left."""
    words = caption.split()
    kept = [word for word, draw in zip(words, rng.random(len(words)), strict=True) if draw >= probability]
    return " ".join(kept or words)
