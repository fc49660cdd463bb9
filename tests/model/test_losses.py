"""Losses against open_clip's, and against the slow obvious float64 version."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from open_clip.loss import ClipLoss, SigLipLoss

from dualenc.model.losses import contrastive_loss, sigmoid_loss


def pair(b, d, seed, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    image, text = torch.randn(2, b, d, generator=generator, dtype=dtype)
    return torch.nn.functional.normalize(image, dim=1), torch.nn.functional.normalize(text, dim=1)


def slow_contrastive(image, text, scale):
    b = len(image)
    logits = [[scale * sum(x * y for x, y in zip(i, t, strict=True)) for t in text.tolist()] for i in image.tolist()]

    def cross_entropy(rows):
        return sum(math.log(sum(math.exp(x) for x in row)) - row[i] for i, row in enumerate(rows)) / b

    return (cross_entropy(logits) + cross_entropy([list(column) for column in zip(*logits, strict=True)])) / 2


def slow_sigmoid(image, text, scale, bias):
    total = 0.0
    for i, x in enumerate(image.tolist()):
        for j, y in enumerate(text.tolist()):
            logit = scale * sum(a * b for a, b in zip(x, y, strict=True)) + bias
            total += math.log1p(math.exp(-logit if i == j else logit))
    return total / len(image)


@given(
    b=st.integers(1, 9), d=st.integers(1, 6), seed=st.integers(0, 99), scale=st.floats(0.1, 100), bias=st.floats(-12, 1)
)
def test_losses_equal_the_slow_ones(b, d, seed, scale, bias):
    image, text = pair(b, d, seed)
    s, t = torch.tensor(scale, dtype=torch.float64), torch.tensor(bias, dtype=torch.float64)
    assert contrastive_loss(image, text, s).item() == pytest.approx(
        slow_contrastive(image, text, scale), rel=1e-9, abs=1e-9
    )
    assert sigmoid_loss(image, text, s, t).item() == pytest.approx(slow_sigmoid(image, text, scale, bias), rel=1e-9)


@pytest.mark.parametrize("b", [1, 2, 33])
def test_losses_and_gradients_equal_open_clips(b):
    found = []
    for ours in (True, False):
        image, text = (x.requires_grad_() for x in pair(b, 8, b, torch.float32))
        scale, bias = torch.tensor(14.0, requires_grad=True), torch.tensor(-8.0, requires_grad=True)
        soft = contrastive_loss(image, text, scale) if ours else ClipLoss()(image, text, scale)
        hard = sigmoid_loss(image, text, scale, bias) if ours else SigLipLoss()(image, text, scale, bias)
        (soft + 3 * hard).backward()
        found.append([soft, hard, image.grad, text.grad, scale.grad, bias.grad])
    for mine, theirs in zip(*found, strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shapes", [((3, 4), (2, 4)), ((3, 4), (3, 5)), ((0, 4), (0, 4)), ((4,), (4,))])
def test_what_is_no_batch_of_pairs_is_refused(shapes):
    image, text = (torch.zeros(shape) for shape in shapes)
    one = torch.tensor(1.0)
    for call in (lambda: contrastive_loss(image, text, one), lambda: sigmoid_loss(image, text, one, one)):
        with pytest.raises(ValueError, match=r"must be equal \(B, D\) with B > 0"):
            call()
