"""Each kind through FAISS: centring, filters, tombstones, and files that are opened within limits."""

from __future__ import annotations

import faiss
import numpy as np
import pytest

from dualenc.index import load_recipe
from dualenc.index.build import _fill, _mean, _sample
from dualenc.index.kinds import KINDS
from dualenc.index.vectors import Array

CHEAPEST = {"flat": None, "hnsw": 1, "ivf": 1}


@pytest.fixture(scope="module")
def kinds(data):
    ids = np.arange(2000) * 3
    return {name: _fill(load_recipe(name, 2000)["build"], Array(data.images), ids) for name in KINDS}, ids


def oracle(queries, images, ids, mask, k):
    scores = queries.astype(np.float64) @ images.astype(np.float64).T
    scores[:, ~mask] = -np.inf
    order = np.argsort(-scores, axis=1)[:, :k]
    return ids[order], np.take_along_axis(scores, order, 1)


def test_mean_is_over_all_rows(data, monkeypatch):
    monkeypatch.setattr("dualenc.index.vectors.BLOCK", 300)
    mean = _mean(Array(data.images))
    assert mean.dtype == np.float32
    assert np.array_equal(mean, data.images.astype(np.float64).mean(axis=0).astype(np.float32))


def test_training_rows_are_random(data):
    """Sorted by cluster, the first rows would train the centroids of the first clusters only."""
    ordered = data.images[np.argsort(data.images[:, 0])]
    sample = _sample(Array(ordered), load_recipe({"build": {"kind": "ivf", "nlist": 5}}, 2000)["build"])
    assert len(sample) == 5 * 64
    places = np.array([np.flatnonzero((ordered == row).all(axis=1))[0] for row in sample])
    assert len(np.unique(places)) == 320
    assert 800 < places.mean() < 1200


def test_centring_changes_neither_ranking_nor_score(data):
    """Searched whole, an index of vectors less their mean equals exact search of the vectors themselves."""
    ids = np.arange(2000)
    for centred in (True, False):
        build = load_recipe({"build": {"kind": "ivf", "centred": centred}}, 2000)["build"]
        kind = _fill(build, Array(data.images), ids)
        assert (kind.mean is not None) == centred
        found, scores = kind.search(data.texts, 10, build["nlist"], ids)
        best, expected = oracle(data.texts, data.images, ids, np.ones(2000, bool), 10)
        assert np.array_equal(found, best)
        assert np.abs(scores - expected).max() < 1e-6
        stored = kind.index.quantizer.reconstruct_n(0, build["nlist"]).mean(axis=0)
        assert (np.linalg.norm(stored) < 0.3) == centred


@pytest.mark.parametrize("name", list(KINDS))
@pytest.mark.parametrize("share", [0.5, 0.05, 0.001])
def test_through_a_filter(kinds, data, name, share):
    """With the cheapest setting there is: what a filter leaves is found as well as without it, few rows exactly."""
    kind, ids = kinds[0][name], kinds[1]
    mask = np.random.default_rng(1).random(2000) < share
    mask[:2] = True
    found, scores = kind.search(data.texts, 5, CHEAPEST[name], ids, mask)
    assert np.isin(found[found >= 0], ids[mask]).all()
    live = min(5, int(mask.sum()))
    assert (found[:, :live] >= 0).all()
    assert (found[:, live:] == -1).all()
    best, expected = oracle(data.texts, data.images, ids, mask, 5)
    if name == "flat" or share < 0.01:
        assert np.array_equal(found[:, :live], best[:, :live])
        assert np.abs(scores[:, :live] - expected[:, :live]).max() < 1e-6


@pytest.mark.parametrize(("name", "setting"), [("hnsw", 5), ("ivf", 4)])
def test_a_filter_that_leaves_half_costs_no_recall(kinds, data, name, setting):
    kind, ids = kinds[0][name], kinds[1]
    half = np.random.default_rng(2).random(2000) < 0.5
    recalls = []
    for mask in (np.ones(2000, bool), half):
        found, _ = kind.search(data.texts, 5, setting, ids, None if mask.all() else mask)
        best, _ = oracle(data.texts, data.images, ids, mask, 5)
        recalls.append(np.mean([len(set(a) & set(b)) / 5 for a, b in zip(found, best, strict=True)]))
    assert 0.3 < recalls[0] < 0.95
    assert recalls[1] >= recalls[0] - 0.02


def test_lists_with_few_rows_each_are_trained_in_silence(data, capfd):
    build = load_recipe({"build": {"kind": "ivf", "nlist": 100}}, 300)["build"]
    kind = _fill(build, Array(data.images[:300]), np.arange(300))
    assert kind.index.nlist == 100
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("name", list(KINDS))
def test_ids_up_to_the_last_int64_pass_a_filter(data, name):
    ids = np.iinfo(np.int64).max - np.arange(200) * 10**15
    kind = _fill(load_recipe(name, 200)["build"], Array(data.images[:200]), ids)
    mask = np.arange(200) % 7 == 0
    found, _ = kind.search(data.images[:200:7], 1, CHEAPEST[name], ids, mask)
    assert np.array_equal(found.ravel(), ids[mask])


def test_a_removed_node_is_not_found_and_does_not_hide_others(data):
    """All but 40 rows of a graph removed: tombstones are passed through, whatever the setting, and never returned."""
    ids = np.arange(2000)
    kind = _fill(load_recipe("hnsw", 2000)["build"], Array(data.images), ids)
    kind.remove(np.setdiff1d(ids, ids[::50]))
    left = ids[::50]
    assert kind.total == 2000
    for setting in (1, 64):
        found, scores = kind.search(data.texts, 45, setting, left)
        best, expected = oracle(data.texts, data.images[::50], left, np.ones(40, bool), 40)
        assert np.array_equal(found[:, :40], best)
        assert np.allclose(scores[:, :40], expected, atol=1e-6)
        assert (found[:, 40:] == -1).all()
        found, _ = kind.search(data.texts, 3, setting, left, left % 100 == 0)
        assert np.array_equal(found, oracle(data.texts, data.images[::50], left, left % 100 == 0, 3)[0])
    kind.add(data.images[1:2], np.array([1]))  # under an id that a tombstone had
    found, _ = kind.search(data.images[1:2], 1, 64, np.append(left, 1))
    assert found.tolist() == [[1]]


@pytest.mark.parametrize("name", list(KINDS))
@pytest.mark.parametrize("mapped", [True, False])
def test_written_and_read(kinds, data, tmp_path, name, mapped):
    kind, ids = kinds[0][name], kinds[1]
    path = tmp_path / "index.faiss"
    kind.write(path)
    limits = faiss.get_deserialization_vector_byte_limit(), faiss.get_deserialization_loop_limit()
    nlist = load_recipe(name, 2000)["build"].get("nlist", 0)
    again = type(kind).read(path, 2000, 32, nlist, kind.mean, mapped)
    assert limits == (faiss.get_deserialization_vector_byte_limit(), faiss.get_deserialization_loop_limit())
    setting = None if name == "flat" else 20
    for mine, theirs in zip(
        kind.search(data.texts, 10, setting, ids), again.search(data.texts, 10, setting, ids), strict=True
    ):
        assert np.array_equal(mine, theirs)


@pytest.mark.parametrize("name", list(KINDS))
def test_a_file_that_is_not_what_the_manifest_says(kinds, tmp_path, name):
    kind = kinds[0][name]
    path = tmp_path / "index.faiss"
    kind.write(path)
    nlist = load_recipe(name, 2000)["build"].get("nlist", 0)
    others = [other for other in KINDS if other != name]
    for read, total, dim in [(name, 1999, 32), (name, 2000, 31), (others[0], 2000, 32), (others[1], 2000, 32)]:
        with pytest.raises(ValueError, match="is not the FAISS index of"):
            KINDS[read].read(path, total, dim, nlist, None, True)
    limits = faiss.get_deserialization_vector_byte_limit(), faiss.get_deserialization_loop_limit()
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="does not open in FAISS") as error:
        KINDS[name].read(path, 2000, 32, nlist, None, False)
    assert "\n" not in str(error.value)
    assert limits == (faiss.get_deserialization_vector_byte_limit(), faiss.get_deserialization_loop_limit())
    if name == "ivf":
        path.write_bytes(whole)
        with pytest.raises(ValueError, match="lists, the manifest says 7"):
            KINDS[name].read(path, 2000, 32, 7, None, True)


def test_a_length_in_a_file_is_not_believed(kinds, tmp_path):
    """A changed length of 8 GiB is refused before memory is asked for."""
    kinds[0]["flat"].write(tmp_path / "index.faiss")
    content = bytearray((tmp_path / "index.faiss").read_bytes())
    place = content.find((2000 * 32).to_bytes(8, "little"))
    assert place > 0
    content[place : place + 8] = (2**31).to_bytes(8, "little")
    (tmp_path / "index.faiss").write_bytes(content)
    with pytest.raises(ValueError, match="deserialization_vector_byte_limit"):
        KINDS["flat"].read(tmp_path / "index.faiss", 2000, 32, 0, None, False)


def test_a_full_disk_is_an_oserror(kinds):
    from pathlib import Path

    with pytest.raises(OSError, match=r"/dev/full could not be written|No space left"):
        kinds[0]["flat"].write(Path("/dev/full"))
