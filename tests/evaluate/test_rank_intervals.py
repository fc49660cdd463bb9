"""Intervals of recall, mean and median rank against drawing images one by one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dualenc.evaluate.intervals import draws, share_interval
from dualenc.evaluate.metrics import rank_metrics
from dualenc.evaluate.rank_intervals import _weighted_medians, rank_intervals


@pytest.mark.parametrize("spread", [1, 40, 5000])
def test_equal_to_drawing_images_one_by_one(spread):
    rng = np.random.default_rng(spread)
    names = np.array([3, 5, 8, *range(20, 50)])
    texts = rng.permutation(np.concatenate([names, rng.choice(names, 60)]))  # an image has one caption or more
    images = rng.permutation(names)
    ranks = {"there": rng.integers(spread, size=len(texts)), "back": rng.integers(spread, size=len(images))}
    found = rank_intervals(ranks, {"there": texts, "back": images}, ks=(1, 3), times=150, seed=9)
    drawn = []
    for counts in np.concatenate(list(draws(len(names), 150, seed=9))):
        chosen = np.repeat(names, counts.astype(int))
        metrics = {}
        for way, owner in (("there", texts), ("back", images)):
            rows = np.concatenate([np.flatnonzero(owner == name) for name in chosen])
            metrics |= {f"{way}/{name}": value for name, value in rank_metrics(ranks[way][rows], (1, 3)).items()}
        drawn.append(metrics)
    assert list(found) == list(drawn[0])
    for name, interval in found.items():
        values = np.array([metrics[name] for metrics in drawn])
        ends = np.quantile(values, [0.025, 0.975])
        if "recall" in name:
            way, _, metric = name.partition("/")
            ends = share_interval(values, rank_metrics(ranks[way], (1, 3))[metric], len(names))
        np.testing.assert_allclose(interval, ends, atol=1e-12, err_msg=name)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_weighted_medians_are_medians_of_the_rows_repeated(data):
    images = data.draw(st.integers(1, 6))
    number = np.array([*range(images), *data.draw(st.lists(st.integers(0, images - 1), max_size=12))])
    rank = np.sort(data.draw(st.lists(st.integers(0, 9), min_size=len(number), max_size=len(number))))
    weight = st.lists(st.integers(0, 3), min_size=images, max_size=images).filter(any)
    counts = np.array(data.draw(st.lists(weight, min_size=1, max_size=4)), np.float64)
    width = data.draw(st.integers(1, 20))  # too narrow a window is widened
    found = _weighted_medians(rank, number, np.bincount(number).astype(float), counts, width)
    assert found.tolist() == [np.median(np.repeat(rank, one.astype(int)[number])) for one in counts]


def test_blocks_of_draws_change_nothing(monkeypatch):
    rng = np.random.default_rng(0)
    ranks, owner = {"way": rng.integers(300, size=500)}, {"way": np.repeat(np.arange(100), 5)}
    expected = rank_intervals(ranks, owner, (1, 10), times=60)
    monkeypatch.setattr("dualenc.evaluate.rank_intervals._GATHERED", 1000)
    monkeypatch.setattr("dualenc.evaluate.intervals._COUNTS", 700)
    for name, interval in rank_intervals(ranks, owner, (1, 10), times=60).items():
        assert interval == pytest.approx(expected[name], abs=1e-12)


def test_captions_of_one_image_are_no_independent_queries():
    rank = np.random.default_rng(1).integers(2, size=200)
    five = {"way": np.repeat(rank, 5)}
    by_image = rank_intervals(five, {"way": np.repeat(np.arange(200), 5)}, (1,))["way/recall@1"]
    alone = rank_intervals(five, {"way": np.arange(1000)}, (1,))["way/recall@1"]
    assert by_image.high - by_image.low == pytest.approx(np.sqrt(5) * (alone.high - alone.low), rel=0.15)


def test_nothing_where_there_is_nothing_to_draw():
    assert rank_intervals({"way": [0, 3]}, {"way": [5, 5]}, (1,)) == {}
    assert rank_intervals({"way": [0, 3]}, {"way": [5, 6]}, (1,), times=0) == {}


def test_ways_of_other_images_are_refused():
    with pytest.raises(ValueError, match="other clusters"):
        rank_intervals({"a": [0, 1], "b": [0, 1]}, {"a": [0, 1], "b": [0, 2]}, (1,))
