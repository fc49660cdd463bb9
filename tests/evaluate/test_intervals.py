"""Bootstrap intervals against drawing rows by hand, the binomial's, and what the number of captions must not change."""

from __future__ import annotations

import doctest

import numpy as np
import pytest

from dualenc.evaluate import intervals
from dualenc.evaluate.intervals import clusters, draws, mean_intervals, percentile_intervals, share_interval, wilson


def test_docstring_examples():
    result = doctest.testmod(intervals, optionflags=doctest.ELLIPSIS)
    assert result.failed == 0 and result.attempted >= 1


def test_equal_to_drawing_rows_one_by_one():
    rng = np.random.default_rng(3)
    cluster = np.sort(rng.integers(40, size=150))
    values = rng.random((150, 2))
    names = np.unique(cluster)
    means = []
    for counts in np.concatenate(list(draws(len(names), 200, seed=5))):
        drawn = np.repeat(names, counts.astype(int))
        rows = np.concatenate([np.flatnonzero(cluster == name) for name in drawn])
        means.append(values[rows].mean(axis=0))
    wanted = np.quantile(means, [0.025, 0.975], axis=0).T
    np.testing.assert_allclose(mean_intervals(values, cluster, times=200, seed=5), wanted, atol=1e-12)


def test_as_wide_as_the_binomial_says():
    values = (np.arange(1000) < 300).astype(float)
    (low, high) = mean_intervals(values, times=4000)[0]
    width = 1.96 * np.sqrt(0.3 * 0.7 / 1000)
    assert (low, high) == pytest.approx((0.3 - width, 0.3 + width), abs=0.003)


def test_copies_of_a_row_make_nothing_surer():
    values = (np.arange(100) < 30).astype(float)
    five = mean_intervals(np.repeat(values, 5), np.repeat(np.arange(100), 5))
    assert five == mean_intervals(values)
    alone = mean_intervals(np.repeat(values, 5))[0]
    assert alone.high - alone.low < 0.6 * (five[0].high - five[0].low)


def test_wilson_intervals_by_the_book():
    """Newcombe 1998, table I, method 3: 81/263, 15/148, 0/20, 1/29."""
    low, high = wilson(np.array([81, 15, 0, 1]), np.array([263, 148, 20, 29]))
    assert low.round(4).tolist() == [0.2553, 0.0624, 0.0, 0.0061]
    assert high.round(4).tolist() == [0.3662, 0.1605, 0.1611, 0.1718]


@pytest.mark.parametrize(("count", "share"), [(10, 0.9), (20, 0.95), (50, 0.98), (200, 0.3), (3, 0.5)])
@pytest.mark.parametrize("rows", [1, 5])
def test_intervals_of_shares_hold_the_share(count, share, rows):
    """In 400 repetitions, of single rows and of clusters of five equal ones."""
    rng = np.random.default_rng(count)
    held = 0
    for _ in range(400):
        values = (rng.random(count) < share).astype(float).repeat(rows)
        ((low, high),) = mean_intervals(values, np.arange(count).repeat(rows), times=200, shares=True)
        held += low <= share <= high
    assert held >= 0.9 * 400


def test_all_right_is_not_certain_and_clusters_count_not_rows():
    three = mean_intervals([1.0] * 3, shares=True)
    assert three == [tuple(map(float, wilson(3, 3)))] and three[0].low < 0.45
    assert mean_intervals([1.0] * 15, np.arange(3).repeat(5), shares=True) == three
    alike = mean_intervals([0.0, 0.0, 1.0] * 3, np.arange(3).repeat(3), shares=True)  # a third of each cluster
    assert alike == [tuple(map(float, wilson(1, 3)))]


def test_shares_of_many_rows_keep_their_percentiles():
    values = (np.arange(5000) < 1500).astype(float)
    assert mean_intervals(values, shares=True)[0] == pytest.approx(mean_intervals(values)[0], abs=1e-3)


def test_only_shares_are_widened_and_a_share_without_draws_has_no_percentiles():
    values = np.ones((4, 2))
    share, mean = mean_intervals(values, shares=[True, False])
    assert share.low < 1 and mean == (1, 1)
    assert share_interval(np.full(9, np.nan), 1.0, 3) == share_interval(np.ones(9), 1.0, 3)


def test_draws_depend_on_the_seed_and_the_count_alone(monkeypatch):
    whole = np.concatenate(list(draws(50, 30, seed=1)))
    monkeypatch.setattr(intervals, "_COUNTS", 200)  # four draws a block
    blocks = list(draws(50, 30, seed=1))
    assert [len(block) for block in blocks] == [4] * 7 + [2]
    np.testing.assert_array_equal(np.concatenate(blocks), whole)
    assert (whole.sum(axis=1) == 50).all()
    assert (np.concatenate(list(draws(50, 30, seed=2))) != whole).any()


def test_a_draw_without_the_class_is_left_out_of_its_interval():
    def first_alone(counts):
        some = np.where(counts[:, 0] > 0, counts[:, 0], np.nan)
        return np.stack([some, np.full(len(counts), np.nan)], axis=1)

    (low, high), nothing = percentile_intervals(first_alone, 3)
    assert low == 1 and high >= 2
    assert np.isnan(nothing).all()


def test_clusters_are_numbered_by_value():
    number, size = clusters([9, 2, 9, -4], 4)
    assert number.tolist() == [2, 1, 2, 0] and size.tolist() == [1, 1, 2]


def test_refused():
    with pytest.raises(ValueError, match="two or more"):
        mean_intervals([1.0, 0.0], [3, 3])
    with pytest.raises(ValueError, match="3 clusters for 2 rows"):
        mean_intervals([1.0, 0.0], [3, 3, 4])


def test_a_share_that_rounds_beyond_one_is_one():
    assert share_interval(np.full(100, 1 + 4e-16), 1 + 4e-16, 3) == share_interval(np.ones(100), 1.0, 3)
