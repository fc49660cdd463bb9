"""Scores relative to other pairs: against a loop over all N x T cosines, whatever the blocks and the order."""

from __future__ import annotations

import doctest

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dualenc.evaluate.quality import relative
from dualenc.evaluate.quality.relative import percentile, relative_scores
from dualenc.index import vectors
from dualenc.index.vectors import Array


def rows(count: int, dim: int, rng: np.random.Generator) -> np.ndarray:
    some = rng.standard_normal((count, dim)) + 0.5
    return (some / np.linalg.norm(some, axis=1, keepdims=True)).astype(np.float32)


def by_hand(images: np.ndarray, texts: np.ndarray, row: np.ndarray) -> tuple[list[float], list[float], np.ndarray]:
    """Scores, relative scores, and how far those move when cosines move by one in float32's last places."""
    cosine = images.astype(np.float64) @ texts.astype(np.float64).T
    cosine /= np.linalg.norm(images.astype(np.float64), axis=1)[:, None]
    cosine /= np.linalg.norm(texts.astype(np.float64), axis=1)
    score, found, reach = [], [], []
    for t, i in enumerate(row):
        captions = [cosine[i, u] for u in range(len(texts)) if row[u] != i]
        pictures = [cosine[j, t] for j in range(len(images)) if j != i]
        score.append(cosine[i, t])
        parts = [
            (cosine[i, t] - np.mean(others)) / np.std(others) if len(others) > 1 and np.std(others) > 1e-5 else np.nan
            for others in (captions, pictures)
        ]
        found.append(sum(parts) / 2)
        known = np.isfinite(found[-1])
        reach.append(2e-7 * (1 + abs(found[-1])) / min(np.std(captions), np.std(pictures)) if known else 0.0)
    return score, found, np.array(reach)


@given(st.integers(1, 9), st.integers(0, 3), st.integers(0, 1000), st.sampled_from([1, 2, 5, 100]))
def test_as_by_hand(count: int, most: int, seed: int, block: int) -> None:
    rng = np.random.default_rng(seed)
    row = rng.permutation(np.repeat(np.arange(count), rng.integers(0, most + 2, count)))
    images, texts = rows(count, 4, rng), rows(len(row), 4, rng)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vectors, "BLOCK", block)
        patch.setattr(relative, "PIECE", max(1, block // 2))
        score, found = relative_scores(Array(images), Array(texts), row)
    expected_score, expected, reach = by_hand(images, texts, row)
    np.testing.assert_allclose(score, expected_score, atol=1e-6)
    assert np.array_equal(np.isnan(found), np.isnan(expected))
    off = np.abs(found - np.array(expected))
    assert not (off > reach + 1e-5).any(), (
        found,
        expected,
    )  # others that score nearly the same make small causes large


def test_one_right_pair_by_hand() -> None:
    """Image 0 scores 1 with its caption, 0 and 0.6 with the others: mean 0.3, deviation 0.3; the caption 0 and 0.6 too."""
    images = np.array([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]], np.float32)
    score, found = relative_scores(Array(images), Array(images), [0, 1, 2])
    assert score[0] == 1.0
    assert found[0] == pytest.approx(0.7 / 0.3, rel=1e-6)


def test_the_order_of_the_data_changes_nothing() -> None:
    rng = np.random.default_rng(3)
    images, texts = rows(6, 5, rng), rows(15, 5, rng)
    row = np.arange(15) % 6
    order, moved = rng.permutation(15), rng.permutation(6)
    score, found = relative_scores(Array(images), Array(texts), row)
    place = np.empty(6, np.int64)
    place[moved] = np.arange(6)
    again = relative_scores(Array(images[moved]), Array(texts[order]), place[row[order]])
    np.testing.assert_array_equal(again[0], score[order])
    np.testing.assert_allclose(again[1], found[order], rtol=1e-9)


def test_without_others_to_compare_with_it_is_nan() -> None:
    one = np.eye(2, dtype=np.float32)
    assert np.isnan(relative_scores(Array(one[:1]), Array(one[:1]), [0])[1]).all()
    same = np.array([[1.0, 0.0]] * 4, np.float32)  # a collapsed encoder: every pair scores the same
    score, found = relative_scores(Array(same), Array(same), range(4))
    assert (score == 1).all() and np.isnan(found).all()


def test_rows_that_do_not_fit_are_refused() -> None:
    eye = Array(np.eye(3, dtype=np.float32))
    for row in ([0, 1, 3], [0, 1], [-1, 0, 1]):
        with pytest.raises(ValueError, match="embed anew"):
            relative_scores(eye, eye, row)
    with pytest.raises(ValueError, match="row 1 has length 2"):
        relative_scores(eye, Array(np.array([[1.0, 0, 0], [2, 0, 0], [0, 0, 1]], np.float32)), [0, 1, 2])


@given(st.lists(st.one_of(st.integers(0, 4), st.just(None)), max_size=12))
def test_percentiles_count_what_is_smaller(values: list[int | None]) -> None:
    array = np.array([np.nan if v is None else v for v in values], np.float64)
    known = [v for v in values if v is not None]
    expected = [np.nan if v is None else sum(w < v for w in known) / len(known) for v in values]
    np.testing.assert_array_equal(percentile(array), np.array(expected, np.float64))


def test_examples() -> None:
    assert doctest.testmod(relative).failed == 0 and doctest.testmod(relative).attempted >= 4
