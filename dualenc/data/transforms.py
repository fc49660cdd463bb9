"""PIL images to uint8 arrays (3, H, W): open_clip's evaluation preprocessing to the bit, and training augmentation."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance

RESAMPLE = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


def to_uint8(image: Image.Image) -> np.ndarray:
    """(3, H, W) uint8."""
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))


def evaluation(image: Image.Image, spec: dict[str, Any]) -> Image.Image:
    """Resize and crop as open_clip does for inference; spec: the "image" part of `dualenc.model.spec.input_spec`."""
    height, width = spec["size"]
    resample = RESAMPLE[spec["interpolation"]]
    if spec["resize_mode"] == "squash":
        return image.resize((width, height), resample)
    if spec["resize_mode"] == "shortest" and height == width:
        return _center(_shortest_edge(image, height, resample), height, width, 0)
    longest = spec["resize_mode"] == "longest"
    ratios = (image.height / height, image.width / width)
    ratio = max(ratios) if longest else min(ratios)
    # open_clip passes its interpolation on for "longest" only
    resized = image.resize(
        (round(image.width / ratio), round(image.height / ratio)), resample if longest else RESAMPLE["bicubic"]
    )
    return _center(resized, height, width, spec["fill_color"] if longest else 0)


def _shortest_edge(image: Image.Image, size: int, resample: Image.Resampling) -> Image.Image:
    """torchvision's Resize(size): the shorter side becomes `size`, the longer one is cut to an integer."""
    short, long = sorted(image.size)
    long = int(size * long / short)
    wanted = (size, long) if image.width <= image.height else (long, size)
    return image if image.size == wanted else image.resize(wanted, resample)


def _center(image: Image.Image, height: int, width: int, fill: int) -> Image.Image:
    """torchvision's CenterCrop, which pads an image that is too small."""
    if image.width < width or image.height < height:
        left, top = max(width - image.width, 0) // 2, max(height - image.height, 0) // 2
        padded = Image.new("RGB", (max(width, image.width), max(height, image.height)), (fill,) * 3)
        padded.paste(image, (left, top))
        image = padded
    left, top = round((image.width - width) / 2.0), round((image.height - height) / 2.0)
    return image.crop((left, top, left + width, top + height))


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
        color_jitter: strength of brightness, contrast and saturation changes, each a factor within 1 ± strength.
        hue: strength of the hue change, as a fraction of the colour circle, within ± hue.
        color_jitter_prob: probability of colour jitter, hue included.
        gray: probability of turning grey.
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
    word_dropout: float = 0.0


def training(image: Image.Image, spec: dict[str, Any], augment: Augment, rng: np.random.Generator) -> Image.Image:
    """A random crop, resized in the same step, then flip, colour jitter and grey; every draw comes from `rng`."""
    height, width = spec["size"]
    box = random_crop(image.width, image.height, augment, rng)
    image = image.resize((width, height), RESAMPLE[spec["interpolation"]], box=box)
    if augment.shift:
        image = _shifted(image, augment.shift, rng)
    if rng.random() < augment.flip:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if (augment.color_jitter or augment.hue) and rng.random() < augment.color_jitter_prob:
        image = _jitter(image, augment, rng)
    if rng.random() < augment.gray:
        image = image.convert("L").convert("RGB")
    return image


def _shifted(image: Image.Image, furthest: float, rng: np.random.Generator) -> Image.Image:
    across, down = round(furthest * image.width), round(furthest * image.height)
    padded = np.pad(np.asarray(image), ((down, down), (across, across), (0, 0)), mode="reflect")
    left, top = int(rng.integers(2 * across + 1)), int(rng.integers(2 * down + 1))
    return Image.fromarray(padded[top : top + image.height, left : left + image.width])


def drop_words(caption: str, probability: float, rng: np.random.Generator) -> str:
    """The caption less some of its words; whole where none would be left."""
    words = caption.split()
    kept = [word for word, draw in zip(words, rng.random(len(words)), strict=True) if draw >= probability]
    return " ".join(kept or words)


def _jitter(image: Image.Image, augment: Augment, rng: np.random.Generator) -> Image.Image:
    """Brightness, contrast and saturation in random order, then hue."""
    low, high = max(0.0, 1 - augment.color_jitter), 1 + augment.color_jitter
    changes = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
    for change in rng.permutation(3):
        image = changes[change](image).enhance(rng.uniform(low, high))
    if augment.hue:
        hue, saturation, value = image.convert("HSV").split()
        shift = round(256 * rng.uniform(-augment.hue, augment.hue))
        hue = hue.point([(h + shift) % 256 for h in range(256)])
        image = Image.merge("HSV", (hue, saturation, value)).convert("RGB")
    return image


def random_crop(width: int, height: int, augment: Augment, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """The box (left, top, right, bottom) of torchvision's RandomResizedCrop: ten tries, then a centred crop within `ratio`."""
    for _ in range(10):
        area = width * height * rng.uniform(*augment.scale)
        ratio = math.exp(rng.uniform(math.log(augment.ratio[0]), math.log(augment.ratio[1])))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
            return left, top, left + w, top + h
    w, h = width, height
    if width / height < augment.ratio[0]:
        h = round(width / augment.ratio[0])
    elif width / height > augment.ratio[1]:
        w = round(height * augment.ratio[1])
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h
