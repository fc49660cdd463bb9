"""What `info` says of an index, and when it advises a rebuild, a tuning or a compaction."""

from __future__ import annotations

import json

import numpy as np
import pytest

from dualenc import Index
from dualenc.index import about, info
from dualenc.index.recipe import load_recipe

IVF = {"build": {"kind": "ivf", "nlist": 8}}


@pytest.fixture(scope="module")
def pool(make_data):
    return make_data(1000, 16, 60, seed=4)


@pytest.fixture
def index(pool, tmp_path):
    return Index.build(pool.images[:400], tmp_path / "i", recipe=IVF, recall=0.5, queries=pool.texts)


def elsewhere(pool, count, seed=0):
    """Unit rows that have nothing to do with the gallery."""
    rows = -pool.images[:count] + np.random.default_rng(seed).normal(0, 0.2, (count, 16))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def spread(index, rows):
    """Mean squared distance of rows to the nearest centroid by inner product, in float64."""
    import faiss

    lists = faiss.read_index(str(index.folder / "index.000001.faiss"))
    centroids = lists.quantizer.reconstruct_n(0, lists.nlist).astype(np.float64)
    rows = rows.astype(np.float64) - np.array(index.manifest["mean"])
    nearest = (rows @ centroids.T).argmax(axis=1)
    return ((rows - centroids[nearest]) ** 2).sum(axis=1).mean()


def test_what_an_index_is(index, pool):
    said = info(index.folder)
    assert said == info(str(index.folder), verify=True)
    assert said["folder"] == str(index.folder)
    assert said["mean"] == "taken from the vectors"
    assert said["bytes_on_disk"] == sum(p.stat().st_size for p in index.folder.iterdir() if p.name != "manifest.json")
    same = {key: value for key, value in index.manifest.items() if key != "mean"}
    assert {key: said[key] for key in same} == same
    assert set(said) - set(index.manifest) == {"folder", "bytes_on_disk", "advice"}
    json.dumps(said)
    assert said["spread"] == pytest.approx(spread(index, pool.images[:400]), rel=1e-4)


@pytest.mark.parametrize("recipe", ["flat", "hnsw", "ivf", "ivf_pq"])
def test_nothing_to_say_of_a_new_index(pool, tmp_path, recipe):
    index = Index.build(pool.images[:400], tmp_path / "i", recipe=recipe, recall=0.5, queries=pool.texts)
    assert info(index.folder)["advice"] is None
    index.add(pool.images[400:430])  # more of the same, fewer than one in ten
    index.remove(range(30))
    assert info(index.folder)["advice"] is None
    assert (info(index.folder)["mean"] is None) == (recipe in ("flat", "hnsw"))
    assert load_recipe(recipe, 400)["build"] == index.manifest["recipe"]["build"]


@pytest.mark.parametrize(("count", "said"), [(20, False), (60, True), (300, True)])
def test_rows_from_elsewhere(index, pool, count, said):
    """A segment of them that is more than a tenth of all, or so many that they were joined with the build's."""
    rows = elsewhere(pool, count)
    index.add(rows)
    built, added = index.manifest["spread"], spread(index, rows) if count < 200 else None
    if added is not None:
        assert index.manifest["segments"][1]["spread"] == pytest.approx(added, rel=1e-4)
        assert added > 1.2 * built
    advice = info(index.folder)["advice"] or ""
    assert ("a rebuild pays" in advice) == said
    if said and added is not None:
        ratio = (400 * built + count * added) / (400 + count) / built
        assert f"({ratio:.2f} times on average over all)" in advice
    assert "\n" not in advice


def test_joined_segments_keep_what_the_rows_are(index, pool):
    """The joined segment's spread is the mean over its rows, so that the build's own is not forgotten."""
    rows = elsewhere(pool, 300)
    index.add(rows)
    (entry,) = index.manifest["segments"]
    built = index.manifest["spread"]
    assert entry["spread"] == pytest.approx((400 * built + 300 * spread_of(rows, index)) / 700, rel=1e-3)


def spread_of(rows, index):
    from dualenc.index.generation import open_generation

    return open_generation(index.folder).segments[0].kind.drift(rows)


def test_stale_recall(index, pool):
    index.add(pool.images[400:440])
    assert info(index.folder)["advice"] is None
    index.add(pool.images[440:441])
    assert info(index.folder)["advice"] == (
        "recall was measured at 400 rows, there are 441: `dualenc index tune` measures again"
    )
    index.tune(pool.texts)
    assert info(index.folder)["advice"] is None
    index.remove(range(50))
    index.compact()
    assert "there are 391: `dualenc index tune`" in info(index.folder)["advice"]


def test_removed_rows(index):
    index.remove(range(36))
    assert info(index.folder)["advice"] is None
    index.remove([36])
    assert info(index.folder)["advice"] == (
        "37 removed rows still take their bytes: `dualenc index compact` frees them"
    )
    index.compact()
    assert info(index.folder)["advice"] is None


def test_several_things_are_one_line(index, pool):
    index.add(elsewhere(pool, 150))
    index.remove(range(60))
    advice = about.advice(index.manifest)
    assert advice.count("; ") == 2
    for word in ("a rebuild pays", "recall was measured", "removed rows"):
        assert word in advice


def test_exact_search_is_never_stale(pool, tmp_path):
    index = Index.build(pool.images[:100], tmp_path / "i", recipe="flat")
    index.add(pool.images[100:900])
    assert info(index.folder)["advice"] is None


@pytest.mark.parametrize(
    ("segments", "said"),
    [
        ([(1000, 1.0)], False),
        ([(1000, 1.19)], False),
        ([(1000, 1.21)], True),  # joined: all are farther on average
        ([(1000, 1.0), (100, 1.3)], False),
        ([(1000, 1.0), (130, 1.19)], False),
        ([(1000, 1.0), (130, 1.21)], True),  # more than a tenth, though the average is hardly higher
        ([(1000, 1.0), (70, 1.3), (50, 1.3)], True),
        ([(1000, 1.0), (50, 6.0)], True),
        ([(1000, None), (500, None)], False),
    ],
)
def test_when_centroids_no_longer_fit(segments, said):
    entries = [{"rows": rows, "spread": None if spread is None else 0.4 * spread} for rows, spread in segments]
    assert (about._drift({"spread": 0.4, "segments": entries}) is not None) == said
