"""benchmarks/index.py on toy data: each part runs, peers are asked over their own protocol, trials leave the record alone."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
FAKES = {  # exact search in the clothes of the peers' Python interfaces
    "hnswlib.py": """
import faiss
class Index:
    def __init__(self, space, dim):
        assert space == "ip"
        self.flat, self.ef = faiss.IndexFlatIP(dim), 10
    def init_index(self, max_elements, M, ef_construction): pass
    def set_num_threads(self, threads): print("noise on stdout")
    def add_items(self, rows, ids): self.flat.add(rows)
    def save_index(self, path): faiss.write_index(self.flat, path)
    def set_ef(self, ef): self.ef = ef
    def knn_query(self, queries, k):
        scores, found = self.flat.search(queries, k)
        if self.ef < 16: found[:, -1] = 0
        return found.astype("uint64"), 1 - scores
""",
    "usearch/__init__.py": "",
    "usearch/index.py": """
import faiss, types
class Index:
    def __init__(self, ndim, metric, dtype):
        self.flat, self.dtype = faiss.IndexFlatIP(ndim), dtype or "bf16"
        self.connectivity, self.expansion_add, self.hardware_acceleration = 16, 128, "none"
    def add(self, ids, rows, threads): self.flat.add(rows)
    def save(self, path): faiss.write_index(self.flat, path)
    def search(self, queries, k, threads):
        found = self.flat.search(queries, k)[1]
        return types.SimpleNamespace(keys=found[0] if len(queries) == 1 else found)
""",
    "autofaiss.py": """
import faiss
def build_index(rows, index_path, index_infos_path, nb_cores, verbose):
    if rows.shape[1] == 3: return None, None
    index = faiss.IndexFlatIP(rows.shape[1])
    index.add(rows)
    return index, {"index_key": "Flat"}
""",
}


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """The module benchmarks/index.py, with peers that are fakes and sets that are small."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    import index_measure
    import index_peers

    fakes = tmp_path / "fakes"
    for name, text in FAKES.items():
        (fakes / name).parent.mkdir(parents=True, exist_ok=True)
        (fakes / name).write_text(text)
    import os

    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(fakes), *filter(None, [os.environ.get("PYTHONPATH")])]))
    monkeypatch.setattr(index_peers, "interpreter", lambda name, folder: Path(sys.executable))
    monkeypatch.setattr(index_measure, "LEAST", 0.0)
    monkeypatch.setattr(index_measure, "PAUSE", 0.0)
    import index

    return index


def options(benchmark, tmp_path: Path, part: str, *more: str):
    words = ["--only", part, "--rows", "3000", "--repeats", "1", "--out", str(tmp_path / "trial.json"), *more]
    return benchmark.arguments(words)


def check(results: dict) -> None:
    """A part's results go into JSON and come back; every goal has a figure that fits its verdict."""
    assert json.loads(json.dumps(results)) == results and results["goals"]
    for each in results["goals"]:
        sign, bound = each["wanted"].split()
        assert each["met"] == (each["measured"] >= float(bound) if sign == ">=" else each["measured"] <= float(bound))


@pytest.mark.parametrize("part", ["autofaiss", "graphs"])
def test_peers(benchmark, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    import index_autofaiss
    import index_by_hand
    import index_graphs

    module = {"autofaiss": index_autofaiss, "graphs": index_graphs}[part]
    monkeypatch.setattr(module, "SETS", {"plain": module.SETS["plain"]})
    monkeypatch.setattr(index_by_hand, "GRID", [index_by_hand.GRID[place] for place in (1, 4, 7)])
    results = module.measure(options(benchmark, tmp_path, part))
    check(results)
    found = results["sets"]["plain"]
    if part == "autofaiss":
        assert found["autofaiss"]["recall"] == 1 and found["dualenc"]["recall"] >= 0.9
        return
    at = found["0.95"]
    assert at["hnswlib"]["setting"] == 16, "the fake's recall is 0.9 at best below 16"
    assert at["usearch"]["setting"] == 10 and at["usearch"]["recall"] == 1
    assert found["built"]["usearch, float32"]["what"]["dtype"] == "f32"
    assert {entry["name"] for entry in at["grid"]} >= {"HNSW16,Flat", "PQ128x4fs,RFlat"}
    assert all(entry["recall"] >= 0.95 and entry["batch"] > 0 for entry in at["grid"])
    assert sum(entry["name"] == "HNSW16,Flat" for entry in at["grid"]) == 1, "the least setting that reaches it, alone"
    assert at["FAISS by hand, batch"]["queries_per_second"] > 0


def test_a_peer_that_fails_says_so(benchmark, tmp_path: Path) -> None:
    from index_peers import peer

    with peer("autofaiss", tmp_path, 1) as client:
        with pytest.raises(RuntimeError, match="autofaiss returned no index"):
            client.build(np.eye(3, dtype=np.float32))
        client.build(np.eye(4, dtype=np.float32))
        with pytest.raises(RuntimeError, match="chosen its own"):
            client.find(np.eye(4, dtype=np.float32), 1, 7)
        assert client.find(np.eye(4, dtype=np.float32)[2:3], 1, None).tolist() == [[2]]
        client._process.kill()
        with pytest.raises(RuntimeError, match="ended with -9"):
            client.find(np.eye(4, dtype=np.float32), 1, None)


@pytest.mark.parametrize("part", ["cross_modal", "filters", "size"])
def test_parts(benchmark, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    import index_cross_modal
    import index_filters
    import index_size

    module = {"cross_modal": index_cross_modal, "filters": index_filters, "size": index_size}[part]
    monkeypatch.setattr(index_cross_modal, "GAPS", {"gap 2": index_cross_modal.GAPS["gap 2"]})
    monkeypatch.setattr(index_size, "ADDED", 50)
    monkeypatch.setattr(index_size, "OPENS", 1)
    monkeypatch.setattr(index_size, "PART", 2000)
    few = {"filters": ["--filtered", "ivf"], "size": ["--recipes", "ivf"]}.get(part, [])
    results = module.measure(options(benchmark, tmp_path, part, *few))
    check(results)
    if part == "cross_modal":
        found = results["sets"]["gap 2"]
        assert found["auto"]["recall_texts"] >= 0.9 and found["best_cosine"]["texts"] < found["best_cosine"]["images"]
    elif part == "filters":
        cases = results["recipes"]["ivf"]["cases"]
        assert len(cases) == 6 and cases["place 0.001"]["rows_left"] == 3 and cases["draw 0.001"]["recall"] == 1
    else:
        found = results["recipes"]["ivf"]
        assert found["recall"] > 0.9 and found["faiss_bytes_per_row"] > 2048 and found["peak_gib"] > 0.05
        assert found["open_seconds"] > 0 and found["add_seconds"] > 0


def test_real_embeddings(benchmark, tmp_path: Path) -> None:
    import index_flickr8k
    import index_size

    clusters = index_size.Clusters(20, index_size.DIM, decay=0.5)
    index_size.write_store(tmp_path / "store", clusters, 1500)
    results = index_flickr8k.measure(options(benchmark, tmp_path, "flickr8k", "--store", str(tmp_path / "store")))
    check(results)
    exact = results["sides"]["exact"]
    assert exact["recall"] == 1 and results["tuned_on"] + results["measured_on"] == 1500
    assert exact["task"] == pytest.approx(results["exact_task"], abs=1e-9)


def test_data(benchmark) -> None:
    import index_data

    gallery, queries = index_data.held_out("graded", 1000, 50)
    again, other = index_data.held_out("graded", 1000, 50)[0], index_data.held_out("graded", 1000, 50, seed=1)[0]
    assert (gallery == again).all() and not (gallery == other).all()
    assert np.abs(np.linalg.norm(gallery, axis=1) - 1).max() < 1e-5 and (queries @ gallery.T).max() < 0.9999
    clusters, side = index_data.SETS["graded"]
    assert (side.draw(clusters, 50)[0] * side.draw(clusters, 50, stream=1)[0]).sum(axis=1).max() < 0.999
    rows, owner = side.draw(index_data.reseeded(clusters, 0.01, 0), 3000)
    mean = np.stack([rows[owner == cluster].mean(axis=0) for cluster in range(3)])
    assert (np.argmax(rows[owner < 3] @ mean.T, axis=1) == owner[owner < 3]).mean() > 0.9, "a row lies in its cluster"
    assert np.bincount(owner)[0] > 2 * np.bincount(owner)[-1], "clusters' sizes fall off"
    assert index_data.recall(np.array([[1, 2], [3, 4]]), np.array([[2, 9], [4, 3]])) == 0.75


def test_who_is_tuned_on_what(benchmark, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import index_cross_modal

    tuned: dict[str, np.ndarray] = {}
    asked: list[np.ndarray] = []
    built, ours = index_cross_modal.built, index_cross_modal.ours
    monkeypatch.setattr(
        index_cross_modal, "built", lambda *a, **n: tuned.update({a[1].name: n.get("queries")}) or built(*a, **n)
    )
    monkeypatch.setattr(index_cross_modal, "ours", lambda index, queries: asked.append(queries) or ours(index, queries))
    gap = index_cross_modal.GAPS["gap 2"]
    index_cross_modal.compare("gap 2", gap, 3000, options(benchmark, tmp_path, "cross_modal"))
    clusters = index_cross_modal.reseeded(gap.clusters, 3000 / index_cross_modal.GAP_ROWS, 0)
    images, texts = gap.images.draw(clusters, 1)[0][0], gap.texts.draw(clusters, 1)[0][0]
    sides = {
        name: np.median(rows @ images) > np.median(rows @ texts) for name, rows in tuned.items() if rows is not None
    }
    assert sides == {"auto": False, "own": True} and np.median(asked[0] @ texts) > np.median(asked[0] @ images)
    assert (asked[0] * tuned["auto"]).sum(axis=1).max() < 0.999, "texts that nobody was tuned on"


def test_a_careful_hand_centres_lists(benchmark) -> None:
    import index_by_hand
    from index_data import GAPS

    images = GAPS["gap 2"].images.draw(GAPS["gap 2"].clusters, 500)[0]
    lists, graph = (index_by_hand.build(factory, images) for factory in ("IVF1024,Flat", "HNSW16,Flat"))
    lists.index.make_direct_map()
    assert np.abs(lists.index.reconstruct_n(0, 500).mean(axis=0)).max() < 1e-5
    assert np.abs(graph.index.reconstruct_n(0, 500) - images).max() == 0


def test_times(benchmark) -> None:
    from index_measure import Way, by_turns, faster, goal

    order: list[str] = []

    def way(name: str, times: list[float], single: float) -> Way:
        left = iter(times)
        return Way(lambda: order.append(name) or next(left), lambda: single, queries=100, singles=10)

    # the first of each is the warm-up
    times = by_turns({"a": way("a", [9, 1, 5, 2], 0.5), "b": way("b", [9, 4, 4, 4], 2)}, "toy", repeats=3)
    assert times["a"] == {"queries_per_second": 50, "single_ms": 50} and times["b"]["queries_per_second"] == 25
    assert order == [*"ab", *"ab", *"ba", *"ab"]
    assert [each["measured"] for each in faster("", times, "a", "b", 1)] == [2, 4]
    assert not goal("", None, least=1)["met"] and goal("", 1, most=1)["met"] and not goal("", 1.01, most=1)["met"]


def test_memory_of_a_process(benchmark) -> None:
    import subprocess

    from index_size import watched

    big = "import time; block = bytearray(300 << 20); time.sleep(0.3)"
    found = watched([sys.executable, "-c", big])
    assert 0.29 < found["peak_own_gib"] <= found["peak_gib"] < 0.5 and found["seconds"] >= 0.3
    with pytest.raises(subprocess.CalledProcessError):
        watched([sys.executable, "-c", "raise SystemExit(3)"])


def test_one_part_leaves_the_others(benchmark, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    import goals
    import index_cross_modal

    toy = [{"what": "toy", "wanted": ">= 1", "measured": 0.5, "met": False}]
    monkeypatch.setattr(index_cross_modal, "measure", lambda options: {"goals": toy})
    out = tmp_path / "trial.json"
    before = {"recipes": {"results": {"goals": []}, "date": "then"}}
    out.write_text(json.dumps(before))
    words = ["index.py", "--only", "cross_modal", "--rows", "10", "--out", str(out)]
    monkeypatch.setattr("sys.argv", words)
    benchmark.main()
    record = json.loads(out.read_text())
    assert list(record) == ["cross_modal", "recipes"] and record["recipes"] == before["recipes"]
    assert record["cross_modal"]["command"].startswith("python benchmarks/index.py --only cross_modal")
    assert capsys.readouterr().out.splitlines()[-1].split() == ["cross_modal:", "toy", ">=", "1", "0.5", "MISSED"]
    shown = goals.markdown({"cross_modal": record["cross_modal"]}, ["cross_modal"])
    assert "| cross_modal: toy | ≥ 1 | 0.5 **missed** |" in shown


@pytest.mark.parametrize(
    ("words", "why"), [(["--rows", "10"], "give --out"), (["--only", "flickr8k"], "flickr8k needs --store")]
)
def test_refused(benchmark, capsys, words: list[str], why: str) -> None:
    with pytest.raises(SystemExit):
        benchmark.arguments(words)
    assert why in capsys.readouterr().err
