"""Uploads that are pictures, nearly pictures, and attacks; each is pixels or a problem document."""

from __future__ import annotations

import base64
import functools
import io
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image

from dualenc.serve.problems import Problem
from dualenc.serve.uploads import MOST_SCANS, from_base64, picture
from tests.small import png

MOST = 50_000_000


def saved(image: Image.Image, format: str, **options) -> bytes:
    data = io.BytesIO()
    image.save(data, format, **options)
    return data.getvalue()


def refused(data: bytes, status: int, most: int = MOST) -> Problem:
    with pytest.raises(Problem) as found:
        picture(data, most)
    problem = found.value
    assert problem.status == status
    assert (
        problem.detail and "\n" not in problem.detail and "Pillow" not in problem.detail and "/" not in problem.detail
    )
    return problem


RED = Image.new("RGB", (40, 20), (200, 10, 10))


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "AVIF"])
def test_each_format_that_is_named_is_read(format):
    Image.init()
    if format not in Image.SAVE:
        pytest.skip("this Pillow does not write it")
    image = picture(saved(RED, format), MOST)
    assert image.mode == "RGB" and image.size == (40, 20)
    assert np.abs(np.asarray(image).astype(int) - (200, 10, 10)).max() < 30


def test_nothing():
    assert "0 bytes" in refused(b"", 400).detail


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "BMP"])
def test_cut_short(format):
    whole = saved(Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)), format)
    for share in (0.99, 0.5, 0.1):
        refused(whole[: int(len(whole) * share)], 400)
    for length in range(1, 40):  # parts of headers
        with pytest.raises(Problem) as found:
            picture(whole[:length], MOST)
        assert found.value.status in (400, 415)


def test_cameras_that_were_turned():
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.new("RGB", (40, 20), "white")
    image.paste((200, 10, 10), (0, 0, 20, 20))
    turned = picture(saved(image, "JPEG", exif=exif, quality=95), MOST)
    assert turned.size == (20, 40)
    assert turned.getpixel((10, 5))[1] < 60 < 200 < turned.getpixel((10, 35))[1]


def test_cmyk():
    image = picture(saved(RED.convert("CMYK"), "JPEG", quality=95), MOST)
    assert image.mode == "RGB"
    assert np.abs(np.asarray(image).astype(int) - (200, 10, 10)).max() < 30


def test_deep_grey():
    values = np.linspace(0, 65535, 64 * 64).astype(np.uint16).reshape(64, 64)
    image = picture(saved(Image.fromarray(values), "PNG"), MOST)
    assert image.mode == "RGB"
    assert np.array_equal(np.asarray(image)[..., 0], (values >> 8).astype(np.uint8))


def test_animations_show_their_first_frame():
    frames = [Image.new("RGB", (8, 8), colour) for colour in ((200, 10, 10), (10, 10, 200))]
    image = picture(saved(frames[0], "GIF", save_all=True, append_images=frames[1:]), MOST)
    assert np.abs(np.array(image.getpixel((4, 4))) - (200, 10, 10)).max() < 30


def test_names_and_types_do_not_matter_bytes_do():
    assert picture(saved(RED, "PNG"), MOST).size == (40, 20)  # whatever.jpg
    for text in (
        b"hello",
        b"<html><img src=x onerror=alert(1)>",
        b"\x00" * 100,
        b"%PDF-1.7",
        b"MZ\x90",
        b"PK\x03\x04" + b"\0" * 50,
    ):
        refused(text, 415)


@pytest.mark.parametrize(
    "start",
    [b"<svg ", b"<?xml version='1.0'?><svg ", b"\xef\xbb\xbf\n <SVG ", b"<!DOCTYPE svg PUBLIC '-//W3C//DTD SVG'><svg "],
)
def test_drawings(start):
    detail = refused(start + b"xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>", 415).detail
    assert "SVG" in detail and "PNG" in detail


@pytest.mark.parametrize("format", ["TIFF", "ICO", "PPM", "JPEG2000", "TGA", "PCX", "EPS"])
def test_formats_that_no_page_sends_are_not_read(format):
    Image.init()
    if format not in Image.SAVE:
        pytest.skip("this Pillow does not write it")
    refused(saved(RED, format), 415)


def test_files_that_are_two_things_are_their_pixels():
    script = b"<script>alert(1)</script>PK\x03\x04"
    for format in ("JPEG", "PNG", "GIF"):
        image = picture(saved(RED, format) + script, MOST)
        assert image.size == (40, 20)
    assert b"script" not in image.tobytes()
    comment = saved(RED, "JPEG", comment=b"/*<script>*/")
    assert picture(comment, MOST).size == (40, 20)
    refused(b"GIF89a/*" + saved(RED, "PNG"), 400)


def png_of(width: int, height: int, depth: int = 8, colour: int = 0, data: bytes = b"") -> bytes:
    """A PNG by hand, so that it can say what it likes."""

    def part(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + part(b"IHDR", header) + part(b"IDAT", data) + part(b"IEND", b"")


@functools.cache
def bomb() -> bytes:
    """100 megapixels in 100 kB."""
    pack = zlib.compressobj(9)
    row = b"\0" * 10_001
    return png_of(10_000, 10_000, data=b"".join([pack.compress(row) for _ in range(10_000)]) + pack.flush())


FLAT = """
import resource, sys
from dualenc.serve.uploads import picture
from dualenc.serve.problems import Problem
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # kB
data = sys.stdin.buffer.read()
try: picture(data[:100], 10)
except Problem: pass
before = peak()
try: picture(data, 50_000_000); print("decoded")
except Problem as problem: print(problem.status, peak() - before)
"""


def test_a_bomb_of_100_megapixels_is_refused_undecoded_and_memory_stays_flat():
    data = bomb()
    assert len(data) < 200_000
    run = subprocess.run([sys.executable, "-c", FLAT], input=data, capture_output=True, timeout=60, check=True)
    status, grown = run.stdout.split()
    assert int(status) == 413
    assert int(grown) < 8_000  # kB; the pixels would be 100,000


def test_limits_of_pixels():
    data = png((100, 100))
    assert picture(data, 10_000).size == (100, 100)
    problem = refused(data, 413, most=9_999)
    assert problem.members == {"max_pixels": 9_999} and "9,999" in problem.detail
    for width, height in ((2**31 - 1, 2**31 - 1), (1, MOST + 1), (MOST + 1, 1), (60_000, 60_000)):
        refused(png_of(width, height), 413)
    refused(png_of(0, 10), 400)


def test_deep_grey_counts_for_more_as_it_takes_more():
    data = saved(Image.fromarray(np.zeros((100, 100), np.uint16)), "PNG")
    assert picture(data, 40_000).size == (100, 100)
    refused(data, 413, most=39_999)


def test_an_icon_that_holds_a_bomb_is_no_way_in():
    inside = bomb()
    entry = struct.pack("<HHH", 0, 1, 1) + struct.pack("<BBBBHHII", 16, 16, 0, 0, 1, 32, len(inside), 22)
    refused(entry + inside, 415)


def test_a_jpeg_of_many_passes_is_no_way_in():
    """Each repeated scan is a few bytes and a pass over all pixels: 20 MB of them would take hours."""
    whole = saved(Image.new("L", (64, 64)), "JPEG", progressive=True)
    last = whole.rindex(b"\xff\xda")
    scans = whole.count(b"\xff\xda")
    assert 1 < scans < 20

    def with_scans(count: int) -> bytes:
        return whole[:last] + whole[last:-2] * (count - scans + 1) + b"\xff\xd9"

    assert picture(with_scans(MOST_SCANS), MOST).size == (64, 64)
    refused(with_scans(MOST_SCANS + 1), 413)


def test_a_gif_whose_frame_is_larger_than_its_canvas():
    data = bytearray(saved(Image.new("P", (1, 1)), "GIF"))
    at = data.index(b",")
    data[at + 5 : at + 9] = struct.pack("<HH", 13_000, 13_000)
    refused(bytes(data), 413)


def test_damage_anywhere_is_told_and_never_raises_otherwise():
    rng = np.random.default_rng(0)
    for format in ("JPEG", "PNG", "WEBP", "GIF", "BMP"):
        whole = saved(RED, format)
        for _ in range(60):
            data = bytearray(whole)
            for at in rng.integers(0, len(data), 4):
                data[at] = rng.integers(256)
            try:
                assert picture(bytes(data), 1_000_000).mode == "RGB"
            except Problem as problem:
                assert problem.status in (400, 413, 415)


# base64


def test_base64_bare_wrapped_and_as_a_data_url():
    data = bytes(range(256)) * 4
    text = base64.b64encode(data).decode()
    for form in (text, base64.encodebytes(data).decode(), f"data:image/png;base64,{text}", f"data:;base64,{text}"):
        assert from_base64(form, len(data)) == data
    assert from_base64("", 10) == b""


@pytest.mark.parametrize(
    "text", ["a", "ab=c", "!!!!", "é", "\ud800", "YQ", "data:image/png,abc", "data:text/plain;base64,_-__", "YQ==YQ=="]
)
def test_what_is_not_base64(text):
    with pytest.raises(Problem) as found:
        from_base64(text, 1000)
    assert found.value.status == 400


def test_base64_that_is_too_long_is_refused_before_it_is_decoded(monkeypatch):
    for size in (1001, 2_000_000):
        with pytest.raises(Problem) as found:
            from_base64(base64.b64encode(b"x" * size).decode(), 1000)
        assert found.value.status == 413 and found.value.members == {"max_bytes": 1000}
    assert len(from_base64(base64.encodebytes(b"x" * 1000).decode(), 1000)) == 1000
    monkeypatch.setattr(base64, "b64decode", None)
    with pytest.raises(Problem):
        from_base64("A" * 2_000_000, 1000)
