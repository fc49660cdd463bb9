"""Exact ranks against the slow obvious computation, ties and edges included."""

from __future__ import annotations

import os
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dualenc.evaluate import ranks as module
from dualenc.evaluate.ranks import pair_scores, ranks, ranks_both_ways

# Values on a coarse grid: float32 and float64 dots are exact, and ties come often.
GRID = st.sampled_from([-1.0, -0.5, 0.0, 0.5, 1.0])


def slow_ranks(query, gallery, relevant):
    """The definition, word for word, in Python floats."""
    out = []
    for q, right in zip(np.asarray(query, np.float64), relevant, strict=True):
        scores = [sum(float(a) * float(b) for a, b in zip(q, g, strict=True)) for g in np.asarray(gallery, np.float64)]
        right = {int(row) for row in np.atleast_1d(right)}
        best = max(scores[row] for row in right)
        out.append(sum(score >= best for row, score in enumerate(scores) if row not in right))
    return np.array(out)


def unit(rng, *shape):
    rows = rng.standard_normal(shape).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


@st.composite
def cases(draw):
    width, queries, gallery = draw(st.integers(1, 4)), draw(st.integers(1, 6)), draw(st.integers(1, 9))
    rows = st.lists(GRID, min_size=width, max_size=width)
    q = draw(st.lists(rows, min_size=queries, max_size=queries))
    g = draw(st.lists(rows, min_size=gallery, max_size=gallery))
    right = st.lists(st.integers(0, gallery - 1), min_size=1, max_size=4)  # with repeats
    relevant = draw(st.lists(right, min_size=queries, max_size=queries))
    dtype = draw(st.sampled_from([np.float16, np.float32, np.float64]))
    return np.array(q, dtype), np.array(g, dtype), relevant, draw(st.integers(1, 10))


@settings(max_examples=300, deadline=None)
@given(cases())
def test_equals_the_definition_with_many_ties(case):
    query, gallery, relevant, block = case
    assert ranks(query, gallery, relevant, block).tolist() == slow_ranks(query, gallery, relevant).tolist()


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_equals_the_definition_on_embeddings(dtype):
    rng = np.random.default_rng(0)
    gallery = unit(rng, 60, 48)
    query = (unit(rng, 25, 48) * 0.7 + gallery[:25] * 0.3).astype(dtype)
    relevant = [[i, (7 * i) % 60] for i in range(25)]
    assert (
        ranks(query, gallery.astype(dtype), relevant).tolist()
        == slow_ranks(query, gallery.astype(dtype), relevant).tolist()
    )


def test_scores_closer_than_float32_can_tell_are_ordered():
    rng = np.random.default_rng(1)
    query = unit(rng, 8, 256).astype(np.float64)
    base = unit(rng, 256).astype(np.float64)
    # Gallery rows whose scores differ by about 1e-9: float32 sums cannot order them, float64 can.
    gallery = base + 1e-9 * rng.standard_normal((50, 256))
    relevant = [[int(rng.integers(50))] for _ in range(8)]
    expected = slow_ranks(query, gallery, relevant)
    assert len(set(expected.tolist())) > 3
    assert ranks(query, gallery, relevant).tolist() == expected.tolist()
    float32 = query.astype(np.float32) @ gallery.astype(np.float32).T
    own = np.array([float32[i, rows[0]] for i, rows in enumerate(relevant)])
    assert ((float32 >= own[:, None]).sum(axis=1) - 1).tolist() != expected.tolist()


def test_the_margin_is_the_bound_of_float32_sums():
    """511 terms that are each lost beside a large one: no order of summation is worse."""
    assert module.margin(16) == module.MARGIN
    row = np.full(512, np.sqrt(0.99 * 2.0**-25), np.float32)
    row[0] = 0.99
    one_by_one = np.cumsum(row * row, dtype=np.float32)[-1]
    off = abs(float(one_by_one) - pair_scores(row[None], row[None], [0], [0])[0])
    assert module.MARGIN < off < module.margin(512)
    side = module._side(np.array([0]), np.array([0.5]), np.ones(1), np.ones(1), module.margin(512))
    assert 0.5 - side.low[0] == pytest.approx(512 * 2.0**-24, rel=1e-2)


def test_copies_of_the_right_row_stand_before_it():
    rng = np.random.default_rng(2)
    rows = unit(rng, 10, 512)
    gallery = np.concatenate([rows, rows, rows])  # every row three times
    assert ranks(rows, gallery, np.arange(10)[:, None]).tolist() == [2] * 10
    assert ranks(rows, gallery, [[i, i + 10, i + 20] for i in range(10)]).tolist() == [0] * 10


@pytest.mark.parametrize("noise", [0.0, 1e-9])
def test_a_collapsed_encoder_ranks_last(noise):
    row = unit(np.random.default_rng(3), 512).astype(np.float64)
    gallery = np.tile(row, (300, 1)).astype(np.float32)
    queries = np.tile(row, (20, 1)) * (1 + noise)
    assert ranks(queries, gallery, [[i] for i in range(20)]).tolist() == [299] * 20


def test_no_result_depends_on_the_block_or_the_order_of_rows():
    rng = np.random.default_rng(4)
    base = unit(rng, 30, 100)
    gallery = np.concatenate([base, base, base + np.float32(1e-7) * unit(rng, 30, 100)])
    query, relevant = unit(rng, 17, 100), [[int(i)] for i in rng.integers(0, 90, 17)]
    expected = ranks(query, gallery, relevant)
    for block in (1, 2, 3, 16, 17, 89, 90, 1000):
        assert ranks(query, gallery, relevant, block).tolist() == expected.tolist()
    order = rng.permutation(90)
    place = np.argsort(order)
    moved = ranks(query, gallery[order], [[int(place[rows[0]])] for rows in relevant])
    assert moved.tolist() == expected.tolist()


def test_a_pair_score_depends_on_its_two_rows_alone():
    rng = np.random.default_rng(5)
    a, b = rng.standard_normal((40, 777)).astype(np.float32), rng.standard_normal((50, 777)).astype(np.float32)
    i, j = rng.integers(0, 40, 500), rng.integers(0, 50, 500)
    together = pair_scores(a, b, i, j)
    alone = np.array([pair_scores(a[[p]].copy(), b[[q]].copy(), [0], [0])[0] for p, q in zip(i, j, strict=True)])
    strided = pair_scores(np.asfortranarray(a), b, i, j)
    assert (together == alone).all()
    assert (together == strided).all()
    assert np.abs(together - (a[i].astype(np.float64) * b[j]).sum(axis=1)).max() < 1e-10


def test_threads_change_nothing():
    program = (
        "import numpy as np; from dualenc.evaluate.ranks import ranks; r = np.random.default_rng(6);"
        "x = r.standard_normal((700, 64)).astype('f4'); x /= np.linalg.norm(x, axis=1, keepdims=True);"
        "g = np.concatenate([x, x + np.float32(1e-7)]); print(ranks(x, g, np.arange(700)[:, None]).tolist())"
    )
    said = []
    for threads in ("1", "2"):
        environment = {**os.environ, "OMP_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads}
        run = subprocess.run(
            [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
        )
        said.append(run.stdout)
    assert said[0] == said[1]
    assert len(said[0]) > 700


def test_long_rows_get_a_margin_to_match():
    rng = np.random.default_rng(7)
    gallery = (unit(rng, 400, 64) * 0.001 + unit(rng, 64)) * np.float32(1e4)  # scores near 1e8, float32 steps of 8
    query = (unit(rng, 30, 64) * 0.001 + gallery[0] / 1e4) * np.float32(1e4)
    relevant = [[int(i)] for i in rng.integers(0, 400, 30)]
    assert ranks(query, gallery, relevant).tolist() == slow_ranks(query, gallery, relevant).tolist()


def test_short_rows_are_ranked_too():
    rng = np.random.default_rng(8)
    query, gallery = unit(rng, 5, 16) * np.float32(1e-6), unit(rng, 9, 16) * np.float32(1e-6)
    relevant = [[i] for i in range(5)]
    assert ranks(query, gallery, relevant).tolist() == slow_ranks(query, gallery, relevant).tolist()


def test_memory_is_bounded_by_the_block():
    rng = np.random.default_rng(9)
    query, gallery = unit(rng, 3000, 16), unit(rng, 6000, 16)  # all scores at once: 72 MB
    relevant = np.arange(3000)[:, None]
    ranks(query[:2], gallery, relevant[:2])
    tracemalloc.start()
    ranks(query, gallery, relevant, block=256)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 6e6


def test_only_rows_within_the_margin_are_scored_twice(monkeypatch):
    counted = []
    original = module.pair_scores
    monkeypatch.setattr(module, "pair_scores", lambda a, b, i, j: counted.append(len(i)) or original(a, b, i, j))
    rng = np.random.default_rng(10)
    ranks(unit(rng, 200, 64), unit(rng, 2000, 64), np.arange(200)[:, None])
    assert sum(counted) < 200 + 200 + 2000 + 400_000 * 0.001  # relevant pairs, row lengths, a few near ties


@st.composite
def both_cases(draw):
    query, gallery, _, block = draw(cases())
    every = [(q, g) for q in range(len(query)) for g in range(len(gallery))]
    return query, gallery, sorted(draw(st.sets(st.sampled_from(every)))), block


@settings(max_examples=120, deadline=None)
@given(both_cases())
def test_both_ways_equal_the_definition_with_many_ties(case):
    query, gallery, pairs, block = case
    right = np.array(pairs, np.int64).reshape(-1, 2).T
    rank, back = ranks_both_ways(query, gallery, (right[0], right[1]), block)
    for found, own, others, asked in ((rank, query, gallery, pairs), (back, gallery, query, [p[::-1] for p in pairs])):
        relevant = {i: [j for i_, j in asked if i_ == i] for i, _ in asked}
        asks = sorted(relevant)
        assert found[asks].tolist() == slow_ranks(own[asks], others, [relevant[i] for i in asks]).tolist()
        assert np.delete(found, asks).tolist() == [-1] * (len(own) - len(asks))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_both_ways_are_the_two_one_by_one_whatever_the_block(dtype):
    rng = np.random.default_rng(11)
    images = unit(rng, 61, 40)
    texts = np.concatenate([images, images + np.float32(1e-7) * unit(rng, 61, 40), unit(rng, 39, 40)]).astype(dtype)
    images = images.astype(dtype)
    image = np.concatenate([np.arange(61), rng.permutation(61), rng.integers(61, size=39)])
    forth = ranks(texts, images, image[:, None])
    back = ranks(images, texts, [np.flatnonzero(image == i) for i in range(61)])
    assert np.median(forth) > 0 and len(set(back.tolist())) > 1
    for block in (1, 7, 8, 60, 61, 160, 161, 1024):
        found = ranks_both_ways(texts, images, (np.arange(161), image), block)
        assert found[0].tolist() == forth.tolist()
        assert found[1].tolist() == back.tolist()


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("shape", [(1, 8), (255, 8), (256, 8), (600, 16), (3, 2040), (3, 2048), (2, 4200), (700, 2088)])
def test_flags_are_counted_beyond_what_a_byte_holds(shape, axis):
    for share in (1.0, 0.5):
        mask = np.random.default_rng(12).random(shape) < share
        assert module._flagged(mask, axis).tolist() == mask.sum(axis=axis).tolist()


def test_a_block_wider_than_a_byte_counts_all_that_is_above():
    rows = np.ones((2, 5000), np.float32)  # every row scores alike: 4,999 ties, in blocks of 4,096
    gallery = np.concatenate([rows.T, [[0.5, 0.5]]]).astype(np.float32)
    assert ranks([[1.0, 0.0]], gallery, [[5000]], block=4096).tolist() == [5000]
    assert ranks_both_ways([[1.0, 0.0]], gallery, (np.array([0]), np.array([5000])), 4096)[1][5000] == 0


def test_an_empty_side_asks_nothing():
    none = np.empty(0, np.int64)
    rank, back = ranks_both_ways(np.empty((0, 3)), GOOD, (none, none))
    assert (rank.tolist(), back.tolist()) == ([], [-1, -1, -1])


GOOD = np.eye(3, dtype=np.float32)


@pytest.mark.parametrize(
    ("query", "gallery", "relevant", "says"),
    [
        (GOOD, GOOD, [[0], [], [2]], "query 1 has no relevant"),
        (GOOD, GOOD, [[0], [1]], "2 entries for 3 queries"),
        (GOOD, GOOD, [[0], [1], [3]], "span 0..3"),
        (GOOD, GOOD, [[0], [1], [-1]], "span -1..1"),
        (GOOD, GOOD, [[0], [1], [0.5]], "integers"),
        (GOOD, GOOD, [[0], [1], [True]], "integers"),
        (GOOD, GOOD, [[0], [1], [[1, 2]]], "integers"),
        (GOOD, np.eye(4), [[0], [1], [2]], "3 values, gallery rows 4"),
        (GOOD * np.nan, GOOD, [[0], [1], [2]], "3 of 3 rows of query hold NaN"),
        (GOOD, np.where(GOOD > 0, np.inf, 0), [[0], [1], [2]], "rows of gallery hold NaN or infinity"),
        (np.empty((0, 3)), GOOD, [], "query has the shape (0, 3)"),
        (GOOD[0], GOOD, [[0]], "query has the shape (3,)"),
        (GOOD, np.empty((3, 0)), [[0], [1], [2]], "gallery has the shape (3, 0)"),
        (GOOD * 1e25, GOOD * 1e25, [[0], [1], [2]], "too large"),
    ],
)
def test_refused(query, gallery, relevant, says):
    with pytest.raises(ValueError) as error:
        ranks(query, gallery, relevant)
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_relevant_rows_may_be_lists_sets_arrays_or_one_number():
    gallery = np.array([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])
    relevant = [{1, 2}, [1, 1], np.array([2], np.uint8), 2]
    assert ranks(np.tile(gallery[:1], (4, 1)), gallery, relevant).tolist() == [1, 1, 2, 2]


def test_a_block_of_no_rows_is_refused():
    with pytest.raises(ValueError, match="block is 0"):
        ranks(GOOD, GOOD, [[0], [1], [2]], block=0)
