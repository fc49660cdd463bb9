"""Two indexes as one: against one index of all rows, and the two that stay as they are."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from dualenc import Index
from dualenc.index import merge, merging
from dualenc.index.change import LAST_ID
from dualenc.index.kinds.lists import Lists

WIDE = {
    "flat": {"build": {"kind": "flat"}},
    "hnsw": {"build": {"kind": "hnsw", "M": 16}, "search": {"efSearch": 1000}},
    "hnsw_sq8": {"build": {"kind": "hnsw", "M": 16, "codes": "sq8"}, "search": {"efSearch": 1000, "rerank": 64}},
    "ivf": {"build": {"kind": "ivf", "nlist": 5}, "search": {"nprobe": 5}},
    "ivf_sq8": {"build": {"kind": "ivf", "nlist": 5, "codes": "sq8"}, "search": {"nprobe": 5, "rerank": 64}},
    "ivf_pq": {
        "build": {"kind": "ivf", "nlist": 2, "codes": "pq", "dims_per_code": 1},
        "search": {"nprobe": 2, "rerank": 64},
    },
}
BARE = {"build": {"kind": "ivf", "nlist": 4, "codes": "sq8"}, "search": {"nprobe": 4, "rerank": "none"}}


@pytest.fixture(scope="module")
def pool(make_data):
    return make_data(200, 8, 30, seed=9)


def build(pool, folder, rows, recipe, ids=None, **more):
    table = [{"row": int(row)} for row in rows]
    return Index.build(
        pool.images[rows], folder, ids, table, recipe if isinstance(recipe, dict) else WIDE[recipe], 0.01, **more
    )


def copy_of(index, folder, rows, pool, ids):
    """An index with another's training and other rows: all of its own are removed from a copy of it."""
    shutil.copytree(index.folder, folder)
    copy = Index.open(folder)
    copy.remove(copy.ids)
    copy.add(pool.images[rows], ids, [{"row": int(row)} for row in rows])
    copy.compact()
    return copy


def check(index, model, pool):
    """Ids in order, metadata, rows and the ten best of all, by float64. model: id -> row of the pool."""
    ids, rows = list(model), np.array(list(model.values()))
    assert index.ids.tolist() == ids
    assert len(index) == len(ids)
    assert index.rows(ids)["row"].to_pylist() == rows.tolist()
    assert np.abs(index.vectors(ids) - pool.images[rows]).max() < 1e-6
    true = pool.texts.astype(np.float64) @ pool.images[rows].astype(np.float64).T
    best = np.argsort(-true, axis=1, kind="stable")[:, :10]
    found, scores = index.search(pool.texts, 10)
    assert np.array_equal(found, np.array(ids)[best])
    assert np.abs(scores - np.take_along_axis(true, best, 1)).max() < 1e-6
    (entry,) = index.manifest["segments"]
    assert (entry["removed"], index.manifest["tombstones"], index.manifest["generation"]) == (0, 0, 1)


@pytest.mark.parametrize("recipe", WIDE)
@pytest.mark.parametrize("other", ["flat", "hnsw_sq8", "ivf", "ivf_sq8"])
def test_rows_of_any_kind_join_the_first_kind(pool, tmp_path, recipe, other):
    """Both with removed rows and several segments; the first's kind, setting and centroids stay."""
    one = build(pool, tmp_path / "one", np.arange(80), recipe)
    one.add(pool.images[80:90], metadata=[{"row": row} for row in range(80, 90)])
    one.remove([0, 85])
    two = build(pool, tmp_path / "two", np.arange(100, 150), other, np.arange(50)[::-1] + 1000)
    two.add(pool.images[150:155], metadata=[{"row": row} for row in range(150, 155)])
    two.remove([1003, 1052])
    before = one.manifest, two.manifest
    merge(tmp_path / "one", tmp_path / "two", tmp_path / "out")
    index = Index.open(tmp_path / "out", verify=True)
    model = {row: row for row in range(90) if row not in (0, 85)}
    theirs = {**{1049 - place: 100 + place for place in range(50)}, **{1050 + place: 150 + place for place in range(5)}}
    model |= {i: row for i, row in theirs.items() if i not in (1003, 1052)}
    check(index, model, pool)
    for field in ("recipe", "search", "mean", "dim", "side", "ann_recall"):
        assert index.manifest[field] == before[0][field]
    assert index.manifest["next_id"] == 1055
    assert ("vectors" in index.manifest["segments"][0]["files"]) == (recipe not in ("flat", "hnsw", "ivf"))
    assert (Index.open(tmp_path / "one").manifest, Index.open(tmp_path / "two", verify=True).manifest) == before
    index.add(pool.images[199:])
    assert index.ids[-1] == 1055


@pytest.mark.parametrize("recipe", WIDE)
def test_lists_of_one_training_are_joined_as_they_are(pool, tmp_path, recipe, monkeypatch):
    one = build(pool, tmp_path / "one", np.arange(90), recipe)
    two = copy_of(one, tmp_path / "two", np.arange(90, 150), pool, np.arange(60) + 7000)
    if recipe.startswith("ivf"):
        monkeypatch.setattr(Lists, "add", None)  # no row is coded again
    merge(one.folder, two.folder, tmp_path / "out")
    model = {row: row for row in range(90)} | {7000 + place: 90 + place for place in range(60)}
    check(Index.open(tmp_path / "out", verify=True), model, pool)


@pytest.mark.parametrize("recipe", WIDE)
@pytest.mark.parametrize("same", [True, False])
def test_renumber(pool, tmp_path, recipe, same):
    """The second's ids rise by the first's next id, in FAISS's files as well."""
    one = build(pool, tmp_path / "one", np.arange(90), recipe)
    rows = np.arange(90, 150)
    if same:
        two = copy_of(one, tmp_path / "two", rows, pool, np.arange(60) * 3)
    else:
        two = build(pool, tmp_path / "two", rows, "flat", np.arange(60) * 3)
    with pytest.raises(ValueError, match="both indexes have id 0; give one of them other ids, or merge with renumber"):
        merge(one.folder, two.folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    merge(one.folder, two.folder, tmp_path / "out", renumber=True)
    index = Index.open(tmp_path / "out", verify=True)
    check(index, {row: row for row in range(90)} | {90 + 3 * place: 90 + place for place in range(60)}, pool)
    assert index.manifest["next_id"] == 90 + max(two.manifest["next_id"], 178)


def test_codes_alone_join_where_lists_fit(pool, tmp_path):
    one = build(pool, tmp_path / "one", np.arange(90), BARE)
    two = copy_of(one, tmp_path / "two", np.arange(90, 150), pool, np.arange(60) + 7000)
    merge(one.folder, two.folder, tmp_path / "out", renumber=True)
    index = Index.open(tmp_path / "out", verify=True)
    assert index.ids.tolist() == [*range(90), *range(7090, 7150)]
    expected = np.concatenate([one.search(pool.texts, 200)[1][:, :90], two.search(pool.texts, 200)[1][:, :60]], axis=1)
    assert np.allclose(index.search(pool.texts, 150)[1], -np.sort(-expected, axis=1), atol=1e-6)
    assert "vectors" not in index.manifest["segments"][0]["files"]


@pytest.mark.parametrize("first", ["flat", "ivf", "ivf_sq8", "hnsw", "bare"])
def test_codes_alone_that_fit_nothing_are_refused(pool, tmp_path, first):
    one = build(pool, tmp_path / "one", np.arange(90), BARE if first == "bare" else first)
    build(pool, tmp_path / "two", np.arange(90, 150), BARE)  # other centroids than any of them
    with pytest.raises(ValueError, match=r"second index holds sq8 codes without their original rows.*build it again"):
        merge(one.folder, tmp_path / "two", tmp_path / "out", renumber=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]


def test_an_index_that_re_ranks_takes_no_codes_alone(pool, tmp_path):
    """The lists would fit, but the original rows of the second are nowhere."""
    recipe = {**BARE, "search": {"nprobe": 4, "rerank": 64}}
    build(pool, tmp_path / "one", np.arange(90), recipe)
    build(pool, tmp_path / "two", np.arange(90), BARE, np.arange(90) + 1000)
    with pytest.raises(ValueError, match=r"one keeps original rows for re-ranking, .*two has only codes"):
        merge(tmp_path / "one", tmp_path / "two", tmp_path / "out")
    merge(tmp_path / "two", tmp_path / "one", tmp_path / "out")  # the other way round nothing is missing
    assert Index.open(tmp_path / "out").manifest["scores"] == "approximate"


def test_rows_of_two_stores(pool, make_store, tmp_path):
    """Merged, the index stands alone: the stores may go."""
    for name, rows in (("a", slice(0, 90)), ("b", slice(90, 150))):
        store = make_store(tmp_path / name, type(pool)(pool.images[rows], pool.texts))
        Index.build(store, tmp_path / f"{name}_index", recipe="ivf_sq8", recall=0.01)
    merge(tmp_path / "a_index", tmp_path / "b_index", tmp_path / "out", renumber=True)
    for name in "ab":
        shutil.rmtree(tmp_path / name)
    index = Index.open(tmp_path / "out", verify=True)
    assert np.abs(index.vectors(range(150)) - pool.images[:150]).max() < 1e-3
    assert np.load(tmp_path / "out" / "vectors.000001.npy").dtype == np.float16
    assert index.rows([149])["key"].to_pylist() == ["image 59"]


def test_unlike_indexes_are_refused(pool, make_data, tmp_path):
    one = build(pool, tmp_path / "one", np.arange(40), "flat", encoder="a" * 64)
    narrow = make_data(40, 4, 5).images
    Index.build(narrow, tmp_path / "narrow", recipe="flat", encoder="a" * 64)
    build(pool, tmp_path / "texts", np.arange(40), "flat", encoder="a" * 64, side="text")
    build(pool, tmp_path / "foreign", np.arange(40), "flat", encoder="b" * 64)
    for name, said in (
        ("narrow", "has dim 8, .*narrow has 4; embed both with one encoder before merging"),
        ("texts", "has side image, .*texts has text; build both for one side before merging"),
        ("foreign", "foreign has fingerprint bbbbbbbbbbbb…, the vectors are from aaaaaaaaaaaa…"),
    ):
        with pytest.raises(ValueError, match=said) as error:
            merge(one.folder, tmp_path / name, tmp_path / "out", renumber=True)
        assert "\n" not in str(error.value)
    with pytest.raises(FileNotFoundError, match="no such index"):
        merge(one.folder, tmp_path / "nothing", tmp_path / "out")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("")
    with pytest.raises(FileExistsError):
        merge(one.folder, one.folder, tmp_path / "out", renumber=True)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]


def test_columns_that_clash_are_refused_and_others_come_together(pool, tmp_path):
    one = build(pool, tmp_path / "one", np.arange(40), "flat")
    Index.build(pool.images[40:42], tmp_path / "two", metadata=[{"row": "a"}, {"row": "b"}], recipe="flat")
    with pytest.raises(ValueError, match="metadata does not fit the index's columns"):
        merge(one.folder, tmp_path / "two", tmp_path / "out", renumber=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]
    Index.build(pool.images[40:42], tmp_path / "three", metadata=[{"caption": "a"}] * 2, recipe="flat")
    merge(one.folder, tmp_path / "three", tmp_path / "out", renumber=True)
    assert Index.open(tmp_path / "out").rows([39, 41]).to_pylist() == [
        {"row": 39, "caption": None},
        {"row": None, "caption": "a"},
    ]


def test_an_index_with_itself(pool, tmp_path):
    one = build(pool, tmp_path / "one", np.arange(40), "ivf")
    merge(one.folder, one.folder, tmp_path / "out", renumber=True)
    index = Index.open(tmp_path / "out", verify=True)
    assert index.ids.tolist() == list(range(80))
    found, scores = index.search(pool.images[:40], 2)
    assert np.array_equal(np.sort(found, axis=1), np.stack([np.arange(40), np.arange(40, 80)], axis=1))
    assert np.allclose(scores, 1, atol=1e-6)


def test_ids_that_would_not_fit(pool, tmp_path):
    build(pool, tmp_path / "one", np.arange(20), "flat", np.arange(20))
    build(pool, tmp_path / "two", np.arange(20), "flat", [*range(19), LAST_ID - 19])
    with pytest.raises(ValueError, match=rf"id {LAST_ID - 19} raised by 20 does not fit in int64"):
        merge(tmp_path / "one", tmp_path / "two", tmp_path / "out", renumber=True)
    build(pool, tmp_path / "three", np.arange(20), "flat", [*range(19), LAST_ID - 20])
    merge(tmp_path / "one", tmp_path / "three", tmp_path / "out", renumber=True)
    assert Index.open(tmp_path / "out").ids[-1] == LAST_ID


def test_empty_indexes(pool, tmp_path):
    """Rows can all be removed, and what is left can still be merged: with the highest id there is as well."""
    one = build(pool, tmp_path / "one", np.arange(20), "ivf")
    two = build(pool, tmp_path / "two", np.arange(20, 30), "ivf", [*range(9), LAST_ID])
    two.remove(two.ids)
    merge(one.folder, two.folder, tmp_path / "a")
    assert Index.open(tmp_path / "a").ids.tolist() == list(range(20))
    merge(two.folder, one.folder, tmp_path / "b")
    assert Index.open(tmp_path / "b").search(pool.images[3], 1)[0].item() == 3


def test_what_merge_is():
    assert merge is merging.merge
