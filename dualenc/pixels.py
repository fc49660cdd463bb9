"""Pictures to uint8 arrays (H, W, 3) as towers see them: open_clip's evaluation preprocessing, and the resizing under it.

`decode`: "exact" decodes the whole image and resizes with Pillow, as open_clip does, to the bit; "fast" decodes a large
JPEG at a half, a quarter or an eighth of its sides, and resizes with torch, which is faster. Both
filter alike (a widened bicubic or bilinear kernel, rows and columns in turn, 8 bits between the two), so values differ by
1 of 255 now and then; more only where Pillow takes columns first and a value between the two is cut at 0 or 255.
"""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import pyarrow
import torch
from PIL import Image

from dualenc.images import MAX_PIXELS, TOO_LARGE, BadImage, Encoded, opened

RESAMPLE = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
TORCH_IS_FAST = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")  # its plain code takes longer than Pillow
FAST = {"fast": True, "exact": False}
MARGIN = 4  # fast evaluation decodes so many times the side it needs: measured, it then stays within 1/255 in the mean


def evaluation(data: bytes | Image.Image, spec: dict[str, Any], decode: str = "exact") -> np.ndarray:
    """Resize and crop as open_clip does for inference; (H, W, 3) uint8. "fast" is within 1/255 of it in the mean.

    data: an encoded image, or an RGB picture. spec: the "image" part of `dualenc.model.spec.input_spec`. Raises BadImage.
    """
    height, width = spec["size"]
    picture = opened(data) if isinstance(data, bytes) else data
    wanted, interpolation, fill = _fitted(*picture.size, spec)
    if wanted[0] * wanted[1] > MAX_PIXELS:  # of a picture a thousand times as long as wide
        raise BadImage(TOO_LARGE)
    fast, box = FAST[decode], None
    if isinstance(picture, Encoded):
        spare = min(picture.size[0] / wanted[0], picture.size[1] / wanted[1]) / MARGIN
        decoded = picture.decoded(spare if fast else 1)
        picture, box = decoded.image, decoded.box
    return rgb(_center(resized(picture, wanted, interpolation, box, fast), height, width, fill))


def _fitted(width: int, height: int, spec: dict[str, Any]) -> tuple[tuple[int, int], str, int]:
    """The (width, height) to which open_clip resizes a picture before it cuts or pads, by which filter, and the padding."""
    (high, wide), mode, interpolation = spec["size"], spec["resize_mode"], spec["interpolation"]
    if mode == "squash":
        return (wide, high), interpolation, 0
    if mode == "shortest" and high == wide:  # torchvision's Resize(size): the longer side is cut to an integer
        short, long = sorted((width, height))
        long = int(high * long / short)
        return ((high, long) if width <= height else (long, high)), interpolation, 0
    longest = mode == "longest"
    ratios = (height / high, width / wide)
    ratio = max(ratios) if longest else min(ratios)
    # open_clip passes its interpolation and its fill colour on for "longest" only
    return (
        (round(width / ratio), round(height / ratio)),
        interpolation if longest else "bicubic",
        spec["fill_color"] if longest else 0,
    )


def _center(pixels: np.ndarray, height: int, width: int, fill: int) -> np.ndarray:
    """torchvision's CenterCrop, which pads an image that is too small; (H, W, C) uint8."""
    high, wide = pixels.shape[:2]
    if wide < width or high < height:
        left, top = max(width - wide, 0) // 2, max(height - high, 0) // 2
        padded = np.full((max(height, high), max(width, wide), pixels.shape[2]), fill, dtype=np.uint8)
        padded[top : top + high, left : left + wide] = pixels
        pixels = padded
        high, wide = pixels.shape[:2]
    left, top = round((wide - width) / 2.0), round((high - height) / 2.0)
    return pixels[top : top + height, left : left + width]


def resized(
    image: Image.Image,
    size: tuple[int, int],
    interpolation: str,
    box: tuple[float, float, float, float] | None = None,
    fast: bool = False,
) -> np.ndarray:
    """The part of an RGB picture in `box` (left, top, right, bottom), (width, height) large: (H, W, 3) or (H, W, 4) uint8.

    A fourth channel means nothing. fast: by torch where it is faster and the box is of whole pixels.
    """
    if box is not None and not all(x == int(x) for x in box):
        return np.asarray(image.resize(size, RESAMPLE[interpolation], box=box))
    left, top, right, bottom = (int(x) for x in box or (0, 0, *image.size))
    if fast and TORCH_IS_FAST:
        part = _pixels(image)[top:bottom, left:right].copy()  # (h, w): torch is slow on what is not in one piece
        planes = torch.from_numpy(part.view(np.uint8).reshape(*part.shape, 4)).permute(2, 0, 1)[None]
        done = torch.nn.functional.interpolate(planes, size=size[::-1], mode=interpolation, antialias=True)
        return done.permute(0, 2, 3, 1).numpy()[0]
    if (right - left, bottom - top) != image.size:
        # cut first, as peers do: the kernel sees nothing beyond the edge
        image = image.crop((left, top, right, bottom))
    return np.asarray(image.resize(size, RESAMPLE[interpolation]))


def rgb(pixels: np.ndarray) -> np.ndarray:
    """(H, W, 3 or 4), a view of any strides, to (H, W, 3) in one piece."""
    if pixels.shape[2] == 3 and pixels.flags.c_contiguous:
        return pixels
    together = np.empty((*pixels.shape[:2], 3), dtype=np.uint8)
    for channel in range(3):  # several times as fast as numpy's own copy, which moves three bytes at a time
        together[..., channel] = pixels[..., channel]
    return together


def _pixels(image: Image.Image) -> np.ndarray:
    """(H, W) uint32, four channels each: the memory of an RGB picture itself, where Pillow lends it. To be read only."""
    if hasattr(image, "__arrow_c_array__"):  # since Pillow 11.2
        with contextlib.suppress(ValueError):  # a large picture lies in several pieces
            memory = pyarrow.array(image).buffers()[-1]
            return np.frombuffer(memory, np.uint32, image.width * image.height).reshape(image.height, image.width)
    return np.frombuffer(image.tobytes("raw", "RGBX"), np.uint32).reshape(image.height, image.width)
