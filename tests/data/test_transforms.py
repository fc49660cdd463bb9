"""Evaluation preprocessing against open_clip's, bit for bit; training augmentation against torchvision's."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from torchvision.transforms import RandomResizedCrop

from dualenc.data.order import sample_rng
from dualenc.data.transforms import Augment, drop_words, evaluation, random_crop, to_uint8, training


def picture(width, height, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def open_clips(image, **cfg):
    """open_clip's pixels before normalisation: (3, H, W) uint8."""
    cfg = PreprocessCfg(**cfg | {"mean": (0.0,) * 3, "std": (1.0,) * 3})
    pixels = image_transform_v2(cfg, is_train=False)(image) * 255
    assert torch.equal(pixels, pixels.round())
    return pixels.to(torch.uint8).numpy()


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("resize_mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("size", [(24, 24), (20, 31), (31, 20)])
@given(width=st.integers(1, 70), height=st.integers(1, 70), fill=st.sampled_from([0, 127]))
def test_evaluation_equals_open_clips_to_the_bit(size, resize_mode, interpolation, width, height, fill):
    if max(width / height, height / width) > 20:
        width, height = 20, 30  # a side of no pixel at all: open_clip raises
    image = picture(width, height)
    cfg = {"size": size, "resize_mode": resize_mode, "interpolation": interpolation, "fill_color": fill}
    ours = to_uint8(evaluation(image, cfg | {"size": list(size)}))
    assert ours.shape == (3, *size) and ours.dtype == np.uint8 and ours.flags.c_contiguous
    assert np.array_equal(ours, open_clips(image, **cfg))


@pytest.mark.parametrize("size", [(1, 1), (7, 900), (900, 7), (24, 24), (25, 24), (48, 48), (333, 500)])
def test_evaluation_of_odd_sizes(size):
    image = picture(*size)
    cfg = {"size": (24, 24), "resize_mode": "shortest", "interpolation": "bicubic", "fill_color": 0}
    assert np.array_equal(to_uint8(evaluation(image, cfg)), open_clips(image, **cfg))


SPEC = {"size": [16, 12], "interpolation": "bilinear"}
STRONG = Augment(scale=(0.2, 0.9), flip=0.5, color_jitter=0.4, gray=0.3)


def test_draws_depend_on_seed_epoch_and_key_alone():
    def pixels(seed, epoch, key):
        return to_uint8(training(picture(40, 30), SPEC, STRONG, sample_rng(seed, epoch, key)))

    one = pixels(1, 2, "k")
    assert one.shape == (3, 16, 12) and np.array_equal(one, pixels(1, 2, "k"))
    for other in ((2, 2, "k"), (1, 3, "k"), (1, 2, "l"), (12, 2, "k"), (1, 22, "k")):
        assert not np.array_equal(one, pixels(*other)), other
    assert not np.array_equal(pixels(1, 12, "k"), pixels(11, 2, "k"))  # nor on their digits in a row
    sample_rng(0, 0, "\udcff")  # a key that is not UTF-8


def test_without_augmentation_the_image_is_only_resized():
    whole = Augment(scale=(1.0, 1.0), ratio=(0.1, 10.0), color_jitter=0.0)
    image = picture(40, 30)
    done = training(image, SPEC, whole, np.random.default_rng(0))
    # the ratio is free, so a whole area fits only where it is the image's own: else the fallback is the image
    assert np.array_equal(np.asarray(done), np.asarray(image.resize((12, 16), Image.Resampling.BILINEAR)))


def test_a_crop_is_resized_as_if_it_were_cut_first():
    image = picture(64, 64)
    augment = Augment(scale=(0.3, 0.5), ratio=(1.0, 1.0))
    box = random_crop(64, 64, augment, np.random.default_rng(5))
    done = training(image, {"size": [16, 16], "interpolation": "bilinear"}, augment, np.random.default_rng(5))
    cut = image.crop(box).resize((16, 16), Image.Resampling.BILINEAR)
    inside = (slice(1, -1), slice(1, -1))  # the outermost pixels draw on what lies beyond the crop
    assert np.abs(np.asarray(done).astype(int) - np.asarray(cut))[inside].max() <= 1


def quantiles(boxes):
    left, top, right, bottom = np.array(boxes, dtype=float).T
    of = {
        "left": left,
        "top": top,
        "width": right - left,
        "height": bottom - top,
        "area": (right - left) * (bottom - top),
    }
    return {name: np.quantile(values, [0.1, 0.25, 0.5, 0.75, 0.9]) for name, values in of.items()}


@pytest.mark.parametrize(
    ("size", "scale", "ratio"),
    [
        ((80, 60), (0.08, 1.0), (3 / 4, 4 / 3)),
        ((60, 80), (0.5, 1.0), (0.5, 2.0)),
        ((100, 100), (0.02, 0.05), (0.1, 10.0)),  # as many wide crops as narrow ones: the logarithm is uniform
        ((200, 30), (0.9, 1.0), (3 / 4, 4 / 3)),  # no try fits: the centred crop
        ((30, 200), (0.9, 1.0), (3 / 4, 4 / 3)),
    ],
)
def test_crops_are_distributed_as_torchvisions(size, scale, ratio):
    rng = np.random.default_rng(0)
    ours = [random_crop(*size, Augment(scale=scale, ratio=ratio), rng) for _ in range(4000)]
    assert all(0 <= a < c <= size[0] and 0 <= b < d <= size[1] for a, b, c, d in ours)
    image = torch.empty(3, size[1], size[0])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        theirs = [RandomResizedCrop.get_params(image, list(scale), list(ratio)) for _ in range(4000)]
    theirs = [(left, top, left + w, top + h) for top, left, h, w in theirs]
    expected = quantiles(theirs)
    for name, found in quantiles(ours).items():
        span = size[0] * size[1] if name == "area" else max(size)
        assert np.abs(found - expected[name]).max() <= 0.04 * span + 1, name


def test_probabilities():
    image = picture(8, 8)
    plain = np.asarray(image)
    spec = {"size": [8, 8], "interpolation": "bicubic"}

    def share(test, **settings):
        augment = Augment(scale=(1.0, 1.0), ratio=(1.0, 1.0), **settings)
        done = [np.asarray(training(image, spec, augment, np.random.default_rng(i))) for i in range(600)]
        return np.mean([test(d) for d in done])

    def flipped(d):
        return np.array_equal(d, plain[:, ::-1])

    def gray(d):
        return np.array_equal(d[..., 0], d[..., 1]) and np.array_equal(d[..., 1], d[..., 2])

    def changed(d):
        return not np.array_equal(d, plain)

    assert share(flipped) == 0 and share(gray) == 0 and share(changed) == 0
    assert abs(share(flipped, flip=0.3) - 0.3) < 0.07
    assert abs(share(gray, gray=0.3) - 0.3) < 0.07
    assert abs(share(changed, color_jitter=0.4, color_jitter_prob=0.3) - 0.3) < 0.07
    assert share(changed, color_jitter=0.0, color_jitter_prob=1.0) == 0
    assert abs(share(changed, hue=0.3, color_jitter_prob=0.3) - 0.3) < 0.07


def test_hue_turns_the_colour_circle_alone():
    image = Image.new("RGB", (4, 4), (200, 40, 40))
    augment = Augment(scale=(1.0, 1.0), ratio=(1.0, 1.0), hue=0.25, color_jitter_prob=1.0)
    found = set()
    for seed in range(300):
        done = training(image, {"size": [4, 4], "interpolation": "bicubic"}, augment, np.random.default_rng(seed))
        red, green, blue = (int(x) for x in np.asarray(done)[0, 0])
        assert abs(max(red, green, blue) - 200) <= 2 and abs(min(red, green, blue) - 40) <= 2
        hue = np.asarray(done.convert("HSV"))[0, 0, 0].astype(np.int8)
        assert abs(int(hue)) <= 65  # within a quarter of 256, either way
        found.add(int(hue) // 16)
    assert len(found) >= 8


def test_words_are_dropped_at_their_rate_and_never_all():
    rng = np.random.default_rng(0)
    words = [f"w{i}" for i in range(1000)]
    kept = drop_words(" ".join(words), 0.3, rng).split()
    assert 650 < len(kept) < 750
    assert kept == [word for word in words if word in set(kept)]  # in their order
    assert {drop_words("one", 0.99, rng) for _ in range(50)} == {"one"}
    assert drop_words("a b", 0.0, rng) == "a b"


def test_hue_turns_colours_and_keeps_grey():
    rng = np.random.default_rng(0)
    augment = Augment(scale=(1, 1), ratio=(1, 1), hue=0.3, color_jitter_prob=1)
    spec = {"size": [8, 8], "interpolation": "bicubic"}
    for colour, moves in (((200, 30, 30), True), ((120, 120, 120), False)):
        turned = [training(Image.new("RGB", (8, 8), colour), spec, augment, rng).getpixel((4, 4)) for _ in range(8)]
        assert (max(abs(a - b) for t in turned for a, b in zip(t, colour, strict=True)) > 20) is moves


@given(words=st.lists(st.sampled_from("abcde"), max_size=8), probability=st.floats(0, 1), seed=st.integers(0, 9))
def test_words_left_out_leave_the_others_in_their_order(words, probability, seed):
    caption = " ".join(words)
    kept = drop_words(caption, probability, np.random.default_rng(seed)).split()
    rest = iter(words)
    assert all(word in rest for word in kept) and bool(kept) == bool(words)
    assert drop_words(caption, 0.0, np.random.default_rng(seed)) == caption
    assert drop_words(caption, 1.0, np.random.default_rng(seed)) == caption  # never all of them


def test_words_are_left_out_as_often_as_asked():
    counts = [len(drop_words("w " * 50, 0.3, np.random.default_rng(seed)).split()) for seed in range(100)]
    assert abs(np.mean(counts) / 50 - 0.7) < 0.03


def test_a_shift_moves_and_never_resizes():
    picture = np.zeros((32, 32, 3), np.uint8)
    picture[14:18, 14:18] = 255  # a dot in the middle
    spec, augment = {"size": [32, 32], "interpolation": "bicubic"}, Augment(scale=(1, 1), ratio=(1, 1), shift=0.125)
    rng, seen = np.random.default_rng(0), set()
    for _ in range(300):
        moved = np.asarray(training(Image.fromarray(picture), spec, augment, rng))
        rows, columns = np.nonzero(moved[..., 0])
        assert len(rows) == 16
        seen.add((int(rows.min()) - 14, int(columns.min()) - 14))
    assert {y for y, _ in seen} == {x for _, x in seen} == set(range(-4, 5))
