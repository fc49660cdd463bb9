from __future__ import annotations

import numpy as np
import pyarrow.parquet as pq
import pytest

from dualenc.index import neighbours
from dualenc.index.exact import exact_search
from dualenc.index.neighbours import write_graph
from dualenc.index.vectors import Array


def exact(rows: np.ndarray, ids: np.ndarray):
    def search(queries: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        found, scores = exact_search(queries, rows, count)
        return np.where(found >= 0, ids[found], -1), scores

    return search


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr("dualenc.index.vectors.BLOCK", 300)
    monkeypatch.setattr(neighbours, "QUERIES", 70)


def test_equals_brute_force(data, tmp_path, small_blocks):
    rows, ids = data.images[:1000], np.random.default_rng(0).permutation(5000)[:1000]
    out = tmp_path / "graph.parquet"
    assert write_graph(exact(rows, ids), Array(rows), ids, 7, out, progress=False) == 7000
    table = pq.read_table(out)
    assert [str(kind) for kind in table.schema.types] == ["int64", "int64", "int16", "float"]
    scores = rows.astype(np.float64) @ rows.T.astype(np.float64)
    np.fill_diagonal(scores, -2)
    best = np.argsort(-scores, axis=1)[:, :7]
    assert table["id"].to_pylist() == np.repeat(ids, 7).tolist()
    assert table["rank"].to_pylist() == list(range(7)) * 1000
    assert table["neighbour"].to_pylist() == ids[best].ravel().tolist()
    assert np.allclose(table["score"].to_numpy(), np.take_along_axis(scores, best, 1).ravel(), atol=1e-6)


def test_equal_rows_are_neighbours_and_a_row_is_never_its_own(tmp_path):
    rows = np.repeat(np.eye(3, dtype=np.float32), 6, axis=0)
    write_graph(exact(rows, np.arange(18)), Array(rows), np.arange(18), 3, tmp_path / "g.parquet", progress=False)
    table = pq.read_table(tmp_path / "g.parquet")
    one, other = table["id"].to_numpy(), table["neighbour"].to_numpy()
    assert np.bincount(one).tolist() == [3] * 18
    assert (one != other).all()
    assert (one // 6 == other // 6).all()
    assert table["rank"].to_pylist() == [0, 1, 2] * 18


def test_fewer_rows_than_k(tmp_path):
    rows = np.eye(3, dtype=np.float32)
    assert write_graph(exact(rows, np.arange(3)), Array(rows), np.arange(3), 10, tmp_path / "g", progress=False) == 6
    assert pq.read_table(tmp_path / "g")["rank"].to_pylist() == [0, 1] * 3
    assert write_graph(exact(rows[:1], np.arange(1)), Array(rows[:1]), np.arange(1), 1, tmp_path / "h", False) == 0
    assert pq.read_table(tmp_path / "h").num_rows == 0


def test_appears_whole_or_not_at_all(data, tmp_path, small_blocks):
    calls = []

    def search(queries: np.ndarray, count: int):
        calls.append(len(queries))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return exact(data.images, np.arange(2000))(queries, count)

    with pytest.raises(KeyboardInterrupt):
        write_graph(search, Array(data.images), np.arange(2000), 2, tmp_path / "graph.parquet", progress=False)
    assert calls == [70, 70, 70]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"k": 0}, ValueError, "k=0; ask for a whole number"),
        ({"k": 32_768}, ValueError, "from 1 to 32767"),
        ({"k": True}, ValueError, "k=True"),
        ({"k": 2.0}, ValueError, r"k=2\.0"),
        ({"ids": np.arange(4)}, ValueError, "4 ids for 3 rows"),
        ({"rows": Array(np.eye(3) * 2)}, ValueError, "row 0 has length 2"),
        ({"out": __file__}, FileExistsError, "exists"),
    ],
)
def test_what_does_not_fit_is_refused(change, error, said, tmp_path):
    rows = np.eye(3, dtype=np.float32)
    fit = {"rows": Array(rows), "ids": np.arange(3), "k": 1, "out": tmp_path / "g.parquet"}
    with pytest.raises(error, match=said):
        write_graph(exact(rows, np.arange(3)), **{**fit, **change}, progress=False)
    assert not list(tmp_path.iterdir())
