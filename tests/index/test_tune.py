"""The setting that tuning chooses, and the recall it reports."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from dualenc import Index
from dualenc.index import exact_search, load_recipe
from dualenc.index.build import _fill
from dualenc.index.tune import Queries, _without, pick_queries, tune
from dualenc.index.vectors import Array


def recall(found: np.ndarray, best: np.ndarray) -> float:
    return (
        float(np.mean([len(set(a) & set(b)) for a, b in zip(found.tolist(), best.tolist(), strict=True)]))
        / best.shape[1]
    )


@pytest.fixture(scope="module")
def big(make_data):
    return make_data(10_000, 64, 900, seed=3)


@pytest.mark.parametrize("kind", ["hnsw", "ivf"])
def test_the_recall_holds_on_text_queries_never_seen(big, tmp_path, kind):
    index = Index.build(big.images, tmp_path / "i", recipe=kind, queries=big.texts[:500], recall=0.95)
    best, _ = exact_search(big.texts[500:], big.images, 10)
    unseen = recall(index.search(big.texts[500:], 10)[0], best)
    reported = index.manifest["ann_recall"]
    assert unseen >= 0.95
    assert abs(unseen - reported["value"]) < 0.03
    assert (reported["chosen_on"], reported["reported_on"], reported["held_out"]) == (250, 250, True)


def test_rows_of_the_index_say_little_about_text_queries(big, tmp_path):
    """Why queries are asked for: tuned on its own rows, the index looks good and misses for texts."""
    index = Index.build(big.images, tmp_path / "i", recipe="ivf", recall=0.95)
    best, _ = exact_search(big.texts, big.images, 10)
    assert index.manifest["ann_recall"]["value"] >= 0.94
    assert "own image rows" in index.manifest["ann_recall"]["queries"]
    assert recall(index.search(big.texts, 10)[0], best) < 0.85


@pytest.fixture(scope="module")
def lists(big):
    build = load_recipe("ivf", len(big.images))["build"]
    return _fill(build, Array(big.images), np.arange(10_000) + 7)


def test_takes_the_cheapest_that_reaches(big, lists):
    """Against a plain loop: the first rung whose mean reaches the target by two standard errors."""
    queries, ids = Queries(big.texts[:400], "texts"), np.arange(10_000) + 7
    best, _ = exact_search(big.texts[:400], big.images, 10)
    ladder = [1, 2, 4, 8, 16, 32, 64, 128, 256]
    each = {}
    for nprobe in ladder:
        found, _ = lists.search(big.texts[:400], 10, nprobe, ids)
        each[nprobe] = np.array(
            [len(set(a) & set(b)) / 10 for a, b in zip(found.tolist(), (best + 7).tolist(), strict=True)]
        )
    for target in (0.5, 0.8, 0.9, 0.97, 1.0):
        reach = [n for n in ladder if each[n][:200].mean() - 2 * each[n][:200].std() / 200**0.5 >= target]
        setting, record = tune(lists, ids, Array(big.images), queries, "nprobe", ladder, target)
        assert setting == reach[0]
        assert record["value"] == pytest.approx(each[setting][200:].mean(), abs=1e-4)
        assert [rung["nprobe"] for rung in record["tried"]] == ladder[: ladder.index(setting) + 1]


def test_a_target_out_of_reach_says_the_best(big, lists):
    queries = Queries(big.texts[:400], "texts")
    with pytest.raises(
        ValueError, match=r"ivf reaches ANN recall@10 0\.\d+ at best \(nprobe 2; measured on texts\)"
    ) as error:
        tune(lists, np.arange(10_000) + 7, Array(big.images), queries, "nprobe", [1, 2], 0.99)
    assert "\n" not in str(error.value)


def test_a_query_that_is_a_row_does_not_find_itself():
    found = np.array([[5, 6, 7], [6, 5, 7], [1, 2, 3]])
    ids = np.arange(10)
    left, scores = _without(np.array([5, 5, 5]), ids, found, found.astype(float))
    assert left.tolist() == [[6, 7], [6, 7], [1, 2]]
    assert np.array_equal(left, scores)


def test_rows_that_tie_are_both_right(make_data):
    """Twenty rows, each fifty times over: which of the fifty an index finds says nothing about its recall."""
    data = make_data(20, 16, 40)
    rows, ids = np.repeat(data.images, 50, axis=0), np.arange(1000)
    backwards = SimpleNamespace(
        search=lambda queries, k, setting, ids: _last_first(queries, rows, k, wrong=setting == 1)
    )
    setting, record = tune(backwards, ids, Array(rows), Queries(data.texts, "texts"), "nprobe", [1, 2], 0.95)
    assert (setting, record["value"]) == (2, 1.0)
    assert record["tried"][0]["recall"] == 0


def _last_first(queries, rows, k, wrong):
    """Exact search that prefers the later of equal rows; wrong: of the worst rows instead of the best."""
    scores = (queries @ rows.T)[:, ::-1] * (-1 if wrong else 1)
    found = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return len(rows) - 1 - found, np.take_along_axis(scores, found, 1) * (-1 if wrong else 1)


def test_which_queries(data, make_store, tmp_path):
    store = make_store(tmp_path / "s", data)
    gallery = store.side("image")
    texts = pick_queries(store, gallery, "image", None)
    assert texts.origin == "the store's texts"
    assert texts.own is None
    in_order = store.side("text").take(range(300))
    which = (texts.rows @ in_order.T).argmax(axis=1)
    assert np.allclose(texts.rows, in_order[which], atol=1e-3)
    assert np.array_equal(np.sort(which), np.arange(300))
    assert (np.diff(which) < 0).any()  # in random order: halves of a sorted file would differ
    assert pick_queries(store, store.side("text"), "text", None).origin == "the store's images"
    given = pick_queries(store, gallery, "image", data.texts[:20])
    assert (given.origin, len(given.rows)) == ("the queries given", 20)
    assert len(pick_queries(data.images, Array(data.images), "image", store).rows) == 300
    own = pick_queries(data.images, Array(data.images), "image", None)
    assert len(own.rows) == 1000
    assert len(np.unique(own.own)) == 1000
    assert np.array_equal(own.rows, data.images[own.own])
    imageless = make_store(tmp_path / "t", type(data)(data.images, data.texts[:0]))
    assert pick_queries(imageless, imageless.side("image"), "image", None).own is not None
    assert len(pick_queries(data.images, Array(data.images), "image", imageless).rows) == 1000


@pytest.mark.parametrize("setting", [1, 3])
def test_a_fixed_setting_is_measured_all_the_same(data, tmp_path, setting):
    recipe = {"build": {"kind": "ivf", "nlist": 20}, "search": {"nprobe": setting}}
    index = Index.build(data.images, tmp_path / "i", recipe=recipe, queries=data.texts, recall=0.01)
    assert index.manifest["search"] == {"nprobe": setting}
    best, _ = exact_search(data.texts, data.images, 10)
    assert recall(index.search(data.texts, 10)[0], best) == pytest.approx(
        index.manifest["ann_recall"]["value"], abs=0.1
    )
    with pytest.raises(ValueError, match=f"at best .nprobe {setting}"):
        Index.build(data.images, tmp_path / "j", recipe=recipe, queries=data.texts, recall=1.0)
