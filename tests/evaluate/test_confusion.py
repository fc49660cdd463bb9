"""Which classes are taken for which: counted by hand, against plain loops, and drawn."""

from __future__ import annotations

import doctest
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dualenc.evaluate.metrics import class_ranks
from dualenc.evaluate.zeroshot import confusion
from dualenc.evaluate.zeroshot.confusion import (
    MOST_CLASSES,
    PAIRS,
    Pair,
    confused_pairs,
    confusion_panel,
    confusion_table,
    mistaken_for,
    most_confused,
    predictions,
    shares,
)

pairs_of_classes = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=40)


def test_a_tie_is_the_class_it_ties_with_and_the_scores_stay():
    scores = np.array([[0.5, 0.5, 0.1], [0.9, 0.1, 0.0], [0.2, 0.7, 0.6]], np.float32)
    before = scores.copy()
    assert predictions(scores, [0, 0, 2], class_ranks(scores, [0, 0, 2])).tolist() == [1, 0, 1]
    assert (scores == before).all()


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(0, 3), min_size=3, max_size=3), min_size=1, max_size=8), st.data())
def test_predictions_are_right_where_the_rank_is_0_and_never_right_elsewhere(scores, data):
    target = np.array(data.draw(st.lists(st.integers(0, 2), min_size=len(scores), max_size=len(scores))))
    rank = class_ranks(scores, target)
    found = predictions(scores, target, rank)
    assert ((found == target) == (rank == 0)).all()
    for row, own, got in zip(scores, target, found, strict=True):
        assert got == own or row[got] == max(row)


@settings(deadline=None)
@given(pairs_of_classes)
def test_pairs_equal_a_count_by_hand(drawn):
    found = confused_pairs(*zip(*drawn, strict=True))
    wrong = [pair for pair in drawn if pair[0] != pair[1]]
    assert {(pair.right, pair.taken): pair.times for pair in found} == {pair: wrong.count(pair) for pair in wrong}
    assert [pair.times for pair in found] == sorted((pair.times for pair in found), reverse=True)


@settings(deadline=None)
@given(pairs_of_classes, st.permutations(range(5)), st.integers(1, 5))
def test_shares_equal_a_count_by_hand(drawn, order, count):
    target, predicted = zip(*drawn, strict=True)
    shown = order[:count]
    found = shares(target, predicted, shown, classes=5)
    for r, right in enumerate(shown):
        own = [taken for one, taken in drawn if one == right]
        if not own:
            assert np.isnan(found[r]).all()
            continue
        expected = [own.count(taken) / len(own) for taken in shown]
        assert found[r, :-1] == pytest.approx(expected)
        assert found[r].sum() == pytest.approx(1)


@settings(deadline=None)
@given(pairs_of_classes, st.integers(2, 5))
def test_the_block_holds_the_most_frequent_pair_and_no_more_than_asked(drawn, most):
    pairs = confused_pairs(*zip(*drawn, strict=True))
    chosen = most_confused(pairs, most)
    assert len(set(chosen)) == len(chosen) <= most
    if pairs:
        both = {frozenset(pair[:2]): 0 for pair in pairs}
        for pair in pairs:
            both[frozenset(pair[:2])] += pair.times
        top = [pair for pair, times in both.items() if times == max(both.values())]
        assert any(pair <= set(chosen) for pair in top)
    else:
        assert chosen == []


def test_confused_classes_stand_beside_each_other():
    pairs = [Pair(0, 5, 9), Pair(3, 8, 8), Pair(8, 3, 7), Pair(5, 9, 2), Pair(1, 2, 1)]
    assert most_confused(pairs, 5) == [3, 8, 0, 5, 9]  # 3 and 8: 15 times, both ways together


def drawn_names(panel):
    return [re.sub(r"<[^>]*>", "", text).strip() for text in re.findall(r"<text[^>]*>.*?</text>", panel.svg, re.DOTALL)]


def test_few_classes_are_all_drawn_in_their_order_with_numbers():
    panel = confusion_panel(["cat", "dog", "never seen"], [0, 0, 0, 0, 1], [0, 0, 0, 1, 1])
    texts = drawn_names(panel)
    assert texts.count("cat") == texts.count("dog") == texts.count("never seen") == 2
    assert [text for text in texts if text.isdigit()] == ["75", "25", "100"]
    assert panel.words.endswith("Most often taken: cat for dog 1×.")


def test_of_many_classes_those_confused_most_are_drawn():
    names = [f"<class {i}>" for i in range(200)]
    target = np.arange(200).repeat(3)
    predicted = target.copy()
    predicted[3 * 150] = 151
    predicted[3 * 7 : 3 * 7 + 2] = 9
    panel = confusion_panel(names, target, predicted)
    assert panel.title == "The 4 classes confused most"
    texts = [text.replace("&lt;", "<").replace("&gt;", ">") for text in drawn_names(panel)]
    assert {text for text in texts if text.startswith("<class")} == {names[c] for c in (7, 9, 150, 151)}
    assert "any other" in texts
    assert "<class" not in panel.svg
    predicted[:] = np.roll(target, 3)
    assert confusion_panel(names, target, predicted).title == f"The {MOST_CLASSES} classes confused most"
    assert confusion_panel(names, target, target) is None


def test_the_table_has_the_most_frequent_pairs_with_their_share_of_the_class():
    table = confusion_table(["cat", "dog"], [0, 0, 0, 0, 1], [0, 1, 1, 1, 0])
    assert [[*row[:3], row[3].value] for row in table.rows] == [["cat", "dog", "3", 0.75], ["dog", "cat", "1", 1.0]]
    every = confusion_table([f"{i}" for i in range(50)], np.arange(50), np.roll(np.arange(50), 1))
    assert len(every.rows) == PAIRS
    assert "of 50 pairs" in every.note


def test_each_class_names_what_it_is_mistaken_for_most():
    assert mistaken_for(["a", "b", "c"], [0, 0, 0, 1, 2], [1, 2, 2, 1, 0]) == ["c (2×)", "", "a (1×)"]


def test_the_examples_in_the_docstrings_hold():
    result = doctest.testmod(confusion)
    assert result.failed == 0
    assert result.attempted > 1
