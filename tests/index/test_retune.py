"""The search setting of an index that stands: chosen again by measuring, without writing rows again."""

from __future__ import annotations

import numpy as np
import pytest

from dualenc import Index
from dualenc.index import exact_search
from dualenc.index.retune import Gallery

NARROW = {"build": {"kind": "ivf", "nlist": 50}}


@pytest.fixture(scope="module")
def blurred(make_data):
    """Rows in no clusters, so that lists miss many: 2,000 to index, 400 of the same kind to ask for."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(2400, 16)) + 0.3
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    return rows[:2000], rows[2000:]


def recall(index, rows, queries, ids=None):
    best, _ = exact_search(queries, rows, 10)
    best = best if ids is None else ids[best]
    found, _ = index.search(queries, 10)
    return np.mean([len(set(a) & set(b)) for a, b in zip(found.tolist(), best.tolist(), strict=True)]) / 10


def stamps(folder):
    kept = (path for path in folder.iterdir() if path.name not in ("manifest.json", ".writer"))
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in kept}


@pytest.mark.parametrize("recipe", [NARROW, {"build": {"kind": "hnsw"}}, "ivf_sq8"])
def test_more_recall_takes_a_wider_setting_and_no_file(blurred, tmp_path, recipe):
    rows, queries = blurred
    index = Index.build(rows, tmp_path / "i", recipe=recipe, recall=0.5, queries=queries[:200])
    before, files = index.manifest, stamps(tmp_path / "i")
    record = index.tune(queries[:200], recall=0.99)
    after = Index.open(tmp_path / "i", verify=True).manifest
    assert index.manifest == after
    assert after["generation"] == before["generation"] + 1
    assert stamps(tmp_path / "i") == files
    assert after["search"] != before["search"]
    if len(before["search"]) == 1:  # of two knobs, times decide which one is turned
        assert all(after["search"][knob] > before["search"][knob] for knob in before["search"])
    assert {field: after[field] for field in record} == record
    assert (after["ann_recall"]["target"], after["ann_recall"]["queries"]) == (0.99, "the queries given")
    assert after["ann_recall"]["lower"] >= 0.99 > before["ann_recall"]["value"]
    assert recall(index, rows, queries[200:]) > 0.98
    index.tune(queries[:200], recall=0.5)  # all settings of the recipe can still be tried
    assert len(before["search"]) == 2 or index.manifest["search"] == before["search"]
    assert index.manifest["recipe"] == before["recipe"]


@pytest.mark.parametrize("codes", ["float32", "sq8"])
def test_without_queries_rows_are_held_out_of_what_is_measured(blurred, tmp_path, codes):
    """What the record says holds for unseen rows: rows of the index itself, or filtered searches, would promise more."""
    rows, queries = blurred
    recipe = {"build": {"kind": "ivf", "nlist": 50, "codes": codes}}
    index = Index.build(rows[:1500], tmp_path / "i", recipe=recipe, recall=0.3)
    index.add(rows[1500:])
    index.remove(np.arange(0, 2000, 10))
    files = stamps(tmp_path / "i")
    index.tune(recall=0.9)
    record = index.manifest["ann_recall"]
    assert "held out" in record["queries"]
    assert (record["rows"], record["measured_on"] + record["chosen_on"]) == (1800, 180)
    if codes == "float32":  # of two knobs, times decide which one is turned
        assert 1 < index.manifest["search"]["nprobe"] < 50
    left = np.setdiff1d(np.arange(2000), np.arange(0, 2000, 10))
    assert abs(recall(index, rows[left], queries, left) - record["value"]) < 0.06
    assert stamps(tmp_path / "i") == files
    assert len(index) == 1800
    own, _ = index.search(rows[left[:50]], 1)
    assert np.mean(own.ravel() == left[:50]) > 0.9  # what was held out while it was measured is there


def test_of_a_store(data, make_store, tmp_path):
    store = make_store(tmp_path / "store", data)
    index = Index.build(store, tmp_path / "i", recipe="ivf_pq", recall=0.5)
    index.tune(store)
    record = index.manifest["ann_recall"]
    assert (record["target"], record["queries"]) == (0.5, "the queries given")
    assert record["measured_on"] + record["chosen_on"] == 300


def test_a_flat_index_has_nothing_to_choose(data, tmp_path):
    index = Index.build(data.images[:100], tmp_path / "i", recipe="flat")
    record = index.tune()
    assert (record["search"], record["results"], record["ann_recall"]["value"]) == ({}, "exact", 1.0)
    assert index.manifest["generation"] == 2


def test_what_cannot_be_tuned(blurred, tmp_path):
    rows, queries = blurred
    graph = Index.build(rows[:200], tmp_path / "hnsw", recipe="hnsw", recall=0.5, queries=queries)
    one = {"build": {"kind": "ivf", "nlist": 50}, "search": {"nprobe": 1}}
    narrow = Index.build(rows, tmp_path / "narrow", recipe=one, recall=0.01, queries=queries)
    bare = {"build": {"kind": "ivf", "nlist": 5, "codes": "sq8"}, "search": {"rerank": "none"}}
    codes = Index.build(rows[:200], tmp_path / "codes", recipe=bare, recall=0.01, queries=queries)
    for index, asked, said in (
        (graph, {}, "is a graph, which leads to each of its own rows.*--queries STORE"),
        (graph, {"queries": queries, "recall": 1.1}, "recall=1.1"),
        (graph, {"queries": queries, "recall": 0}, "recall=0;"),
        (graph, {"queries": queries, "latency": "1e-6 us"}, "for one query, above latency"),
        (graph, {"queries": queries[:, :3]}, "queries have D = 3"),
        (narrow, {"queries": queries, "recall": 0.99}, r"at best.*\(nprobe 1\).*below recall=0.99"),
        (codes, {"queries": queries}, "sq8 without their original rows"),
        (codes, {}, "sq8 without their original rows"),
    ):
        with pytest.raises(ValueError, match=said) as error:
            index.tune(**asked)
        assert "\n" not in str(error.value)
        assert Index.open(index.folder, verify=True).manifest == index.manifest
        assert index.manifest["generation"] == 1


def test_the_gallery_is_the_original_rows_in_order(blurred, tmp_path):
    rows, _ = blurred
    index = Index.build(rows[:300], tmp_path / "i", recipe="ivf_sq8", recall=0.01)
    index.add(rows[300:350])
    index.remove([0, 299, 310])
    left = np.setdiff1d(np.arange(350), [0, 299, 310])
    gallery = index.gallery()
    assert isinstance(gallery, Gallery)
    assert (len(gallery), gallery.dim) == (347, 16)
    blocks = list(gallery.blocks(100))
    assert [len(block) for block in blocks] == [100, 100, 100, 47]
    assert np.abs(np.concatenate(blocks) - rows[left]).max() < 1e-6
    asked = [346, 0, 0, 298, 297]
    assert np.abs(gallery.take(asked) - rows[left[asked]]).max() < 1e-6
