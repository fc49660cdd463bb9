from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dualenc.index import hits
from dualenc.index.hits import group_numbers, page


class Table:
    """A search over a table of scores, (Q, N); equal scores in order of row. Its ids are 10 x row + 3."""

    def __init__(self, scores, drop=0):
        self.scores, self.drop, self.asked = np.asarray(scores, np.float32), drop, []

    def __call__(self, queries, count):
        self.asked.append((len(queries), count))
        order = np.argsort(-self.scores[queries[:, 0].astype(int)], axis=1, kind="stable")
        order = order[:, : self.scores.shape[1] - self.drop]  # rows that a filter leaves out
        ids = np.full((len(queries), count), -1)
        scores = np.full((len(queries), count), -np.inf, np.float32)
        n = min(count, order.shape[1])
        ids[:, :n] = 10 * order[:, :n] + 3
        scores[:, :n] = np.take_along_axis(self.scores[queries[:, 0].astype(int)], order[:, :n], axis=1)
        return ids, scores

    def page(self, k, total=None, **how):
        queries = np.arange(len(self.scores), dtype=np.float32)[:, None]
        return page(self, queries, k, self.scores.shape[1] if total is None else total, **how)


def slow_page(scores, k, offset, threshold, numbers, without=-1):
    order = sorted(range(len(scores)), key=lambda row: -scores[row])
    kept, seen = [], set()
    for row in order:
        if (threshold is not None and scores[row] < np.float32(threshold)) or 10 * row + 3 == without:
            continue
        if numbers is not None and numbers[row] in seen:
            continue
        if numbers is not None and numbers[row] >= 0:
            seen.add(numbers[row])
        kept.append(row)
    kept = kept[offset : offset + k]
    pad = k - len(kept)
    return [10 * row + 3 for row in kept] + [-1] * pad, [scores[row] for row in kept] + [-np.inf] * pad


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_equals_a_loop_over_all_rows(data):
    count, rows = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 40))
    steps = st.lists(st.integers(-5, 5), min_size=rows, max_size=rows)  # few values: many ties
    scores = np.array([data.draw(steps) for _ in range(count)], np.float32) / 5
    k, offset = data.draw(st.integers(1, 12)), data.draw(st.integers(0, 45))
    threshold = data.draw(st.none() | st.sampled_from([-1.0, -0.6, 0.0, 0.2, 0.7, 1.0, 1.5]))
    numbers = data.draw(st.none() | st.lists(st.integers(-1, 6), min_size=rows, max_size=rows).map(np.array))
    groups = None if numbers is None else (lambda ids: numbers[(ids - 3) // 10])
    without = data.draw(st.just(-1) | st.integers(0, rows).map(lambda row: 10 * row + 3))
    ids, close = Table(scores).page(k, offset=offset, threshold=threshold, groups=groups, without=without)
    expected = [slow_page(row, k, offset, threshold, numbers, without) for row in scores]
    assert ids.tolist() == [row[0] for row in expected]
    assert close.tolist() == [row[1] for row in expected]
    assert ids.dtype == np.int64
    assert close.dtype == np.float32


def test_a_score_that_was_given_back_is_not_below_itself():
    table = Table([[0.7, 0.1]])
    assert table.page(2, threshold=0.7)[0].tolist() == [[3, -1]]
    assert table.page(2, threshold=float(np.float32(0.7)))[0].tolist() == [[3, -1]]
    assert table.page(2, threshold=np.float64(0.7))[0].tolist() == [[3, -1]]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("threshold", "first"), [(1e300, -1), (np.inf, -1), (-1e300, 3), (-np.inf, 3), (np.int64(0), 3)]
)
def test_extreme_thresholds(threshold, first):
    assert Table([[0.7, 0.1]]).page(1, threshold=threshold)[0].tolist() == [[first]]


def test_only_queries_that_need_more_are_asked_again_for_twice_as_many():
    scores = np.tile(-np.arange(100, dtype=np.float32), (2, 1))
    scores[1] = scores[0][::-1]
    table = Table(scores)
    numbers = np.where(np.arange(100) < 50, 0, np.arange(100))  # the first query's best 50 rows are one group
    ids, _ = table.page(2, groups=lambda ids: numbers[(ids - 3) // 10])
    assert ids.tolist() == [[3, 503], [993, 983]]
    assert table.asked == [(2, 2), (1, 4), (1, 8), (1, 16), (1, 32), (1, 64)]


def test_it_asks_no_more_where_nothing_can_follow():
    scores = -np.arange(100, dtype=np.float32)[None]
    one = {"groups": lambda ids: np.zeros(len(ids), np.int64)}
    below, filtered, whole, past = (Table(scores, drop) for drop in (0, 95, 0, 0))
    assert below.page(4, threshold=-2.5, **one)[0].tolist() == [[3, -1, -1, -1]]
    assert below.asked == [(1, 4)]
    assert filtered.page(4, **one)[0].tolist() == [[3, -1, -1, -1]]
    assert filtered.asked == [(1, 4), (1, 8)]
    assert whole.page(60, **one)[0][0, :2].tolist() == [3, -1]
    assert whole.asked == [(1, 60), (1, 100)]
    assert past.page(4, offset=100)[0].tolist() == [[-1] * 4]
    assert past.page(4, total=0)[0].tolist() == [[-1] * 4]
    assert past.asked == []


def test_a_row_without_a_group_is_not_taken_for_the_group_whose_number_is_its_id():
    numbers = np.array([-1, 3, 3, -1, 33])
    ids, _ = Table([[5, 4, 3, 2, 1]]).page(5, groups=lambda ids: numbers[(ids - 3) // 10])
    assert ids.tolist() == [[3, 13, 33, 43, -1]]


def test_much_is_asked_for_in_blocks(monkeypatch):
    monkeypatch.setattr(hits, "ENTRIES", 20)
    scores = np.random.default_rng(0).random((7, 30))
    table = Table(scores)
    ids, _ = table.page(6)
    assert ids.tolist() == [slow_page(row, 6, 0, None, None)[0] for row in scores]
    assert table.asked == [(3, 6), (3, 6), (1, 6)]
    assert Table(scores).page(25)[0].shape == (7, 25)  # more than a block for one query


def test_an_approximate_search_that_changes_its_mind_gives_no_id_and_no_group_twice():
    def search(queries, count):
        ids = np.array([5, 9, 5, 9, 7, 1, 2, 3] if count > 4 else [9, 9, 5, 5])[:count]
        return ids[None], np.linspace(1, 0, len(ids), dtype=np.float32)[None]

    query = np.zeros((1, 1), np.float32)
    ids, scores = page(search, query, 4, 8)
    assert ids.tolist() == [[5, 9, 7, 1]]
    assert scores[0].tolist() == np.linspace(1, 0, 8, dtype=np.float32)[[0, 1, 4, 5]].tolist()
    assert page(search, query, 2, 8, offset=2)[0].tolist() == [[7, 1]]
    assert page(search, query, 4, 8, groups=lambda ids: ids % 2)[0].tolist() == [[5, 2, -1, -1]]


@pytest.mark.parametrize(
    "how",
    [{"k": 0}, {"k": 1.5}, {"k": True}, {"k": 1, "offset": -1}, {"k": 1, "offset": "2"}]
    + [{"k": 1, "threshold": bad} for bad in (np.nan, "0.5", True)],
)
def test_what_is_no_page_is_refused_in_one_line(how):
    name, value = list(how.items())[-1]
    with pytest.raises(ValueError, match=f"^{name}={value!r}[^\n]*$"):
        Table([[1.0]]).page(**how)


PLAIN = [
    pa.array(["b", None, "a", "b", "", "a"]),
    pa.array([5, None, -1, 5, 0, -1], pa.int8()),
    pa.array([1.5, None, 2.5, 1.5, 0.0, 2.5]),
    pa.array([True, None, False, True, None, False]),
    pa.array([b"b", None, b"a", b"b", b"", b"a"], pa.large_binary()),
    pa.array([3, None, 1, 3, 2, 1], pa.timestamp("ms", "UTC")),
    pa.array([["a", "b"], None, ["a"], ["a", "b"], [], ["a"]]),
    pa.array([{"x": 1}, None, {"x": 2}, {"x": 1}, {"x": None}, {"x": 2}]),
    pa.nulls(4),
    pa.array([], pa.string()),
]


@pytest.mark.parametrize("column", PLAIN, ids=lambda column: str(column.type))
@pytest.mark.parametrize("chunks", [0, 1, 2, 3])
def test_numbers_are_equal_where_values_are(column, chunks):
    given = column
    if chunks:
        given = pa.chunked_array(
            [column[i::1].slice(0, 2) for i in range(0, len(column), 2)][: len(column)], column.type
        )
        given = given if chunks < 3 else pa.chunked_array([pa.array([], column.type), *given.chunks], column.type)
    numbers = group_numbers(given)
    values = column.to_pylist()
    assert numbers.dtype == np.int64
    assert len(numbers) == len(values)
    for number, value in zip(numbers, values, strict=True):
        assert (number == -1) == (value is None)
        assert [other == number for other in numbers] == [other == value for other in values]


def test_dictionaries_of_chunks_that_differ_or_hold_a_value_twice_or_null():
    first = pa.DictionaryArray.from_arrays(pa.array([0, 1, None, 2]), pa.array(["a", "b", "a"]))
    second = pa.DictionaryArray.from_arrays(pa.array([0, 1, 2]), pa.array(["b", None, "c"]))
    numbers = group_numbers(pa.chunked_array([first, second])).tolist()
    assert numbers == [numbers[0], numbers[1], -1, numbers[0], numbers[1], -1, numbers[6]]
    assert len(set(numbers)) == 4
    assert group_numbers(first[1:]).tolist() == [0, -1, 1]
