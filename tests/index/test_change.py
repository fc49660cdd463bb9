"""Adding and removing: against a dictionary, with killed writers and two at once."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dualenc import Index
from dualenc.index import change
from dualenc.index.lock import writer

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
        mine = index.search(small.texts[:3], 50, where="row % 3 = 0")[0]
        assert {tuple(sorted(line[line >= 0].tolist())) for line in mine} == {
            tuple(sorted(i for i, row in model.items() if row % 3 == 0))
        }


STEPS = st.lists(
    st.one_of(
        st.tuples(
            st.just("add"), st.lists(st.integers(0, 40), min_size=1, max_size=6, unique=True), st.integers(0, 50)
        ),
        st.tuples(st.just("next"), st.integers(1, 4), st.integers(0, 50)),
        st.tuples(st.just("remove"), st.lists(st.integers(0, 40), min_size=1, max_size=12, unique=True), st.just(0)),
        st.tuples(st.just("clear"), st.just(0), st.just(0)),
        st.tuples(st.just("reopen"), st.just(0), st.just(0)),
    ),
    max_size=6,
)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
@given(steps=STEPS)
def test_any_changes_against_a_dictionary(begun, small, kind, steps):
    with tempfile.TemporaryDirectory() as temporary:
        shutil.copytree(begun / kind, Path(temporary) / kind)
        index = Index.open(Path(temporary) / kind)
        model, highest = {row: row for row in range(20)}, 19
        for step, what, first in steps:
            if step == "add":
                rows = [(first + place) % POOL for place in range(len(what))]
                metadata = [{"row": row} for row in rows]
                if set(what) & set(model):
                    with pytest.raises(ValueError, match="is in the index already"):
                        index.add(small.images[rows], what, metadata)
                    continue
                index.add(small.images[rows], what, metadata)
                model |= dict(zip(what, rows, strict=True))
                highest = max(highest, *what)
            elif step == "next":
                rows = [(first + place) % POOL for place in range(what)]
                index.add(small.images[rows], metadata=[{"row": row} for row in rows])
                model |= {highest + 1 + place: row for place, row in enumerate(rows)}
                highest += what
            elif step == "remove":
                if set(what) - set(model):
                    with pytest.raises(ValueError, match="is not in the index"):
                        index.remove(what)
                    continue
                index.remove(what)
                model = {i: row for i, row in model.items() if i not in what}
            elif step == "clear":
                index.remove(list(model))
                model = {}
            else:
                index = Index.open(index.folder, verify=True)
        check(index, model, small)
        check(Index.open(index.folder, verify=True), model, small)


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
    names = {entry["name"] for entry in index.manifest["files"].values()}
    assert {path.name for path in (folder / kind).iterdir()} == names | {"manifest.json", ".writer"}


def test_a_failing_write_leaves_the_old_index(folder, small, monkeypatch):
    from dualenc.index import generation

    index = Index.open(folder / "ivf")

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(generation.pq, "write_table", full)
    with pytest.raises(OSError, match="No space left"):
        index.add(small.images[20:21])
    monkeypatch.undo()
    assert sorted(path.name for path in (folder / "ivf").iterdir() if path.suffix) == [
        "ids.000001.npy",
        "index.000001.faiss",
        "manifest.json",
        "metadata.000001.parquet",
    ]
    check(Index.open(folder / "ivf", verify=True), {row: row for row in range(20)}, small)


def test_ids_after_the_last():
    assert change._ids(None, 2, 5).tolist() == [5, 6]
    assert change._ids(None, 1, 2**63 - 1).tolist() == [2**63 - 1]
