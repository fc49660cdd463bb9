"""`dualenc classify`: few images on the terminal, many into a table, whatever they are and whoever stops it."""

from __future__ import annotations

import json
import os
import random
import shutil
import time
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dualenc.cli import main
from dualenc.evaluate.tag import parts as tag_parts
from dualenc.evaluate.zeroshot.classifier import VARIABLE
from tests.small import COLOURS, loaded, png, sample, write_shards, write_tar

CLASSES = ["red", "green", "blue"]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(VARIABLE, str(tmp_path / "cache"))


@pytest.fixture
def run(encoder_folder: Path) -> Any:
    """run(*words): the exit code."""

    def classify(*words: str, classes: str = ",".join(CLASSES)) -> int:
        return main(
            ["classify", "--encoder", str(encoder_folder), "--classes", classes, "--workers", "0", *map(str, words)]
        )

    return classify


def pictures(folder: str | Path = "pictures", count: int = 3, **rubbish: bytes) -> Path:
    """A folder of pictures 00.png, 01.png, …, and files NAME.png of whatever is given."""
    Path(folder).mkdir()
    for i in range(count):
        (Path(folder) / f"{i:02d}.png").write_bytes(png(colour=COLOURS[list(COLOURS)[i % 8]], seed=i))
    for name, data in rubbish.items():
        (Path(folder) / f"{name}.png").write_bytes(data)
    return Path(folder)


def scores(encoder: Any, names: list[str], files: list[Path]) -> np.ndarray:
    return encoder.embed_images(files) @ encoder.embed_texts(names).T


def table(path: str | Path = "out.parquet") -> list[dict[str, Any]]:
    return pq.read_table(path).to_pylist()


def test_a_folder_on_the_terminal(run: Any, encoder: Any, capsys: pytest.CaptureFixture[str]) -> None:
    files = sorted(pictures().iterdir())
    assert run("pictures") == 0
    lines = capsys.readouterr().out.splitlines()
    expected = scores(encoder, CLASSES, files)
    assert lines == [
        f"{row.max():.3f}  {CLASSES[row.argmax()]}  {path}" for row, path in zip(expected, files, strict=True)
    ]
    assert run("pictures/01.png", "pictures", "--top", "2") == 0
    first, *others = capsys.readouterr().out.splitlines()
    best = np.argsort(-expected[1])[:2]
    assert first == "  ".join(f"{expected[1, c]:.3f}  {CLASSES[c]}" for c in best) + "  pictures/01.png"
    assert len(others) == 2  # each image once


def test_json_has_all_scores(run: Any, encoder: Any, capsys: pytest.CaptureFixture[str]) -> None:
    files = sorted(pictures().iterdir())
    for more in ([], ["--out", "out.parquet", "--top", "3"]):
        assert run("pictures", "--json", *more) == 0
        rows = json.loads(capsys.readouterr().out)
        for row, path, expected in zip(rows, files, scores(encoder, CLASSES, files), strict=True):
            assert row["path"] == str(path)
            assert row["label"] == CLASSES[expected.argmax()]
            assert row["score"] == pytest.approx(expected.max(), abs=1e-6)
            assert row["scores"] == pytest.approx(dict(zip(CLASSES, expected.tolist(), strict=True)), abs=1e-6)
            assert 1 / 3 < row["probability"] < 1
    assert run("pictures", "--json", "--top", "1") == 0
    assert [len(row["scores"]) for row in json.loads(capsys.readouterr().out)] == [1, 1, 1]


def test_too_many_for_one_list(run: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("dualenc.cli.classify.MOST_JSON", 2)
    pictures()
    assert run("pictures", "--json") == 1
    assert "3 images are too many" in capsys.readouterr().err


def test_what_cannot_be_used_is_listed_and_counted(run: Any, encoder: Any, capsys: pytest.CaptureFixture[str]) -> None:
    good = png(colour=COLOURS["red"])
    pictures(empty=b"", text=b"no picture", cut=good[:-30], jpeg=b"\xff\xd8\xff\xe0" + bytes(40))
    os.mkfifo("pictures/pipe.png")  # no file: reading it would wait for ever
    assert run("pictures", "--out", "out.parquet") == 1
    said = capsys.readouterr()
    assert "left out: pictures/empty.png: zero bytes" in said.err
    assert "4 could not be used" in said.err
    assert "7 images, 3 with a label" in said.out
    rows = table()
    assert [row["key"] for row in rows] == ["00", "01", "02", "cut", "empty", "jpeg", "text"]
    assert [row["path"] for row in rows] == [os.path.abspath(f"pictures/{row['key']}.png") for row in rows]
    assert [row["label"] is None for row in rows] == [False] * 3 + [True] * 4
    assert {row["key"]: row["reason"] for row in rows[3:]} == {
        "cut": "truncated image",
        "empty": "zero bytes",
        "jpeg": "truncated image",
        "text": "not an image",
    }
    assert run("pictures", "--json") == 1
    assert len(json.loads(capsys.readouterr().out)) == 3


def test_ten_broken_images_are_named(run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    pictures(count=1, **{f"b{i:02d}": b"" for i in range(30)})
    assert run("pictures", "--batch-size", "8") == 1
    err = capsys.readouterr().err
    assert err.count("left out") == 10
    assert "30 could not be used (zero bytes: 30)" in err


def test_thresholds(run: Any, encoder: Any, capsys: pytest.CaptureFixture[str]) -> None:
    expected = np.sort(scores(encoder, CLASSES, sorted(pictures(count=6).iterdir())).max(axis=1))
    between = str((expected[2] + expected[3]) / 2)
    assert run("pictures", "--out", "out.parquet", "--threshold", between) == 0
    out = capsys.readouterr().out
    assert "6 images, 3 with a label" in out
    assert "3  (none of these)" in out
    assert "50 % below" in out
    rows = table()
    assert [row["reason"] for row in rows] == [
        None if row["score"] > float(between) else "none of these" for row in rows
    ]
    assert all(row["labels"][0] in CLASSES for row in rows)
    assert run("pictures", "--min-probability", "1") == 0
    assert capsys.readouterr().out.count("(undecided)") == 6
    for wrong in (["--threshold", "20"], ["--min-probability", "2"], ["--top", "0"]):
        assert run("pictures", *wrong) == 1
        assert wrong[1] in capsys.readouterr().err


def test_one_image_is_labelled_alike_wherever_it_lies(run: Any, encoder_folder: Path, shards: Path) -> None:
    """In shards, a folder, a table and a store."""
    import tarfile

    for tar in sorted(shards.glob("*.tar")):
        with tarfile.open(tar) as file:
            file.extractall("folder", filter="data")
    Path("table.csv").write_text(
        "image\n" + "\n".join(f"folder/{p.name}" for p in sorted(Path("folder").glob("*.png")))
    )
    words = ["embed", "--encoder", encoder_folder, "--data", shards, "--out", "store", "--workers", "0"]
    assert main([str(word) for word in words]) == 0
    found = {}
    for name, data in {"shards": shards, "folder": "folder", "table": "table.csv", "store": "store"}.items():
        assert run(data, "--out", f"{name}.parquet", "--batch-size", "5", "--top", "3") == 0
        found[name] = table(f"{name}.parquet")
    labels = [row["labels"] for row in found["shards"]]
    assert len(labels) == 24
    for name, rows in found.items():
        close = np.abs(np.array([r["scores"] for r in rows]) - [r["scores"] for r in found["shards"]]).max()
        assert close < (1e-3 if name == "store" else 1e-6)  # a store's rows are float16
        assert [row["labels"] for row in rows] == labels or name == "store"
        assert [Path(row["key"]).stem for row in rows] == [row["key"] for row in found["shards"]]
    assert {row["path"] for row in found["shards"]} == {str(path) for path in shards.glob("*.tar")}
    assert {row["path"] for row in found["store"]} == {row["path"] for row in found["shards"]}
    assert found["table"][0]["path"] == os.path.abspath("folder/s000.png")


def test_a_store_takes_no_images(run: Any, encoder_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_shards(Path("data"), 10, shards=1)
    words = ["embed", "--encoder", encoder_folder, "--data", "data", "--out", "store", "--workers", "0"]
    assert main([str(word) for word in words]) == 0
    shutil.rmtree("data")
    capsys.readouterr()
    assert run("store") == 0
    assert [line.split()[-1] for line in capsys.readouterr().out.splitlines()] == [f"s{i:03d}" for i in range(10)]
    from dualenc.model.encoder import DualEncoder

    DualEncoder(loaded("vit", seed=1), device="cpu").save("foreign")
    assert main(["classify", "--encoder", "foreign", "--classes", "a,b", "store"]) == 1
    assert "another encoder" in capsys.readouterr().err


def test_a_store_in_several_parts_goes_on_within_one(encoder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from dualenc.data.shards import open_source
    from dualenc.embed.run import write_store
    from dualenc.evaluate.tag import sources as tag_sources

    write_shards(Path("data"), 40, shards=1)
    store = write_store(encoder, open_source("data"), "store", part_samples=15, workers=0)
    assert store is not None
    monkeypatch.setattr(tag_sources, "STORE_ROWS", 4)
    rows = np.concatenate(list(store.images()))
    for first in (0, 1, 4, 13, 14, 20, 39, 40):
        blocks = list(tag_sources.store_blocks(store, first))
        assert [key for block in blocks for key in block.keys] == [f"s{i:03d}" for i in range(first, 40)]
        assert np.array_equal(np.concatenate([np.zeros((0, 16)), *(block.rows for block in blocks)]), rows[first:])


def test_captions_and_metadata_do_not_matter(run: Any) -> None:
    """An image is tagged though what stands beside it would make training drop it."""
    members = [*sample("a"), *sample("b", captions=[]), ("b.txt", b"caf\xe9")]
    members += [*sample("c", captions=[]), ("c.json", b"[no JSON"), *sample("d", cls="no number")]
    write_tar(Path("data/0.tar"), members)
    assert run("data", "--out", "out.parquet") == 0
    assert [row["key"] for row in table()] == ["a", "b", "c", "d"]


def test_prompts_of_each_class(run: Any, encoder: Any, capsys: pytest.CaptureFixture[str]) -> None:
    pictures()
    Path("c.json").write_text('{"warm": ["a red picture", "{} colours"], "cold": "a blue picture"}')
    assert run("pictures", "--json", classes="c.json") == 0
    texts = encoder.embed_texts(["a red picture", "warm colours", "a blue picture"])
    warm = texts[:2].mean(axis=0) / np.linalg.norm(texts[:2].mean(axis=0))
    expected = encoder.embed_images(sorted(Path("pictures").iterdir())) @ np.stack([warm, texts[2]]).T
    rows = json.loads(capsys.readouterr().out)
    assert np.array([[row["scores"]["warm"], row["scores"]["cold"]] for row in rows]) == pytest.approx(
        expected, abs=1e-6
    )
    assert run("pictures", "--templates", "a {}", classes="c.json") == 1
    assert "leave the templates out" in capsys.readouterr().err


def test_the_classifier_is_made_once(run: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pictures()
    assert run("pictures", "--no-cache") == 0
    assert not (tmp_path / "cache").exists()
    assert run("pictures") == 0
    assert len(list((tmp_path / "cache").iterdir())) == 1
    monkeypatch.setattr("dualenc.evaluate.zeroshot.classifier.classifier_of", lambda *_: pytest.fail("made again"))
    assert run("pictures") == 0


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["nowhere"], "nowhere"),
        (["empty"], "neither shards"),
        (["empty", "empty/.."], "no images"),
        (["pictures/00.png", "data"], "data is not an image or a folder of images"),
        (["pictures", "--batch-size", "0"], "batch_size is 0"),
        (["pictures", "--top", "4"], "top 4: there are only 3 classes"),
        (["pictures", "--out", "empty"], "is a folder, and the labels are one file"),
        (["pictures", "--out", "notes.txt"], "would be lost"),
    ],
)
def test_what_is_refused(run: Any, capsys: pytest.CaptureFixture[str], words: list[str], says: str) -> None:
    Path("empty").mkdir()
    Path("notes.txt").write_text("mine")
    if words != ["empty", "empty/.."]:
        pictures()
        write_shards(Path("data"), 2, shards=1)
    assert run(*words) == 1
    assert says in capsys.readouterr().err
    assert not Path("out.parquet").exists()


def test_other_settings_and_other_images_are_noticed(
    run: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    folder, words = pictures(count=9), ["pictures", "--out", "out.parquet", "--batch-size", "2"]
    with monkeypatch.context() as patched:
        patched.setattr(tag_parts, "_merge", full)
        assert run(*words) == 1
    assert "No space left" in capsys.readouterr().err
    for change, says in (
        (["--top", "2"], "top: 1 there, 2 now"),
        (["--threshold", "0.1"], "threshold: null there, 0.1 now"),
        (["--templates", "a {}"], "prompts: other ones"),
    ):
        assert run(*words, *change) == 1
        assert says in capsys.readouterr().err
    (folder / "new.png").write_bytes(png())
    assert run(*words) == 1
    assert "files: other ones" in capsys.readouterr().err
    (folder / "new.png").unlink()
    assert run(*words) == 0
    assert len(table()) == 9
    assert not Path("out.parquet.parts").exists()


def test_json_prints_a_finished_table_as_it_is(run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    pictures()
    assert run("pictures", "--out", "out.parquet") == 0
    before = Path("out.parquet").read_bytes()
    assert "finished before" not in capsys.readouterr().err
    assert run("pictures", "--out", "out.parquet", "--json") == 0
    said = capsys.readouterr()
    assert [len(row["scores"]) for row in json.loads(said.out)] == [1, 1, 1]
    assert "out.parquet was finished before and stays as it is; remove it to make the labels anew" in said.err
    assert Path("out.parquet").read_bytes() == before


@pytest.mark.parametrize("kind", ["files", "table", "shards", "store"])
def test_data_that_others_of_equal_size_replaced_are_other_ones(
    run: Any, encoder: Any, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    folder, changed, words = pictures(), Path("pictures/01.png"), ["pictures"]
    if kind == "table":
        Path("pictures/t.csv").write_text("path,caption\n00.png,x\n01.png,y\n")
        words = ["pictures/t.csv"]
    elif kind == "shards":
        changed, words = write_shards(Path("data"), 4, shards=1) / "000000.tar", ["data"]
    elif kind == "store":
        Path("store/img_emb").mkdir(parents=True)
        Path("store/metadata").mkdir()
        changed, words = Path("store/img_emb/img_emb_0.npy"), ["store"]
        np.save(changed, encoder.embed_images(sorted(folder.iterdir())))
        pq.write_table(pa.table({"key": ["a", "b", "c"]}), "store/metadata/metadata_0.parquet")
    if not changed.exists():
        (changed,) = Path("data").glob("*.tar")
    assert run(*words, "--out", "out.parquet") == 0
    stat = changed.stat()
    os.utime(changed, ns=(stat.st_atime_ns, stat.st_mtime_ns + 10**9))
    assert run(*words, "--out", "out.parquet") == 1
    assert "other settings (files: other ones)" in capsys.readouterr().err


def _child(words: list[str]) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    os._exit(main(words))


@pytest.mark.parametrize("kills", [2, pytest.param(60, marks=pytest.mark.full)])
def test_killed_at_any_moment_it_goes_on(
    encoder_folder: Path, monkeypatch: pytest.MonkeyPatch, kills: int, tmp_path: Path
) -> None:
    monkeypatch.setattr(tag_parts, "PART_ROWS", 8)
    pictures(count=150, broken=b"no picture")
    words = ["classify", "--encoder", str(encoder_folder), "--classes", "red,green,blue", "--batch-size", "4"]
    words += ["--workers", "0" if kills == 2 else "2", "pictures", "--out"]
    context, moments = get_context("fork"), random.Random(kills)
    began = time.monotonic()
    whole = context.Process(target=_child, args=([*words, "whole.parquet"],))
    whole.start()
    whole.join()
    assert whole.exitcode == 1  # one is broken
    took, expected, rows = time.monotonic() - began, pq.read_table("whole.parquet"), 0
    for _ in range(kills):
        child = context.Process(target=_child, args=([*words, "out.parquet"],))
        child.start()
        child.join(moments.uniform(0.2, 1.0) * took)
        child.kill()
        child.join()
        if Path("out.parquet").exists():
            assert same(pq.read_table("out.parquet"), expected)
            Path("out.parquet").unlink()
            rows = 0
        parts = sorted(Path("out.parquet.parts").glob("*.parquet"))
        now = int(parts[-1].stem[13:]) if parts else 0
        assert now >= rows or not parts  # nothing that was finished is done again
        rows = now
    last = context.Process(target=_child, args=([*words, "out.parquet"],))
    last.start()
    last.join()
    assert last.exitcode == 1
    assert same(pq.read_table("out.parquet"), expected)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cache", "out.parquet", "pictures", "whole.parquet"]


def same(one: pa.Table, other: pa.Table) -> bool:
    """Equal but for the last bits of scores: a run that goes on may cut its batches elsewhere."""
    names = [name for name in one.column_names if pa.types.is_string(one.schema.field(name).type)]
    near = [
        np.allclose(one[n].to_numpy().astype(float), other[n].to_numpy().astype(float), atol=1e-5, equal_nan=True)
        for n in ("score", "probability")
    ]
    return one.select(names) == other.select(names) and all(near)
