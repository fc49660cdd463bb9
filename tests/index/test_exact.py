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
