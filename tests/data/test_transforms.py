"""Evaluation preprocessing against open_clip's, bit for bit; training augmentation against torchvision's."""

import io
import itertools
import random

import dualenc.torchvision_ops  # noqa: F401  (before torchvision)

import numpy as np
import pytest
import torch
import torchvision.transforms.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from torchvision.transforms import Grayscale, RandAugment, RandomResizedCrop

from dualenc import pixels as resize
from dualenc.data.order import sample_rng
from dualenc.data.transforms import Augment, drop_words, random_crop, training, turn_hue
from dualenc.images import BadImage, Encoded
from dualenc.pixels import evaluation


def picture(width, height, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def halved(image):
    """Half the contrast: nothing that resizing overshoots is cut off, so the order of its passes changes roundings alone."""
    return Image.fromarray(64 + np.asarray(image) // 2)


def photo(width, height, seed=0, noise=12.0):
    """Like a photo: shades of colour, an edge, and noise in the measure of a camera's."""
    rng = np.random.default_rng(seed)
    x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    planes = [60 + 60 * np.sin(rng.uniform(1, 6) * x + rng.uniform(1, 6) * y) for _ in range(3)]
    pixels = np.stack(planes, -1) + 80 * (x > 0.4 + 0.3 * y)[..., None] + noise * rng.normal(size=(height, width, 1))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def encoded(image, kind="JPEG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def apart(a, b):
    """Mean absolute difference, of 255."""
    assert a.shape == b.shape and a.dtype == b.dtype == np.uint8
    return np.abs(a.astype(int) - b).mean()


def open_clips(image, **cfg):
    """open_clip's pixels before normalisation: (H, W, 3) uint8."""
    cfg = PreprocessCfg(**cfg | {"mean": (0.0,) * 3, "std": (1.0,) * 3})
    pixels = image_transform_v2(cfg, is_train=False)(image) * 255
    assert torch.equal(pixels, pixels.round())
    return pixels.to(torch.uint8).permute(1, 2, 0).numpy()


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("resize_mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("size", [(24, 24), (20, 31), (31, 20)])
@given(width=st.integers(1, 70), height=st.integers(1, 70), fill=st.sampled_from([0, 127]))
def test_evaluation_equals_open_clips_to_the_bit(size, resize_mode, interpolation, width, height, fill):
    if max(width / height, height / width) > 20:
        width, height = 20, 30  # a side of no pixel at all: open_clip raises
    image = picture(width, height)
    cfg = {"size": size, "resize_mode": resize_mode, "interpolation": interpolation, "fill_color": fill}
    expected, spec = open_clips(image, **cfg), cfg | {"size": list(size)}
    for data in (image, encoded(image, "PNG")):
        ours = evaluation(data, spec)
        assert ours.shape == (*size, 3) and ours.dtype == np.uint8 and ours.flags.c_contiguous
        assert np.array_equal(ours, expected)
    mild = halved(image)
    assert np.abs(evaluation(mild, spec, "fast").astype(int) - open_clips(mild, **cfg)).max() <= 2  # rounding


@pytest.mark.parametrize("size", [(1, 1), (7, 900), (900, 7), (24, 24), (25, 24), (48, 48), (333, 500)])
def test_evaluation_of_odd_sizes(size):
    image = picture(*size)
    cfg = {"size": (24, 24), "resize_mode": "shortest", "interpolation": "bicubic", "fill_color": 0}
    assert np.array_equal(evaluation(image, cfg), open_clips(image, **cfg))


def decodes(monkeypatch):
    """The widths of the pictures that are decoded from here on."""
    widths, plain = [], Encoded.decoded

    def watched(self, reduction=1.0):
        decoded = plain(self, reduction)
        widths.append(decoded.image.width)
        return decoded

    monkeypatch.setattr(Encoded, "decoded", watched)
    return widths


def test_exact_evaluation_of_a_jpeg_decodes_all_of_it(monkeypatch):
    data = encoded(photo(800, 600))
    cfg = {"size": (24, 24), "resize_mode": "shortest", "interpolation": "bicubic", "fill_color": 0}
    expected = open_clips(Image.open(io.BytesIO(data)).convert("RGB"), **cfg)
    widths = decodes(monkeypatch)
    assert np.array_equal(evaluation(data, cfg), expected) and widths == [800]
    assert apart(evaluation(data, cfg, "fast"), expected) < 1 and widths == [800, 200]  # an eighth has 3.1 times 24
    with pytest.raises(KeyError):
        evaluation(data, cfg, "quick")


@settings(deadline=None)
@given(
    side=st.integers(8, 60),
    times=st.floats(1, 14),
    shape=st.floats(0.5, 2),
    orientation=st.integers(1, 8),
    mode=st.sampled_from(["shortest", "longest", "squash"]),
    quality=st.sampled_from([60, 90, 97]),
    seed=st.integers(0, 99),
)
def test_fast_evaluation_stays_within_one_step_of_exact(side, times, shape, orientation, mode, quality, seed):
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = photo(max(round(side * times), 1), max(round(side * times * shape), 1), seed)
    data = encoded(image, quality=quality, exif=exif)
    spec = {"size": [side, side], "resize_mode": mode, "interpolation": "bicubic", "fill_color": 0}
    assert apart(evaluation(data, spec, "fast"), evaluation(data, spec)) <= 1


SPEC = {"size": [16, 12], "interpolation": "bilinear"}
STRONG = Augment(scale=(0.2, 0.9), flip=0.5, color_jitter=0.4, gray=0.3)


def test_draws_depend_on_seed_epoch_and_key_alone():
    def pixels(seed, epoch, key):
        return training(picture(40, 30), SPEC, STRONG, sample_rng(seed, epoch, key))

    one = pixels(1, 2, "k")
    assert one.shape == (16, 12, 3) and one.dtype == np.uint8 and one.flags.c_contiguous
    assert np.array_equal(one, pixels(1, 2, "k"))
    for other in ((2, 2, "k"), (1, 3, "k"), (1, 2, "l"), (12, 2, "k"), (1, 22, "k")):
        assert not np.array_equal(one, pixels(*other)), other
    assert not np.array_equal(pixels(1, 12, "k"), pixels(11, 2, "k"))  # nor on their digits in a row
    sample_rng(0, 0, "\udcff")  # a key that is not UTF-8


def test_without_augmentation_the_image_is_only_resized():
    whole = Augment(scale=(1.0, 1.0), ratio=(0.1, 10.0), color_jitter=0.0)
    image = picture(40, 30)
    # the ratio is free, so a whole area fits only where it is the image's own: else the fallback is the image
    expected = np.asarray(image.resize((12, 16), Image.Resampling.BILINEAR))
    assert np.array_equal(training(image, SPEC, whole, np.random.default_rng(0), "exact"), expected)
    assert apart(training(image, SPEC, whole, np.random.default_rng(0)), expected) < 0.5


@given(
    width=st.integers(1, 90),
    height=st.integers(1, 90),
    seed=st.integers(0, 99),
    interpolation=st.sampled_from(["bicubic", "bilinear"]),
)
def test_an_exact_crop_is_torchvisions_to_the_bit(width, height, seed, interpolation):
    image, augment = picture(width, height), Augment(scale=(0.1, 1.0), flip=0.5)
    rng = np.random.default_rng(seed)
    left, top, right, bottom = random_crop(width, height, augment, rng)
    resample = F.InterpolationMode(interpolation)
    expected = F.resized_crop(image, top, left, bottom - top, right - left, [16, 12], resample)
    expected = F.hflip(expected) if rng.random() < augment.flip else expected
    spec = SPEC | {"interpolation": interpolation}
    exact = training(image, spec, augment, np.random.default_rng(seed), "exact")
    assert np.array_equal(exact, np.asarray(expected))
    assert np.array_equal(training(encoded(image, "PNG"), spec, augment, np.random.default_rng(seed), "exact"), exact)
    fast, exact = (
        training(halved(image), spec, augment, np.random.default_rng(seed), how) for how in ("fast", "exact")
    )
    assert np.abs(fast.astype(int) - exact).max() <= 2  # rounding


@pytest.mark.parametrize("quick", [True, False])
@settings(deadline=None)
@given(width=st.integers(20, 400), height=st.integers(20, 400), orientation=st.integers(1, 8), seed=st.integers(0, 99))
def test_fast_and_exact_training_show_the_same_crop(quick, width, height, orientation, seed):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(photo(width, height, seed, noise=0), quality=95, exif=exif)
    fast, exact = (np.random.default_rng(seed) for _ in range(2))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resize, "TORCH_IS_FAST", quick and resize.TORCH_IS_FAST)
        shown = training(data, SPEC, STRONG, fast)
    assert apart(shown, training(data, SPEC, STRONG, exact, "exact")) <= 12  # another crop is 20 away and more
    assert fast.random() == exact.random()  # as many draws


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_crop_of_a_turned_and_reduced_jpeg_lies_where_it_lies_in_the_whole(orientation):
    """A ramp, of whose last eighth of columns and rows one in eight is picture: a wrong side would be 7 pixels away."""
    x, y = np.meshgrid(*[np.linspace(0, 255, 8 * 23 + 1)] * 2)
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(np.stack([x, y, x[:, ::-1]], -1).astype(np.uint8)), quality=95, exif=exif)
    spec, augment = {"size": [12, 12], "interpolation": "bicubic"}, Augment(scale=(0.5, 1.0))
    apart_by = []
    for seed in range(20):
        fast, exact = (training(data, spec, augment, np.random.default_rng(seed), how) for how in ("fast", "exact"))
        apart_by.append((fast.astype(int) - exact).mean((0, 1)))
    assert np.abs(np.mean(apart_by, 0)).max() < 2.5  # whole pixels of an eighth are 11 steps wide; in the mean none


def test_a_jpeg_is_decoded_at_the_smallest_scale_that_its_crop_needs(monkeypatch):
    data = encoded(photo(640, 480))
    widths = decodes(monkeypatch)
    for side, scale, width in ((60, 1.0, 80), (61, 1.0, 160), (60, 0.9, 160), (120, 1.0, 160), (400, 1.0, 640)):
        augment = Augment(scale=(scale, scale), ratio=(4 / 3, 4 / 3))
        training(data, {"size": [side, side], "interpolation": "bicubic"}, augment, np.random.default_rng(0))
        assert widths.pop() == width, (side, scale)
    training(data, {"size": [60, 60], "interpolation": "bicubic"}, Augment(), np.random.default_rng(0), "exact")
    assert widths == [640]


def test_bad_bytes_are_bad_images():
    spec = {"size": [8, 8], "interpolation": "bicubic", "resize_mode": "squash", "fill_color": 0}
    data = encoded(photo(100, 80))
    for bad, reason in ((b"", "zero bytes"), (b"x" * 99, "not an image"), (data[:-200], "truncated image")):
        for how in ("fast", "exact"):
            with pytest.raises(BadImage, match=reason):
                training(bad, spec, STRONG, np.random.default_rng(0), how)
            with pytest.raises(BadImage, match=reason):
                evaluation(bad, spec, how)


@pytest.mark.filterwarnings("ignore:Unused augmentation")
def test_training_is_distributed_as_open_clips():
    """Mean and spread of every pixel over many draws, with all that open_clip's own transform can do."""
    image, settings_ = photo(64, 48), {"scale": (0.3, 1.0), "color_jitter_prob": 0.8, "gray_scale_prob": 0.2}
    theirs = image_transform_v2(
        PreprocessCfg(size=(16, 16), mean=(0.0,) * 3, std=(1.0,) * 3),
        is_train=True,
        aug_cfg=settings_ | {"color_jitter": (0.4, 0.4, 0.4, 0.1)},
    )
    augment = Augment(scale=(0.3, 1.0), color_jitter=0.4, hue=0.1, color_jitter_prob=0.8, gray=0.2)
    spec, rng = {"size": [16, 16], "interpolation": "bicubic"}, np.random.default_rng(0)
    random.seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        expected = np.stack([theirs(image).permute(1, 2, 0).numpy() * 255 for _ in range(1500)])
    found = np.stack([training(image, spec, augment, rng) for _ in range(1500)]).astype(float)
    standard_error = expected.std(0) / np.sqrt(1500)
    assert np.abs(found.mean(0) - expected.mean(0)).max() < 5 * np.sqrt(2) * standard_error.max()
    assert np.abs(found.std(0) / expected.std(0) - 1).max() < 0.12


def kolmogorov_smirnov(a, b):
    """The greatest difference of the two samples' distribution functions."""
    places = np.sort(np.concatenate([a, b]))
    ours, theirs = (np.searchsorted(np.sort(x), places, side="right") / len(x) for x in (a, b))
    return np.abs(ours - theirs).max()


def measures(boxes):
    left, top, right, bottom = np.array(boxes, dtype=float).T
    width, height = right - left, bottom - top
    return {"left": left, "top": top, "area": width * height, "ratio": width / height, "right": right, "bottom": bottom}


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
    expected = measures(theirs)
    for name, found in measures(ours).items():
        assert kolmogorov_smirnov(found, expected[name]) < 1.95 * np.sqrt(2 / 4000), name  # one in a thousand by chance


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


@given(st.floats(-0.5, 0.5))
def test_hue_is_torchvisions_to_the_bit(share):
    assert np.array_equal(np.asarray(turn_hue(COLOURS, share)), np.asarray(F.adjust_hue(COLOURS, share)))


COLOURS = picture(40, 30, seed=3)


def torchvisions_jitter(image, augment, rng):
    """ColorJitter with the order and the factors that `rng` draws."""
    order, low = rng.permutation(4), max(0.0, 1 - augment.color_jitter)
    for change in order:
        if change == 3:
            image = F.adjust_hue(image, rng.uniform(-augment.hue, augment.hue))
        else:
            how = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation)[change]
            image = how(image, rng.uniform(low, 1 + augment.color_jitter))
    return image, tuple(order)


def test_colour_jitter_is_torchvisions_to_the_bit_in_every_order():
    augment = Augment(scale=(1, 1), ratio=(1, 1), color_jitter=0.4, hue=0.2, color_jitter_prob=1.0)
    image, spec, orders = picture(8, 8), {"size": [8, 8], "interpolation": "bicubic"}, []
    for seed in range(400):
        rng = np.random.default_rng(seed)
        random_crop(8, 8, augment, rng)
        rng.random(), rng.random()  # flip, jitter
        expected, order = torchvisions_jitter(image, augment, rng)
        assert np.array_equal(training(image, spec, augment, np.random.default_rng(seed)), np.asarray(expected))
        orders.append(order)
    assert set(orders) == set(itertools.permutations(range(4)))


def test_jitter_without_hue_and_hue_without_jitter():
    image, spec = picture(8, 8), {"size": [8, 8], "interpolation": "bicubic"}
    gray = Image.new("RGB", (8, 8), (120, 120, 120))
    for seed in range(20):
        hue_alone = Augment(scale=(1, 1), ratio=(1, 1), hue=0.3, color_jitter_prob=1)
        done = training(image, spec, hue_alone, np.random.default_rng(seed))
        before, after = (np.asarray(Image.fromarray(np.asarray(x)).convert("HSV"))[..., 2] for x in (image, done))
        assert np.abs(before.astype(int) - after).max() <= 2  # values stay
        assert np.array_equal(training(gray, spec, hue_alone, np.random.default_rng(seed)), np.asarray(gray))
        no_hue = Augment(scale=(1, 1), ratio=(1, 1), color_jitter=0.4, color_jitter_prob=1)
        one = training(gray, spec, no_hue, np.random.default_rng(seed))
        assert np.ptp(one) == 0 and one[0, 0, 0] != 120  # brighter or darker, no colour


def test_gray_is_torchvisions():
    image, augment = picture(8, 8), Augment(scale=(1, 1), ratio=(1, 1), gray=1.0)
    done = training(image, {"size": [8, 8], "interpolation": "bicubic"}, augment, np.random.default_rng(0))
    assert np.array_equal(done, np.asarray(Grayscale(3)(image)))


def test_rand_augment_is_torchvisions_and_leaves_torchs_generator_alone():
    image, spec = photo(32, 32), {"size": [32, 32], "interpolation": "bicubic"}
    augment = Augment(scale=(1, 1), ratio=(1, 1), rand_augment=2, rand_augment_magnitude=12)
    seen = set()
    for seed in range(30):
        rng = np.random.default_rng(seed)
        random_crop(32, 32, augment, rng)
        rng.random(), rng.random()  # flip, grey
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(rng.integers(2**63)))
            expected = np.asarray(RandAugment(2, 12)(image))
        before = torch.random.get_rng_state()
        done = training(image, spec, augment, np.random.default_rng(seed))
        assert torch.equal(torch.random.get_rng_state(), before)
        assert np.array_equal(done, expected) and done.flags.c_contiguous
        seen.add(done.tobytes())
    assert len(seen) > 20


@pytest.mark.parametrize(
    ("name", "value"), [("shift", 0.7), ("hue", 0.6), ("rand_augment", -1), ("rand_augment_magnitude", 31)]
)
def test_strengths_that_mean_nothing_are_refused(name, value):
    with pytest.raises(ValueError, match=rf"augment\.{name} is {value}") as error:
        Augment(**{name: value})
    assert "\n" not in str(error.value)


def test_words_are_dropped_at_their_rate_and_never_all():
    rng = np.random.default_rng(0)
    words = [f"w{i}" for i in range(1000)]
    kept = drop_words(" ".join(words), 0.3, rng).split()
    assert 650 < len(kept) < 750
    assert kept == [word for word in words if word in set(kept)]  # in their order
    assert {drop_words("one", 0.99, rng) for _ in range(50)} == {"one"}
    assert drop_words("a b", 0.0, rng) == "a b"


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


def test_what_a_shift_leaves_bare_is_mirrored():
    image, spec = picture(20, 12), {"size": [12, 20], "interpolation": "bicubic"}
    padded = np.pad(np.asarray(image), ((3, 3), (5, 5), (0, 0)), mode="reflect")
    windows = {padded[y : y + 12, x : x + 20].tobytes() for y in range(7) for x in range(11)}
    augment = Augment(scale=(1, 1), ratio=(20 / 12, 20 / 12), shift=0.25)
    seen = {training(image, spec, augment, np.random.default_rng(seed), "exact").tobytes() for seed in range(200)}
    assert seen <= windows and len(seen) > 60


@pytest.mark.parametrize(
    "wrong",
    [
        {"scale": (0.0, 1.0)},
        {"scale": (0.9, 0.5)},
        {"scale": (0.5, 1.1)},
        {"ratio": (0.0, 1.0)},
        {"ratio": (2.0, 1.0)},
        {"flip": -0.1},
        {"flip": 1.1},
        {"gray": float("nan")},
        {"color_jitter": -1.0},
        {"hue": 0.6},
        {"shift": 0.6},
        {"rand_augment": 15},
        {"rand_augment_magnitude": 31},
        {"word_dropout": 2.0},
    ],
)
def test_augmentation_that_cannot_be_is_refused(wrong):
    (name,) = wrong
    with pytest.raises(ValueError, match=rf"augment\.{name} is .*(use 0 to|lowest and then the highest)") as error:
        Augment(**wrong)
    assert "\n" not in str(error.value)
