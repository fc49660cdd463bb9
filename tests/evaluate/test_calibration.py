"""Calibration: the error by hand, the temperature against a grid, and that it is judged on images it has not seen."""

from __future__ import annotations

import doctest

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from dualenc.evaluate.zeroshot import calibration
from dualenc.evaluate.zeroshot.calibration import (
    BINS,
    HIGHEST,
    LOWEST,
    chance_error,
    confidences,
    cross_fitted_scales,
    expected_calibration_error,
    fitted_scale,
    reliability,
)


def slow_error(confidence, right, bins):
    """The definition in Guo et al. 2017, eq. 3, bin by bin: the bin m holds ((m-1)/M, m/M]."""
    total = 0.0
    for m in range(1, bins + 1):
        low, high = (m - 1) / bins, m / bins
        inside = [i for i, c in enumerate(confidence) if low < c <= high or (m == 1 and c == 0)]
        if inside:
            gap = np.mean([right[i] for i in inside]) - np.mean([confidence[i] for i in inside])
            total += len(inside) / len(confidence) * abs(gap)
    return total


def slow_nll(scores, target, scale):
    """Mean negative log-likelihood, in float64, sample by sample."""
    total = 0.0
    for row, right in zip(np.asarray(scores, np.float64) * scale, target, strict=True):
        total += np.log(np.exp(row - row.max()).sum()) + row.max() - row[right]
    return total / len(target)


def noisy(n=400, classes=6, sharp=0.15, seed=0):
    """Cosines whose right class stands out, but not always."""
    rng = np.random.default_rng(seed)
    target = rng.integers(0, classes, n)
    scores = 0.1 * rng.standard_normal((n, classes))
    scores[np.arange(n), target] += sharp
    return scores.astype(np.float32), target


def test_an_edge_belongs_to_the_bin_below_and_zero_to_the_first():
    found = reliability([0.0, 0.2, 0.2000001, 0.4, 1.0], [0, 0, 1, 1, 1], bins=5)
    assert found.images.tolist() == [2, 2, 0, 0, 1]
    assert found.accuracy[:2].tolist() == [0.0, 1.0]
    assert np.isnan(found.accuracy[2])
    assert found.error == pytest.approx((0.2 + 2 * (1 - 0.30000005) + 0) / 5)


def test_confidence_that_is_right_as_often_as_it_says_has_no_error():
    assert expected_calibration_error([0.75] * 4, [True, True, False, True]) == 0
    assert expected_calibration_error([1.0] * 4, [False] * 4) == 1


@settings(deadline=None, max_examples=60)
@given(
    st.lists(
        st.tuples(st.one_of(st.sampled_from([k / 15 for k in range(16)]), st.floats(0, 1)), st.booleans()), min_size=1
    ),
    st.integers(1, 20),
)
def test_error_equals_the_definition_bin_by_bin(pairs, bins):
    confidence, right = zip(*pairs, strict=True)
    assert expected_calibration_error(confidence, right, bins) == pytest.approx(slow_error(confidence, right, bins))


@pytest.mark.parametrize(
    ("confidence", "right", "bins"),
    [
        ([], [], 15),
        ([0.5, np.nan], [1, 0], 15),
        ([1.2], [1], 15),
        ([-0.1], [1], 15),
        ([0.5], [1, 0], 15),
        ([0.5], [1], 0),
    ],
)
def test_what_is_no_probability_is_refused(confidence, right, bins):
    with pytest.raises(ValueError, match=r"give (one of each|softmax outputs)"):
        reliability(confidence, right, bins)


def test_confidences_by_hand():
    """Two classes whose logits differ by log 3: 3/4 and 1/4."""
    found = confidences([[np.log(3.0), 0.0], [0.0, np.log(3.0)]], [0, 0], 1.0)
    assert found.top.tolist() == pytest.approx([0.75, 0.75])
    assert found.nll == pytest.approx(-(np.log(0.75) + np.log(0.25)) / 2)
    assert found.brier == pytest.approx((2 * 0.25**2 + 2 * 0.75**2) / 2)


@settings(deadline=None, max_examples=40)
@given(
    arrays.arrays(np.float64, st.tuples(st.integers(1, 9), st.integers(2, 5)), elements=st.floats(-1, 1)),
    st.floats(0.01, 200),
    st.integers(1, 12),
)
def test_confidences_equal_a_softmax_row_by_row_and_blocks_do_not_matter(scores, scale, values):
    target = np.arange(len(scores)) % scores.shape[1]
    calibration_values, calibration._VALUES = calibration._VALUES, values
    try:
        found = confidences(scores, target, scale)
    finally:
        calibration._VALUES = calibration_values
    powers = np.exp(scale * (scores - scores.max(axis=1, keepdims=True)))
    shares = powers / powers.sum(axis=1, keepdims=True)
    assert found.top == pytest.approx(shares.max(axis=1))
    assert found.nll == pytest.approx(slow_nll(scores, target, scale))
    assert found.brier == pytest.approx(((shares - np.eye(scores.shape[1])[target]) ** 2).sum(axis=1).mean(), abs=1e-12)


def test_a_scale_for_each_image():
    scores, target = noisy(4)
    both = confidences(scores, target, [1.0, 50.0, 1.0, 50.0])
    apart = [confidences(scores, target, scale).top for scale in (1.0, 50.0)]
    assert both.top.tolist() == [apart[i % 2][i] for i in range(4)]


@pytest.mark.parametrize("start", [LOWEST, 0.5, 12.0, 100.0, HIGHEST])
def test_the_fitted_scale_is_the_best_of_a_grid_from_every_start(start):
    scores, target = noisy()
    found = fitted_scale(scores, target, start)
    grid = np.geomspace(1, 100, 2001)
    best = grid[np.argmin([confidences(scores, target, scale).nll for scale in grid])]
    assert found == pytest.approx(best, rel=3e-3)
    nearby = [slow_nll(scores, target, found * factor) for factor in (0.999, 1.0, 1.001)]
    assert nearby[1] == min(nearby)


@settings(deadline=None, max_examples=60)
@given(
    arrays.arrays(np.float32, st.tuples(st.integers(1, 8), st.integers(2, 4)), elements=st.floats(-1, 1, width=32)),
    st.floats(LOWEST, HIGHEST),
    st.data(),
)
def test_no_scale_of_a_grid_is_better_than_the_fitted_one(scores, start, data):
    target = np.array(
        data.draw(st.lists(st.integers(0, scores.shape[1] - 1), min_size=len(scores), max_size=len(scores)))
    )
    found = fitted_scale(scores, target, start)
    assert LOWEST <= found <= HIGHEST
    best = min(slow_nll(scores, target, scale) for scale in np.geomspace(LOWEST, HIGHEST, 300))
    assert slow_nll(scores, target, found) <= best + 1e-9


def test_a_fit_without_a_minimum_ends_at_the_end_of_its_range():
    scores = [[0.9, 0.1], [0.2, 0.8]]
    assert fitted_scale(scores, [1, 0]) == LOWEST  # always wrong: nothing may be believed
    assert confidences(scores, [0, 1], fitted_scale(scores, [0, 1])).nll < 1e-12  # always right: as sure as can be
    assert fitted_scale(np.multiply(scores, 1e-6), [0, 1]) == HIGHEST
    assert fitted_scale(*noisy(), between=(1.0, 2.0)) == 2.0
    assert fitted_scale([[0.5, 0.5]], [0], start=7.0) == 7.0  # all the same: any scale is as good


def test_the_temperature_of_an_image_is_fitted_on_the_other_half():
    scores, target = noisy(101)
    scales = cross_fitted_scales(scores, target, seed=5)
    first, second = np.unique(scales)
    assert {int((scales == one).sum()) for one in (first, second)} == {50, 51}
    for one, other in ((first, second), (second, first)):
        unseen = scales != one
        assert one == pytest.approx(fitted_scale(scores[unseen], target[unseen]), rel=1e-5)
        assert one != pytest.approx(fitted_scale(scores[~unseen], target[~unseen]), rel=1e-5)
        assert one != other
    assert (cross_fitted_scales(scores, target, seed=5) == scales).all()
    assert (cross_fitted_scales(scores, target, seed=6) != scales).any()


def test_scaling_all_cosines_scales_the_temperature_alone():
    scores, target = noisy()
    assert fitted_scale(scores * 4, target) == pytest.approx(fitted_scale(scores, target) / 4, rel=1e-4)


def test_a_temperature_takes_most_of_the_error_away():
    """Labels drawn from the softmax at scale 8: an encoder that believes in 60 is far too sure, a fitted one is not."""
    rng = np.random.default_rng(3)
    scores = rng.uniform(-1, 1, (4000, 5))
    powers = np.exp(8 * scores)
    target = np.array([rng.choice(5, p=row / row.sum()) for row in powers])
    right = scores.argmax(axis=1) == target
    scales = cross_fitted_scales(scores, target, start=60.0)
    assert scales == pytest.approx(8, rel=0.1)
    before, after = (expected_calibration_error(confidences(scores, target, s).top, right) for s in (60.0, scales))
    assert before > 0.1
    assert after < 0.02


def test_perfect_calibration_has_the_error_that_its_images_give_it():
    """Four images at 1/2: right of them k = 0..4, off by |k / 4 - 1 / 2|, which is 3/16 in the mean."""
    assert chance_error([0.5] * 4) == pytest.approx(3 / 16, abs=0.03)
    assert chance_error([1.0, 0.0]) == 0
    rng = np.random.default_rng(0)
    few, many = (chance_error(rng.uniform(0.3, 1, n)) for n in (100, 10_000))
    assert 0.08 < few < 0.16 and many < 0.015
    assert chance_error([0.7] * 9, seed=1) == chance_error([0.7] * 9, seed=1) != chance_error([0.7] * 9, seed=2)


def test_too_few_images_are_refused():
    with pytest.raises(ValueError, match="no image to fit"):
        fitted_scale(np.empty((0, 3)), [])
    with pytest.raises(ValueError, match="make no two halves"):
        cross_fitted_scales([[0.1, 0.2]], [0])


def test_fifteen_bins_unless_asked_for_more():
    assert BINS == len(reliability([0.5], [1]).images) == 15


def test_the_examples_in_the_docstrings_hold():
    result = doctest.testmod(calibration)
    assert result.failed == 0
    assert result.attempted > 1
