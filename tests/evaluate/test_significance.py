"""The sign-flip test: exact McNemar where each image asks once, all patterns by hand, its error under no difference."""

from __future__ import annotations

import doctest
import itertools
from math import comb

import numpy as np
import pytest

from dualenc.evaluate.compare import significance
from dualenc.evaluate.compare.significance import holm, sign_flip_test


def mcnemar(won: int, lost: int) -> float:
    """Exact two-sided McNemar: twice the smaller tail of a fair coin thrown won + lost times, at most 1."""
    n = won + lost
    return min(1.0, 2 * sum(comb(n, i) for i in range(min(won, lost) + 1)) / 2**n)


def outcomes(won: int, lost: int, same: int = 20) -> np.ndarray:
    return np.random.default_rng(0).permutation([1] * won + [-1] * lost + [0] * same)


def test_docstring_examples():
    result = doctest.testmod(significance)
    assert result.failed == 0 and result.attempted == 2


@pytest.mark.parametrize(("won", "lost"), [(0, 0), (1, 0), (5, 0), (3, 2), (4, 4), (9, 3), (1, 12), (6, 7)])
def test_mcnemars_exact_p_where_every_image_asks_once(won, lost):
    assert sign_flip_test(outcomes(won, lost)) == pytest.approx(mcnemar(won, lost), abs=1e-12)


@pytest.mark.parametrize(("won", "lost"), [(20, 9), (30, 31), (60, 30), (140, 100)])
def test_mcnemars_p_as_nearly_as_drawn_patterns_can(won, lost):
    p = mcnemar(won, lost)
    drawn = sign_flip_test(outcomes(won, lost), patterns=40_000)
    assert drawn == pytest.approx(p, abs=4 * np.sqrt(p * (1 - p) / 40_000) + 1e-4)
    assert drawn == sign_flip_test(outcomes(won, lost)[::-1], np.arange(10_000)[::-1][: won + lost + 20], 40_000)


def test_all_patterns_of_clusters_by_hand():
    rng = np.random.default_rng(4)
    for _ in range(50):
        cluster = rng.integers(0, 6, 15)
        difference = rng.integers(-2, 3, 15)
        sums = np.array([difference[cluster == c].sum() for c in np.unique(cluster)])
        far = [
            abs(sum(s * v for s, v in zip(signs, sums, strict=True))) >= abs(sums.sum())
            for signs in itertools.product((-1, 1), repeat=len(sums))
        ]
        assert sign_flip_test(difference, cluster) == pytest.approx(np.mean(far))


def test_five_captions_of_an_image_are_no_five_queries():
    """Twelve images that differ in all five captions: as sure as twelve queries, not as sixty."""
    difference = np.repeat([1] * 9 + [-1] * 3, 5)
    image = np.repeat(np.arange(12), 5)
    assert sign_flip_test(difference, image) == pytest.approx(mcnemar(9, 3))
    assert sign_flip_test(difference) < 0.001 < 0.1 < mcnemar(9, 3)


def test_captions_of_an_image_that_cancel_say_nothing():
    assert sign_flip_test([1, -1, 0, 0], [0, 0, 1, 1]) == 1.0


def test_never_zero_and_the_same_for_a_seed(monkeypatch):
    sure = np.ones(200)
    assert sign_flip_test(sure) == 1 / 10_000
    noisy = np.random.default_rng(1).standard_normal(300)
    noisy += 0.08 - noisy.mean()
    p = sign_flip_test(noisy, seed=3)
    assert 0.01 < p < 0.5 and p != sign_flip_test(noisy, seed=4)
    monkeypatch.setattr(significance, "_SIGNS", 3000)  # ten patterns a block
    assert sign_flip_test(noisy, seed=3) == pytest.approx(p, abs=0.02)


def test_as_often_below_005_as_it_says_where_nothing_differs():
    """500 pairs of equal encoders, captions of an image alike: 5 % are below 0.05; taken one by one, far more."""
    rng = np.random.default_rng(0)
    image = np.repeat(np.arange(60), 5)
    right, wrong = [], []
    for _ in range(500):
        difference = np.repeat(rng.choice([-1, 0, 1], 60, p=[0.25, 0.5, 0.25]), 5)
        right.append(sign_flip_test(difference, image, patterns=499) <= 0.05)
        wrong.append(sign_flip_test(difference, patterns=499) <= 0.05)
    assert 0.02 < np.mean(right) < 0.08
    assert np.mean(wrong) > 0.25


def test_equal_sums_in_another_order_are_as_far():
    """Decimals whose sum differs in its last bit from the one that all patterns are counted with."""
    difference = [0.8, 0.8, 0.5, 0.3, 0.1, 0.4, 0.4, 1.0]
    assert sign_flip_test(difference) == sign_flip_test(difference[::-1]) == 2 / 2**8


def test_holm_by_hand():
    assert holm([0.2]) == [0.2]
    assert holm([0.01, 0.02, 0.03, 0.04]) == pytest.approx([0.04, 0.06, 0.06, 0.06])
    assert holm([0.04, 0.0001, 0.9, 0.6]) == pytest.approx([0.12, 0.0004, 1.0, 1.0])
    assert holm([]) == []
