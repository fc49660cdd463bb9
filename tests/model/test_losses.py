"""Losses against open_clip's, and against the definition, pair by pair in float64."""

import math
from dataclasses import replace

import dualenc.torchvision_ops  # noqa: F401  (before open_clip)

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from open_clip.loss import ClipLoss, SigLipLoss
from torch.nn.functional import normalize

from dualenc.model.losses import Pairs, contrastive_loss, sigmoid_loss
from tests.model.loss_cases import Case, both, cases, definition, features, ids, values_and_gradients

PARTS = ("value", "image", "text", "scale", "bias")


def pair(b, d, seed, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    image, text = torch.randn(2, b, d, generator=generator, dtype=dtype)
    return normalize(image, dim=1), normalize(text, dim=1)


def assert_equal(case: Case, *tiles: int, tolerance: float = 1e-10):
    """Values and gradients of both losses are those of the definition."""
    expected = values_and_gradients(definition, case)
    for tile in tiles:
        for mine, theirs in zip(values_and_gradients(both, case, tile=tile), expected, strict=True):
            for part, a, b in zip(PARTS, mine, theirs, strict=True):
                assert (a - b).abs().max() <= tolerance * b.abs().max().clamp(min=1), (part, tile)


@given(
    b=st.integers(1, 9), d=st.integers(1, 6), seed=st.integers(0, 99), scale=st.floats(0.1, 100), bias=st.floats(-12, 1)
)
def test_losses_equal_the_slow_ones(b, d, seed, scale, bias):
    image, text = pair(b, d, seed)
    s, t = torch.tensor(scale, dtype=torch.float64), torch.tensor(bias, dtype=torch.float64)
    logits = [[scale * sum(x * y for x, y in zip(i, t, strict=True)) for t in text.tolist()] for i in image.tolist()]

    def cross_entropy(rows):
        return sum(math.log(sum(math.exp(x) for x in row)) - row[i] for i, row in enumerate(rows)) / b

    softmax = (cross_entropy(logits) + cross_entropy([list(column) for column in zip(*logits, strict=True)])) / 2
    sigmoid = sum(
        math.log1p(math.exp((-1 if i == j else 1) * (z + bias)))
        for i, row in enumerate(logits)
        for j, z in enumerate(row)
    )
    assert contrastive_loss(image, text, s).item() == pytest.approx(softmax, rel=1e-9, abs=1e-9)
    assert sigmoid_loss(image, text, s, t).item() == pytest.approx(sigmoid / b, rel=1e-9)


@pytest.mark.parametrize("b", [1, 2, 33])
@pytest.mark.parametrize("tile", [0, 16])
def test_losses_and_gradients_equal_open_clips(b, tile):
    found = []
    for ours in (True, False):
        image, text = (x.requires_grad_() for x in pair(b, 8, b, torch.float32))
        scale, bias = torch.tensor(14.0, requires_grad=True), torch.tensor(-8.0, requires_grad=True)
        soft = contrastive_loss(image, text, scale, tile=tile) if ours else ClipLoss()(image, text, scale)
        hard = sigmoid_loss(image, text, scale, bias, tile=tile) if ours else SigLipLoss()(image, text, scale, bias)
        (soft + 3 * hard).backward()
        found.append([soft, hard, image.grad, text.grad, scale.grad, bias.grad])
    for mine, theirs in zip(*found, strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-5, atol=1e-6)


def test_label_smoothing_is_torchs():
    image, text = pair(7, 5, 0)
    logits = 9 * image @ text.T
    target = torch.arange(7)
    wanted = sum(torch.nn.functional.cross_entropy(z, target, label_smoothing=0.2) for z in (logits, logits.T)) / 2
    found = contrastive_loss(image, text, torch.tensor(9.0), label_smoothing=0.2)
    assert torch.allclose(found, wanted, rtol=1e-12)


@pytest.mark.parametrize("name", cases())
def test_every_option_equals_the_definition(name):
    for scale in (1e-3, 10.0, 100.0, 5000.0):
        assert_equal(replace(cases()[name], scale=scale), 0)


groups = st.lists(st.integers(-1, 3), min_size=1, max_size=6)
marks = st.integers(-2, 3)


@given(data=st.data(), smoothing=st.sampled_from([0.0, 0.1, 0.9]), tile=st.sampled_from([0, 1, 2, 4]))
def test_any_ids_equal_the_definition(data, smoothing, tile):
    image, text = data.draw(groups), data.draw(groups)
    pairs = Pairs(ids(image), ids(text))
    if data.draw(st.booleans()):
        own = data.draw(st.lists(st.tuples(marks, marks), min_size=len(image), max_size=len(image)))
        of_text = data.draw(st.lists(marks, min_size=len(text), max_size=len(text)))
        pairs = replace(pairs, image_marks=ids(own), text_marks=ids(of_text))
    case = Case(features(len(image), 3), features(len(text), 3, seed=1), pairs, label_smoothing=smoothing)
    assert_equal(case, tile)


@pytest.mark.parametrize("tile", [0, 3])
@pytest.mark.parametrize("name", ["nothing valid", "no positives", "nothing valid, smoothed"])
def test_a_batch_without_queries_has_no_loss_and_no_gradient(name, tile):
    softmax, _ = values_and_gradients(both, cases()[name], tile=tile)
    assert all(torch.equal(x, torch.zeros_like(x)) for x in softmax)


@pytest.mark.parametrize("tile", [0, 3])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_stands_in_a_row_that_is_left_out_does_not_matter(tile, bad):
    case = cases()["all options"]
    out = case.pairs.image < 0
    assert out.sum() == 1
    spoilt = replace(
        case, image=case.image.masked_fill(out.unsqueeze(1), bad), text=case.text.masked_fill(out[:, None, None], bad)
    )
    for mine, theirs in zip(*(values_and_gradients(both, x, tile=tile) for x in (spoilt, case)), strict=True):
        for a, b in zip(mine, theirs, strict=True):
            rows = ~out if a.ndim else slice(None)
            assert torch.allclose(a[rows] if a.ndim else a, b[rows] if b.ndim else b, rtol=1e-12, atol=1e-14)
            assert not a.ndim or torch.equal(a[out].nan_to_num(), torch.zeros_like(a[out]))


@pytest.mark.parametrize("tile", [0, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_narrow_types_are_summed_in_float32(tile, dtype):
    """Gradients keep their row's type; they are float64's of the same rounded features, rounded once."""
    for name in ("rows", "marks", "all options"):
        case = cases()[name]
        rounded = replace(
            case, **{k: normalize(getattr(case, k), dim=-1).to(dtype).double() for k in ("image", "text")}
        )
        for which in (0, 1):
            found = []
            for kind in (dtype, torch.float64):
                image, text = (
                    getattr(rounded, k).to(kind).detach().clone().requires_grad_() for k in ("image", "text")
                )
                scale = torch.tensor(30.0, dtype=torch.float32, requires_grad=True)
                loss = both(rounded, image, text, scale, torch.tensor(-5.0), tile=tile)[which]
                loss.backward()
                assert image.grad.dtype == text.grad.dtype == kind and scale.grad.dtype == torch.float32
                assert loss.dtype == torch.promote_types(kind, torch.float32)
                found.append((loss, scale.grad, image.grad, text.grad))
            share = max(torch.finfo(dtype).eps, 1e-5)
            for a, b, limit in zip(*found, (1e-5, 1e-5, share, share), strict=True):
                assert (a - b).abs().max() <= limit * b.abs().max().clamp(min=1e-2)


@pytest.mark.parametrize("tile", [0, 3])
def test_autocast_changes_nothing(tile):
    case = cases()["rows"]
    plain = values_and_gradients(both, case, dtype=torch.float32, tile=tile)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = values_and_gradients(both, case, dtype=torch.float32, tile=tile)
    for a, b in zip(plain, cast, strict=True):
        assert torch.equal(a[0], b[0])


def test_gradients_pass_torchs_check():
    pairs = Pairs(ids([0, 1, -1]), ids([[0, 0], [1, 1], [1, -1]]), ids([[5], [6], [7]]), ids([[5, 5], [5, 6], [6, 6]]))
    case = Case(features(3, 4), features(3, 2, 4, seed=1), pairs, label_smoothing=0.1, dims=(2,))
    inputs = [normalize(x, dim=-1).requires_grad_() for x in (case.image, case.text)]
    inputs += [torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (3.0, -1.0)]
    for tile in (0, 2):
        assert torch.autograd.gradcheck(lambda *x, tile=tile: both(case, *x, tile=tile), inputs)


@pytest.mark.parametrize(
    "shapes", [((3, 4), (2, 4)), ((3, 4), (3, 5)), ((0, 4), (0, 4)), ((4,), (4,)), ((3, 4), (2, 2, 4))]
)
def test_what_is_no_batch_of_pairs_is_refused(shapes):
    image, text = (torch.zeros(shape) for shape in shapes)
    one = torch.tensor(1.0)
    for call in (lambda: contrastive_loss(image, text, one), lambda: sigmoid_loss(image, text, one, one)):
        with pytest.raises(ValueError, match=r"must (be \(B, D\) and \(T, D\)|have equal B)"):
            call()


ROWS = torch.arange(3)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"label_smoothing": 1.0}, "label_smoothing is 1.0"),
        ({"label_smoothing": -0.1}, "label_smoothing is -0.1"),
        ({"dims": []}, r"dims \[\]"),
        ({"dims": [2, 5]}, r"dims \[2, 5\] must be lengths of prefixes of the 4"),
        ({"dims": [0]}, r"dims \[0\]"),
        ({"tile": -1}, "tile is -1"),
        ({"pairs": Pairs(ROWS[:2], ROWS)}, r"pairs.image is torch.int64 \(2,\)"),
        ({"pairs": Pairs(ROWS, ROWS.float())}, "pairs.text is torch.float32"),
        ({"pairs": Pairs(ROWS, ROWS, image_marks=ROWS.unsqueeze(1))}, "marks of one side"),
        ({"pairs": Pairs(ROWS, ROWS, ROWS.unsqueeze(1), ROWS[:1])}, "pairs.text_marks"),
        ({"pairs": Pairs(ROWS, ROWS, ROWS, ROWS)}, "pairs.image_marks"),
    ],
)
def test_settings_out_of_range_are_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        contrastive_loss(torch.zeros(3, 4), torch.zeros(3, 4), torch.tensor(1.0), **settings)
