from __future__ import annotations

import faiss
import numpy as np
import pytest

from dualenc.index import exact_search


@pytest.mark.parametrize("block", [1, 7, 1999, 100_000])
@pytest.mark.parametrize("k", [1, 10])
def test_equals_a_float64_argsort(data, monkeypatch, block, k):
    monkeypatch.setattr("dualenc.index.vectors.BLOCK", block)
    images = data.images[:300] if block == 1 else data.images
    scores = data.texts.astype(np.float64) @ images.astype(np.float64).T
    expected = np.argsort(-scores, axis=1)[:, :k]
    found, values = exact_search(data.texts, images, k)
    assert np.array_equal(found, expected)
    assert np.allclose(values, np.take_along_axis(scores, expected, 1), atol=1e-6)


def test_fewer_rows_than_k(data):
    found, values = exact_search(data.texts[:4], data.images[:3], 5)
    assert (found[:, 3:] == -1).all()
    assert np.isneginf(values[:, 3:]).all()
    assert (np.sort(found[:, :3]) == [0, 1, 2]).all()


def test_sides_of_a_store(data, make_store, tmp_path):
    store = make_store(tmp_path / "s", data)
    assert np.array_equal(
        exact_search(data.images[:50], store, 1, side="text")[0].ravel(), np.argmax(data.images[:50] @ data.texts.T, 1)
    )
    assert np.array_equal(exact_search(data.images[:50], store, 1)[0].ravel(), np.arange(50))


def test_leaves_the_number_of_threads_alone(data):
    before = faiss.omp_get_max_threads()
    exact_search(data.texts, data.images, 10)
    assert faiss.omp_get_max_threads() == before


@pytest.mark.parametrize("block", [7, 100_000])
def test_rows_that_are_skipped_are_not_found_and_the_others_keep_their_numbers(data, monkeypatch, block):
    monkeypatch.setattr("dualenc.index.vectors.BLOCK", block)
    rows = data.images[:500]
    skip = np.sort(np.concatenate([np.arange(70, 91), np.random.default_rng(0).permutation(70)[:30], [499]]))
    scores = data.texts.astype(np.float64) @ rows.astype(np.float64).T
    scores[:, skip] = -2
    found, values = exact_search(data.texts, rows, 10, skip=skip)
    expected = np.argsort(-scores, axis=1)[:, :10]
    assert np.array_equal(found, expected)
    assert np.allclose(values, np.take_along_axis(scores, expected, 1), atol=1e-6)


def test_skipping_leaves_fewer_than_k_or_none(data):
    found, values = exact_search(data.texts[:4], data.images[:5], 5, skip=np.array([0, 2, 4]))
    assert (np.sort(found[:, :2]) == [1, 3]).all()
    assert (found[:, 2:] == -1).all()
    assert np.isneginf(values[:, 2:]).all()
    assert (exact_search(data.texts[:4], data.images[:5], 2, skip=np.arange(5))[0] == -1).all()


@pytest.mark.parametrize("skip", [[3, 1], [1, 1], [-1, 2], [4, 5]])
def test_skipped_rows_that_are_none_are_refused(data, skip):
    with pytest.raises(ValueError, match="row numbers from 0 to 4 in rising order"):
        exact_search(data.texts, data.images[:5], 2, skip=np.array(skip))
