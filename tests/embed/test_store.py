"""The store: what is written by parts, in whatever order and by however many jobs, is read back as one."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import dualenc.embed.store_writer as store_writer
from dualenc.embed import StoreWriter, open_store

DIM = 8
SIZES = [(5, 7), (0, 0), (3, 3), (4, 9)]  # images and texts of each part; one part has none


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def plan(**changes) -> dict:
    bounds = [0, 6, 8, 11, 15]
    return {
        "source": "shards",
        "bounds": bounds,
        "dim": DIM,
        "dtype": "float32",
        "fingerprint": "f",
        "encoder": "e",
    } | changes


def part(number: int) -> dict:
    """The same content for a part whoever writes it."""
    images, texts = SIZES[number]
    rng = np.random.default_rng(number)
    keys = [f"{number}-{row}" for row in range(images)]
    columns = {"key": keys, "caption": [f"caption {key}" for key in keys]}
    if number == 0:
        columns["width"] = list(range(images))
    if number == 2:
        columns["width"], columns["split"] = [f"{row} px" for row in range(images)], ["test"] * images
    owner = np.sort(rng.integers(0, images, texts)) if images else np.zeros(0, np.int64)
    captions = pa.array([f"text {row}" for row in range(texts)], pa.string())
    return {
        "images": unit(rng.normal(size=(images, DIM))),
        "texts": unit(rng.normal(size=(texts, DIM))),
        "metadata": pa.table({name: pa.array(v, None if v else pa.string()) for name, v in columns.items()}),
        "text_metadata": pa.table({"caption": captions, "image_row": owner}),
        "dropped": {"truncated image": 1} if images else {},
    }


def write(folder: Path, numbers=range(4), **changes) -> StoreWriter:
    writer = StoreWriter(folder, plan(**changes))
    for number in numbers:
        writer.write_part(number, **part(number))
    return writer


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def one_line(error: pytest.ExceptionInfo) -> str:
    text = str(error.value)
    assert text and "\n" not in text
    return text


@pytest.fixture
def store(tmp_path: Path) -> Path:
    assert write(tmp_path / "store").finish()
    return tmp_path / "store"


def test_reads_back_what_was_written(store: Path):
    opened = open_store(store, verify=True)
    parts = [part(number) for number in range(4)]
    images, texts = (np.concatenate([p[name] for p in parts]) for name in ("images", "texts"))
    assert (opened.rows, opened.text_rows, opened.dim) == (12, 19, DIM)
    assert (opened.fingerprint, opened.encoder) == ("f", "e")
    assert opened.manifest["dropped"] == {"truncated image": 3}
    for size in (1, 2, 100):
        assert np.array_equal(np.concatenate(list(opened.images(size))), images)
        assert np.array_equal(np.concatenate(list(opened.texts(size))), texts)
        assert max(len(block) for block in opened.images(size)) <= size
    rows = [11, 0, 5, 5, 4]
    assert np.array_equal(opened.side("image").take(rows), images[rows])
    assert opened.side("text").take([18]).dtype == np.float32
    expected = np.concatenate(
        [p["text_metadata"]["image_row"].to_numpy() + f for p, f in zip(parts, (0, 5, 5, 8), strict=True)]
    )
    assert np.array_equal(opened.image_row, expected)
    assert opened.image_row.dtype == np.int64
    assert np.array_equal(opened.text_metadata()["image_row"].to_numpy(), expected)
    assert opened.text_metadata()["caption"].to_pylist()[:2] == ["text 0", "text 1"]
    assert not (store / ".parts").exists()


def test_columns_of_parts_may_differ(store: Path):
    table = open_store(store).metadata()
    assert table["key"].to_pylist()[4:6] == ["0-4", "2-0"]
    assert table["split"].to_pylist() == [None] * 5 + ["test"] * 3 + [None] * 4
    assert table["width"].to_pylist() == ["0", "1", "2", "3", "4", "0 px", "1 px", "2 px"] + [None] * 4


@pytest.mark.parametrize("row", [-1, 12])
def test_rows_outside_are_refused(store: Path, row: int):
    with pytest.raises(IndexError, match=str(row)):
        open_store(store).side("image").take([0, row])


def test_float16_is_the_same_rows_rounded(tmp_path: Path):
    write(tmp_path, dtype="float16").finish()
    opened = open_store(tmp_path, unit=True)
    assert all(part.dtype == np.float16 for part in opened.image_parts + opened.text_parts)
    assert np.array_equal(next(opened.images()), part(0)["images"].astype(np.float16).astype(np.float32))


def test_a_late_job_and_any_order_make_the_same_store(store: Path, tmp_path: Path):
    other = tmp_path / "other"
    assert write(other, [3, 0]).missing_parts() == [1, 2]
    with pytest.raises(ValueError, match="not finished"):
        open_store(other)
    writer = StoreWriter(other, plan())
    assert not writer.finish()
    writer.write_part(0, **(part(0) | {"images": part(3)["images"], "metadata": part(3)["metadata"], "dropped": {}}))
    for number in writer.missing_parts():
        writer.write_part(number, **part(number))
    assert writer.finish()
    assert files(other) == files(store)
    assert StoreWriter(other, plan()).missing_parts() == []
    assert StoreWriter(other, plan()).finish()
    assert files(other) == files(store)


@pytest.mark.parametrize("finished", [False, True])
def test_another_plan_is_refused_saying_where(tmp_path: Path, finished: bool):
    writer = write(tmp_path)
    if finished:
        writer.finish()
    before = files(tmp_path)
    with pytest.raises(ValueError, match='fingerprint: "f" there, "g" now') as error:
        StoreWriter(tmp_path, plan(fingerprint="g"))
    one_line(error)
    with pytest.raises(ValueError, match="extra: null there, 1 now"):
        StoreWriter(tmp_path, plan(extra=1))
    assert files(tmp_path) == before


def test_a_folder_with_something_else_in_it_is_left_alone(tmp_path: Path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError):
        StoreWriter(tmp_path, plan())
    assert list(files(tmp_path)) == ["notes.txt"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"metadata": part(0)["metadata"].slice(0, 4)}, "5 rows, its metadata 4"),
        ({"images": part(0)["images"] * 2}, "row 0 has length 2, not 1"),
        ({"texts": part(0)["texts"] * np.nan}, "row 0 holds NaN"),
        ({"images": part(0)["images"][:, :4]}, r"float32 \(5, 4\); the plan says \(rows, 8\)"),
        ({"text_metadata": part(0)["text_metadata"].select(["caption"])}, "no column image_row"),
        ({"text_metadata": pa.table({"image_row": [5] * 7})}, "image_row outside 0 .. 4"),
        ({"images": np.ones((7, DIM), "f4"), "metadata": pa.table({"key": ["a"] * 7})}, "7 images from 6 rows"),
    ],
)
def test_an_unfit_part_is_refused_and_does_not_count(tmp_path: Path, changes: dict, said: str):
    writer = StoreWriter(tmp_path, plan())
    with pytest.raises(ValueError, match=said) as error:
        writer.write_part(0, **(part(0) | changes))
    one_line(error)
    assert writer.missing_parts() == [0, 1, 2, 3]


@pytest.mark.parametrize("changes", [{"dtype": "int8"}, {"bounds": [0]}, {"bounds": [0, 5, 3]}, {"bounds": [1, 5]}])
def test_an_unfit_plan_is_refused(tmp_path: Path, changes: dict):
    with pytest.raises(ValueError, match=r"bounds|dtype"):
        StoreWriter(tmp_path / "store", plan(**changes))
    assert not (tmp_path / "store").exists()


def _write_share(folder: Path, share: int, barrier) -> None:
    barrier.wait()
    writer = StoreWriter(folder, plan())
    for number in writer.missing_parts():
        if number % 3 == share:
            writer.write_part(number, **part(number))
    barrier.wait()
    writer.finish()  # all three at once


def test_jobs_at_once_form_one_store(store: Path, tmp_path: Path):
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(3)
    jobs = [context.Process(target=_write_share, args=(tmp_path / "other", share, barrier)) for share in range(3)]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join(60)
    assert [job.exitcode for job in jobs] == [0, 0, 0]
    assert files(tmp_path / "other") == files(store)


@pytest.mark.parametrize("again", range(20))
def test_of_plans_made_at_once_one_wins(tmp_path: Path, again: int):
    outcomes: list[str] = []
    start = threading.Barrier(8)

    def begin(number: int) -> None:
        start.wait()
        try:
            StoreWriter(tmp_path / "store", plan(seed=number))
            outcomes.append("begun")
        except Exception as error:
            outcomes.append(str(error))

    threads = [threading.Thread(target=begin, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes.count("begun") == 1
    assert sum("begun with another plan (seed: " in outcome for outcome in outcomes) == 7
    assert [path.name for path in (tmp_path / "store" / ".parts").iterdir()] == ["plan.json"]


KILLED = """
import os, signal, sys
sys.path.insert(0, {tests!r})
import dualenc.embed.store_writer as store_writer
from test_store import plan, write
calls = 0
original = store_writer.{function}
def killing(*args, **kwargs):
    global calls
    calls += 1
    if calls == {call}:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*args, **kwargs)
store_writer.{function} = killing
from pathlib import Path
write(Path(sys.argv[1])).finish()
"""


@pytest.mark.parametrize(
    ("function", "call", "missing"),
    [
        ("write_json", 2, [1, 2, 3]),  # part 1's files are there, its marker is not
        ("pq.write_table", 8 + 3, []),  # finishing: two parts' texts are numbered, two are not
        ("write_json", 5, []),  # just before the manifest
    ],
)
def test_a_killed_job_goes_on_where_it_stood(store: Path, tmp_path: Path, function: str, call: int, missing: list[int]):
    other = tmp_path / "other"
    script = KILLED.format(tests=str(Path(__file__).parent), function=function, call=call)
    died = subprocess.run([sys.executable, "-c", script, str(other)], check=False)
    assert died.returncode == -signal.SIGKILL
    with pytest.raises(ValueError, match="not finished"):
        open_store(other)
    writer = StoreWriter(other, plan())
    assert writer.missing_parts() == missing
    for number in missing:
        writer.write_part(number, **part(number))
    assert writer.finish()
    assert files(other) == files(store)


def test_killed_after_the_manifest_is_finished(store: Path):
    (store / ".parts").mkdir()
    (store / ".parts" / "plan.json").write_text(json.dumps(plan()))
    assert open_store(store, verify=True).rows == 12
    assert StoreWriter(store, plan()).missing_parts() == []
    assert not (store / ".parts").exists()


def test_slow_finish_beside_a_faster_one(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    other = tmp_path / "other"
    slow, fast = write(other), StoreWriter(other, plan())
    read_table = store_writer.read_table

    def overtaken(path: Path) -> pa.Table:
        monkeypatch.setattr(store_writer, "read_table", read_table)
        assert fast.finish()
        return read_table(path)

    monkeypatch.setattr(store_writer, "read_table", overtaken)
    assert slow.finish()
    assert files(other) == files(store)


def test_a_plan_written_between_look_and_write_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    store_writer._create(tmp_path / "plan.json", "first")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "exists", lambda self: False)
        store_writer._create(tmp_path / "plan.json", "second")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["first"]


def test_what_the_store_drops_is_summed_by_reason(tmp_path: Path):
    writer = StoreWriter(tmp_path, plan())
    for number in range(4):
        writer.write_part(number, **(part(number) | {"dropped": {"zero bytes": 1, f"only {number}": 2}}))
    writer.finish()
    assert open_store(tmp_path).manifest["dropped"] == {"zero bytes": 4} | {f"only {number}": 2 for number in range(4)}


# --- folders that clip-retrieval wrote ---


def clip_retrieval(folder: Path, name: str = "{}", texts: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """As clip-retrieval's writer lays it out: float16, no manifest, no text_metadata; 11 parts."""
    rng = np.random.default_rng(0)
    images, captions = unit(rng.normal(size=(22, DIM))), unit(rng.normal(size=(22, DIM)))
    for kind in ("img_emb", "text_emb", "metadata")[: 3 if texts else 1] + (() if texts else ("metadata",)):
        (folder / kind).mkdir(parents=True)
    for number in range(11):
        rows = slice(2 * number, 2 * number + 2)
        np.save(folder / "img_emb" / f"img_emb_{name.format(number)}.npy", images[rows].astype(np.float16))
        if texts:
            np.save(folder / "text_emb" / f"text_emb_{name.format(number)}.npy", captions[rows].astype(np.float16))
        table = pa.table({"image_path": [f"/{i}.jpg" for i in range(22)][rows], "caption": list("ab")})
        table = table.replace_schema_metadata({"pandas": json.dumps({"part": number})})
        pq.write_table(table, folder / "metadata" / f"metadata_{name.format(number)}.parquet")
    return images, captions


@pytest.mark.parametrize("name", ["{}", "{:02d}", "{:04d}"])
def test_reads_clip_retrieval(tmp_path: Path, name: str):
    images, captions = clip_retrieval(tmp_path, name)
    store = open_store(tmp_path, unit=True)
    assert (store.rows, store.text_rows, store.fingerprint, store.encoder) == (22, 22, None, None)
    assert np.allclose(np.concatenate(list(store.images())), images, atol=1e-3)
    assert np.allclose(store.side("text").take([21, 0]), captions[[21, 0]], atol=1e-3)
    assert store.metadata()["image_path"].to_pylist() == [f"/{i}.jpg" for i in range(22)]
    assert np.array_equal(store.image_row, np.arange(22))
    assert store.text_metadata().to_pydict() == {"caption": list("ab") * 11, "image_row": list(range(22))}


def test_reads_images_without_texts(tmp_path: Path):
    clip_retrieval(tmp_path, texts=False)
    store = open_store(tmp_path)
    assert (store.rows, store.text_rows, len(store.image_row), store.text_metadata().num_rows) == (22, 0, 0, 0)


def test_reads_texts_without_images(tmp_path: Path):
    clip_retrieval(tmp_path)
    shutil.rmtree(tmp_path / "img_emb")
    store = open_store(tmp_path)
    assert (store.rows, store.text_rows, store.dim) == (0, 22, DIM)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda f: shutil.rmtree(f / "metadata"), r"do not pair up \(parts \[0, 1, 2, 3, 4\]\)"),
        (lambda f: (f / "metadata" / "metadata_3.parquet").unlink(), r"do not pair up \(parts \[3\]\)"),
        (lambda f: (f / "text_emb" / "text_emb_10.npy").unlink(), r"do not pair up \(parts \[10\]\)"),
        (
            lambda f: np.save(f / "img_emb" / "img_emb_2.npy", np.ones((3, DIM), "f4")),
            "3 rows, metadata_2.parquet has 2",
        ),
        (lambda f: np.save(f / "img_emb" / "img_emb_2.npy", np.ones((2, 9), "f4")), r"D = \[8, 9\]"),
        (lambda f: np.save(f / "img_emb" / "img_emb_2.npy", np.ones((2, DIM), "i8")), "int64"),
        (lambda f: np.save(f / "img_emb" / "img_emb_2.npy", np.array([["a", {}]], object)), "does not open as a .npy"),
        (lambda f: np.save(f / "img_emb" / "img_emb_002.npy", np.ones((2, DIM), "f4")), "both part 2"),
        (lambda f: os.truncate(f / "img_emb" / "img_emb_2.npy", 140), "does not open as a .npy"),
        (lambda f: os.truncate(f / "img_emb" / "img_emb_2.npy", 0), "does not open as a .npy"),
        (lambda f: os.truncate(f / "metadata" / "metadata_2.parquet", 50), "does not open as parquet"),
        (lambda f: np.save(f / "img_emb" / "img_emb_2.npy", np.ones((2, DIM), "f4")), "row 0 has length 2.828, not 1"),
        (lambda f: (f / "manifest.json").write_text("{}"), "another program's"),
    ],
)
def test_a_damaged_or_foreign_folder_is_refused(tmp_path: Path, spoil, said: str):
    clip_retrieval(tmp_path)
    spoil(tmp_path)
    with pytest.raises(ValueError, match=said) as error:
        open_store(tmp_path, unit=True)
    one_line(error)


def test_no_folder_and_an_empty_one(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="dualenc embed"):
        open_store(tmp_path / "nothing")
    with pytest.raises(ValueError, match="not a store"):
        open_store(tmp_path)


def test_damage_to_a_finished_store(store: Path):
    shard = store / "img_emb" / "img_emb_0000.npy"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    open_store(store)  # a flipped bit is only found by reading everything
    with pytest.raises(ValueError, match=r"img_emb_0000.npy is not the file that was written"):
        open_store(store, verify=True)
    shard.write_bytes(whole[:-1])
    with pytest.raises(ValueError, match=r"img_emb_0000.npy is not the file that was written"):
        open_store(store)
    shard.write_bytes(whole)
    open_store(store, verify=True)
    np.save(store / "img_emb" / "img_emb_0004.npy", np.ones((1, DIM), "f4"))
    with pytest.raises(ValueError, match="no part of the store"):
        open_store(store)
    (store / "img_emb" / "img_emb_0004.npy").unlink()
    (store / "text_metadata" / "text_metadata_0003.parquet").unlink()
    with pytest.raises(FileNotFoundError, match=r"text_metadata_0003.parquet is missing"):
        open_store(store)
    manifest = json.loads((store / "manifest.json").read_text())
    (store / "manifest.json").write_text(json.dumps({**manifest, "parts": [{}]}))
    with pytest.raises(ValueError, match="lacks what a store's manifest has") as error:
        open_store(store)
    one_line(error)
    (store / "manifest.json").write_text(json.dumps({**manifest, "version": 2}))
    with pytest.raises(ValueError, match="update dualenc"):
        open_store(store)


def test_image_rows_of_a_foreign_text_metadata_are_checked(tmp_path: Path):
    clip_retrieval(tmp_path)
    (tmp_path / "text_metadata").mkdir()
    for number in range(11):
        path = tmp_path / "text_metadata" / f"text_metadata_{number}.parquet"
        pq.write_table(pa.table({"image_row": [number, 21 + number]}), path)
    with pytest.raises(ValueError, match=r"outside 0 .. 21"):
        _ = open_store(tmp_path).image_row


def test_import_is_light():
    heavy = ["torch", "faiss", "duckdb", "open_clip"]
    code = f"import sys, dualenc.embed, dualenc.embed.store; print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
