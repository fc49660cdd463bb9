"""The contract of `Index`: what goes in, what comes out, and what is refused, for every kind."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import faiss
import numpy as np
import pyarrow as pa
import pytest

from dualenc import Index
from dualenc.index import exact_search, info
from dualenc.index.catalog import FILTERS

KINDS = ["flat", "hnsw", "ivf"]


@pytest.fixture(scope="module")
def built(tmp_path_factory, data):
    """One index of each kind, with ids that are not row numbers; not to be changed."""
    folder = tmp_path_factory.mktemp("built")
    metadata = [{"number": row, "split": "test" if row % 50 == 0 else "train"} for row in range(2000)]
    ids = np.random.default_rng(0).permutation(2000) * 10**12
    make = lambda kind: Index.build(data.images, folder / kind, ids, metadata, kind, queries=data.texts)  # noqa: E731
    return {kind: make(kind) for kind in KINDS}


def check_scores(index, found, scores, queries, images, ids):
    """Scores are true cosines of the rows found, best first; every id is an index's."""
    row_of = {int(i): row for row, i in enumerate(ids)}
    rows = np.array([[row_of[int(i)] for i in line] for line in found])
    true = np.einsum("qd,qkd->qk", queries.astype(np.float64), images[rows].astype(np.float64))
    assert scores.dtype == np.float32
    assert found.dtype == np.int64
    assert np.abs(scores - true).max() < 1e-6
    assert (np.diff(scores, axis=1) <= 1e-6).all()


@pytest.mark.parametrize("kind", KINDS)
def test_search(built, data, kind):
    index = built[kind]
    found, scores = index.search(data.texts, 10)
    check_scores(index, found, scores, data.texts, data.images, index.ids)
    best, _ = exact_search(data.texts, data.images, 10)
    recall = np.mean([len(set(a) & set(b)) for a, b in zip(found, index.ids[best], strict=True)]) / 10
    assert recall == 1 if kind == "flat" else recall >= 0.95
    assert len(index) == 2000
    assert index.dim == 32


@pytest.mark.parametrize("kind", KINDS)
def test_faiss_alone_gives_the_same_ids(built, data, kind):
    index = built[kind]
    entry = index.manifest["segments"][0]["files"]["index"]["name"]
    scores, found = faiss.read_index(str(index.folder / entry)).search(data.texts, 10)
    ours, cosines = index.search(data.texts, 10)
    assert np.array_equal(found, ours)
    mean = np.zeros(32, "f4") if index.manifest["mean"] is None else np.array(index.manifest["mean"], "f4")
    assert (index.manifest["mean"] is not None) == (kind == "ivf")
    assert np.allclose(scores + (data.texts @ mean)[:, None], cosines, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_where_equals_exact_search_of_the_rows_it_leaves(built, data, kind):
    """Few rows are left: every kind then finds exactly them."""
    index = built[kind]
    found, scores = index.search(data.texts, 10, where="split = 'test' and number > 500")
    rows = [row for row in range(2000) if row % 50 == 0 and row > 500]
    best, expected = exact_search(data.texts, data.images[rows], 10)
    assert np.array_equal(found, index.ids[np.array(rows)[best]])
    assert np.allclose(scores, expected, atol=1e-6)
    found, scores = index.search(data.texts[:3], 40, where="split = 'test' and number > 500")
    assert (found[:, 29:] == -1).all()
    assert np.isneginf(scores[:, 29:]).all()
    assert {tuple(sorted(line)) for line in found[:, :29].tolist()} == {tuple(sorted(index.ids[rows].tolist()))}


def test_a_filter_that_was_prepared_is_ready_until_others_take_its_place(built, data):
    index = Index.open(built["flat"].folder)
    assert not index.prepared("number > 10")
    index.prepare("number > 10")
    assert index.prepared("number > 10") and not index.prepared("number > 11")
    index.search(data.texts[:1], 3, where="number > 11")
    assert index.prepared("number > 11")  # by the search itself
    for number in range(FILTERS):
        index.prepare(f"number > {100 + number}")
    assert index.prepared("number > 100") and not index.prepared("number > 10")
    with pytest.raises(ValueError, match="there is no column 'height'"):
        index.prepare("height > 1")


@pytest.mark.parametrize("kind", KINDS)
def test_where_that_leaves_half(built, data, kind):
    index = built[kind]
    found, _ = index.search(data.texts, 10, where="number % 2 = 1")
    best, _ = exact_search(data.texts, data.images[1::2], 10)
    recall = np.mean([len(set(a) & set(b)) for a, b in zip(found, index.ids[1::2][best], strict=True)]) / 10
    assert recall == 1 if kind == "flat" else recall >= 0.95
    assert (index.rows(found.ravel())["number"].to_numpy() % 2 == 1).all()


@pytest.mark.parametrize("kind", KINDS)
def test_where_on_ids_and_where_that_leaves_nothing(built, data, kind):
    index = built[kind]
    found, _ = index.search(data.texts[:5], 3, where="id >= 1000 * 10**12")
    assert (found >= 1000 * 10**12).all()
    found, scores = index.search(data.texts[:5], 3, where="number < 0")
    assert (found == -1).all()
    assert np.isneginf(scores).all()


@pytest.mark.parametrize("kind", KINDS)
def test_asking_for_more_rows_than_there_are_finds_all(built, data, kind):
    found, scores = built[kind].search(data.texts[:2], 2005)
    assert np.array_equal(np.sort(found[:, :2000], axis=1), np.sort(built[kind].ids)[None].repeat(2, 0))
    assert (found[:, 2000:] == -1).all()
    assert np.isneginf(scores[:, 2000:]).all()


@pytest.mark.parametrize("kind", KINDS)
def test_shapes_of_queries(built, data, kind):
    index = built[kind]
    found, scores = index.search(data.texts[:2], 3)
    assert found.shape == scores.shape == (2, 3)
    for queries in (data.texts[0], data.texts[:1].tolist(), data.texts[:1].astype(np.float64)):
        assert np.array_equal(index.search(queries, 3)[0], found[:1])
    assert index.search(data.texts[:0], 3)[0].shape == (0, 3)
    before = data.texts[:2].copy()
    index.search(before, np.int64(1))
    assert np.array_equal(before, data.texts[:2])


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"queries": np.ones((1, 31), "f4") / 31**0.5}, "D = 31, the index has 32"),
        ({"queries": np.ones((1, 32), "f4")}, "length 5.657, not 1"),
        ({"queries": np.full((1, 32), np.nan, "f4")}, "NaN"),
        ({"k": 0}, "k=0"),
        ({"k": 1.5}, "k=1.5"),
        ({"k": True}, "k=True"),
        ({"where": "height > 1"}, "height"),
        ({"encoder": 5}, "has no fingerprint"),
    ],
)
def test_unfit_searches_are_refused_in_one_line(built, data, asked, said):
    with pytest.raises(ValueError, match=said) as error:
        built["ivf"].search(**({"queries": data.texts[:2]} | asked))
    assert "\n" not in str(error.value)


def test_rows(built, data):
    index = built["hnsw"]
    ids = index.ids[[5, 3, 3, 1999]]
    assert index.rows(ids).to_pylist() == [
        {"number": row, "split": "test" if row % 50 == 0 else "train"} for row in (5, 3, 3, 1999)
    ]
    assert index.rows([]).num_rows == 0
    for unknown, said in ([1], "id 1 is not in the index"), ([-1], "'nothing found'"), ([0.5], "dtype float64"):
        with pytest.raises(ValueError, match=said):
            index.rows(unknown)


def test_an_index_without_metadata_knows_ids(tmp_path, data):
    index = Index.build(data.images[:100], tmp_path / "i", recipe="flat")
    assert index.rows([7, 5]).to_pydict() == {"id": [7, 5]}
    assert set(index.search(data.images[:1], 100, where="id between 3 and 5")[0][0].tolist()) == {3, 4, 5, -1}


def test_metadata_of_dicts_that_differ(tmp_path, data):
    index = Index.build(data.images[:3], tmp_path / "i", metadata=[{"a": 1}, {}, {"b": "x"}], recipe="flat")
    expected = [{"a": 1, "b": None}, {"a": None, "b": None}, {"a": None, "b": "x"}]
    assert index.rows([0, 1, 2]).to_pylist() == expected


def test_metadata_may_have_an_id_column_of_its_own(tmp_path, data):
    index = Index.build(data.images[:3], tmp_path / "i", [7, 8, 9], [{"ID": name} for name in "abc"], "flat")
    assert index.rows([9]).to_pydict() == {"ID": ["c"]}
    assert index.search(data.images[1], 1, where="id = 'a'")[0].tolist() == [[7]]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_other_float_types(tmp_path, data, kind, dtype):
    index = Index.build(data.images[:500].astype(dtype), tmp_path / "i", recipe=kind, recall=1.0)
    found, scores = index.search(data.images[:500], 1)
    assert np.array_equal(found.ravel(), np.arange(500))
    assert np.allclose(scores, 1, atol=1e-6 if dtype == np.float64 else 1e-3)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"vectors_or_store": np.zeros((0, 32), "f4")}, "vectors has no rows: nothing to index"),
        ({"vectors_or_store": np.ones((5, 32), "f4")}, r"row \d has length 5.657"),
        ({"vectors_or_store": "runs/store"}, "open_store"),
        ({"ids": [1, 2]}, "2 ids for 100 vectors"),
        ({"ids": [7] * 100}, "7 occurs more than once"),
        ({"ids": range(-1, 99)}, "-1 is outside"),
        ({"metadata": [{}]}, "1 rows of metadata for 100 vectors"),
        ({"metadata": pa.table({"a": range(99)})}, "99 rows of metadata"),
        ({"metadata": {"a": 1}}, "metadata is dict"),
        ({"metadata": [{"a": 1}] * 99 + [{"a": "b"}]}, "mixes types"),
        ({"metadata": pa.table([pa.array(range(100))] * 2, names=["a", "a"])}, "two columns of one name"),
        ({"recipe": {"build": {"kind": "ivf", "nlist": 101}}}, "nlist=101"),
        ({"recall": 0}, "recall=0"),
        ({"recall": 1.5}, "recall=1.5"),
        ({"side": "audio"}, "side='audio'"),
        ({"memory": "1kB"}, "above memory=1,000; raise memory, or index fewer rows"),
        ({"memory": "13kB"}, "above memory=13,000"),
        ({"latency": "1e-6 us"}, "for one query, above latency"),
        ({"queries": np.ones((2, 31), "f4")}, "queries have D = 31, the vectors 32"),
        ({"queries": np.ones((2, 32), "f4")}, r"queries: row \d has length"),
        ({"queries": np.ones((0, 32), "f4")}, "queries are empty"),
        ({"encoder": SimpleNamespace()}, "has no fingerprint"),
    ],
)
def test_an_unfit_build_is_refused_and_leaves_nothing(tmp_path, data, given, said):
    with pytest.raises(ValueError, match=said) as error:
        Index.build(**({"vectors_or_store": data.images[:100], "out": tmp_path / "i", "recipe": "flat"} | given))
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_holds_something_is_left_alone(tmp_path, data):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(FileExistsError):
        Index.build(data.images, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [1, 2, 11])
def test_few_rows(tmp_path, data, kind, rows):
    index = Index.build(data.images[:rows], tmp_path / "i", recipe=kind)
    found, scores = index.search(data.images[:rows], 3)
    assert found[:, 0].tolist() == list(range(rows))
    assert np.allclose(scores[:, 0], 1, atol=1e-6)


@pytest.mark.parametrize("side", ["image", "text"])
def test_of_a_store(tmp_path, data, make_store, side):
    store = make_store(tmp_path / "store", data)
    index = Index.build(store, tmp_path / "i", recipe="ivf", side=side)
    rows = data.images if side == "image" else data.texts
    assert (index.fingerprint, index.encoder, index.manifest["side"]) == ("f" * 64, "runs/e", side)
    assert index.manifest["ann_recall"]["queries"] == f"the store's {'text' if side == 'image' else 'image'}s"
    found, scores = index.search(rows[:20], 1)
    assert found.ravel().tolist() == list(range(20))
    assert np.allclose(scores, 1, atol=1e-3)
    if side == "image":
        assert index.rows([1500]).to_pylist() == [{"key": "image 1500", "number": 1500}]
    else:
        assert index.rows([299]).to_pylist() == [{"caption": "text 299", "image_row": 299}]


def test_an_index_knows_its_encoder(tmp_path, data, make_store):
    store = make_store(tmp_path / "store", data)
    encoder, foreign = SimpleNamespace(fingerprint="f" * 64, path="e"), SimpleNamespace(fingerprint="0" * 64)
    index = Index.build(store, tmp_path / "i", recipe="flat", encoder=encoder)
    for same in (encoder, "f" * 64, None):
        assert index.search(data.images[:1], 1, encoder=same)[0].tolist() == [[0]]
    for other in (foreign, foreign.fingerprint):
        with pytest.raises(
            ValueError, match=r"ffffffffffff…\), the queries are from 000000000000…; search with that encoder"
        ):
            index.search(data.images[:1], 1, encoder=other)
        with pytest.raises(ValueError, match="the encoder given has fingerprint 000000000000…"):
            Index.build(store, tmp_path / "j", encoder=other)
    with pytest.raises(ValueError, match="the query store has fingerprint 000000000000…"):
        Index.build(store, tmp_path / "j", queries=make_store(tmp_path / "other", data, "0" * 64))
    with pytest.raises(ValueError, match="the store to add has fingerprint 000000000000…"):
        index.add(make_store(tmp_path / "more", data, "0" * 64), ids=range(5000, 7000))
    index.add(make_store(tmp_path / "same", data))
    assert len(index) == 4000
    assert index.rows([3999]).to_pylist() == [{"key": "image 1999", "number": 1999}]


def test_vectors_without_a_store(tmp_path, data):
    index = Index.build(data.images[:50], tmp_path / "i", encoder="abc")
    assert (index.fingerprint, index.encoder) == ("abc", None)
    named = Index.build(data.images[:50], tmp_path / "j", encoder=SimpleNamespace(fingerprint="abc", path=tmp_path))
    assert (named.fingerprint, named.encoder) == ("abc", str(tmp_path))
    anybody = Index.build(data.images[:50], tmp_path / "k")
    assert (anybody.fingerprint, anybody.encoder) == (None, None)
    assert anybody.search(data.images[:1], 1, encoder="whoever")[0].tolist() == [[0]]


@pytest.mark.parametrize("kind", KINDS)
def test_the_manifest_says_what_was_measured(built, kind):
    index = built[kind]
    manifest = info(index.folder, verify=True)
    assert manifest["recipe"]["build"]["kind"] == kind
    assert (manifest["rows"], manifest["dim"], manifest["metric"], manifest["scores"]) == (2000, 32, "cosine", "exact")
    assert manifest["results"] == ("exact" if kind == "flat" else "approximate")
    assert manifest["ann_recall"]["value"] >= 0.95
    if kind != "flat":
        record = manifest["ann_recall"]
        assert list(manifest["search"]) == [{"hnsw": "efSearch", "ivf": "nprobe"}[kind]]
        assert (record["queries"], record["measured_on"], record["chosen_on"]) == ("the queries given", 150, 150)
        assert [point for point in record["curve"] if point["setting"] == manifest["search"]]
        assert record["lower"] >= record["target"] == 0.95
    assert manifest["latency"]["single_ms"] > 0
    assert manifest["bytes"]["codes"] == 2000 * 32 * 4
    assert manifest["bytes"]["index"] == (index.folder / "index.000001.faiss").stat().st_size
    assert manifest["bytes_on_disk"] == sum(
        path.stat().st_size for path in index.folder.iterdir() if path.name != "manifest.json"
    )
    assert index.manifest["versions"]["faiss"] == faiss.__version__


def test_threads_are_left_as_they_were(tmp_path, data):
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(before + 1)
    try:
        index = Index.build(data.images, tmp_path / "i", recipe="ivf")
        index.search(data.texts)
        assert faiss.omp_get_max_threads() == index.manifest["latency"]["threads"] == before + 1
    finally:
        faiss.omp_set_num_threads(before)


def test_it_loads_neither_torch_nor_duckdb_unasked(tmp_path):
    code = """
import sys, numpy as np
from dualenc import Index
from dualenc.index import info
index = Index.build(np.eye(4, dtype="f4"), sys.argv[1], metadata=[{"a": 1}] * 4)
index.search(np.eye(4, dtype="f4"), 1)
index.add(-np.eye(4, dtype="f4")), index.remove([0]), index.compact(), info(sys.argv[1], verify=True)
heavy = ("torch", "open_clip", "pytorch_lightning", "duckdb", "pandas")
loaded = [name for name in heavy if name in sys.modules]
index.search(np.eye(4, dtype="f4"), 1, where="a = 1")
print(loaded, "duckdb" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "i"], capture_output=True, text=True, check=True)
    assert done.stdout == "[] True\n"
    assert "flat" in done.stderr  # auto's table, and nothing that complains
    assert "arning" not in done.stderr
