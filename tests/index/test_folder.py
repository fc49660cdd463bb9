from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dualenc.index import parquet_rows
from dualenc.index.folder import open_vectors
from dualenc.index.vectors import Array, is_store, unit_blocks
from tests.index.conftest import unit

ROWS = unit(np.random.default_rng(0).normal(size=(250, 6)))


def all_rows(vectors) -> np.ndarray:
    return np.concatenate(list(vectors.side("image").blocks(64)))


def lists(rows: np.ndarray, kind: str, dtype: str) -> pa.Array:
    """Rows as an Arrow column of lists."""
    values = pa.array(rows.astype(dtype).ravel())
    if kind == "fixed":
        return pa.FixedSizeListArray.from_arrays(values, rows.shape[1])
    offsets = np.arange(len(rows) + 1) * rows.shape[1]
    if kind == "large":
        return pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), values)
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), values)


def write_parts(folder: Path, suffix: str, dtype: str = "float32", rows: np.ndarray = ROWS) -> None:
    """250 rows as the parts x_0, x_1, x_2 and x_10."""
    folder.mkdir(exist_ok=True)
    for number, start, stop in ((0, 0, 100), (1, 100, 100), (2, 100, 201), (10, 201, 250)):
        part = rows[start:stop]
        if suffix == "npy":
            np.save(folder / f"x_{number}.npy", part.astype(dtype))
        else:
            table = pa.table({"n": np.arange(start, stop), "emb": lists(part, "fixed", dtype)})
            pq.write_table(table, folder / f"x_{number}.parquet", row_group_size=30)


def test_one_npy_file(tmp_path):
    np.save(tmp_path / "a.npy", ROWS)
    vectors = open_vectors(str(tmp_path / "a.npy"))
    assert is_store(vectors)
    assert (vectors.dim, vectors.fingerprint, vectors.encoder, vectors.folder) == (6, None, None, tmp_path)
    assert vectors.metadata() is None
    assert vectors.files("image") == [tmp_path / "a.npy"]
    assert np.array_equal(all_rows(vectors), ROWS)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("suffix", ["npy", "parquet"])
def test_a_folder_in_natural_order(tmp_path, suffix, dtype):
    write_parts(tmp_path, suffix, dtype)
    (tmp_path / f".x_3.{suffix}").write_bytes(b"left by another program")
    rows = open_vectors(tmp_path).side("image")
    expected = ROWS.astype(dtype).astype(np.float32)
    assert len(rows) == 250
    assert np.array_equal(np.concatenate(list(rows.blocks(64))), expected)
    assert {block.dtype for block in rows.blocks()} == {np.dtype(np.float32)}
    asked = np.random.default_rng(1).integers(250, size=400)
    assert np.array_equal(rows.take(asked), expected[asked])
    assert rows.take([]).shape == (0, 6)
    assert rows.dtype == (np.float32 if suffix == "npy" and dtype == "float64" else dtype)
    for row in (-1, 250):
        with pytest.raises(IndexError, match=f"row {row} is outside 0 .. 249"):
            rows.take([3, row])


def test_there_is_no_text(tmp_path):
    write_parts(tmp_path, "npy")
    vectors = open_vectors(tmp_path)
    assert (len(vectors.side("text")), vectors.side("text").dim) == (0, 6)
    assert vectors.text_metadata() is None
    with pytest.raises(ValueError, match="side='audio'"):
        vectors.side("audio")


@pytest.mark.parametrize("place", [".", "metadata"])
def test_metadata_beside_npy_files(tmp_path, place):
    write_parts(tmp_path, "npy")
    (tmp_path / place).mkdir(exist_ok=True)
    for number, count in ((9, 130), (10, 120)):
        first = 0 if number == 9 else 130
        table = pa.table({"key": [f"k{row}" for row in range(first, first + count)], f"only{number}": [1] * count})
        pq.write_table(table, tmp_path / place / f"m_{number}.parquet")
    vectors = open_vectors(tmp_path)
    assert vectors.metadata()["key"].to_pylist() == [f"k{row}" for row in range(250)]
    assert vectors.metadata()["only10"].to_pylist() == [None] * 130 + [1] * 120
    assert len(vectors.files("image")) == 4
    pq.write_table(table, tmp_path / place / "m_11.parquet")
    with pytest.raises(ValueError, match=r"250 embeddings and 370 rows of metadata \(m_9.parquet 130, m_10"):
        open_vectors(tmp_path)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("kind", ["fixed", "list", "large"])
def test_parquet_columns_of_each_kind(tmp_path, kind, dtype):
    table = pa.table({"k": np.arange(250), "vector": lists(ROWS, kind, dtype), "s": pa.array(["x"] * 250)})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=70)
    vectors = open_vectors(tmp_path / "a.parquet")
    assert np.array_equal(all_rows(vectors), ROWS.astype(dtype).astype(np.float32))
    assert vectors.metadata().column_names == ["k", "s"]
    assert vectors.metadata()["k"].to_pylist() == list(range(250))
    assert vectors.folder == tmp_path
    assert vectors.files("image") is None


def test_parquet_of_embeddings_alone_has_no_metadata(tmp_path):
    pq.write_table(pa.table({"whatever": lists(ROWS, "list", "float32")}), tmp_path / "a.parquet")
    assert open_vectors(tmp_path).metadata() is None
    assert np.array_equal(all_rows(open_vectors(tmp_path)), ROWS)


def test_the_named_column_is_the_embedding_and_other_lists_are_metadata(tmp_path):
    boxes = pa.array([[1.0, 2.0, 3.0, 4.0]] * 250)
    table = pa.table({"box": boxes, "embeddings": lists(ROWS, "fixed", "float32")})
    pq.write_table(table, tmp_path / "a.parquet")
    assert open_vectors(tmp_path).dim == 6
    assert open_vectors(tmp_path).metadata().column_names == ["box"]


def test_parquet_is_read_by_row_groups(tmp_path, monkeypatch):
    write_parts(tmp_path, "parquet")
    rows, read = open_vectors(tmp_path).side("image"), []
    original = pq.ParquetFile.iter_batches

    def spied(self, size, row_groups, columns):
        read.append((size, row_groups, columns))
        return original(self, size, row_groups, columns)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", spied)
    next(iter(rows.blocks(20)))
    assert read == [(20, [0], ["emb"])]
    read.clear()
    rows.take([101, 0, 130, 29, 249])  # each group once, in order
    assert [groups for _, groups, _ in read] == [[0], [0], [1], [1]]
    assert max(len(block) for block in rows.blocks(20)) == 20
    monkeypatch.setattr(parquet_rows, "BLOCK", 7)
    assert np.array_equal(rows.take([228, 0, 29, 101]), ROWS[[228, 0, 29, 101]])


@pytest.mark.parametrize("suffix", ["npy", "parquet"])
def test_an_index_is_built_of_them_like_of_an_array(tmp_path, suffix):
    write_parts(tmp_path / "in", suffix, "float16")
    from dualenc.index import Index

    index = Index.build(open_vectors(tmp_path / "in"), tmp_path / "index", recipe="flat")
    ids, _ = index.search(ROWS[:20], 1)
    assert ids.ravel().tolist() == list(range(20))
    if suffix == "parquet":
        assert index.rows([201, 5])["n"].to_pylist() == [201, 5]


@pytest.mark.parametrize("suffix", ["npy", "parquet"])
def test_rows_of_any_length_are_divided_where_that_is_asked(tmp_path, suffix):
    lengths = 10.0 ** np.random.default_rng(0).uniform(-15, 30, size=(250, 1))
    write_parts(tmp_path, suffix, "float64", ROWS * lengths)
    rows = open_vectors(tmp_path, normalise=True).side("image")
    assert np.allclose(np.concatenate(list(rows.blocks(64))), ROWS, atol=1e-6)
    assert np.allclose(rows.take([240, 3]), ROWS[[240, 3]], atol=1e-6)
    assert rows.take([240, 3]).dtype == np.float32
    with pytest.raises(ValueError, match=r"row 0 has length|row 0 holds"):
        list(unit_blocks(open_vectors(tmp_path).side("image")))


def test_a_row_without_direction_is_named(tmp_path):
    rows = ROWS.copy()
    rows[[170, 203]] = 0
    np.save(tmp_path / "a.npy", rows)
    divided = open_vectors(tmp_path / "a.npy", normalise=True).side("image")
    with pytest.raises(ValueError, match=r"a\.npy: row 170 is all zeros"):
        list(divided.blocks(64))
    with pytest.raises(ValueError, match=r"a\.npy: row 203 is all zeros"):
        divided.take([5, 203, 7])
    assert np.allclose(divided.take([5, 7]), ROWS[[5, 7]], atol=1e-7)


def table_of(**columns) -> Callable[[Path], None]:
    return lambda folder: pq.write_table(pa.table(columns), folder / "a.parquet")


def pickled(folder: Path) -> None:
    np.save(folder / "a.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)


def store_like(folder: Path) -> None:
    (folder / "img_emb").mkdir()
    np.save(folder / "img_emb" / "img_emb_0.npy", ROWS)


def both_metadata(folder: Path) -> None:
    np.save(folder / "a.npy", ROWS[:2])
    (folder / "metadata").mkdir()
    for path in (folder / "a.parquet", folder / "metadata" / "a.parquet"):
        pq.write_table(pa.table({"k": [1, 2]}), path)


def two_files(second: pa.Table) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        pq.write_table(pa.table({"emb": lists(ROWS[:3], "list", "float32"), "k": [1, 2, 3]}), folder / "a.parquet")
        pq.write_table(second, folder / "b.parquet")

    return write


@pytest.mark.parametrize(
    ("write", "said"),
    [
        (lambda f: None, "holds no embeddings"),
        (lambda f: (f / "a.txt").write_text("x"), "holds no embeddings"),
        (lambda f: np.save(f / "a.npy", ROWS[:0]), "holds no rows"),
        (lambda f: np.save(f / "a.npy", ROWS[0]), r"a\.npy holds float32 \(6,\)"),
        (lambda f: np.save(f / "a.npy", ROWS[:, :0]), r"holds float32 \(250, 0\)"),
        (lambda f: np.save(f / "a.npy", np.ones((3, 2), int)), r"holds int64 \(3, 2\); give float16"),
        (lambda f: np.save(f / "a.npy", np.ones((3, 2), np.longdouble)), r"holds float128|holds longdouble"),
        (lambda f: np.save(f / "a.npy", np.asfortranarray(ROWS)), "Fortran order"),
        (pickled, "a.npy does not open as a .npy array .*object"),
        (lambda f: (f / "a.npy").write_bytes(b"\x80\x04K\x01."), "a.npy does not open as a .npy array"),
        (lambda f: (f / "a.npy").write_bytes(b""), "a.npy does not open as a .npy array"),
        (lambda f: np.savez(f / "a.npy.npz", ROWS) or (f / "a.npy.npz").rename(f / "a.npy"), "does not open as"),
        (
            lambda f: (np.save(f / "a.npy", ROWS), np.save(f / "b.npy", ROWS[:, :5])),
            r"b\.npy has D = 5, .*a\.npy has 6",
        ),
        (store_like, "open it with dualenc.embed.open_store"),
        (both_metadata, r"\*\.parquet and metadata/\*\.parquet"),
        (lambda f: (f / "a.parquet").write_bytes(b"PAR1"), r"a\.parquet does not open as parquet"),
        (table_of(k=[1, 2], s=[["a"], ["b"]]), r"a\.parquet has no column of embeddings .*'k', 's'"),
        (table_of(x=[[1.0]], y=[[1.0]]), r"several columns of embeddings \(x, y\); name one `embedding`"),
        (table_of(emb=[[1.0]], y=[[1.0]], vector=[[1.0]]), r"several columns of embeddings \(emb, vector\)"),
        (table_of(emb=pa.array([], pa.list_(pa.float32()))), "holds no rows"),
        (table_of(emb=[None, [1.0]]), "emb is empty in the first row"),
        (table_of(emb=pa.array([[], [1.0]], pa.list_(pa.float32()))), "emb is empty in the first row"),
        (two_files(pa.table({"vector": [[1.0]]})), r"b\.parquet has no column of embeddings named emb"),
        (two_files(pa.table({"emb": ["x"]})), r"b\.parquet has no column of embeddings named emb"),
    ],
)
def test_what_cannot_be_opened_is_refused(tmp_path, write, said):
    write(tmp_path)
    with pytest.raises(ValueError, match=said) as error:
        open_vectors(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("bad", "said"),
    [([0.5] * 6, None), (None, "no embedding"), ([0.5] * 5, "D = 5, the first row 6"), ([], "D = 0, the first row 6")],
)
def test_a_row_of_another_width_is_named(tmp_path, bad, said):
    good = pa.array([[0.0] * 6] * 3, pa.list_(pa.float32()))
    two_files(pa.table({"emb": pa.concat_arrays([good, pa.array([bad], good.type)]), "k": [1, 2, 3, 4]}))(tmp_path)
    rows = open_vectors(tmp_path).side("image")
    if said is None:
        assert rows.take([6]).tolist() == [bad]
        return
    for read in (lambda: list(rows.blocks()), lambda: rows.take([6])):
        with pytest.raises(ValueError, match=rf"b\.parquet: row 6 \(counted over all files\) has {said}"):
            read()


def test_a_missing_row_of_a_column_of_fixed_width_is_named(tmp_path):
    column = pa.array([[1.0, 0.0], None, [0.0, 1.0]], pa.list_(pa.float32(), 2))
    pq.write_table(pa.table({"emb": column}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"row 1 .* has no embedding"):
        list(open_vectors(tmp_path).side("image").blocks())


def test_metadata_of_wider_types_are_joined(tmp_path):
    two_files(pa.table({"emb": lists(ROWS[:1], "list", "float32"), "k": [0.5]}))(tmp_path)
    assert open_vectors(tmp_path).metadata()["k"].to_pylist() == [1.0, 2.0, 3.0, 0.5]


def test_metadata_whose_types_clash_is_refused(tmp_path):
    two_files(pa.table({"emb": lists(ROWS[:1], "list", "float32"), "k": ["x"]}))(tmp_path)
    with pytest.raises(ValueError, match="changes its type from file to file"):
        open_vectors(tmp_path).metadata()


def test_a_path_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere: no such file or folder"):
        open_vectors(tmp_path / "nowhere")
    (tmp_path / "a.csv").write_text("1")
    with pytest.raises(ValueError, match=r"a\.csv holds no embeddings"):
        open_vectors(tmp_path / "a.csv")


def test_a_parquet_file_that_breaks_later_is_one_line(tmp_path):
    write_parts(tmp_path, "parquet")
    rows = open_vectors(tmp_path).side("image")
    (tmp_path / "x_2.parquet").write_bytes(b"PAR1 cut off")
    with pytest.raises(ValueError, match=r"x_2\.parquet does not open as parquet"):
        list(rows.blocks())


def test_rows_of_parquet_equal_those_of_an_array(tmp_path):
    write_parts(tmp_path, "parquet")
    rows, array = open_vectors(tmp_path).side("image"), Array(ROWS)
    assert (len(rows), rows.dim) == (len(array), array.dim)
    assert np.array_equal(rows.take(np.arange(250)), array.take(np.arange(250)))
