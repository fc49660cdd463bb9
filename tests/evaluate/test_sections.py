"""What evaluations hand to the page."""

from __future__ import annotations

import numpy as np

from dualenc.evaluate.sections import listed, pick


def test_pick_draws_found_before_missed_without_favouring_either_end():
    found = np.arange(100) % 3 == 0
    rows = pick(found, 5, seed=0)
    assert [bool(found[row]) for row in rows] == [True] * 5 + [False] * 5
    assert len(set(rows)) == 10
    assert max(rows) > 50
    assert pick(found, 5, seed=0) == rows != pick(found, 5, seed=1)


def test_pick_takes_what_there_is():
    assert sorted(pick(np.array([True, True]), 5)) == [0, 1]
    assert pick(np.array([False]), 5) == [0]
    assert pick(np.zeros(0, bool), 5) == []


def test_listed_says_how_many_it_left_out():
    assert listed(["a", "b"]) == "a, b"
    assert listed(list("abcdefg")) == "a, b, c, d, e and 2 more"
