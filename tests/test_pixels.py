"""torch's resizing against Pillow's, and the memory that it reads."""

import gc
import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dualenc import pixels as resize
from dualenc.images import BadImage
from dualenc.pixels import RESAMPLE, evaluation, resized, rgb


def noise(width, height, seed=0):
    """Of half the contrast: nothing that resizing overshoots is cut off, so the order of its passes changes roundings alone."""
    return Image.fromarray(np.random.default_rng(seed).integers(64, 192, (height, width, 3), dtype=np.uint8))


SIDES = st.integers(1, 60)


@settings(deadline=None)
@given(SIDES, SIDES, SIDES, SIDES, st.sampled_from(list(RESAMPLE)), st.data())
def test_fast_resizing_is_pillows_but_for_rounding(width, height, wide, high, interpolation, draw):
    image = noise(width, height)
    left, top = draw.draw(st.integers(0, width - 1)), draw.draw(st.integers(0, height - 1))
    box = (left, top, draw.draw(st.integers(left + 1, width)), draw.draw(st.integers(top + 1, height)))
    cut = image.crop(box).resize((wide, high), RESAMPLE[interpolation])
    exact = resized(image, (wide, high), interpolation, box)
    assert np.array_equal(exact, np.asarray(cut))
    fast = rgb(resized(image, (wide, high), interpolation, box, fast=True))
    assert fast.shape == (high, wide, 3) and np.abs(fast.astype(int) - exact).max() <= 2
    if left == top == 0 and box[2:] == image.size:
        whole = resized(image, (wide, high), interpolation, fast=True)
        assert np.array_equal(rgb(whole), fast)


def test_a_box_between_pixels_is_kept_to():
    image = noise(40, 30)
    box = (0.5, 0.25, 38.75, 29.5)
    expected = np.asarray(image.resize((12, 9), Image.Resampling.BICUBIC, box=box))
    for fast in (False, True):
        assert np.array_equal(resized(image, (12, 9), "bicubic", box, fast), expected)


@pytest.mark.parametrize("size", [(31, 20), (2100, 2100)])  # the larger one lies in two pieces
@pytest.mark.parametrize("arrow", [True, False])
def test_a_pictures_memory_is_read_rightly_and_kept_while_it_is_read(size, arrow, monkeypatch):
    if not arrow:
        monkeypatch.delattr(Image.Image, "__arrow_c_array__", raising=False)
    image = noise(*size)
    expected = np.asarray(image).copy()
    memory = resize._pixels(image)
    del image
    gc.collect()
    others = [Image.new("RGB", size, (1, 2, 3)) for _ in range(3)]
    assert memory.shape == size[::-1] and len(others) == 3
    assert np.array_equal(memory.view(np.uint8).reshape(size[1], size[0], 4)[..., :3], expected)


def test_channels_are_taken_from_any_view():
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 4), dtype=np.uint8)
    for view in (pixels, pixels[:, ::-1], pixels[1:4, 2:5], pixels[..., :3], np.ascontiguousarray(pixels[..., :3])):
        done = rgb(view)
        assert np.array_equal(done, view[..., :3]) and done.flags.c_contiguous


def test_a_picture_too_long_to_resize_is_refused():
    data = io.BytesIO()
    Image.new("RGB", (1, 5000)).save(data, "PNG")
    spec = {"size": [224, 224], "interpolation": "bicubic", "resize_mode": "shortest", "fill_color": 0}
    with pytest.raises(BadImage, match="too many pixels"):
        evaluation(data.getvalue(), spec)
    assert evaluation(data.getvalue(), spec | {"resize_mode": "squash"}).shape == (224, 224, 3)
