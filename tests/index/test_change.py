"""Adding, replacing, removing and compacting: what each writes, keeps and refuses, with killed writers and two at once.

`test_model.py` holds any sequence of changes against a dictionary.
"""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import subprocess
import sys
import threading

import faiss
import numpy as np
import pytest

from dualenc import Index
from dualenc.index import change, generation
from dualenc.index.lock import making, writer

KINDS = ["flat", "hnsw", "ivf"]
POOL = 60


@pytest.fixture(scope="module")
def small(make_data):
    return make_data(POOL, 8, 20, seed=5)


@pytest.fixture(scope="module")
def begun(tmp_path_factory, small):
    """An index of each kind over the first 20 rows: to be copied."""
    root = tmp_path_factory.mktemp("begun")
    for kind in KINDS:
        Index.build(
            small.images[:20], root / kind, metadata=[{"row": row} for row in range(20)], recipe=kind, recall=0.01
        )
    return root


@pytest.fixture
def folder(begun, tmp_path):
    for kind in KINDS:
        shutil.copytree(begun / kind, tmp_path / kind)
    return tmp_path


def files(folder) -> set[str]:
    return {path.name for path in folder.iterdir()}


def named(index) -> set[str]:
    """The files that the manifest names."""
    return {file["name"] for entry in index.manifest["segments"] for file in entry["files"].values()}


def stamps(folder) -> dict[str, tuple[int, int]]:
    """What a file keeps as long as nobody writes it."""
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.iterdir()}


def check(index: Index, model: dict[int, int], small) -> None:
    """The index holds what the model does: id -> row of the pool."""
    assert len(index) == len(model)
    assert sorted(index.ids.tolist()) == sorted(model)
    found, scores = index.search(small.texts, 6)
    live = min(6, len(model))
    assert (found[:, live:] == -1).all()
    assert np.isneginf(scores[:, live:]).all()
    true = small.texts.astype(np.float64) @ small.images.astype(np.float64).T
    for query, (ids, values) in enumerate(zip(found[:, :live].tolist(), scores[:, :live], strict=True)):
        assert len(set(ids)) == live
        assert np.allclose(values, [true[query, model[i]] for i in ids], atol=1e-6)
        if index.manifest["recipe"]["name"] == "flat":
            best = sorted((true[query, row] for row in model.values()), reverse=True)[:live]
            assert np.allclose(values, best, atol=1e-6)
    if model:
        assert index.rows(sorted(model))["row"].to_pylist() == [model[i] for i in sorted(model)]
        mine = index.search(small.texts[:3], 500, where="row % 3 = 0")[0]
        assert {tuple(sorted(line[line >= 0].tolist())) for line in mine} == {
            tuple(sorted(i for i, row in model.items() if row % 3 == 0))
        }


@pytest.mark.parametrize("kind", KINDS)
def test_adding_reuses_mean_and_centroids(folder, small, kind):
    index = Index.open(folder / kind)
    before = index.manifest
    index.add(small.images[20:60], metadata=[{"row": row} for row in range(20, 60)])
    assert index.manifest["mean"] == before["mean"]
    assert index.manifest["recipe"] == before["recipe"]
    assert index.manifest["ann_recall"] == before["ann_recall"]
    assert (index.manifest["generation"], index.manifest["rows"]) == (2, 60)
    check(index, {row: row for row in range(60)}, small)


def test_ids_of_removed_rows_are_not_given_out_again(folder, small):
    index = Index.open(folder / "flat")
    index.remove([19, 18])
    index.add(small.images[:1])
    assert index.ids.tolist() == [*range(18), 20]
    index.add(small.images[1:2], ids=[2**63 - 1])
    with pytest.raises(ValueError, match="do not fit in int64"):
        index.add(small.images[2:3])
    index.add(small.images[2:3], ids=[19])
    assert index.search(small.images[2], 2)[0].ravel().tolist() in ([2, 19], [19, 2])


def test_default_ids_follow_the_highest_ever_used(small, tmp_path):
    index = Index.build(small.images[:3], tmp_path / "i", ids=[50, 100, 7], recipe="flat")
    index.add(small.images[3:4])
    index.add(small.images[4:5], ids=[8])
    index.add(small.images[5:6])
    assert index.ids.tolist() == [50, 100, 7, 101, 8, 102]


def test_columns_may_come_and_go(folder, small, tmp_path):
    index = Index.open(folder / "ivf")
    index.add(small.images[20:21], metadata=[{"caption": "new"}])
    index.add(small.images[21:22])
    assert index.rows([19, 20, 21]).to_pylist() == [
        {"row": 19, "caption": None},
        {"row": None, "caption": "new"},
        {"row": None, "caption": None},
    ]
    with pytest.raises(ValueError, match="metadata does not fit the index's columns") as error:
        index.add(small.images[22:23], metadata=[{"row": "twenty-two"}])
    assert "\n" not in str(error.value)
    bare = Index.build(small.images[:2], tmp_path / "bare")
    bare.add(small.images[2:3])
    bare.add(small.images[3:4], metadata=[{"row": 3}])
    assert bare.rows(range(4)).to_pylist() == [{"row": None}] * 3 + [{"row": 3}]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"vectors": np.ones((1, 7), "f4") / 7**0.5}, "D = 7, the index 8"),
        ({"vectors": np.ones((1, 8), "f4")}, "row 0 has length"),
        ({"vectors": np.full((1, 8), np.nan, "f4")}, "NaN"),
        ({"ids": [0]}, "id 0 is in the index already"),
        ({"ids": [-1]}, "-1 is outside"),
        ({"ids": [50, 51]}, "2 ids for 1 vectors"),
        ({"metadata": [{}, {}]}, "2 rows of metadata"),
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_an_unfit_change_is_refused_and_changes_nothing(folder, small, kind, given, said):
    index = Index.open(folder / kind)
    before = {path.name: path.read_bytes() for path in (folder / kind).iterdir()}
    with pytest.raises(ValueError, match=said) as error:
        index.add(**({"vectors": small.images[20:21]} | given))
    assert "\n" not in str(error.value)
    for ids in ([20], [-1], [0.5], [0, 99]):
        with pytest.raises(ValueError, match=r"id 20 is not|-1 is outside|dtype float64|id 99 is not"):
            index.remove(ids)
    index.add(small.images[:0])
    index.remove([])
    after = {path.name: path.read_bytes() for path in (folder / kind).iterdir() if path.name != ".writer"}
    assert after == before
    check(index, {row: row for row in range(20)}, small)


def test_a_stale_writer_loses_nothing(folder, small):
    first, second = Index.open(folder / "ivf"), Index.open(folder / "ivf")
    first.add(small.images[20:22], metadata=[{"row": 20}, {"row": 21}])
    second.add(small.images[22:23], metadata=[{"row": 22}])
    second.remove([20])
    check(second, {row: row for row in range(23) if row != 20}, small)


def test_the_second_writer_is_told_who_is_first(folder, small):
    index = Index.open(folder / "flat")
    (folder / "flat" / ".writer").write_text("pid 1 since 1970-01-01 00:00:00")  # of one that was killed
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with writer(folder / "flat"):
            held.set()
            done.wait(30)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(30)
    for attempt in (lambda: index.add(small.images[:1]), lambda: index.remove([0])):
        with pytest.raises(BlockingIOError, match=rf"being changed by pid {os.getpid()} since \d{{4}}-\d\d-\d\d \d\d:"):
            attempt()
    assert index.search(small.images[:1], 1)[0].tolist() == [[0]]  # readers need no lock
    done.set()
    thread.join()
    index.remove([0])
    assert len(index) == 19


KILLED = """
import os, signal, sys
import numpy as np
from dualenc import Index
from dualenc.index import generation
original = generation.{function}
def killing(*args, **kwargs):
    if {after}:
        original(*args, **kwargs)
    os.kill(os.getpid(), signal.SIGKILL)
generation.{function} = killing
index = Index.open(sys.argv[1])
rows = np.load(sys.argv[2])
index.{call}
"""


ADD, REMOVE = "add(rows, metadata=[{'row': 20}, {'row': 21}])", "remove([3, 4])"
SAVED, UNSIGNED, SIGNED = ("np.save", True), ("write_manifest", False), ("write_manifest", True)


@pytest.mark.parametrize(
    ("kind", "call", "place"),
    [
        ("flat", ADD, SAVED),
        ("ivf", REMOVE, SAVED),
        ("hnsw", ADD, UNSIGNED),
        ("flat", REMOVE, UNSIGNED),
        ("ivf", ADD, SIGNED),
        ("hnsw", REMOVE, SIGNED),
    ],
)
def test_a_killed_writer_leaves_one_of_the_two(folder, small, tmp_path, kind, call, place):
    (function, after), changed = place, place == SIGNED
    np.save(tmp_path / "rows.npy", small.images[20:22])
    script = KILLED.format(function=function, after=after, call=call)
    died = subprocess.run([sys.executable, "-c", script, str(folder / kind), str(tmp_path / "rows.npy")], check=False)
    assert died.returncode == -signal.SIGKILL
    model = {row: row for row in range(20)}
    if changed:
        model = {row: row for row in range(22)} if "add" in call else {row: row for row in model if row not in (3, 4)}
    index = Index.open(folder / kind, verify=True)
    check(index, model, small)
    index.add(small.images[30:31], ids=[30], metadata=[{"row": 30}])  # the lock died with its holder
    check(index, model | {30: 30}, small)
    assert files(folder / kind) == named(index) | {"manifest.json", ".writer"}


@pytest.mark.parametrize("place", ["pq.write_table", "np.save", "file_entry", "write_manifest"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_failing_write_leaves_the_old_index(folder, small, monkeypatch, kind, place):
    index = Index.open(folder / kind)
    before = files(folder / kind)

    def full(*args):
        raise OSError(28, "No space left on device")

    home, _, name = place.rpartition(".")
    monkeypatch.setattr(getattr(generation, home) if home else generation, name, full)
    with pytest.raises(OSError, match="No space left"):
        index.add(small.images[20:21], metadata=[{"row": 20}])
    if place != "pq.write_table":  # which writes metadata alone, and removal writes none
        with pytest.raises(OSError, match="No space left"):
            index.remove([3])
    monkeypatch.undo()
    assert files(folder / kind) - {".writer"} == before
    check(Index.open(folder / kind, verify=True), {row: row for row in range(20)}, small)


def test_ids_after_the_last():
    assert change._new_ids(None, 2, 5).tolist() == [5, 6]
    assert change._new_ids(None, 1, 2**63 - 1).tolist() == [2**63 - 1]


# what a change writes


@pytest.mark.parametrize("kind", KINDS)
def test_fifty_adds_make_few_segments(folder, small, kind):
    """Each is less than half as large as the one before it, so there are at most log2(rows) + 1."""
    index, rng = Index.open(folder / kind), np.random.default_rng(0)
    most, rows, model = 0, 20, {row: row for row in range(20)}
    for _ in range(50):
        picked = rng.integers(0, POOL, rng.integers(1, 6))
        index.add(small.images[picked], metadata=[{"row": int(row)} for row in picked])
        model |= {rows + place: int(row) for place, row in enumerate(picked)}
        rows += len(picked)
        sizes = [entry["rows"] for entry in index.manifest["segments"]]
        assert sum(sizes) == len(index) == rows
        assert all(before >= 2 * after for before, after in itertools.pairwise(sizes))
        assert len(sizes) <= np.log2(rows) + 1
        most = max(most, len(sizes))
    assert most > 2
    assert index.ids.tolist() == list(range(rows))
    check(index, model, small)
    assert files(folder / kind) == named(index) | {"manifest.json", ".writer"}


@pytest.mark.parametrize("kind", KINDS)
def test_each_change_writes_its_own_files_only(folder, small, kind):
    home = folder / kind
    index = Index.open(home)
    before = stamps(home)
    index.add(small.images[20:25], metadata=[{"row": row} for row in range(20, 25)])
    added = stamps(home)
    assert added.keys() - before.keys() == {
        "index.000002.faiss",
        "ids.000002.npy",
        "metadata.000002.parquet",
        ".writer",
    }
    for name in before.keys() - {"manifest.json"}:
        assert added[name] == before[name]
    index.remove([3, 21, 22])
    removed = stamps(home)
    assert removed.keys() - added.keys() == {"removed.000001.000003.npy", "removed.000002.000003.npy"}
    index.remove([4])
    again = stamps(home)
    assert again.keys() ^ removed.keys() == {"removed.000001.000003.npy", "removed.000001.000004.npy"}
    assert np.load(home / "removed.000001.000004.npy").tolist() == [3, 4]
    assert np.load(home / "removed.000002.000003.npy").tolist() == [1, 2]
    for then, now in ((added, removed), (removed, again)):
        kept = (then.keys() & now.keys()) - {"manifest.json", ".writer"}
        assert {name: then[name] for name in kept} == {name: now[name] for name in kept}
    assert index.manifest["tombstones"] == 4
    assert index.manifest["generation"] == 4


@pytest.mark.parametrize(("kind", "knob"), [("hnsw", "efSearch"), ("ivf", "nprobe")])
def test_the_setting_stands_in_each_faiss_file(folder, small, kind, knob):
    index = Index.open(folder / kind)
    index.tune(small.texts, recall=1.0)
    chosen = index.manifest["search"][knob]
    for step in (lambda: index.add(small.images[20:24]), index.compact):
        step()
        newest = index.manifest["segments"][-1]["files"]["index"]["name"]
        there = faiss.read_index(str(folder / kind / newest))
        inner = there if kind == "ivf" else faiss.downcast_index(there.index).hnsw
        assert getattr(inner, knob) == chosen


# upsert


@pytest.fixture
def keyed(tmp_path, small):
    def build(kind):
        table = [{"key": f"k{row}", "n": row} for row in range(20)]
        return Index.build(small.images[:20], tmp_path / kind, range(100, 120), table, kind, recall=0.01)

    return build


@pytest.mark.parametrize("kind", KINDS)
def test_upsert_replaces_rows_by_key_and_keeps_their_ids(keyed, small, kind):
    index = keyed(kind)
    index.upsert(
        small.images[30:34], [{"key": key, "n": n} for key, n in (("k5", 30), ("new", 31), ("k0", 32), ("x", 33))]
    )
    assert len(index) == 22
    assert sorted(index.ids.tolist()) == list(range(100, 122))
    for i, row in ((105, 30), (120, 31), (100, 32), (121, 33), (101, 1)):
        assert index.rows([i])["n"].to_pylist() == [row]
        assert np.abs(index.vectors([i]) - small.images[row]).max() < 1e-6
        assert index.search(small.images[row], 1)[0].item() == i
    assert index.search(small.images[5], 22)[0].ravel().tolist().count(105) == 1
    assert index.search(small.images[:1], 1, where="key = 'k5'")[0].tolist() == [[105]]
    index.upsert(small.images[40:41], [{"key": "k5", "n": 40}])  # one that was replaced before
    index.compact()
    assert (index.manifest["tombstones"], len(index)) == (0, 22)
    assert index.rows([105]).to_pylist() == [{"key": "k5", "n": 40}]
    assert index.search(small.images[40], 1)[0].item() == 105


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ([{"key": "a"}, {"key": "a"}], "key 'a' occurs more than once in the rows to add"),
        ([{"key": "k1"}, {"key": None}], "a key of the rows to add is null"),
        ([{"n": 1}, {"n": 2}], "column `key`, which this metadata lacks"),
        (None, "column `key`"),
        ([{"key": "twice"}, {"key": "b"}], "key 'twice' occurs more than once in the index"),
        ([{"key": 5}, {"key": 6}], "does not fit the index's columns"),
    ],
)
def test_an_upsert_that_is_unclear_is_refused(keyed, small, table, said):
    index = keyed("ivf")
    index.add(small.images[20:22], metadata=[{"key": "twice"}] * 2)
    before = index.manifest
    with pytest.raises(ValueError, match=said) as error:
        index.upsert(small.images[22:24], table)
    assert "\n" not in str(error.value)
    assert Index.open(index.folder, verify=True).manifest == before
    with pytest.raises(ValueError, match="leave ids out"):
        change.add_rows(index.folder, small.images[:1], [5], [{"key": "a"}], upsert=True)


def test_an_index_without_keys_takes_them_as_new(small, tmp_path):
    index = Index.build(small.images[:20], tmp_path / "i", recipe="flat")
    index.upsert(small.images[20:22], [{"key": "a"}, {"key": "b"}])
    index.upsert(small.images[22:23], [{"key": "b"}])
    assert index.rows([19, 20, 21])["key"].to_pylist() == [None, "a", "b"]
    assert index.search(small.images[22], 1)[0].item() == 21


# compact


@pytest.mark.parametrize("kind", KINDS)
def test_compact(folder, small, kind):
    index = Index.open(folder / kind)
    generation = index.manifest["generation"]
    index.compact()  # one segment, nothing removed: nothing to do
    assert index.manifest["generation"] == generation
    index.add(small.images[20:25], metadata=[{"row": row} for row in range(20, 25)])
    index.remove([0, 7, 23])
    model = {row: row for row in range(25) if row not in (0, 7, 23)}
    check(index, model, small)
    order, size = index.ids.tolist(), index.manifest["bytes"]["index"]
    index.compact()
    check(Index.open(folder / kind, verify=True), model, small)
    assert index.ids.tolist() == order
    (entry,) = index.manifest["segments"]
    assert (entry["number"], entry["rows"], entry["removed"], index.manifest["tombstones"]) == (3, 22, 0, 0)
    assert index.manifest["bytes"]["index"] < size
    assert files(folder / kind) == named(index) | {"manifest.json", ".writer"}
    index.remove(index.ids)
    index.compact()  # one segment, of removed rows alone
    assert (len(index), index.manifest["tombstones"], index.manifest["segments"][0]["rows"]) == (0, 0, 0)
    assert (index.search(small.texts, 3)[0] == -1).all()


# original rows


CODED = ["hnsw_sq8", "ivf_sq8", "ivf_pq", "scan_rabitq"]


def kept(index) -> list[str]:
    """For each segment: what its original rows lie in."""
    return [
        "store" if e["store"] else "copy" if "vectors" in e["files"] else "none" for e in index.manifest["segments"]
    ]


def exact_scores(index, model, small) -> None:
    """Scores are true cosines of the rows found, as they were given."""
    found, scores = index.search(small.texts, 5)
    rows = np.array([[model[int(i)] for i in line] for line in found])
    true = np.einsum("qd,qkd->qk", small.texts.astype(np.float64), small.images[rows].astype(np.float64))
    assert np.abs(true - scores).max() < 1e-3  # float16 rows of a store
    ids = list(model)
    assert np.abs(index.vectors(ids) - small.images[list(model.values())]).max() < 1e-3


@pytest.mark.parametrize("recipe", CODED)
def test_rows_of_a_store_stay_in_the_store(small, make_store, make_data, tmp_path, recipe):
    """Until they are compacted or joined: then they are copied as they are, in float16."""
    half = type(small)(small.images[:40], small.texts)
    store = make_store(tmp_path / "store", half)
    index = Index.build(store, tmp_path / "i", recipe=recipe, recall=0.01)
    assert (kept(index), index.manifest["scores"]) == (["store"], "exact")
    assert [file["path"] for file in index.manifest["segments"][0]["store"]] == [
        str(path) for path in sorted((tmp_path / "store" / "img_emb").glob("*.npy"))
    ]
    model = {row: row for row in range(40)}
    exact_scores(index, model, small)
    index.add(small.images[40:45])
    assert kept(index) == ["store", "copy"]
    assert np.load(tmp_path / "i" / "vectors.000002.npy").dtype == np.float32
    index.remove([1, 41])
    model = {row: row for row in range(45) if row not in (1, 41)}
    exact_scores(index, model, small)
    index.compact()
    assert kept(index) == ["copy"]
    shutil.rmtree(tmp_path / "store")
    exact_scores(Index.open(tmp_path / "i", verify=True), model, small)


def test_a_stores_float16_rows_are_kept_as_they_are(small, make_store, tmp_path):
    store = make_store(tmp_path / "store", type(small)(small.images[:40], small.texts))
    index = Index.build(store, tmp_path / "i", recipe="ivf_sq8", recall=0.01)
    index.add(make_store(tmp_path / "more", type(small)(small.images[40:43], small.texts)))
    assert np.load(tmp_path / "i" / "vectors.000002.npy").dtype == np.float16
    index.compact()
    copied = np.load(tmp_path / "i" / "vectors.000003.npy")
    whole = np.concatenate([np.asarray(part) for part in store.image_parts])
    assert copied.dtype == np.float16
    assert np.array_equal(copied[:40], whole)
    index.add(small.images[50:59])
    index.compact()
    assert np.load(next((tmp_path / "i").glob("vectors.*"))).dtype == np.float32
    exact_scores(index, {**{row: row for row in range(43)}, **{row - 7: row for row in range(50, 59)}}, small)


@pytest.mark.parametrize("recipe", CODED)
def test_rows_of_an_array_are_copied(small, tmp_path, recipe):
    index = Index.build(small.images[:20], tmp_path / "i", recipe=recipe, recall=0.01)
    exact_scores(index, {row: row for row in range(20)}, small)
    index.add(small.images[20:25])  # a segment of its own
    index.remove([3])
    index.add(small.images[25:40])  # joined with both
    model = {row: row for row in range(40) if row != 3}
    exact_scores(index, model, small)
    assert set(kept(index)) == {"copy"}
    index.compact()
    assert kept(index) == ["copy"]
    exact_scores(index, model, small)


def test_a_store_that_is_gone_or_changed_is_one_error(small, make_store, tmp_path):
    store = make_store(tmp_path / "store", type(small)(small.images[:40], small.texts))
    Index.build(store, tmp_path / "i", recipe="ivf_sq8", recall=0.01)
    path = tmp_path / "store" / "img_emb" / "img_emb_0001.npy"
    whole, state = path.read_bytes(), path.stat()
    for content, said in ((whole[:-1] + bytes([whole[-1] ^ 1]), "another checksum"), (whole + b"x", "bytes, ")):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=f"img_emb_0001.npy changed since the index was built.*{said}") as error:
            Index.open(tmp_path / "i")
        assert "\n" not in str(error.value)
    path.write_bytes(whole)
    assert len(Index.open(tmp_path / "i")) == 40  # its time is another, its bytes are the same
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))  # a change that hides is found by --verify
    Index.open(tmp_path / "i")
    with pytest.raises(ValueError, match="another checksum"):
        Index.open(tmp_path / "i", verify=True)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"img_emb_0001.npy is gone.*restore it"):
        Index.open(tmp_path / "i")


@pytest.mark.parametrize("kind", ["ivf", "hnsw"])
def test_codes_alone(small, tmp_path, kind):
    """`rerank: none`: a small folder, scores that are estimates, and rows that nobody can give back."""
    recipe = {"build": {"kind": kind, "codes": "sq8"}, "search": {"rerank": "none"}}
    index = Index.build(small.images[:20], tmp_path / "i", recipe=recipe, recall=0.01)
    assert (kept(index), index.manifest["scores"], index.manifest["bytes"]["vectors"]) == (["none"], "approximate", 0)
    assert "rerank" not in index.manifest["search"]
    with pytest.raises(ValueError, match="without their original rows"):
        index.vectors([0])
    for row in range(20, 30):
        index.add(small.images[row : row + 1])
    index.remove([2])
    assert set(kept(index)) == {"none"}
    found, scores = index.search(small.images[:30], 1)
    others = np.arange(30) != 2
    assert (found.ravel() == np.arange(30))[others].mean() > 0.9
    assert 1e-5 < np.median(np.abs(scores - 1)[others]) < 0.01  # a byte a dimension
    assert 2 not in found
    if kind == "ivf":
        index.compact()
        assert len(index.manifest["segments"]) == 1
        return
    before, generation = files(tmp_path / "i"), index.manifest["generation"]
    with pytest.raises(ValueError, match=r"hnsw over sq8 codes cannot be joined without the original rows"):
        index.compact()
    assert files(tmp_path / "i") == before
    assert Index.open(tmp_path / "i", verify=True).manifest["generation"] == generation


# several at once


@pytest.mark.parametrize("kind", ["flat", "ivf", "ivf_sq8"])
def test_readers_beside_a_writer(small, tmp_path, kind):
    """Each opens some generation, and finds what that one holds, whatever becomes of its files meanwhile."""
    recipe = {"flat": "flat", "ivf": {"build": {"kind": "ivf", "nlist": 3}, "search": {"nprobe": 3}}}.get(
        kind, {"build": {"kind": "ivf", "nlist": 2, "codes": "sq8"}, "search": {"nprobe": 2, "rerank": 64}}
    )
    table = [{"row": row} for row in range(30)]
    writer = Index.build(small.images[:30], tmp_path / "i", metadata=table, recipe=recipe, recall=0.01)
    history = {1: {row: row for row in range(30)}}  # generation -> id -> row, written down before it is there
    done, problems, seen = threading.Event(), [], set()

    def read() -> None:
        while not done.is_set():
            try:
                index = Index.open(tmp_path / "i")
                model = history[index.manifest["generation"]]
                ids = np.array(sorted(model))
                rows = np.array([model[i] for i in ids.tolist()])
                true = small.texts.astype(np.float64) @ small.images[rows].astype(np.float64).T
                best = -np.sort(-true, axis=1)[:, :4]
                for _ in range(2):
                    found, scores = index.search(small.texts, 4)
                    assert np.allclose(scores, best, atol=1e-5)
                    assert set(found.ravel().tolist()) <= set(model)
                    assert sorted(index.ids.tolist()) == ids.tolist()
                    assert index.rows(ids[-3:])["row"].to_pylist() == rows[-3:].tolist()
                seen.add(index.manifest["generation"])
            except BaseException as error:
                problems.append(error)
                raise

    threads = [threading.Thread(target=read) for _ in range(2)]
    for thread in threads:
        thread.start()
    rng, current = np.random.default_rng(0), history[1]
    for step in range(30):
        after = writer.manifest["generation"] + 1
        if step % 3 == 2:
            gone = sorted(rng.permutation(sorted(current))[:4].tolist())
            history[after] = current = {i: row for i, row in current.items() if i not in gone}
            writer.remove(gone)
        else:
            rows, first = rng.integers(0, POOL, 3).tolist(), writer.manifest["next_id"]
            history[after] = current = {**current, **{first + place: row for place, row in enumerate(rows)}}
            writer.add(small.images[rows], metadata=[{"row": row} for row in rows])
        assert writer.manifest["generation"] == after
    done.set()
    for thread in threads:
        thread.join(60)
    assert problems == []
    assert len(seen) > 3


def test_two_builds_into_one_folder(small, tmp_path):
    with making(tmp_path / "i") as (_, folder):
        with pytest.raises(BlockingIOError, match=rf"being changed by pid {os.getpid()} since \d{{4}}-\d\d-\d\d \d\d:"):
            Index.build(small.images[:20], tmp_path / "i", recipe="flat")
        assert folder.is_dir()  # the second took nothing from the first
        (folder / "x").write_text("x")
    assert [path.name for path in tmp_path.iterdir()] == ["i"]
    with pytest.raises(FileExistsError):
        Index.build(small.images[:20], tmp_path / "i", recipe="flat")


def test_of_two_builds_the_slower_gives_way(small, tmp_path):
    with pytest.raises(FileExistsError), making(tmp_path / "i") as (_, folder):
        (tmp_path / "i").mkdir()
        (tmp_path / "i" / "theirs").write_text("")
        (folder / "ours").write_text("")
    assert [path.name for path in (tmp_path / "i").iterdir()] == ["theirs"]
    assert [path.name for path in tmp_path.iterdir()] == ["i"]
