"""FAISS files that other programs wrote, taken over: searched, filtered, measured, refused."""

from __future__ import annotations

import itertools

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dualenc import Index
from dualenc.index import adopt, exact_search, info, merge

IP, L2 = faiss.METRIC_INNER_PRODUCT, faiss.METRIC_L2
EXACT = {"HNSW15,Flat": "efSearch", "IVF64,Flat": "nprobe", "Flat": None, "IDMap,Flat": None}
CODED = {"OPQ8_16,IVF32,PQ8np": "nprobe", "IVF32,SQ8": "nprobe"}
ROWS = 1200


@pytest.fixture(scope="module")
def pool(make_data):
    return make_data(ROWS, 16, 80, seed=6)


@pytest.fixture(scope="module")
def written(tmp_path_factory, pool):
    """A FAISS file by its factory string, with or without ids of its own, written once."""
    home, made = tmp_path_factory.mktemp("faiss"), {}

    def file(factory, ids=None, metric=IP):
        key = (factory, None if ids is None else ids.tobytes(), metric)
        if key not in made:
            index = faiss.index_factory(16, factory, metric)
            index.train(pool.images)
            if ids is not None:
                index.add_with_ids(pool.images, ids)
            else:
                index.add(pool.images)
            made[key] = home / f"{len(made)}.index"
            faiss.write_index(index, str(made[key]))
        return made[key]

    return file


@pytest.fixture(scope="module")
def shuffled():
    """Ids that say in which order the rows were indexed."""
    return np.random.default_rng(0).permutation(ROWS)


@pytest.fixture(scope="module")
def metadata(tmp_path_factory):
    """clip-retrieval's folder: the tenth part comes after the ninth."""
    folder = tmp_path_factory.mktemp("metadata")
    bounds = np.linspace(0, ROWS, 12).astype(int)
    for part, (first, last) in enumerate(itertools.pairwise(bounds)):
        rows = range(first, last)
        table = {"n": list(rows), "key": [f"k{row}" for row in rows]}
        pq.write_table(pa.table(table), folder / f"metadata_{part}.parquet")
    return folder


def recall(index, pool, ids=None):
    best, _ = exact_search(pool.texts, pool.images, 10)
    best = best if ids is None else ids[best]
    found, _ = index.search(pool.texts, 10)
    return np.mean([len(set(a) & set(b)) for a, b in zip(found.tolist(), best.tolist(), strict=True)]) / 10


@pytest.mark.parametrize("factory", [*EXACT, *CODED])
def test_search_filter_and_rows(written, metadata, pool, tmp_path, factory):
    ids = np.arange(ROWS) if factory.startswith("IDMap") else None
    index = adopt(written(factory, ids), tmp_path / "i", metadata, encoder="a" * 64)
    assert (len(index), index.dim, index.fingerprint) == (ROWS, 16, "a" * 64)
    there = faiss.read_index(str(written(factory, ids)))
    scores, expected = there.search(pool.texts, 10)
    found, cosines = index.search(pool.texts, 10)
    whole = (expected >= 0).all(axis=1)  # FAISS gives up where the lists that it reads hold fewer
    assert whole.sum() > 30
    assert np.array_equal(found[whole], expected[whole])  # the file's own setting stays
    assert np.allclose(cosines[whole], scores[whole], atol=1e-6)
    assert (found >= 0).all()
    knob = {**EXACT, **CODED}[factory]
    assert list(index.manifest["search"]) == ([knob] if knob else [])
    assert index.rows([1199, 0, 640]).to_pylist() == [{"n": n, "key": f"k{n}"} for n in (1199, 0, 640)]
    few, values = index.search(pool.texts, 10, where="n < 15")
    assert ((few >= 0) & (few < 15)).all()
    if factory in EXACT:
        assert index.manifest["scores"] == "exact"
        best, right = exact_search(pool.texts, pool.images[:15], 10)
        assert np.array_equal(few, best)
        assert np.allclose(values, right, atol=1e-6)
        assert np.allclose(index.vectors([3, 1]), pool.images[[3, 1]], atol=1e-6)
    else:
        assert index.manifest["scores"] == "approximate"
        with pytest.raises(ValueError, match="without their original rows"):
            index.vectors([0])
    record = index.manifest["ann_recall"]
    assert (record["value"], record["rows"]) == (None, ROWS)
    assert "--store measures it" in record["reason"]
    said = info(tmp_path / "i", verify=True)
    assert (said["advice"], said["results"]) == (None, "approximate" if knob or factory in CODED else "exact")


@pytest.mark.parametrize("factory", ["IDMap,Flat", "IDMap,HNSW15,Flat", "IVF64,Flat", "IDMap,OPQ8_16,IVF32,PQ8np"])
def test_ids_of_its_own(written, metadata, pool, tmp_path, shuffled, factory):
    """Row i of the metadata belongs to id i, wherever the file has it; the embeddings given are those of the ids."""
    store = np.empty_like(pool.images)
    store[shuffled] = pool.images  # row i of what was embedded is id i
    index = adopt(written(factory, shuffled), tmp_path / "i", metadata, store=store, queries=pool.texts, recall=0.3)
    assert index.rows([5, 700]).to_pylist() == [{"n": 5, "key": "k5"}, {"n": 700, "key": "k700"}]
    if "PQ" not in factory:
        assert np.allclose(index.vectors([5, 700]), store[[5, 700]], atol=1e-6)
        assert index.search(store[9], 1)[0].item() == 9
    assert index.search(pool.texts, 3, where="n = 7")[0][:, 0].tolist() == [7] * 80
    assert index.manifest["ann_recall"]["value"] == pytest.approx(recall(index, pool, shuffled), abs=0.1)


@pytest.mark.parametrize("factory", [*EXACT, *CODED])
def test_recall_is_measured_where_the_embeddings_are_given(written, pool, tmp_path, factory):
    ids = np.arange(ROWS) if factory.startswith("IDMap") else None
    path = written(factory, ids)
    own = adopt(path, tmp_path / "own", store=pool.images, queries=pool.texts)
    asked = 0.4 if factory in CODED else 0.97
    good = adopt(path, tmp_path / "good", store=pool.images, queries=pool.texts, recall=asked)
    for index in (own, good):
        record = index.manifest["ann_recall"]
        assert record["queries"] == (
            "the queries given" if {**EXACT, **CODED}[factory] else "none: every row is compared"
        )
        assert record["value"] == pytest.approx(recall(index, pool), abs=0.06)
        assert index.manifest["latency"]["single_ms"] > 0
    knob = {**EXACT, **CODED}[factory]
    if knob:
        assert own.manifest["search"] == {knob: {"efSearch": 16, "nprobe": 1}[knob]}  # as FAISS left it
        assert good.manifest["search"][knob] >= own.manifest["search"][knob]
        assert good.manifest["ann_recall"]["lower"] >= asked
    if factory in CODED:
        with pytest.raises(ValueError, match=r"at best.*below recall=1"):
            adopt(path, tmp_path / "no", store=pool.images, queries=pool.texts, recall=1)
        assert not (tmp_path / "no").exists()


def test_of_a_store(written, pool, make_store, tmp_path):
    store = make_store(tmp_path / "store", pool)
    index = adopt(written("IVF64,Flat"), tmp_path / "i", store=store, recall=0.9)
    assert (index.fingerprint, index.encoder, index.manifest["source"]) == ("f" * 64, "runs/e", str(tmp_path / "store"))
    assert index.manifest["ann_recall"]["queries"] == "the store's texts"
    assert index.manifest["ann_recall"]["lower"] >= 0.9
    assert index.rows([1199])["key"].to_pylist() == ["image 1199"]
    with pytest.raises(ValueError, match="the encoder given has fingerprint 000000000000"):
        adopt(written("IVF64,Flat"), tmp_path / "j", store=store, encoder="0" * 64)


def test_l2_of_unit_rows_is_cosine(written, pool, tmp_path):
    index = adopt(written("IVF16,Flat", metric=L2), tmp_path / "i", store=pool.images, queries=pool.texts, recall=0.99)
    found, scores = index.search(pool.texts, 10)
    true = np.einsum("qd,qkd->qk", pool.texts.astype(np.float64), pool.images[found].astype(np.float64))
    assert np.abs(true - scores).max() < 1e-5
    assert recall(index, pool) > 0.98


def test_what_is_no_index_of_cosines(written, pool, tmp_path):
    (tmp_path / "garbage").write_bytes(b"not an index of any kind" * 50)
    (tmp_path / "empty").write_bytes(b"")
    whole = written("IVF64,Flat").read_bytes()
    (tmp_path / "cut").write_bytes(whole[: len(whole) // 2])
    table = pa.table({"n": range(7)})
    ids = np.arange(ROWS) + 5
    folder = tmp_path / "none"
    folder.mkdir()
    for file, more, said in (
        (tmp_path / "garbage", {}, "garbage does not open in FAISS"),
        (tmp_path / "empty", {}, "empty does not open in FAISS"),
        (tmp_path / "cut", {}, "cut does not open in FAISS"),
        (written("Flat", metric=faiss.METRIC_L1), {}, "metric is FAISS's number 2"),
        (written("IVF64,Flat"), {"metadata": table}, "7 rows of metadata for 1200 vectors"),
        (written("IVF64,Flat", ids), {"metadata": table}, "has id 1204, the metadata rows 0 to 6"),
        (written("IVF64,Flat", ids), {"metadata": tmp_path / "garbage"}, "garbage does not open"),
        (written("IVF64,Flat", ids), {"metadata": 5}, "metadata is int"),
        (written("IVF64,Flat"), {"store": pool.images[:70]}, "the store has 70 x 16 images, the index 1200 x 16"),
        (written("IVF64,Flat"), {"store": np.eye(8, dtype="f4")}, "the store has 8 x 8 images"),
        (
            written("IVF64,Flat", ids),
            {"store": pool.images, "queries": pool.texts},
            "has id 1204, the store rows 0 to 1199",
        ),
        (written("IVF64,Flat"), {"store": pool.images, "queries": np.ones((2, 9), "f4") / 3}, "queries have D = 9"),
        (written("IVF64,Flat"), {"encoder": 5}, "has no fingerprint"),
    ):
        with pytest.raises(ValueError, match=said) as error:
            adopt(file, tmp_path / "out", **more)
        assert "\n" not in str(error.value)
    for file, more in ((tmp_path / "nothing", {}), (written("Flat"), {"metadata": folder})):
        with pytest.raises(FileNotFoundError):
            adopt(file, tmp_path / "out", **more)
    (tmp_path / "metadata.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(ValueError, match=r"metadata.parquet does not open"):
        adopt(written("Flat"), tmp_path / "out", tmp_path / "metadata.parquet")
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / ".out.building").exists()
    with pytest.raises(FileExistsError):
        adopt(written("Flat"), folder.parent)


def test_an_adopted_index_is_not_changed(written, pool, tmp_path):
    index = adopt(written("IVF64,Flat"), tmp_path / "i")
    Index.build(pool.images[:50], tmp_path / "ours", ids=range(5000, 5050), recipe="flat")
    before = index.manifest
    for change in (
        lambda: index.add(pool.images[:1]),
        lambda: index.remove([0]),
        lambda: index.compact(),
        lambda: index.tune(pool.texts, recall=0.5),
        lambda: index.upsert(pool.images[:1], [{"key": "a"}]),
    ):
        with pytest.raises(ValueError, match="was adopted as another program built it and is not changed"):
            change()
    for pair in (("i", "ours"), ("ours", "i")):
        with pytest.raises(ValueError, match="was adopted as another program built it and cannot be merged"):
            merge(*(tmp_path / name for name in pair), tmp_path / "out", renumber=True)
    assert Index.open(tmp_path / "i", verify=True).manifest == before
    assert not (tmp_path / "out").exists()


def test_the_folder_stands_alone(pool, tmp_path):
    """The other program's file may go."""
    made = faiss.index_factory(16, "IVF16,Flat", IP)
    made.train(pool.images)
    made.add(pool.images)
    made.nprobe = 5
    faiss.write_index(made, str(tmp_path / "image.index"))
    adopt(tmp_path / "image.index", tmp_path / "i")
    (tmp_path / "image.index").unlink()
    index = Index.open(tmp_path / "i", verify=True)
    assert index.manifest["search"] == {"nprobe": 5}
    assert np.array_equal(index.search(pool.texts, 5)[0], made.search(pool.texts, 5)[1])
