"""Which queries an index is measured with."""

from __future__ import annotations

import numpy as np
import pytest

from dualenc.index.queries import pick_queries
from dualenc.index.vectors import Array
from tests.index.conftest import unit


def as_set(rows: np.ndarray) -> set[bytes]:
    return {row.tobytes() for row in np.asarray(rows, np.float32)}


def test_the_stores_other_side_comes_first(data, make_store, tmp_path):
    store = make_store(tmp_path / "s", data)
    texts = pick_queries(store, store.side("image"), "image", None)
    assert (texts.origin, texts.held) == ("the store's texts", None)
    in_order = store.side("text").take(range(300))
    which = (texts.rows @ in_order.T).argmax(axis=1)
    assert np.allclose(texts.rows, in_order[which], atol=1e-3)
    assert np.array_equal(np.sort(which), np.arange(300))
    assert (np.diff(which) < 0).any()  # in random order: halves of a sorted file would differ
    in_bytes = [row.tobytes() for row in texts.rows]
    assert in_bytes != sorted(in_bytes)  # and so would halves of what np.unique returns
    images = pick_queries(store, store.side("text"), "text", None)
    assert (images.origin, len(images.rows), images.held) == ("the store's images", 2000, None)


def test_given_queries(data, make_data, make_store, tmp_path):
    given = pick_queries(data.images, Array(data.images), "image", data.texts[:20])
    assert (given.origin, given.held) == ("the queries given", None)
    assert as_set(given.rows) == as_set(data.texts[:20])
    store = make_store(tmp_path / "s", make_data(400, 32, 77, seed=5))
    assert len(pick_queries(data.images, Array(data.images), "image", store).rows) == 77  # its texts
    assert len(pick_queries(data.images, Array(data.images), "text", store).rows) == 400  # its images
    textless = make_store(tmp_path / "t", make_data(400, 32, 0, seed=6))
    assert len(pick_queries(data.images, Array(data.images), "image", textless).rows) == 400


@pytest.mark.parametrize(("rows", "count"), [(20, 2), (29, 2), (300, 30), (19_990, 1999), (30_000, 2000)])
def test_rows_are_held_out_where_there_is_nothing_else(rows, count):
    gallery = unit(np.random.default_rng(rows).normal(size=(rows, 4)))
    queries = pick_queries(gallery, Array(gallery), "image", None)
    assert len(queries.rows) == count == len(np.unique(queries.held))
    assert np.array_equal(queries.held, np.sort(queries.held))
    assert as_set(queries.rows) == as_set(gallery[queries.held])
    assert "image rows held out" in queries.origin
    again = pick_queries(gallery, Array(gallery), "image", None)
    assert np.array_equal(queries.rows, again.rows)
    other = pick_queries(gallery, Array(gallery), "image", None, seed=1)
    assert not np.array_equal(queries.held, other.held) or rows < 30


def test_held_rows_are_random_and_in_random_order():
    gallery = unit(np.random.default_rng(0).normal(size=(3000, 4)))
    queries = pick_queries(gallery, Array(gallery), "image", None)
    which = np.array([np.flatnonzero((gallery == row).all(axis=1))[0] for row in queries.rows])
    assert 1200 < which[:150].mean() < 1800
    assert queries.held.max() > 2900
    assert queries.held.min() < 100


@pytest.mark.parametrize("rows", [1, 2, 19])
def test_too_few_rows_to_hold_any_out(rows):
    gallery = unit(np.ones((rows, 4)))
    queries = pick_queries(gallery, Array(gallery), "image", None)
    assert queries.rows.shape == (0, 4)
    assert queries.held.tolist() == []
    assert f"{rows} rows are too few" in queries.origin


def test_a_store_with_an_empty_other_side_holds_out(make_data, make_store, tmp_path):
    store = make_store(tmp_path / "t", make_data(400, 32, 0))
    assert len(pick_queries(store, store.side("image"), "image", None).held) == 40


def test_equal_queries_are_asked_once():
    """A caption written for a hundred images would else be in both halves."""
    different = unit(np.random.default_rng(1).normal(size=(50, 8)))
    gallery = Array(unit(np.random.default_rng(2).normal(size=(100, 8))))
    queries = pick_queries(None, gallery, "image", np.repeat(different, 7, axis=0))
    assert len(queries.rows) == 50
    assert as_set(queries.rows) == as_set(different)
    twins = np.repeat(different, 20, axis=0)  # 1,000 rows, of which 100 are drawn
    held = pick_queries(twins, Array(twins), "image", None)
    assert len(held.rows) == len(held.held) <= 50
    assert as_set(held.rows) == as_set(twins[held.held])
    assert len(as_set(held.rows)) == len(held.rows)


def test_at_most_two_thousand_of_a_random_draw():
    many = unit(np.random.default_rng(1).normal(size=(9000, 4)))
    gallery = Array(unit(np.ones((100, 4))))
    queries = pick_queries(None, gallery, "image", many)
    assert len(queries.rows) == 2000 == len(as_set(queries.rows))
    assert 700 < len(as_set(queries.rows) & as_set(many[4500:])) < 1300
    twice = pick_queries(None, gallery, "image", np.repeat(many[:3000], 2, axis=0))
    assert len(twice.rows) == 2000  # equal ones are not made up for by fewer queries


def test_what_does_not_fit_is_refused(data, make_data, make_store, tmp_path):
    gallery = Array(data.images)
    with pytest.raises(ValueError, match="queries have D = 16, the vectors 32; they come from different encoders"):
        pick_queries(data.images, gallery, "image", data.texts[:, :16])
    with pytest.raises(ValueError, match="queries are empty; give some, or leave queries out"):
        pick_queries(data.images, gallery, "image", data.texts[:0])
    with pytest.raises(ValueError, match="queries: row 3 has length 2, not 1"):
        pick_queries(data.images, gallery, "image", np.where(np.arange(9)[:, None] == 3, 2, 1) * data.texts[:9])
    with pytest.raises(ValueError, match="is a path; open it first"):
        pick_queries(data.images, gallery, "image", str(tmp_path))


def test_rows_of_the_gallery_are_no_queries(data, make_data, make_store, tmp_path):
    refused = pytest.raises(ValueError, match="a row finds itself whatever the setting; leave queries out")
    rows, gallery = data.images, Array(data.images)
    for own in (rows, rows[:300], rows[::3], rows[5:9][::-1], gallery):
        with refused:
            pick_queries(gallery if own is gallery else rows, gallery, "image", own)
    assert len(pick_queries(rows[::2], Array(rows[::2]), "image", rows[1::2]).rows) == 1000  # rows between: others
    textless = make_store(tmp_path / "t", make_data(400, 32, 0))
    from dualenc.embed import open_store

    for own in (textless, open_store(tmp_path / "t")):
        with refused:
            pick_queries(textless, textless.side("image"), "image", own)
    both = make_store(tmp_path / "s", data)
    assert len(pick_queries(both, both.side("image"), "image", both).rows) == 300  # its texts are no rows of it
