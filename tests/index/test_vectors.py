from __future__ import annotations

import numpy as np
import pytest

from dualenc.index.vectors import as_ids, as_queries, as_rows, unit_blocks, unit_rows


def test_rows_that_are_unit_keep_their_bits(data):
    assert np.array_equal(unit_rows(data.images, "vectors"), data.images)


@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.float32])
def test_other_types_become_unit_float32(data, dtype):
    rows = unit_rows(data.images.astype(dtype) * dtype(1.004), "vectors")
    assert rows.dtype == np.float32
    assert rows.flags.c_contiguous
    assert np.allclose(np.linalg.norm(rows.astype(np.float64), axis=1), 1, atol=1e-6)
    assert np.allclose(rows, data.images, atol=1e-3)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda x: x * 1.006, "row 107 has length 1.006, not 1"),
        (lambda x: x * 0.994, "row 107 has length 0.994"),
        (lambda x: x * 0, "row 107 has length 0, not 1"),
        (lambda x: x * np.nan, "row 107 holds NaN or infinity"),
        (lambda x: x + np.inf, "row 107 holds NaN or infinity"),
        (lambda x: x + 3e38, "row 107 has length inf"),
    ],
)
def test_rows_that_are_not_unit_are_named(data, spoil, said):
    rows = data.images[:10].copy()
    rows[7] = spoil(rows[7])
    with pytest.raises(ValueError, match=said):
        unit_rows(rows, "vectors", first=100)


def test_blocks_name_the_row_over_all_blocks(data, monkeypatch):
    rows = data.images.copy()
    rows[1234] *= 2
    monkeypatch.setattr("dualenc.index.vectors.BLOCK", 100)
    assert [first for first, _ in unit_blocks(as_rows(data.images))] == list(range(0, 2000, 100))
    with pytest.raises(ValueError, match="row 1234 has length 2"):
        list(unit_blocks(as_rows(rows)))


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (np.ones((2, 3), int), "dtype int64"),
        (np.ones(3, "f4"), r"shape \(3,\)"),
        (np.ones((2, 0), "f4"), r"shape \(2, 0\)"),
        ([[1.0], [1.0, 2.0]], "no .rows, D. array"),
        ("runs/store", "open_store"),
        (None, "dtype object"),
    ],
)
def test_what_is_no_array_is_refused(source, said):
    with pytest.raises(ValueError, match=said):
        as_rows(source)


def test_queries(data):
    assert as_queries(data.texts[0], 32).shape == (1, 32)
    assert as_queries(data.texts[:0], 32).shape == (0, 32)
    assert np.array_equal(as_queries(data.texts[:2].tolist(), 32), data.texts[:2])
    with pytest.raises(ValueError, match="D = 32, the index has 31"):
        as_queries(data.texts, 31)


@pytest.mark.parametrize("ids", [[3, 1, 2], np.array([0, 2**63 - 1, 5], np.uint64), np.arange(3, dtype=np.int8)])
def test_ids(ids):
    assert as_ids(ids, 3).dtype == np.int64
    assert as_ids(ids, 3).tolist() == [int(i) for i in ids]


@pytest.mark.parametrize(
    ("ids", "said"),
    [
        ([1, 2], "2 ids for 3 vectors"),
        ([1, 2, 1], "1 occurs more than once"),
        ([1, -1, 2], "-1 is outside"),
        (np.array([0, 2**63, 5], np.uint64), "9223372036854775808 is outside"),
        ([0.0, 1.0, 2.0], "dtype float64"),
        ([True, False, True], "dtype bool"),
        (["a", "b", "c"], "dtype <U1"),
    ],
)
def test_unfit_ids_are_refused(ids, said):
    with pytest.raises(ValueError, match=said):
        as_ids(ids, 3)
