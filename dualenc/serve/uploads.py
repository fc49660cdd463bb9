"""Pictures that a request brings: bytes that may be anything, to RGB pixels or to a problem document."""

from __future__ import annotations

import base64
import binascii
import re
import struct
from typing import TYPE_CHECKING, Any

from dualenc.serve.problems import Problem

if TYPE_CHECKING:
    from PIL import Image

ACCEPTED = "JPEG, PNG, WebP, GIF, BMP or AVIF"
MOST_SCANS = 100  # of a progressive JPEG; encoders write about 10. Each goes over all pixels, and may be 50 bytes long
DEEP = 4  # pixels that one of 16-bit grey counts for: they are brought to 8 bits in floats
_DATA_URL = re.compile(r"data:[\w.+/;=-]{0,100},", re.ASCII)


def picture(data: bytes, max_pixels: int) -> Image.Image:
    """An uploaded file's picture: RGB, upright, alpha on white, the first frame (dualenc.images.decode).

    Blocking. Problem 400: no bytes, cut short, damaged; 413: more than `max_pixels`, told before any is decoded;
    415: no picture of a format that is accepted, whatever its name or type said.
    """
    from dualenc.images import NO_IMAGE, TOO_LARGE, ZERO, BadImage, decode

    if not data:
        raise Problem(400, "Empty picture", "The file has 0 bytes; send one with a picture in it.")
    if not _accepted(data):
        raise _not_accepted(data)
    if data.startswith(b"\xff\xd8\xff") and data.count(b"\xff\xda") > MOST_SCANS:
        raise Problem(413, "Picture too costly", f"The JPEG has more than {MOST_SCANS} scans; save it anew.")
    limit = max_pixels // DEEP if _deep(data) else max_pixels
    try:
        return decode(data, limit)
    except BadImage as error:
        reason = str(error)
    except MemoryError:
        reason = TOO_LARGE
    if reason == TOO_LARGE:
        raise Problem(
            413, "Picture too large", f"It has more than {limit:,} pixels; send a smaller one.", max_pixels=limit
        )
    if reason in (NO_IMAGE, ZERO):
        raise _not_accepted(data)
    raise Problem(400, "Damaged picture", f"{reason[0].upper()}{reason[1:]}; save it anew and send that.")


def from_base64(text: str, limit: int) -> bytes:
    """The bytes of a base64 string, bare or as a data: URL. Problem 400: not base64; 413: more than `limit` bytes."""
    if prefix := _DATA_URL.match(text):
        if not prefix[0].endswith(";base64,"):
            raise Problem(400, "Not base64", "The data: URL is not base64; send data:image/…;base64,… .")
        text = text[prefix.end() :]
    if len(text) * 3 // 4 - 2 > limit * (78 / 76):  # with the line ends that some encoders set
        raise _too_many_bytes(limit)
    try:
        data = base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise Problem(
            400, "Not base64", "The picture's text does not decode; send the file's bytes in base64."
        ) from error
    if len(data) > limit:
        raise _too_many_bytes(limit)
    return data


def _accepted(data: bytes) -> bool:
    """Whether the bytes begin as one of the formats that are decoded here. Fewer than a data set's: an icon holds a
    picture of another size than it says, a TIFF thousands of pages, and no page sends them."""
    if data.startswith((b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"BM")):
        return True
    if data[:4] == b"RIFF":
        return data[8:12] == b"WEBP"
    return data[4:8] == b"ftyp" and data[8:12] in (b"avif", b"avis", b"mif1")


def _deep(data: bytes) -> bool:
    """Whether this is a PNG of 16-bit grey, of which the header says so at a fixed place."""
    return data.startswith(b"\x89PNG") and len(data) > 26 and struct.unpack(">BB", data[24:26]) == (16, 0)


def _not_accepted(data: bytes) -> Problem:
    start = data[:1000].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith((b"<svg", b"<?xml", b"<!doctype svg")) and b"svg" in start:
        detail = f"An SVG is a drawing, not pixels; send it as {ACCEPTED}."
    else:
        detail = f"The bytes are no picture that is read here, whatever the file is called; send {ACCEPTED}."
    return Problem(415, "Not a picture", detail)


def _too_many_bytes(limit: int) -> Problem:
    members: dict[str, Any] = {"max_bytes": limit}
    return Problem(413, "Picture too large", f"It has more than {limit:,} bytes; send a smaller one.", **members)
