"""ANN recall per query against a plain loop, and the bootstrap bound against theory and a plain loop."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dualenc.index.recall import TIE, Truth, lower_bound, recall_per_query, truth
from dualenc.index.vectors import Array
from tests.index.conftest import unit


def exact(scores: np.ndarray, k: int) -> Truth:
    """Truth of a (Q, N) table of scores whose ids are its columns, earlier columns first among equals."""
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    best = np.take_along_axis(scores, order, 1)
    return Truth(order, best[:, -1:], (best > best[:, -1:] + TIE).sum(axis=1, keepdims=True))


@given(st.data())
def test_recall_counts_ties_as_often_as_the_truth_holds_them(draw):
    """The slow way: the best overlap that any order of equal rows could give."""
    columns, k = draw.draw(st.integers(1, 9)), draw.draw(st.integers(1, 5))
    k = min(k, columns)
    level = st.lists(st.integers(0, 3), min_size=columns, max_size=columns)
    scores = np.array(draw.draw(level), np.float32)[None] / 4
    found = np.array(draw.draw(st.permutations(range(columns)))[:k])[None]
    true = exact(scores, k)
    known = np.take_along_axis(scores, found, 1)
    last = np.sort(scores[0])[::-1][k - 1]
    sure = set(np.flatnonzero(scores[0] > last).tolist())
    tied = set(np.flatnonzero(scores[0] == last).tolist())
    mine = set(found[0].tolist())
    expected = (len(mine & sure) + min(len(mine & tied), k - len(sure))) / k
    assert recall_per_query(found, known, true, exact_scores=True)[0] == pytest.approx(expected)
    assert recall_per_query(found, known, true, exact_scores=False)[0] == pytest.approx(
        len(mine & set(true.ids[0].tolist())) / k
    )


def test_an_estimate_proves_nothing():
    true = Truth(np.array([[1, 2]]), np.array([[0.5]]), np.array([[1]]))
    estimated = np.array([[0.9, 0.9]])
    assert recall_per_query(np.array([[8, 9]]), estimated, true, exact_scores=False).tolist() == [0]
    assert recall_per_query(np.array([[8, 9]]), estimated, true, exact_scores=True).tolist() == [0.5]


def test_scores_within_rounding_tie_and_others_do_not():
    true = Truth(np.array([[1]]), np.array([[0.5]], np.float32), np.array([[0]]))
    for score, right in ((0.5 - 5e-7, 1), (0.5 - 3e-6, 0), (-np.inf, 0)):
        found = recall_per_query(np.array([[7]]), np.array([[score]], np.float32), true, exact_scores=True)
        assert found.tolist() == [right]
    assert recall_per_query(np.array([[-1]]), np.array([[-np.inf]]), true, exact_scores=True).tolist() == [0]


def test_truth_is_exact_search_without_the_skipped(make_data):
    data = make_data(500, 16, 40)
    ids = np.arange(500)[::-1] + 7
    skip = np.array([0, 3, 100, 499])
    scores = data.texts.astype(np.float64) @ data.images.T.astype(np.float64)
    for left_out, k in ((None, 10), (skip, 10), (np.arange(497), 10), (np.arange(500), 10), (None, 500)):
        kept = np.delete(np.arange(500), [] if left_out is None else left_out)
        found = truth(data.texts, Array(data.images), k, ids, left_out)
        expected = exact(scores[:, kept], min(k, len(kept))) if len(kept) else None
        assert found.ids.shape == (40, min(k, len(kept)))
        if expected is not None:
            assert np.array_equal(found.ids, ids[kept[expected.ids]])
            assert np.allclose(found.last, expected.last, atol=1e-6)
            assert np.array_equal(found.above, expected.above)
    none = truth(data.texts[:0], Array(data.images), 10, ids)
    assert none.ids.shape == (0, 10)


def test_truth_counts_what_is_above_its_last():
    rows = unit(np.array([[1, 0], [1, 1], [1, 1], [1, 1], [0, 1]], float))
    found = truth(rows[:1], Array(rows), 3, np.arange(5))
    assert found.ids.tolist() == [[0, 1, 2]]
    assert found.above.tolist() == [[1]]
    # a twin of the last stands in for it, but not for the best
    assert recall_per_query(np.array([[0, 3, 1]]), np.array([[1, 0.70710677, 0.70710677]]), found, True).tolist() == [1]
    missed = recall_per_query(np.array([[1, 2, 3]]), np.full((1, 3), 0.70710677), found, True)
    assert missed.tolist() == [pytest.approx(2 / 3)]


@pytest.mark.parametrize(("n", "hits"), [(20, 15), (200, 190), (1000, 950), (1000, 999), (7, 3)])
def test_the_bound_of_hits_and_misses_is_the_binomials(n, hits):
    """Resampled hits are binomial: the bound is that distribution's 5 % point, by summing probabilities."""
    share, total, count = hits / n, 0.0, -1
    while total < 0.05:
        count += 1
        total += math.comb(n, count) * share**count * (1 - share) ** (n - count)
    per_query = np.arange(n) < hits
    bound = lower_bound(per_query.astype(float), draws=20_000)
    assert abs(bound - count / n) <= 1 / n + 1e-12


def test_the_bound_of_tenths_is_a_plain_loops():
    rng = np.random.default_rng(3)
    per_query = np.minimum(rng.integers(5, 14, size=300), 10) / 10
    means = sorted(rng.choice(per_query, size=300).mean() for _ in range(4000))
    spread = per_query.std() / 300**0.5
    bound = lower_bound(per_query, draws=4000)
    assert abs(bound - means[200]) < 0.1 * spread
    assert abs(bound - (per_query.mean() - 1.645 * spread)) < 0.1 * spread  # the normal law agrees
    assert lower_bound(per_query, level=0.5, draws=4000) == pytest.approx(per_query.mean(), abs=0.1 * spread)
    assert lower_bound(per_query, level=0.99, draws=4000) == pytest.approx(
        per_query.mean() - 2.326 * spread, abs=0.25 * spread
    )
    assert bound == lower_bound(rng.permutation(per_query), draws=4000)  # and the order of queries says nothing


def test_the_bound_covers_as_often_as_it_says():
    rng = np.random.default_rng(0)
    chances = np.array([0.02, 0.03, 0.1, 0.85])
    values = np.array([0.5, 0.8, 0.9, 1.0])
    true = float(chances @ values)
    below = [lower_bound(rng.choice(values, p=chances, size=300), draws=500, seed=i) <= true for i in range(400)]
    assert 0.90 < np.mean(below) < 0.985


def test_where_nothing_varies_the_bound_is_the_mean():
    assert lower_bound(np.ones(10)) == 1
    assert lower_bound(np.array([0.3])) == 0.3
    assert lower_bound(np.full(1000, 0.9)) == pytest.approx(0.9, abs=1e-12)


def test_many_different_values_are_resampled_too():
    per_query = np.random.default_rng(5).uniform(size=800)
    assert lower_bound(per_query) == pytest.approx(per_query.mean() - 1.645 * per_query.std() / 800**0.5, abs=0.003)
