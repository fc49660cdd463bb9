from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dualenc.index import duplicates
from dualenc.index.alike import above, count_alike, equal_rows
from dualenc.index.duplicates import near_duplicates, write_groups
from dualenc.index.unions import Unions
from dualenc.index.vectors import Array
from tests.index.conftest import unit


def groups_by_walking(count: int, pairs: list[tuple[int, int]]) -> list[int]:
    """The smallest member of each row's component, by breadth-first search; -1 for rows alone."""
    beside: list[set[int]] = [set() for _ in range(count)]
    for one, other in pairs:
        beside[one].add(other)
        beside[other].add(one)
    group = [-1] * count
    for row in range(count):
        if group[row] < 0 and beside[row] - {row}:
            group[row], queue = row, [row]
            for now in queue:
                new = [other for other in beside[now] if group[other] < 0]
                queue += new
                for other in new:
                    group[other] = row
    return group


def brute_force(rows: np.ndarray, threshold: float) -> tuple[list[int], int]:
    """Groups and number of pairs over all N² cosines in float64."""
    exact = rows.astype(np.float64)
    exact /= np.linalg.norm(exact, axis=1, keepdims=True)
    one, other = np.nonzero(np.triu(exact @ exact.T >= threshold - 1e-12, 1))
    return groups_by_walking(len(rows), list(zip(one.tolist(), other.tolist(), strict=True))), len(one)


def planted(count: int, dim: int = 24, seed: int = 0) -> np.ndarray:
    """Clusters behind a common offset; a fifth of the rows are noisy copies of others, a twentieth exact ones."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(max(2, count // 20), dim))
    rows = centres[rng.integers(len(centres), size=count)] + 0.6 * rng.normal(size=(count, dim)) + rng.normal(size=dim)
    near, same = rng.permutation(count)[: count // 5], rng.permutation(count)[: count // 20]
    rows[near] = rows[rng.integers(count, size=len(near))] + 0.05 * rng.normal(size=(len(near), dim))
    rows = unit(rows)
    rows[same] = rows[rng.integers(count, size=len(same))]
    return rows


@pytest.fixture
def small_cells(monkeypatch):
    """Cells, tiles and runs of cells so small that a few thousand rows need many of each."""
    monkeypatch.setattr(duplicates, "ALL_PAIRS", 100)
    monkeypatch.setattr(duplicates, "TILE", 16)
    monkeypatch.setattr(duplicates, "GATHERED", 4 * 24 * 200)
    monkeypatch.setattr("dualenc.index.vectors.BLOCK", 700)


@pytest.mark.parametrize("threshold", [0.999, 0.97, 0.9])
def test_all_pairs_of_a_small_store_are_those_of_brute_force(threshold, monkeypatch):
    monkeypatch.setattr(duplicates, "TILE", 100)
    rows = planted(900)
    found = near_duplicates(Array(rows), threshold, progress=False)
    group, pairs = brute_force(rows, threshold)
    assert found.group.tolist() == group
    assert found.pairs == pairs > 50
    assert found.compared < 0.6 * 900**2  # a pair is compared once, but for those within a tile
    assert found.recall == 1
    assert found.queries == len(np.unique(rows, axis=0)) < 900


@pytest.mark.parametrize("threshold", [0.999, 0.97, 0.9])
def test_cells_find_what_brute_force_finds(threshold, small_cells):
    rows = planted(3000)
    found = near_duplicates(Array(rows), threshold, progress=False)
    group, pairs = brute_force(rows, threshold)
    assert pairs * 0.98 <= found.pairs <= pairs
    assert found.recall >= 0.99
    if found.pairs == pairs:
        assert found.group.tolist() == group
    assert found.group.dtype == np.int64
    assert (found.group == group).mean() > 0.99


def test_every_pair_is_counted_once_whatever_the_rounds(small_cells, monkeypatch):
    rows = planted(1500)
    group, pairs = brute_force(rows, 0.9)
    monkeypatch.setattr(duplicates, "ENOUGH", 2.0)  # all rounds
    monkeypatch.setattr(duplicates, "ROUNDS", ((0, 2), (2, 5), (5, 30), (30, 10_000)))  # at last every cell of all
    found = near_duplicates(Array(rows), 0.9, progress=False)
    assert found.pairs == pairs
    assert found.group.tolist() == group
    assert found.recall == 1


def test_the_recall_is_that_of_brute_force_and_more_cells_raise_it(small_cells, monkeypatch):
    rows = unit(np.random.default_rng(1).normal(size=(2500, 24)))  # no clusters: twins lie on both sides of a border
    group, _ = brute_force(rows, 0.65)
    exact = rows.astype(np.float64) @ rows.T.astype(np.float64)
    one, other = np.nonzero(np.triu(exact >= 0.65, 1))
    recalls = []
    for rounds in [((0, 1),), ((0, 2),), ((0, 1), (1, 4), (4, 16))]:
        monkeypatch.setattr(duplicates, "ROUNDS", rounds)
        found = near_duplicates(Array(rows), 0.65, progress=False)
        here = found.group[one]
        assert found.sampled_pairs > 1000
        assert found.recall == pytest.approx(((here == found.group[other]) & (here >= 0)).mean(), abs=0.03)
        recalls.append(found.recall)
    assert recalls[0] < recalls[1] < recalls[2]
    assert recalls[0] < 0.9
    assert len(group) == len(rows)


def test_rounds_go_on_only_where_too_little_was_found(small_cells, monkeypatch):
    ran = []
    run = duplicates._Search.run
    monkeypatch.setattr(
        duplicates._Search, "run", lambda self, low, high, bar: (ran.append((low, high)), run(self, low, high, bar))
    )
    near_duplicates(Array(planted(1500)), 0.99, progress=False)
    assert ran == [(0, 4)]
    ran.clear()
    found = near_duplicates(Array(unit(np.random.default_rng(1).normal(size=(2500, 24)))), 0.62, progress=False)
    assert ran[:2] == [(0, 4), (4, 8)]
    assert len(ran) == 3 or found.recall >= 0.99


def test_comparisons_grow_slower_than_the_square(monkeypatch):
    monkeypatch.setattr(duplicates, "ALL_PAIRS", 100)
    monkeypatch.setattr(duplicates, "ENOUGH", 0.0)
    counts = [2000, 8000]
    few, many = (near_duplicates(Array(planted(count)), 0.98, progress=False).compared for count in counts)
    assert few < 0.4 * counts[0] ** 2
    assert many / few < 11  # N^1.5 is 8, N^2 is 16


def test_equal_rows_are_chained_not_listed(monkeypatch):
    listed = []
    join = Unions.join
    monkeypatch.setattr(Unions, "join", lambda self, one, other: (listed.append(len(one)), join(self, one, other)))
    rows = np.repeat(unit(np.random.default_rng(0).normal(size=(3, 8))), [20_000, 1, 9_999], axis=0)
    found = near_duplicates(Array(rows), 0.99, progress=False)
    assert found.pairs == 20_000 * 19_999 // 2 + 9_999 * 9_998 // 2
    assert np.array_equal(found.group, np.repeat([0, -1, 20_001], [20_000, 1, 9_999]))
    assert sum(listed) == 0
    assert found.compared <= 9
    assert found.recall is None  # no two unequal rows are alike
    assert found.sampled_pairs == 0


def test_collapsed_rows_are_one_group(small_cells):
    rng = np.random.default_rng(0)
    rows = unit(rng.normal(size=24) + 1e-3 * rng.normal(size=(1200, 24)))
    found = near_duplicates(Array(rows), 0.99, progress=False)
    assert (found.group == 0).all()
    assert found.recall == 1
    assert 0 < found.compared < 0.4 * 1200**2  # rows that differ by little are still dealt to cells


def test_few_rows_are_read_at_once_even_of_a_giant_cell(small_cells, monkeypatch):
    sizes: list[int] = []
    take = duplicates._Search._take
    monkeypatch.setattr(duplicates._Search, "_take", lambda self, rows: (sizes.append(len(rows)), take(self, rows))[1])
    rng = np.random.default_rng(0)
    giant = unit(rng.normal(size=24) + 1e-7 * rng.normal(size=(700, 24)))  # too alike for any centroid to split
    rows = np.concatenate([planted(1500), giant])
    group, pairs = brute_force(rows, 0.95)
    found = near_duplicates(Array(rows), 0.95, progress=False)
    assert max(sizes) <= 200
    assert sizes.count(16) > 30  # by tiles
    assert max(sizes) > 100  # several small cells in one reading
    assert found.group.tolist() == group
    assert found.pairs == pairs


def test_lists_of_pairs_stay_short_however_alike_rows_are(monkeypatch):
    monkeypatch.setattr("dualenc.index.alike.STRIP", 300)
    rows = unit(np.random.default_rng(0).normal(size=24) + 1e-3 * np.random.default_rng(1).normal(size=(90, 24)))
    sizes = [len(one) for one, _ in above(rows, rows, 0.9)]
    assert sum(sizes) == 90 * 90
    assert max(sizes) <= 300


@pytest.mark.parametrize("threshold", [0.5, 0.8, 0.95, 1.0])
def test_the_threshold_is_told_apart_in_float64(threshold):
    rng = np.random.default_rng(0)
    left = unit(rng.normal(size=(300, 64)))
    aside = rng.normal(size=(300, 64))
    aside -= (aside * left).sum(1, keepdims=True) * left
    aside /= np.linalg.norm(aside, axis=1, keepdims=True)
    cosine = np.clip(threshold + rng.normal(size=300) * 3e-7, -1, 1)[:, None]
    right = unit(cosine * left.astype(np.float64) + np.sqrt(1 - cosine**2) * aside)
    a, b = left.astype(np.float64), right.astype(np.float64)
    expected = (a * b).sum(1) / np.sqrt((a * a).sum(1) * (b * b).sum(1)) >= threshold - 1e-12
    assert 20 < expected.sum() < 280
    place = rng.permutation(320)[:300]
    moved = unit(rng.normal(size=(320, 64)))
    moved[place] = right
    found = {pair for one, other in above(left, moved, threshold) for pair in zip(one, other, strict=True)}
    assert [(row, place[row]) in found for row in range(300)] == expected.tolist()


def test_threshold_one_means_the_same_direction():
    rows = unit(np.random.default_rng(0).normal(size=(50, 16)))
    rows[7] = rows[3] * np.float32(1 - 2**-23)
    rows[9] = rows[3] + np.float32(1e-6)
    found = near_duplicates(Array(rows), 1, progress=False)
    assert np.flatnonzero(found.group >= 0).tolist() == [3, 7]


def test_equal_rows_in_and_across_blocks(monkeypatch):
    monkeypatch.setattr("dualenc.index.vectors.BLOCK", 3)
    rows = np.eye(4, dtype=np.float32)[[2, 0, 2, 1, 3, 0, 2, 1]]
    rows[6] = -0.0
    rows[6, 2] = 1
    assert equal_rows(Array(rows)).tolist() == [0, 1, 0, 3, 4, 1, 0, 3]


def test_counting_leaves_a_row_itself_out():
    rows = np.eye(3, dtype=np.float32)[[0, 0, 1, 1, 2]]
    everything, group = np.arange(5), np.array([0, 0, 2, 3, 4])
    assert count_alike(Array(rows), everything, np.array([0, 2, 4]), 0.9, group) == (1, 2)
    assert count_alike(Array(rows), np.array([0, 2, 3]), np.array([0, 2]), 0.9, np.zeros(5, int)) == (1, 1)


@given(st.integers(1, 40).flatmap(lambda n: st.tuples(st.just(n), st.lists(st.tuples(*[st.integers(0, n - 1)] * 2)))))
@settings(deadline=None)
def test_unions_are_the_components_of_the_graph(graph):
    count, pairs = graph
    unions = Unions(np.arange(count))
    for cut in (pairs[: len(pairs) // 2], pairs[len(pairs) // 2 :]):
        unions.join(np.array([a for a, _ in cut], int), np.array([b for _, b in cut], int))
    assert unions.groups().tolist() == groups_by_walking(count, pairs)


@pytest.mark.parametrize("reverse", [False, True])
def test_a_long_chain_is_one_group(reverse):
    order = np.arange(20_000)[:: -1 if reverse else 1]
    unions = Unions(np.arange(20_000))
    unions.join(order[:-1], order[1:])
    assert (unions.groups() == 0).all()


def test_groups_are_the_same_each_time(small_cells):
    rows = Array(planted(1500))
    one, other = (near_duplicates(rows, 0.95, seed=3, progress=False) for _ in range(2))
    assert np.array_equal(one.group, other.group)
    assert one.summary() == other.summary()


def test_no_rows_and_one_row():
    for count in (0, 1):
        found = near_duplicates(Array(np.ones((count, 1), np.float32)), 0.9, progress=False)
        assert found.group.tolist() == [-1] * count
        assert (found.pairs, found.recall) == (0, None)


@pytest.mark.parametrize("threshold", [0, -0.5, 1.01, float("nan"), True])
def test_thresholds_that_are_none_are_refused(threshold):
    with pytest.raises(ValueError, match=r"a cosine above 0 and at most 1"):
        near_duplicates(Array(np.eye(3, dtype=np.float32)), threshold)


def test_a_low_threshold_is_warned_of(recwarn):
    near_duplicates(Array(np.eye(3, dtype=np.float32)), 0.5, progress=False)
    assert not recwarn
    with pytest.warns(UserWarning, match=r"0\.49: below 0\.5"):
        near_duplicates(Array(np.eye(3, dtype=np.float32)), 0.49, progress=False)


def test_rows_that_are_not_unit_are_named():
    with pytest.raises(ValueError, match="row 2 has length 2"):
        near_duplicates(Array(np.diag([1, 1, 2]).astype(np.float32)), 0.9, progress=False)


def test_groups_are_written_with_ids_and_metadata(tmp_path):
    rows = np.eye(4, dtype=np.float32)[[3, 1, 0, 1, 3, 3]]
    found = near_duplicates(Array(rows), 0.9, progress=False)
    assert found.summary() | {"compared": 0} == {
        "rows": 6,
        "groups": 2,
        "rows_in_groups": 5,
        "pairs": 4,
        "recall": None,
        "sampled_pairs": 0,
        "queries": 3,
        "compared": 0,
    }
    metadata = pa.table({"key": list("abcdef"), "id": list("uvwxyz")})
    write_groups(found, np.array([10, 20, 30, 40, 50, 60]), metadata, tmp_path / "g.parquet")
    assert pq.read_table(tmp_path / "g.parquet").to_pydict() == {
        "id": [10, 50, 60, 20, 40],
        "group": [10, 10, 10, 20, 20],
        "key": ["a", "e", "f", "b", "d"],
        "metadata_id": ["u", "y", "z", "v", "x"],
    }
    with pytest.raises(FileExistsError):
        write_groups(found, None, None, tmp_path / "g.parquet")
    write_groups(found, None, None, tmp_path / "rows.parquet")
    assert pq.read_table(tmp_path / "rows.parquet").to_pydict() == {"id": [0, 4, 5, 1, 3], "group": [0, 0, 0, 1, 1]}
