"""Decoding: ordinary files to the bit, odd files to what they show, damage to its reason."""

from __future__ import annotations

import io
import struct
import warnings
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dualenc.images import REASONS, BadImage, decode, decode_fully, open_image, opened, to_rgb

WIDTH, HEIGHT = 23, 17


def picture(mode: str = "RGB", seed: int = 0, size: tuple[int, int] = (WIDTH, HEIGHT)) -> Image.Image:
    """Smooth, so that lossy formats stay close, and different at every corner, so that turning it shows."""
    x, y = np.meshgrid(np.linspace(0, 1, size[0]), np.linspace(0, 1, size[1]))
    phases = np.random.default_rng(seed).uniform(0.2, 0.8, 3)
    planes = [40 + 170 * (p * x + (1 - p) * y) for p in phases]
    return Image.fromarray(np.stack(planes, -1).astype(np.uint8)).convert(mode)


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def pixels(image: Image.Image) -> np.ndarray:
    assert image.mode == "RGB"
    return np.asarray(image).astype(int)


def reason(data: bytes, **options) -> str:
    with pytest.raises(BadImage) as caught:
        decode(data, **options)
    return str(caught.value)


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize(("kind", "options"), [("JPEG", {"quality": 80}), ("PNG", {}), ("WEBP", {}), ("BMP", {})])
def test_ordinary_files_come_out_as_pillow_decodes_them_to_the_bit(mode, kind, options):
    data = encoded(picture(mode), kind, **options)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    decoded = decode_fully(data)
    assert np.array_equal(pixels(decoded.image), expected)
    assert (decoded.format, decoded.repairs) == (kind, ())


def test_progressive_jpeg_and_interlaced_png_are_ordinary():
    for data in (encoded(picture(), "JPEG", progressive=True), encoded(picture(), "PNG", interlace=True)):
        assert np.array_equal(pixels(decode(data)), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))
        assert decode_fully(data).repairs == ()


def test_cmyk_keeps_its_colours():
    data = encoded(picture().convert("CMYK"), "JPEG", quality=95)
    decoded = decode_fully(data)
    assert decoded.repairs == ("CMYK",)
    assert np.abs(pixels(decoded.image) - pixels(picture())).max() <= 12


def test_palette_keeps_its_colours():
    image = picture().quantize(200)
    decoded = decode_fully(encoded(image))
    assert decoded.repairs == ("palette",)
    assert np.array_equal(pixels(decoded.image), pixels(image.convert("RGB")))


def test_one_bit_is_black_and_white():
    image = picture().convert("1")
    decoded = decode_fully(encoded(image))
    assert decoded.repairs == ("1",)
    assert np.array_equal(pixels(decoded.image), np.asarray(image)[..., None].repeat(3, 2) * 255)


def over_white(colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    return colour * alpha[..., None] / 255 + 255 * (1 - alpha[..., None] / 255)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_alpha_lies_on_white(mode, kind):
    image = picture(mode)
    alpha = np.linspace(0, 255, HEIGHT * WIDTH).astype(np.uint8).reshape(HEIGHT, WIDTH)
    image.putalpha(Image.fromarray(alpha))
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    decoded = decode_fully(encoded(image, kind, **options))
    assert decoded.repairs == ("alpha",)
    expected = over_white(np.asarray(image.convert("RGBA"))[..., :3].astype(float), alpha.astype(float))
    assert np.abs(pixels(decoded.image) - expected).max() <= 1


def test_transparent_palette_entry_and_transparent_colour_lie_on_white():
    image = picture().quantize(8)
    hidden = np.asarray(image) == 3
    assert hidden.any() and not hidden.all()
    decoded = decode_fully(encoded(image, transparency=3))
    assert decoded.repairs == ("palette", "alpha")
    expected = np.where(hidden[..., None], 255, pixels(image.convert("RGB")))
    assert np.array_equal(pixels(decoded.image), expected)

    colour = picture()
    decoded = decode_fully(encoded(colour, transparency=colour.getpixel((5, 5))))
    hidden = (np.asarray(colour) == colour.getpixel((5, 5))).all(-1)
    assert np.array_equal(pixels(decoded.image), np.where(hidden[..., None], 255, pixels(colour)))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_rotation_stands_the_picture_upright(orientation, kind):
    # what the camera stores for each orientation, as steps that undo it (EXIF 2.3, table of orientations)
    undo = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.swapaxes(0, 1),
        6: lambda a: np.rot90(a, -1),
        7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
        8: lambda a: np.rot90(a, 1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"JPEG": {"quality": 95}, "WEBP": {"lossless": True}}.get(kind, {})
    decoded = decode_fully(encoded(picture(), kind, exif=exif, **options))
    shown = undo(pixels(picture()))
    assert decoded.image.size == shown.shape[1::-1]
    assert np.abs(pixels(decoded.image) - shown).max() <= (0 if kind in ("PNG", "TIFF", "WEBP") else 6)
    if kind != "TIFF":  # Pillow turns these by itself
        assert decoded.repairs == (("rotation",) if orientation > 1 else ())


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_exif_does_not_cost_the_picture():
    data = encoded(picture(), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff garbage")
    assert np.array_equal(pixels(decode(data)), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bit_grey_keeps_its_upper_byte(kind):
    grey = np.asarray(picture("L")).astype(np.uint16)
    deep = Image.fromarray(grey * 256 + 17)
    decoded = decode_fully(encoded(deep, kind))
    assert decoded.repairs == ("16-bit",)
    assert np.array_equal(pixels(decoded.image)[..., 1], grey)


def test_integer_and_float_tiff_are_scaled_to_their_depth():
    grey = np.asarray(picture("L"))
    for values, repair in [
        (grey.astype(np.int32) * 256, "16-bit"),
        (grey.astype(np.int32) << 23, None),  # 32 bits: half of white at most, as int32 holds no more
        (grey.astype(np.float32) / 255, "float"),
        (grey.astype(np.float32), "float"),
        (grey.astype(np.float32) * 256, "float"),
    ]:
        decoded = decode_fully(encoded(Image.fromarray(values), "TIFF"))
        expected = grey if repair else grey // 2
        assert np.abs(pixels(decoded.image)[..., 0] - expected).max() <= 1, (values.dtype, values.max())
        assert decoded.repairs == (repair or "16-bit",)
    odd = np.array([[np.nan, np.inf, -np.inf, -3.0, 0.5]], np.float32)
    assert pixels(decode(encoded(Image.fromarray(odd), "TIFF"))).shape == (1, 5, 3)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_animations_show_their_first_frame(kind):
    first, second = picture(seed=1), Image.new("RGB", (WIDTH, HEIGHT), (9, 9, 9))
    options = {"lossless": True} if kind == "WEBP" else {}
    decoded = decode_fully(encoded(first, kind, save_all=True, append_images=[second], **options))
    assert "frames" in decoded.repairs
    assert np.abs(pixels(decoded.image) - pixels(first)).max() <= (40 if kind == "GIF" else 0)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP"])
@pytest.mark.parametrize("share", [0.4, 0.7, 0.97])
def test_a_truncated_file_is_refused(kind, share):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (120, 160, 3), dtype=np.uint8))
    data = encoded(noise, kind)
    assert reason(data[: int(len(data) * share)]) in ("truncated image", "image does not decode")
    if kind in ("JPEG", "PNG", "GIF", "WEBP"):
        assert reason(data[: int(len(data) * share)]) == "truncated image"
    decode(data)


def test_no_bytes_text_and_a_broken_body_have_their_own_reasons():
    assert reason(b"") == "zero bytes"
    assert reason(b"<html>404 not found</html>") == "not an image"
    assert reason(b"\0" * 5000) == "not an image"
    data = bytearray(encoded(picture()))
    middle = data.index(b"IDAT") + 6
    data[middle : middle + 30] = b"\xff" * 30
    assert reason(bytes(data)) == "image does not decode"


def test_formats_that_start_programs_or_that_anything_could_be_are_not_read():
    assert reason(encoded(picture(), "EPS")) == "not an image"
    assert reason(encoded(picture(), "TGA")) == "not an image"


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def bomb(side: int) -> bytes:
    """A PNG of side x side pixels in a few bytes, whose body is not even there."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def test_a_bomb_is_refused_by_its_header_alone():
    assert reason(bomb(60_000)) == "too many pixels"  # above Pillow's own limit
    assert reason(bomb(9_000), max_pixels=80_000_000) == "too many pixels"
    data = encoded(picture())
    assert reason(data, max_pixels=WIDTH * HEIGHT - 1) == "too many pixels"
    assert decode(data, max_pixels=WIDTH * HEIGHT).size == (WIDTH, HEIGHT)


def test_pillows_warnings_stay_inside():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # Pillow warns at its MAX_IMAGE_PIXELS, far below where it refuses; the body is missing, so it ends there
        assert reason(bomb(10_000)) != "too many pixels"
        exif = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\xff\xff\0\0"
        decode(encoded(picture(), "JPEG", exif=exif))
        decode(encoded(picture().quantize(8), transparency=bytes([0, 9, 255] * 2)))


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP"]), st.data())
def test_whatever_the_damage_there_is_a_picture_or_a_known_reason(kind, draw):
    data = bytearray(encoded(picture(), kind))
    for _ in range(draw.draw(st.integers(1, 4))):
        data[draw.draw(st.integers(0, len(data) - 1))] = draw.draw(st.integers(0, 255))
    data = bytes(data[: draw.draw(st.integers(0, len(data)))])
    reduction = draw.draw(st.sampled_from([1, 2, 5]))
    try:
        encoded_image = opened(data, max_pixels=10_000_000)
        size, image = encoded_image.size, encoded_image.pixels(reduction)
    except BadImage as error:
        assert str(error) in REASONS
    else:
        assert image.mode == "RGB"
        assert all(whole / reduction <= side <= whole for whole, side in zip(size, image.size, strict=True))


def test_a_picture_that_was_turned_is_not_turned_again():
    source = picture(size=(40, 30))
    exif = source.getexif()
    exif[0x0112] = 6
    turned = decode(encoded(source, "JPEG", exif=exif))
    assert turned.size == (30, 40) and to_rgb(turned)[0].tobytes() == turned.tobytes()


def test_a_file_that_does_not_decode_is_named(tmp_path):
    path = tmp_path / "a.jpg"
    path.write_bytes(b"hello")
    with pytest.raises(BadImage, match=r"a\.jpg: not an image"):
        open_image(path)
    path.write_bytes(encoded(picture()))
    assert open_image(str(path)).size == (WIDTH, HEIGHT)
    with pytest.raises(FileNotFoundError):
        open_image(tmp_path / "none.png")


def turned(image: Image.Image, orientation: int, kind: str = "JPEG", **options) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(image, kind, exif=exif, **options)


def test_the_size_of_a_jpeg_is_told_by_its_header_alone():
    for orientation, size in ((1, (230, 170)), (3, (230, 170)), (6, (170, 230))):
        data = turned(picture(size=(230, 170)), orientation)
        header = opened(data[: len(data) // 2])
        assert header.size == size == opened(data).pixels().size
        with pytest.raises(BadImage, match="truncated image"):
            header.pixels()
    for kind in ("PNG", "TIFF", "WEBP"):  # what turns these may come last
        assert opened(turned(picture(size=(230, 170)), 6, kind)).size == (170, 230)


@settings(deadline=None)
@given(st.integers(1, 90), st.integers(1, 90), st.floats(0.2, 20), st.integers(1, 8), st.booleans())
def test_a_reduced_jpeg_shows_the_same_picture_in_its_box(width, height, reduction, orientation, progressive):
    data = turned(picture(size=(width, height)), orientation, quality=95, progressive=progressive)
    whole, reduced = decode(data), opened(data).decoded(reduction)
    (wide, high), (left, top, right, bottom) = reduced.image.size, reduced.box
    divisor = whole.width / (right - left)
    assert divisor == pytest.approx(whole.height / (bottom - top)) and divisor in (1, 2, 4, 8)
    assert divisor <= max(reduction, 1) and wide >= whole.width / max(reduction, 1)
    assert min(left, top, wide - right, high - bottom) >= 0 and wide - (right - left) < 1 and high - (bottom - top) < 1
    if min(width, height) >= 16:  # else a fitting divisor may not be found
        assert divisor == max(d for d in (1, 2, 4, 8) if d <= max(reduction, 1))
    expected = whole.resize((5, 4), Image.Resampling.BOX)
    shown = reduced.image.resize((5, 4), Image.Resampling.BOX, box=reduced.box)
    assert np.abs(pixels(shown) - pixels(expected)).max() <= (
        0 if divisor == 1 else 6 + 130 * divisor / min(width, height)
    )


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_box_lies_where_the_turned_picture_lies(orientation):
    """One column and one row in eight of the last pixels are picture: at the wrong side, all would be 7 pixels away."""
    ramp = np.linspace(0, 255, 8 * 23 + 1)
    plane = np.stack([ramp[:, None] + 0 * ramp, 0 * ramp[:, None] + ramp, 0 * ramp[:, None] + ramp[::-1]], -1)
    data = turned(Image.fromarray(plane.astype(np.uint8)), orientation, quality=95)
    reduced = opened(data).decoded(8)
    assert reduced.image.size == (24, 24)
    shown = reduced.image.resize((6, 6), Image.Resampling.BICUBIC, box=reduced.box)
    expected = decode(data).resize((6, 6), Image.Resampling.BICUBIC)
    assert np.abs(pixels(shown) - pixels(expected)).max() <= 4


def test_pixels_are_those_of_decode_and_a_jpeg_gives_them_again_at_other_sizes():
    data = encoded(picture(size=(80, 60)), "JPEG")
    source = opened(data)
    for reduction, size in ((1, (80, 60)), (4, (20, 15)), (1.9, (80, 60)), (2, (40, 30)), (100, (10, 8))):
        assert source.pixels(reduction).size == size and source.size == (80, 60)
    assert np.array_equal(pixels(source.pixels()), pixels(decode(data)))


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_other_formats_come_out_whole(kind):
    data = encoded(picture(size=(80, 60)), kind)
    source = opened(data)
    first = source.decoded(8)
    assert first.image.size == source.size == (80, 60) and first.box == (0, 0, 80, 60)
    assert np.array_equal(pixels(first.image), pixels(decode(data)))
    assert source.pixels() is first.image  # decoded once


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_grey_and_cmyk_are_reduced_alike(mode):
    data = encoded(picture(size=(160, 120)).convert(mode), "JPEG", quality=95)
    reduced = opened(data).decoded(4)
    assert reduced.image.size == (40, 30) and reduced.repairs == decode_fully(data).repairs
    expected = pixels(decode(data).resize((40, 30), Image.Resampling.BOX))
    assert np.abs(pixels(reduced.image) - expected).max() <= 8


def test_a_cameras_mpo_is_a_jpeg():
    first, second = picture(size=(80, 60)), Image.new("RGB", (80, 60), (9, 9, 9))
    data = encoded(first, "MPO", save_all=True, append_images=[second], quality=95)
    reduced = opened(data).decoded(2)
    assert reduced.format == "MPO" and reduced.repairs == () and reduced.image.size == (40, 30)
    assert np.abs(pixels(reduced.image) - pixels(first.resize((40, 30), Image.Resampling.BOX))).max() <= 6
    assert np.abs(pixels(decode(data)) - pixels(first)).max() <= 6


def test_a_truncated_jpeg_is_refused_at_every_size():
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (120, 160, 3), dtype=np.uint8))
    for progressive in (False, True):
        data = encoded(noise, "JPEG", progressive=progressive)
        for share in (0.4, 0.97):
            for reduction in (1, 2, 8):
                with pytest.raises(BadImage, match="truncated image"):
                    opened(data[: int(len(data) * share)]).pixels(reduction)


def test_an_rgb_picture_is_not_copied_and_a_caller_may_close_its_file():
    data = encoded(picture(), "JPEG")
    with Image.open(io.BytesIO(data)) as image:
        done, repairs = to_rgb(image)
    assert repairs == [] and np.array_equal(pixels(done), pixels(decode(data)))
