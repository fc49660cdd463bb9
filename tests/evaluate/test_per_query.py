"""The per-query table against sorting all float64 scores: order, ties, blocks, what the parquet file holds."""

from __future__ import annotations

import doctest

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dualenc.evaluate import top_hits as module
from dualenc.evaluate.metrics import sides
from dualenc.evaluate.per_query import SCHEMA, per_query, refuse_other, write_per_query
from dualenc.evaluate.ranks import ranks
from dualenc.evaluate.top_hits import top_hits

WORDS = ["red circle", "blue square", "green star", "black ring", "pink cross", "large moon", "tiny sun", "old hat"]


def all_ranks(data):
    every = sides(data.images, data.texts, data.image_row, ks=())
    return {way: ranks(*side) for way, side in every.items()}


def by_sorting(query, gallery, relevant, top):
    """Slow and obvious: every score in float64, one Python sort a query."""
    found = []
    for q, right in zip(query, relevant, strict=True):
        scores = [float((q.astype(np.float64) * g).sum()) for g in gallery]
        order = sorted(range(len(gallery)), key=lambda row: (-scores[row], row in right, row))[:top]
        found.append([(row, scores[row], row in right) for row in order])
    return found


def as_lists(hits):
    return [list(zip(*(column.tolist() for column in some), strict=True)) for some in zip(*hits, strict=True)]


def test_docstring_examples():
    result = doctest.testmod(module)
    assert result.failed == 0 and result.attempted == 1


@given(data=st.data())
def test_equal_to_sorting_all_scores_ties_included(data):
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    queries, rows, dim = (data.draw(st.integers(1, 12)) for _ in range(3))
    grid = data.draw(st.booleans())  # few values: many equal scores
    make = (
        (lambda n: rng.integers(-1, 2, (n, dim)).astype(np.float32))
        if grid
        else (lambda n: rng.standard_normal((n, dim)).astype(np.float32))
    )
    query, gallery = make(queries), make(rows)
    if data.draw(st.booleans()):
        gallery[:] = gallery[0]  # a collapsed encoder
    relevant = [rng.choice(rows, rng.integers(1, rows + 1), replace=False) for _ in range(queries)]
    top, block = data.draw(st.integers(1, 14)), data.draw(st.integers(1, 13))
    hits = top_hits(query, gallery, relevant, top, block)
    assert hits.rows.shape == (queries, min(top, rows))
    assert as_lists(hits) == by_sorting(query, gallery, relevant, top)


def test_near_ties_below_float32_are_told_apart():
    """Two rows whose cosines differ by less than float32 can say; the order is that of float64, in every block."""
    rng = np.random.default_rng(1)
    query = rng.standard_normal((3, 64))
    query /= np.linalg.norm(query, axis=1, keepdims=True)
    gallery = np.repeat(query, 50, axis=0) * (1 + 1e-9 * rng.permutation(150)[:, None])
    relevant = [[0], [70], [140]]
    wanted = by_sorting(query, gallery, relevant, 7)
    for block in (1, 4, 64, 1000):
        assert as_lists(top_hits(query, gallery, relevant, 7, block)) == wanted


def test_a_row_for_each_query_of_both_ways(samples):
    data = samples([[word, f"a picture with {word}"] for word in WORDS])
    data.images[[0, 1]] = data.images[[1, 0]]  # two images stand in each other's place
    rank = all_ranks(data)
    table = per_query(data, rank, top=3)
    assert table.schema == SCHEMA and len(table) == 16 + 8
    rows = table.to_pylist()
    assert [row["way"] for row in rows] == ["text_to_image"] * 16 + ["image_to_text"] * 8
    assert [row["query_row"] for row in rows] == [*range(16), *range(8)]
    assert (
        rows[0]["key"] == "k0" and rows[0]["text"] == "red circle" and rows[3]["text"] == "a picture with blue square"
    )
    assert rows[16]["key"] == "k0" and rows[16]["text"] is None
    assert [row["rank"] for row in rows] == [*(rank["text_to_image"] + 1), *(rank["image_to_text"] + 1)]
    first = rows[0]
    assert first["rank"] > 1 and first["hits"][0] == {
        "row": 1, "key": "k1", "text": None, "score": pytest.approx(1, abs=1e-6), "right": False
    }  # fmt: skip
    for row in rows:
        assert len(row["hits"]) == 3
        right = [place for place, hit in enumerate(row["hits"], 1) if hit["right"]]
        assert right[:1] == ([row["rank"]] if row["rank"] <= 3 else [])
        if right:
            assert row["hits"][right[0] - 1]["score"] == row["score"]
    answered = rows[18]["hits"][0]
    assert answered["key"] == "k2" and answered["text"] in ("green star", "a picture with green star")


def test_of_equal_scores_the_wrong_one_stands_first(constant_encoder, samples):
    data = samples([[word] for word in WORDS])
    data.images[:] = data.texts[:] = constant_encoder.embed_texts(["x"])
    for row in per_query(data, all_ranks(data), top=8).to_pylist():
        assert row["rank"] == 8
        assert [hit["right"] for hit in row["hits"]] == [False] * 7 + [True]


def test_other_right_rows_than_its_own(samples):
    """Two images that are equally right: what the ranks were counted with is what the hits are marked with."""
    data = samples([[word] for word in WORDS])
    group = [[i - i % 2, i - i % 2 + 1] for i in range(8)]
    relevant = {"text_to_image": group}
    rank = {"text_to_image": ranks(data.texts, data.images, group)}
    rows = per_query(data, rank, top=8, relevant=relevant).to_pylist()
    for i, row in enumerate(rows):
        assert sorted(hit["row"] for hit in row["hits"] if hit["right"]) == group[i]
        assert next(place for place, hit in enumerate(row["hits"], 1) if hit["right"]) == row["rank"]
        assert row["score"] == max(hit["score"] for hit in row["hits"] if hit["right"])


def test_written_whole_and_read_back(tmp_path, samples):
    data = samples([["same caption", "other"], ["same caption"], ["third"]])
    table = per_query(data, all_ranks(data))
    write_per_query(tmp_path / "out" / "queries.parquet", table)
    read = pq.read_table(tmp_path / "out" / "queries.parquet")
    assert read.to_pylist() == table.to_pylist()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["queries.parquet"]


def test_metadata_without_names_gives_nulls(samples):
    data = samples([[word] for word in WORDS])
    data.metadata = pa.table({"image_path": data.metadata["image_path"]})
    data.text_metadata = pa.table({"image_row": data.image_row})
    row = per_query(data, all_ranks(data), top=1).to_pylist()[0]
    assert row["key"] is row["text"] is row["hits"][0]["key"] is None


def test_a_captions_key_is_its_images_where_only_that_is_known(samples):
    data = samples([["one", "two"], ["three"]])
    data.text_metadata = data.text_metadata.drop_columns(["key"])
    assert [row["key"] for row in per_query(data, all_ranks(data), top=1).to_pylist()][:3] == ["k0", "k0", "k1"]


def test_refused(samples):
    data = samples([[word] for word in WORDS])
    with pytest.raises(ValueError, match="no way 'up'"):
        per_query(data, {"up": np.zeros(8, np.int64)})
    with pytest.raises(ValueError, match="7 ranks and right rows of 8 queries, but the data has 8"):
        per_query(data, {"text_to_image": np.zeros(7, np.int64)})
    with pytest.raises(ValueError, match="top is 0"):
        per_query(data, all_ranks(data), top=0)


def test_only_a_table_of_its_kind_is_made_anew(tmp_path):
    write_per_query(tmp_path / "queries.parquet", SCHEMA.empty_table())
    refuse_other(tmp_path / "queries.parquet")
    refuse_other(tmp_path / "none.parquet")
    pq.write_table(pa.table({"score": [0.5]}), tmp_path / "scores.parquet")
    (tmp_path / "text.parquet").write_text("no parquet")
    (tmp_path / "folder.parquet").mkdir()
    for name in ("scores", "text", "folder"):
        with pytest.raises(FileExistsError, match=f"{name}.parquet is there and holds something else"):
            refuse_other(tmp_path / f"{name}.parquet")
