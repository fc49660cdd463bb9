"""Encoded images to RGB pictures, whatever they are: colour spaces, palettes, alpha, 16 bits, rotation, damage."""

from __future__ import annotations

import contextlib
import functools
import io
import os
import struct
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

MAX_PIXELS = 178_956_970  # above it Pillow itself refuses (twice its MAX_IMAGE_PIXELS)
ZERO, NO_IMAGE, TRUNCATED = "zero bytes", "not an image", "truncated image"
TOO_LARGE, BROKEN = "too many pixels", "image does not decode"
REASONS = (ZERO, NO_IMAGE, TRUNCATED, TOO_LARGE, BROKEN)
# Formats that cannot start other programs (EPS does) and that bytes alone identify (TGA's do not)
FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "ICO", "AVIF", "JPEG2000")
REDUCIBLE = ("JPEG", "MPO")  # their decoder can leave out detail; all they say of themselves stands before the pixels
ORIENTATION = 0x0112
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SIDEWAYS = tuple(UPRIGHT[n] for n in (5, 6, 7, 8))  # width and height change places
RIGHT_TO_LEFT, UPSIDE_DOWN = (tuple(UPRIGHT[n] for n in turned) for turned in ((2, 3, 6, 7), (3, 4, 7, 8)))
Box = tuple[float, float, float, float]  # left, top, right, bottom


class BadImage(ValueError):
    """An image that cannot be used; its text is one of REASONS (of `open_image`: the path, then the reason)."""


class Decoded(NamedTuple):
    """An RGB picture, the format of its file, what had to be done to it that a plain decoder would not do, and where in
    the picture the file's own area lies: everywhere, unless the picture was reduced."""

    image: Image.Image
    format: str
    repairs: tuple[str, ...]
    box: Box


class Encoded:
    """An encoded image of which the header was read (`opened` makes it). Its methods raise BadImage."""

    def __init__(self, data: bytes, max_pixels: int = MAX_PIXELS):
        self._data, self._max_pixels = data, max_pixels
        image = self._image = _read_header(data, max_pixels)
        self._decoded: Decoded | None = None
        self._size: tuple[int, int] | None = None
        if image.format in REDUCIBLE:
            self._size = image.size[::-1] if _rotation(image) in SIDEWAYS else image.size

    def __enter__(self) -> Encoded:
        return self

    def __exit__(self, *_: object) -> None:
        self._image.close()

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of the whole picture, upright. Of a JPEG the header tells it; others are decoded for it, as
        what turns them may stand after their pixels."""
        if self._size is None:
            self._size = self.decoded().image.size
        return self._size

    def pixels(self, reduction: float = 1) -> Image.Image:
        """The picture as `decode` gives it, but of a JPEG the sides may be down to 1 / reduction of `size`."""
        return self.decoded(reduction).image

    def decoded(self, reduction: float = 1) -> Decoded:
        """`pixels`, with what is known of them. A JPEG is decoded anew by each call."""
        if self._decoded is not None:
            return self._decoded
        image = self._image if self._image.fp else _read_header(self._data, self._max_pixels)
        with _reasons(self._data), image:
            box = _reduce(image, reduction, len(self._data))
            frames = _frames(image)
            picture, repairs = to_rgb(image)
            if box and "rotation" in repairs:
                box = _turned(box, image.size, _rotation(image))
        if frames:
            repairs.append("frames")
        decoded = Decoded(picture, str(image.format), tuple(repairs), box or (0.0, 0.0, *picture.size))
        if image.format not in REDUCIBLE:
            self._decoded = decoded
        return decoded


def opened(data: bytes, max_pixels: int = MAX_PIXELS) -> Encoded:
    """Encoded bytes, of which the header is read and no pixels. BadImage as `decode` raises it."""
    return Encoded(data, max_pixels)


def decode(data: bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Encoded bytes to a picture of mode RGB: upright, alpha on white, 8 bits a channel, the first frame.

    An ordinary RGB or grey file comes out as Pillow's `open(...).convert("RGB")`, to the bit. Raises BadImage;
    more than `max_pixels` (at most MAX_PIXELS) are refused before anything is decoded.
    """
    return opened(data, max_pixels).pixels()


def decode_fully(data: bytes, max_pixels: int = MAX_PIXELS) -> Decoded:
    """`decode`, with the file's format and the repairs ("CMYK", "palette", "alpha", "rotation", "frames", ...)."""
    return opened(data, max_pixels).decoded()


def open_image(path: str | os.PathLike[str], read: Callable[[bytes], Any] = decode) -> Any:
    """`decode` a file, or `read` it otherwise. OSError where it cannot be read; BadImage names the file and the reason."""
    with open(path, "rb") as file:
        data = file.read()
    try:
        return read(data)
    except BadImage as error:
        raise BadImage(f"{os.fspath(path)}: {error}, so it has no pixels to use; replace or remove it") from error


def _read_header(data: bytes, max_pixels: int) -> ImageFile.ImageFile:
    if not data:
        raise BadImage(ZERO)
    with _reasons(data):
        image = Image.open(io.BytesIO(data), formats=_formats())
        if image.width * image.height > max_pixels:
            raise BadImage(TOO_LARGE)
    return image


@contextlib.contextmanager
def _reasons(data: bytes) -> Iterator[None]:
    """Whatever goes wrong with the bytes is a BadImage with its reason; Pillow's remarks on odd files stay inside."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what matters raises
        try:
            yield
        except (BadImage, MemoryError):
            raise
        except Image.DecompressionBombError:
            raise BadImage(TOO_LARGE) from None
        except UnidentifiedImageError as error:
            raise BadImage(_reason(data, error) if _known(data) else NO_IMAGE) from None
        except Exception as error:  # a damaged file makes Pillow's readers raise almost anything
            raise BadImage(_reason(data, error)) from error


def _reduce(image: ImageFile.ImageFile, reduction: float, length: int) -> Box | None:
    """Have a JPEG decoded at 1/2, 1/4 or 1/8 where that is no less than 1 / reduction; then, its area in what comes out."""
    if image.format not in REDUCIBLE:
        return None
    image.decodermaxblock = max(image.decodermaxblock, length)  # the bytes are all there: no need to feed them in parts
    divisor = next((d for d in (8, 4, 2) if d <= reduction), 1)
    if divisor == 1:
        return None
    drafted = image.draft(None, (max(image.width // divisor, 1), max(image.height // divisor, 1)))
    return drafted[1] if drafted else None  # the last row and column may lie partly outside


def _turned(box: Box, size: tuple[int, int], rotation: Image.Transpose | None) -> Box:
    """Where a box at the upper left of a picture comes to lie when the picture is turned."""
    width, height = box[2:]
    gaps = size[0] - width, size[1] - height
    if rotation in SIDEWAYS:
        width, height, gaps = height, width, gaps[::-1]
    left, top = gaps[0] * (rotation in RIGHT_TO_LEFT), gaps[1] * (rotation in UPSIDE_DOWN)
    return left, top, left + width, top + height


def to_rgb(image: Image.Image) -> tuple[Image.Image, list[str]]:
    """An open picture of any mode as `decode` gives it (RGB, upright, alpha on white), with what was done to it."""
    image.load()  # a PNG's EXIF may stand after its pixels
    rotation = _rotation(image)
    picture, repairs = flatten(image)
    if rotation is not None:
        picture = picture.transpose(rotation)
        picture.info.clear()  # it would still say how to turn the picture, and a second call would do so
        repairs.append("rotation")
    return picture, repairs


def flatten(image: Image.Image) -> tuple[Image.Image, list[str]]:
    """A picture of any mode as RGB, with what was done to it: alpha lies on white, deep channels become 8 bits."""
    mode = image.mode
    if mode in ("I", "F") or mode.startswith("I;16"):
        return _eight_bits(image).convert("RGB"), ["float" if mode == "F" else "16-bit"]
    repairs = [] if mode in ("RGB", "L", "RGBA", "LA") else ["palette" if mode in ("P", "PA") else mode]
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
        repairs.append("alpha")
    return image if image.mode == "RGB" else image.convert("RGB"), repairs


def _eight_bits(image: Image.Image) -> Image.Image:
    """Deep grey as 8 bits. Floats up to 1 are shares of white; else white is the most of the depth that fits."""
    values = np.nan_to_num(np.asarray(image).astype(np.float64), nan=0.0)
    most = values.max(initial=0.0)
    if image.mode == "F" and most <= 1:
        values *= 255
    elif image.mode != "F" and most <= 0xFFFF:
        values /= 256  # its upper byte, as Pillow takes it of 16-bit colour
    elif most > 0xFF:
        values /= 256.0 if most <= 0xFFFF else 256.0**3
    return Image.fromarray(values.clip(0, 255).astype(np.uint8))


def _rotation(image: Image.Image) -> Image.Transpose | None:
    try:
        return UPRIGHT.get(image.getexif().get(ORIENTATION, 1))
    except Exception:  # damaged EXIF: the picture itself is whole
        return None


def _frames(image: Image.Image) -> bool:
    """Whether the file is an animation, or pages; a camera's MPO (picture and preview) is neither."""
    try:
        return image.format != "MPO" and getattr(image, "n_frames", 1) > 1
    except Exception:  # counting walks the file; its first frame may be whole all the same
        return False


@functools.cache
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)  # a Pillow may be built without some


def _known(data: bytes) -> bool:
    """Whether the bytes begin as those of a common image format."""
    return data.startswith((b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF8")) or data[:4] + data[8:12] == b"RIFFWEBP"


def _reason(data: bytes, error: Exception) -> str:
    text = str(error).lower()
    return TRUNCATED if "truncated" in text or isinstance(error, EOFError) or _ends_early(data) else BROKEN


def _ends_early(data: bytes) -> bool:
    """Whether a file that did not decode lacks its format's end."""
    if data.startswith(b"\xff\xd8\xff"):
        return b"\xff\xd9" not in data[-1024:]
    if data.startswith(b"\x89PNG"):
        return b"IEND" not in data[-1024:]
    if data.startswith(b"GIF8"):
        return b";" not in data[-1024:]
    if data.startswith(b"RIFF"):
        return len(data) < 12 or struct.unpack("<I", data[4:8])[0] + 8 > len(data)
    return False
