from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from dualenc.index import npy
from dualenc.index.folder import open_vectors
from dualenc.index.vectors import (
    as_ids,
    as_queries,
    as_rows,
    check_identity,
    identity,
    source_files,
    stored,
    unit_blocks,
    unit_rows,
)


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


def save(folder: Path, *parts: np.ndarray) -> list[Path]:
    files = [folder / f"part_{number}.npy" for number in range(len(parts))]
    for path, part in zip(files, parts, strict=True):
        np.save(path, part)
    return files


@pytest.fixture(params=["float16", "float32", "float64", ">f2", ">f4", "mixed"])
def on_disk(request, tmp_path):
    """(.npy files of 5 parts, one empty; what they hold as float32)."""
    rows = np.random.default_rng(0).normal(size=(1000, 12))
    types = ["float16", "float32"] * 3 if request.param == "mixed" else [request.param] * 6
    cuts = [0, 300, 300, 301, 700, 1000]
    parts = [rows[a:b].astype(kind) for a, b, kind in zip(cuts, cuts[1:], types, strict=False)]
    return save(tmp_path, *parts), np.concatenate([part.astype(np.float32) for part in parts])


@pytest.mark.parametrize("sparse", [0, 1, 64])
@pytest.mark.parametrize("gather", [1, 7, 4096])
def test_stored_rows_by_number(on_disk, monkeypatch, sparse, gather):
    monkeypatch.setattr(npy, "SPARSE", sparse)
    monkeypatch.setattr(npy, "GATHER", gather)
    files, rows = on_disk
    there = stored(files)
    assert (len(there), there.dim) == rows.shape
    rng = np.random.default_rng(1)
    for asked in (
        rng.integers(1000, size=50),
        [301, 5, 5, 299, 300, 999, 0],
        [],
        np.arange(1000),
        [300],
        np.uint8([7]),
    ):
        taken = there.take(asked)
        assert taken.dtype == np.float32
        assert np.array_equal(taken, rows[np.asarray(asked, int)])


def test_stored_rows_by_block(on_disk):
    files, rows = on_disk
    blocks = list(stored(files).blocks(128))
    assert max(map(len, blocks)) == 128
    assert {block.dtype for block in blocks} == {np.dtype(np.float32)}
    assert np.array_equal(np.concatenate(blocks), rows)


def test_every_float16_is_read_as_it_is(tmp_path):
    every = np.arange(1 << 16, dtype=np.uint16).view(np.float16).reshape(-1, 16)
    taken = stored(save(tmp_path, every)).take(np.arange(len(every)))
    assert np.array_equal(taken, every.astype(np.float32), equal_nan=True)


def test_what_stored_rows_say_their_type_is(on_disk):
    files, _ = on_disk
    types = {np.load(path).dtype for path in files}
    assert stored(files).dtype == (np.float16 if types == {np.dtype(np.float16)} else np.float32)


def test_a_file_with_a_long_header(tmp_path, monkeypatch):
    monkeypatch.setattr(npy, "SPARSE", 1)
    header = repr({"descr": "<f4", "fortran_order": False, "shape": (4, 4)}).ljust(502).encode() + b"\n"
    path = tmp_path / "a.npy"
    path.write_bytes(
        np.lib.format.magic(1, 0) + len(header).to_bytes(2, "little") + header + np.eye(4, dtype="<f4").tobytes()
    )
    assert stored([path]).take([2]).tolist() == [[0, 0, 1, 0]]


@pytest.mark.parametrize("row", [-1, 4])
def test_stored_rows_out_of_range(tmp_path, row):
    with pytest.raises(IndexError, match=f"row {row} is outside 0 .. 3"):
        stored(save(tmp_path, np.eye(4))).take([0, row])


def test_stored_rows_of_several_widths_or_none(tmp_path):
    with pytest.raises(ValueError, match=r"part_1\.npy has D = 5, .*part_0\.npy has 4"):
        stored(save(tmp_path, np.eye(4), np.eye(5)))
    with pytest.raises(ValueError, match=r"no \.npy file"):
        stored([])


def test_the_files_of_a_store(data, make_store, tmp_path):
    store = make_store(tmp_path / "s", data, parts=3)
    for side in ("image", "text"):
        files = source_files(store, side)
        assert [path.parent.name for path in files] == [{"image": "img_emb", "text": "text_emb"}[side]] * 3
        assert np.array_equal(
            np.concatenate(list(stored(files).blocks())), np.concatenate(list(store.side(side).blocks()))
        )


def test_the_files_of_a_folder_and_of_a_memory_map(tmp_path):
    files = save(tmp_path, np.eye(4), np.eye(4))
    assert source_files(open_vectors(tmp_path), "image") == files
    assert source_files(open_vectors(tmp_path), "text") is None
    assert source_files(open_vectors(tmp_path, normalise=True), "image") is None  # the files hold other rows
    assert source_files(np.load(files[0], mmap_mode="r"), "image") == files[:1]


@pytest.mark.parametrize(
    "piece",
    [
        lambda there: there[:3],
        lambda there: there[::-1],
        lambda there: there.T,
        lambda there: there * 2,
        lambda there: np.array(there),
        lambda there: np.load(there.filename, mmap_mode="c"),
        lambda there: there.view(np.int64),
        lambda there: np.memmap(there.filename, np.float64, "r", 0, (4, 4)),
        lambda there: [1.0],
    ],
)
def test_pieces_of_a_file_and_arrays_in_memory_have_no_files(tmp_path, piece):
    files = save(tmp_path, np.eye(4))
    assert source_files(piece(np.load(files[0], mmap_mode="r")), "image") is None


def test_parquet_has_no_files_to_read_rows_from(tmp_path):
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"emb": [[1.0, 0.0]]}), tmp_path / "a.parquet")
    assert source_files(open_vectors(tmp_path), "image") is None


@pytest.fixture
def known(tmp_path):
    files = save(tmp_path, np.eye(4), np.eye(5))
    return files, identity(files)


def change(path: Path, content: bytes, keep_time: bool) -> None:
    times = os.stat(path)
    path.write_bytes(content)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns + (0 if keep_time else 10**9)))


def test_files_that_did_not_change_are_known_again(known, monkeypatch, tmp_path):
    import hashlib

    files, entries = known
    assert [entry["path"] for entry in entries] == [str(path) for path in files]
    assert all(Path(entry["path"]).is_absolute() for entry in entries)
    assert [entry["sha256"] for entry in entries] == [hashlib.sha256(path.read_bytes()).hexdigest() for path in files]
    assert [entry["bytes"] for entry in entries] == [path.stat().st_size for path in files]
    assert check_identity(entries, verify=True) == entries
    monkeypatch.chdir(tmp_path)
    assert identity([Path(files[0].name)]) == entries[:1]
    monkeypatch.setattr(npy, "_digest", None)  # without reading them
    assert check_identity(entries) == entries


def test_another_time_with_the_same_content_is_fine(known):
    files, entries = known
    change(files[1], files[1].read_bytes(), keep_time=False)
    now = check_identity(entries)
    assert now[0] == entries[0]
    assert now[1] == {**entries[1], "mtime_ns": entries[1]["mtime_ns"] + 10**9}
    assert check_identity(now) == now


def test_changed_files_are_refused(known):
    files, entries = known
    before = files[1].read_bytes()
    change(files[1], before[:-1] + b"\x01", keep_time=True)
    assert check_identity(entries) == entries  # nothing shows it but the content
    with pytest.raises(ValueError, match=r"part_1.npy changed since the index was built \(another checksum\); restore"):
        check_identity(entries, verify=True)
    change(files[1], before[:-1] + b"\x01", keep_time=False)
    with pytest.raises(ValueError, match="another checksum"):
        check_identity(entries)
    change(files[1], before + b"\x01", keep_time=True)
    with pytest.raises(ValueError, match=f"{len(before) + 1} bytes, {len(before)} then"):
        check_identity(entries)
    files[1].unlink()
    with pytest.raises(FileNotFoundError, match=r"part_1.npy is gone: .* restore it, or build the index again"):
        check_identity(entries)
