"""Pictures on their way out: small ones for a page, and whole ones as JPEG."""

from __future__ import annotations

import io
from typing import Any

from PIL import Image

from dualenc.images import MAX_PIXELS, ORIENTATION, BadImage, opened

JPEG, WEBP = "image/jpeg", "image/webp"
MAGIC = b"\xff\xd8\xff"  # a JPEG's first bytes
_SAVE: dict[str, dict[str, Any]] = {
    JPEG: {"format": "JPEG", "quality": 82},
    WEBP: {"format": "WEBP", "quality": 78, "method": 0},  # slower methods save few bytes for much work
}
_START_OF_SCAN, _EXIF, _IPTC, _COMMENT = 0xDA, 0xE1, 0xED, 0xFE
_WITHOUT_LENGTH = (0x01, *range(0xD0, 0xDA))


def small(data: bytes, size: int, kind: str, max_pixels: int) -> bytes:
    """An encoded picture as a `kind` (JPEG or WEBP) whose longer side is `size` pixels; never enlarged, upright.

    max_pixels: of what is no JPEG (a JPEG is decoded at a fraction of its size). BadImage: it does not decode.
    """
    with opened(data, _most(data, max_pixels)) as encoded:
        width, height = encoded.size
        scale = max(max(width, height) / size, 1)
        decoded = encoded.decoded(scale)
        picture = decoded.image
        if scale > 1:
            wanted = max(1, round(width / scale)), max(1, round(height / scale))
            picture = picture.resize(wanted, Image.Resampling.BICUBIC, box=decoded.box, reducing_gap=2.0)
        return _saved(picture, kind)


def as_jpeg(data: bytes, max_pixels: int) -> bytes:
    """An encoded picture as a JPEG of its full size, without what a camera wrote beside the pixels (place, owner).

    An upright JPEG keeps its pixels as they are, and is not decoded. BadImage: it does not decode.
    """
    if data.startswith(MAGIC) and _upright(data):
        bare = without_remarks(data)
        if bare is not None:
            return bare
    with opened(data, _most(data, max_pixels)) as encoded:
        return _saved(encoded.pixels(), JPEG)


def without_remarks(data: bytes) -> bytes | None:
    """A JPEG without its EXIF, XMP, IPTC and comments; None where its segments are damaged. Its pixels stay the same."""
    kept, at = [data[:2]], 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # filling
            at += 1
            continue
        if marker == _START_OF_SCAN:
            return b"".join([*kept, data[at:]])
        end = at + 2 if marker in _WITHOUT_LENGTH else at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if end < at + 2 or (end == at + 2 and marker not in _WITHOUT_LENGTH):
            return None
        if marker not in (_EXIF, _IPTC, _COMMENT):
            kept.append(data[at:end])
        at = end
    return None


def _upright(data: bytes) -> bool:
    """Whether a JPEG is one picture whose rows are the upper ones first."""
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
            return image.format == "JPEG" and image.getexif().get(ORIENTATION, 1) == 1
    except Exception:  # damaged files raise almost anything; decoding them says what is wrong
        return False


def _most(data: bytes, max_pixels: int) -> int:
    return MAX_PIXELS if data.startswith(MAGIC) else max_pixels


def _saved(picture: Image.Image, kind: str) -> bytes:
    file = io.BytesIO()
    picture.info.clear()  # Pillow would write comments, and a profile that may be of other colours than these
    try:
        picture.save(file, **_SAVE[kind])
    except (OSError, ValueError) as error:  # a side too long for the format: 65,535 for JPEG, 16,383 for WebP
        raise BadImage(f"does not fit a {_SAVE[kind]['format']} file") from error
    return file.getvalue()
