"""Average precision where images hold several classes: by hand, against the definition, and drawn anew."""

from __future__ import annotations

import doctest
import itertools

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dualenc.evaluate.groups.groups import by_group_of
from dualenc.evaluate.zeroshot import multilabel
from dualenc.evaluate.zeroshot.labels import holds_lists, label_lists
from dualenc.evaluate.zeroshot.multilabel import (
    affordable_times,
    average_precision_per_class,
    chance_precision,
    drawn_precisions,
    mean_precision,
    precision_intervals,
    precisions_among,
)
from dualenc.evaluate.zeroshot.multilabel_section import by_groups
from dualenc.evaluate.zeroshot.zeroshot import evaluate_zeroshot

CLASSES = ["cat", "dog", "bird"]


def slow_precision(scores, held, weights=None):
    """The definition, pair by pair: of the images at or above a positive (ties that hold nothing count as above), the
    share of positives; a drawn image counts as often as it was drawn, but once beside itself."""
    weights = np.ones(len(scores), int) if weights is None else weights
    total = found = 0.0
    for i in np.flatnonzero(held):
        # Positives with an equal score stand in the order of their rows
        above = [
            j
            for j in range(len(scores))
            if scores[j] > scores[i] or (scores[j] == scores[i] and (not held[j] or j < i))
        ]
        wrong, right = (sum(weights[j] for j in above if bool(held[j]) == kind) for kind in (False, True))
        found += weights[i] * (right + 1) / (right + wrong + 1)
        total += weights[i]
    return found / total if total else np.nan


def some(n=60, classes=4, seed=0):
    rng = np.random.default_rng(seed)
    held = rng.random((n, classes)) < [0.3, 0.1, 0.5, 0.05][:classes]
    held[0] = True
    return (rng.standard_normal((n, classes)) + held).astype(np.float32), held


cases = st.integers(1, 9).flatmap(
    lambda n: st.tuples(
        st.lists(st.lists(st.integers(0, 3), min_size=2, max_size=2), min_size=n, max_size=n),
        st.lists(st.lists(st.booleans(), min_size=2, max_size=2), min_size=n, max_size=n).filter(lambda h: np.any(h)),
        st.lists(st.lists(st.integers(0, 3), min_size=n, max_size=n), min_size=1, max_size=4),
    )
)


def test_precision_by_hand():
    """Positives at places 1, 3 and 4: (1/1 + 2/3 + 3/4) / 3."""
    found = average_precision_per_class([[0.9], [0.8], [0.7], [0.6], [0.5]], [[1], [0], [1], [1], [0]])
    assert found == pytest.approx([(1 + 2 / 3 + 3 / 4) / 3])


def test_ties_count_against_the_model():
    held = np.eye(4, dtype=bool)[:, :1].repeat(2, axis=1)
    assert average_precision_per_class(np.zeros((4, 2)), held).tolist() == [0.25, 0.25]
    assert average_precision_per_class(np.zeros((4, 2)), held[::-1]).tolist() == [0.25, 0.25]


@settings(deadline=None, max_examples=150)
@given(cases)
def test_precision_equals_the_definition_ties_included(case):
    scores, held = np.array(case[0], np.float32), np.array(case[1])
    expected = [slow_precision(scores[:, c], held[:, c]) for c in range(2)]
    assert average_precision_per_class(scores, held) == pytest.approx(expected, nan_ok=True)
    shuffled = np.random.default_rng(0).permutation(len(scores))
    assert average_precision_per_class(scores[shuffled], held[shuffled]) == pytest.approx(expected, nan_ok=True)
    assert precisions_among(scores, held)(np.arange(len(scores))) == pytest.approx(expected, nan_ok=True)


@settings(deadline=None, max_examples=150)
@given(cases, st.integers(1, 30))
def test_precision_of_a_draw_equals_the_definition_with_weights(case, at_once):
    scores, held, weights = np.array(case[0], np.float32), np.array(case[1]), np.array(case[2])
    before, multilabel._AT_ONCE = multilabel._AT_ONCE, at_once
    try:
        found = drawn_precisions(scores, held)(weights.astype(float))
    finally:
        multilabel._AT_ONCE = before
    expected = [[slow_precision(scores[:, c], held[:, c], w) for c in range(2)] for w in weights]
    assert found == pytest.approx(np.array(expected), nan_ok=True)


def test_some_rows_alone_are_as_if_there_were_no_others():
    scores, held = some()
    rows = np.random.default_rng(1).permutation(60)[:25]
    expected = average_precision_per_class(scores[rows], held[rows])
    assert precisions_among(scores, held)(rows) == pytest.approx(expected, nan_ok=True)
    assert drawn_precisions(scores, held)(np.isin(np.arange(60), rows)[None])[0] == pytest.approx(expected, nan_ok=True)


def test_intervals_lie_around_the_value_and_do_not_depend_on_blocks(monkeypatch):
    scores, held = some()
    each = average_precision_per_class(scores, held)
    found = precision_intervals(scores, held, times=300, seed=4)
    for value, (low, high) in zip([np.nanmean(each), *each], found, strict=True):
        assert 0 <= low < value < high <= 1
    monkeypatch.setattr(multilabel, "_AT_ONCE", 100)
    assert np.array(precision_intervals(scores, held, times=300, seed=4)) == pytest.approx(np.array(found))
    assert precision_intervals(scores, held, times=300, seed=5) != found


def test_classes_with_few_images_are_not_flattered_by_being_drawn_twice():
    """Forty classes of three images in 300: counting an image's copies beside it adds three times as much to mAP."""
    rng = np.random.default_rng(0)
    held = rng.random((300, 40)) < 0.01
    scores = rng.standard_normal((300, 40)) + 2 * held
    value = mean_precision(average_precision_per_class(scores, held)[None])[0]
    low, high = precision_intervals(scores, held, times=200)[0]
    assert abs((low + high) / 2 - value) < (high - low) / 4


@pytest.mark.parametrize("images", [1, 2, 3, 6])
def test_chance_is_the_mean_over_all_orders(images):
    orders = np.array(list(itertools.permutations(range(images)))).T  # (N, N!)
    for positives in range(1, images + 1):
        held = np.repeat((np.arange(images) < positives)[:, None], orders.shape[1], axis=1)
        expected = average_precision_per_class(orders, held).mean()
        assert chance_precision([positives, 0], images) == pytest.approx([expected, np.nan], nan_ok=True)


def test_a_class_without_a_positive_has_no_precision_and_is_left_out_of_the_mean():
    each = average_precision_per_class([[0.9, 0.1], [0.1, 0.9]], [[1, 0], [0, 0]])
    assert each[0] == 1
    assert np.isnan(each[1])
    assert mean_precision(each[None]).tolist() == [1.0]
    assert np.isnan(precision_intervals([[0.9, 0.1], [0.1, 0.9]], [[1, 0], [0, 0]], times=50)[2].low)


def test_many_images_and_classes_get_fewer_draws():
    assert affordable_times(100, 10) == 1000
    assert 100 < affordable_times(10_000, 500) < 1000
    assert affordable_times(10**6, 1000) == 100


@pytest.mark.parametrize(
    ("scores", "held", "says"),
    [
        ([[0.1, np.nan]], [[1, 0]], "hold NaN"),
        ([[0.1, 0.2]], [[0, 0]], "no image holds any of the classes"),
        ([[0.1, 0.2]], [[1, 0], [0, 1]], "both must be"),
        (np.empty((0, 2)), np.empty((0, 2)), "neither of them 0"),
    ],
)
def test_what_has_no_precision_is_refused(scores, held, says):
    with pytest.raises(ValueError, match=says):
        average_precision_per_class(scores, held)


@pytest.fixture
def animals(samples):
    """The image of row i embeds like its caption; row 3 shows nothing, row 4 is not labelled."""
    texts = ["cat", "dog", "cat dog", "stone", "bird", "bird"]
    lists = [["cat"], [1], ["dog", "cat"], [], None, ["bird"]]
    return samples([[text] for text in texts], many=pa.array([x and [str(v) for v in x] for x in lists]))


def numbered(animals, lists):
    animals.metadata = animals.metadata.drop_columns(["many"]).append_column("many", pa.array(lists))
    return animals


LISTS = [[0], [1], [1, 0], [], None, [2]]


@pytest.mark.parametrize(
    "column",
    [
        LISTS,
        [["cat"], ["dog"], ["dog", "cat"], [], None, ["bird"]],
        ["[0]", '["dog"]', "[1, 0]", "[]", None, '["bird"]'],
        [[0], [1, 1], [1, 0], [], None, [2]],
    ],
)
def test_lists_of_numbers_names_and_json_text_say_the_same(encoder, animals, column):
    data = numbered(animals, column)
    assert holds_lists(data.metadata, "many")
    row, held = label_lists(data, CLASSES, "many")
    assert row.tolist() == [0, 1, 2, 3, 5]
    assert held.tolist() == np.array([[1, 0, 0], [0, 1, 0], [1, 1, 0], [0, 0, 0], [0, 0, 1]], bool).tolist()
    report, section = evaluate_zeroshot(encoder, data, CLASSES, ["{}"], label="many", times=100)
    scores = data.images[row] @ encoder.embed_texts(CLASSES).T
    each = average_precision_per_class(scores, held)
    assert report["zeroshot/mean_average_precision"] == pytest.approx(each.mean())
    assert report["zeroshot/average_precision/dog"] == pytest.approx(each[1])
    orders = np.array(list(itertools.permutations(range(5)))).T
    chance = np.mean([average_precision_per_class(orders, np.tile(one, (120, 1)).T) for one in held.T])
    assert report["zeroshot/mean_average_precision/chance"] == pytest.approx(chance)
    assert (report["zeroshot/images"], report["zeroshot/unlabelled"], report["zeroshot/draws"]) == (5, 1, 100)
    assert report["zeroshot/mean_average_precision/low"] <= report["zeroshot/mean_average_precision"]
    assert not any("acc1" in key for key in report)
    assert section.headlines[0].share.value == report["zeroshot/mean_average_precision"]
    assert [row[0] for row in section.tables[1].rows] == CLASSES
    notes = {example.note for example in section.examples[0].rows}
    assert notes <= {"cat", "dog", "cat, dog", "none of the classes", "bird"}


def test_a_class_without_images_is_listed_on_the_page_and_in_the_report(encoder, animals):
    report, section = evaluate_zeroshot(encoder, numbered(animals, LISTS), [*CLASSES, "cow"], label="many", times=0)
    assert (report["zeroshot/absent"], report["zeroshot/absent_names"]) == (1, "cow")
    assert "zeroshot/average_precision/cow" not in report
    assert "cow" in section.tables[1].note
    assert "zeroshot/mean_average_precision/low" not in report


@pytest.mark.parametrize(
    ("lists", "says"),
    [
        ([[0], [3], [], [], [], []], "many 3 is none of the 3 classes"),
        ([[0], [-1], [], [], [], []], "many -1 is none of the 3 classes"),
        ([["cat"], ["cow"], [], [], [], []], "many 'cow' is none of the 3 classes"),
        (["[0, true]", None, None, None, None, None], "many True is none of the 3 classes"),
        (['["cat"', "[]", "[]", "[]", "[]", "[]"], "is none of the 3 classes"),  # not JSON: one odd name
        (pa.nulls(6, pa.list_(pa.int64())), "no image has a class in 'many'"),
        ([[], [], [], [], None, []], "no image holds any of the classes"),
    ],
)
def test_lists_that_say_no_classes_are_refused(encoder, animals, lists, says):
    with pytest.raises(ValueError, match=says):
        evaluate_zeroshot(encoder, numbered(animals, lists), CLASSES, label="many")


def test_a_value_among_lists_is_refused(animals):
    with pytest.raises(ValueError, match="'cat' among lists of classes"):
        label_lists(numbered(animals, ["[0]", "cat", None, None, None, None]), CLASSES, "many")


def test_a_collapsed_encoder_finds_nothing(constant_encoder, animals):
    data = numbered(animals, LISTS)
    data.images[:] = constant_encoder.embed_texts(["x"])
    report, section = evaluate_zeroshot(constant_encoder, data, CLASSES, ["{}"], label="many", times=0)
    assert report["zeroshot/mean_average_precision"] == pytest.approx((2 * (1 / 4 + 2 / 5) / 2 + 1 / 5) / 3)
    assert not any(example.found for example in section.examples[0].rows)


def test_by_group_each_group_is_as_if_it_were_alone():
    scores, held = some(90)
    group = [["day", "night", None][i] for i in np.random.default_rng(2).choice(3, 90, p=[0.5, 0.4, 0.1])]
    report, table = by_groups(scores, held, group, "by/light/", times=60, seed=3)

    def metric(rows):
        """Of rows drawn with replacement, slowly."""
        weights = np.bincount(rows, minlength=90)
        each = [slow_precision(scores[:, c], held[:, c], weights) for c in range(4) if held[weights > 0, c].any()]
        return {"mean_average_precision": float(np.mean(each))}

    expected, _ = by_group_of(metric, group, None, 60, 3, "by/light/")
    assert report == pytest.approx(expected)
    day = [i for i, name in enumerate(group) if name == "day"]
    alone = average_precision_per_class(scores[day], held[day])
    assert report["by/light/day/mean_average_precision"] == pytest.approx(np.nanmean(alone))
    assert table.columns == ["light", "Images", "mAP"]


def test_the_examples_in_the_docstrings_hold():
    result = doctest.testmod(multilabel)
    assert result.failed == 0
    assert result.attempted > 1
