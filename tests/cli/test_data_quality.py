"""`dualenc data score|filter|overlap`, from shards to tables, new shards, pages and exit codes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from dualenc.cli import main
from dualenc.data.shards import open_source
from dualenc.embed.store import open_store
from tests.small import sample, write_tar

CPU = ["--workers", "0", "--accelerator", "cpu"]


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def scored(shards: Path, encoder_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The table of the shared shards, with its store beside it."""
    out = tmp_path_factory.mktemp("scored") / "scores.parquet"
    words = ["--encoder", str(encoder_folder), "--out", str(out), "--threshold", "0.9999", *CPU]
    assert main(["data", "score", str(shards), *words, "--report", str(out.parent / "page")]) == 0
    return out


def test_shards_are_scored(scored: Path, encoder, shards: Path) -> None:
    table = pq.read_table(scored).to_pydict()
    source, store = open_source(shards), open_store(scored.with_suffix(".store"))
    captions = [caption for i in range(len(source)) for caption in source.sample(i).captions()]
    assert table["caption"] == captions and table["caption_number"] == [0, 1] * 24
    assert table["key"] == [key for key in source.keys for _ in range(2)]
    images, texts = (np.concatenate(list(side())) for side in (store.images, store.texts))
    assert table["score"] == pytest.approx((np.repeat(images, 2, axis=0) * texts).sum(axis=1), abs=1e-5)
    assert store.fingerprint == encoder.fingerprint and store.manifest["dtype"] == "float32"
    assert table["tokens"] == [len(encoder.tokenizer.encode(caption)) + 2 for caption in captions]
    assert table["truncated"] == [False] * 48 and table["width"] == [32] * 48
    page = (scored.parent / "page" / "report.html").read_text()
    assert "The pairs that fit worst" in page and encoder.fingerprint in page
    assert json.loads((scored.parent / "page" / "report.json").read_text())["pairs"] == 48


def test_a_store_is_scored_without_an_encoder(scored: Path, encoder_folder: Path, shards: Path, capsys) -> None:
    store = str(scored.with_suffix(".store"))
    assert main(["data", "score", store, "--out", "again.parquet", "--threshold", "0.9999", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    again, first = pq.read_table("again.parquet"), pq.read_table(scored)
    counted = ["tokens", "truncated"]
    assert again.drop_columns(counted).equals(first.drop_columns(counted)) and again["tokens"].null_count == 48
    assert said["pairs"] == 48 and said["truncated_captions"] is None
    assert main(["data", "score", store, "--out", "x", "--store", "y"]) == 1
    assert "is a store already" in capsys.readouterr().err
    assert main(["data", "score", str(shards), "--out", "x"]) == 1
    assert "name the encoder" in capsys.readouterr().err
    assert main(["data", "score", str(shards), "--encoder", str(encoder_folder), "--out", str(scored)]) == 1
    assert "exists" in capsys.readouterr().err


def test_scores_filter_shards(scored: Path, shards: Path, capsys) -> None:
    table = pq.read_table(scored)
    keep = "percentile >= 0.5 and words < 5"
    wanted = [r for r in table.to_pylist() if r["percentile"] >= 0.5 and r["words"] < 5]
    assert main(["data", "filter", str(shards), str(scored), "--keep", keep, "--out", "kept"]) == 0
    said = capsys.readouterr().out
    assert f"kept {len(wanted)} of 48 pairs" in said and "24 fail percentile >= 0.5" in said
    kept = open_source("kept")
    found = [(kept.keys[i], caption) for i in range(len(kept)) for caption in kept.sample(i).captions()]
    assert found == [(row["key"], row["caption"]) for row in wanted] and 0 < len(found) < 48
    assert main(["data", "filter", str(shards), str(scored), "--keep", keep, "--keys", "k.txt", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["kept_pairs"] == len(wanted)
    assert Path("k.txt").read_text().split() == list(kept.keys)
    assert main(["data", "filter", str(shards), str(scored), "--keep", "colour > 1", "--out", "other"]) == 1
    said = capsys.readouterr().err
    assert "no column 'colour'" in said and "columns: key, caption_number" in said and said.count("\n") == 1


def test_overlap(shards: Path, encoder_folder: Path, scored: Path, capsys) -> None:
    encoder, store = ["--encoder", str(encoder_folder)], str(scored.with_suffix(".store"))
    more = ["--threshold", "0.999999", "--out", "pairs.parquet", "--report", "page", "--ks", "1,5", "--json"]
    assert main(["data", "overlap", store, str(shards), *encoder, *CPU, *more]) == 1  # all of it
    said = json.loads(capsys.readouterr().out)
    assert (said["images"], said["overlapping"], said["shared_captions"]) == (24, 24, 48)
    assert said["without/text_to_image/recall@1"] is None and said["all/text_to_image/queries"] == 48
    pairs = pq.read_table("pairs.parquet").to_pylist()
    assert {(f"s{i:03d}", f"s{i:03d}") for i in range(24)} <= {(p["test_key"], p["train_key"]) for p in pairs}
    assert "The nearest pairs" in Path("page/report.html").read_text()
    few = ["--ks", "1,30", "--threshold", "0.9", "--json"]
    assert main(["data", "overlap", store, str(shards), *encoder, *CPU, *few]) == 1
    said = capsys.readouterr()
    assert "recall at 30 left out" in said.err and "24 images with captions" in said.err
    assert "all/text_to_image/recall@1" in said.out and "recall@30" not in said.out
    write_tar(Path("other/0.tar"), sample("z", seed=99))
    none = ["--threshold", "1", "--ks", "1"]
    assert main(["data", "overlap", "other", store, *encoder, *CPU, *none]) == 0
    assert "0 of 24 test images" in capsys.readouterr().out
    assert main(["data", "overlap", store, store, *encoder, "--ks", "one"]) == 1
    assert "--ks 'one'" in capsys.readouterr().err


@pytest.fixture
def gaps() -> Path:
    """Six samples: one does not decode, two have no caption, and one is a text without a picture."""
    members = [m for i in range(5) for m in sample(f"k{i}", captions=[] if i in (0, 3) else [f"caption {i}"], seed=i)]
    members = [(name, b"no picture" if name == "k1.png" else data) for name, data in members]
    write_tar(Path("gaps/0.tar"), [*members, ("alone.txt", b"no picture at all")])
    return Path("gaps")


def test_data_without_captions_are_told_before_the_encoder_works(gaps: Path, capsys) -> None:
    write_tar(Path("bare/0.tar"), [m for i in range(3) for m in sample(f"b{i}", captions=[], seed=i)])
    words = ["--encoder", "no-such-encoder", "--out", "x.parquet"]
    assert main(["data", "score", "bare", *words]) == 1
    said = capsys.readouterr().err
    assert "none of its 3 samples has a caption" in said and "no-such-encoder" not in said
    members = [m for i in range(4) for m in sample(f"l{i}", captions=["red"] * (i > 0), seed=i)]
    latin = [(name, "caf\u00e9".encode("latin-1") if name.endswith("txt") else data) for name, data in members]
    write_tar(Path("latin/0.tar"), latin)
    assert main(["data", "score", "latin", *words]) == 1
    said = capsys.readouterr().err
    assert "of its 4 samples none has a caption that can be read (caption is not UTF-8: 3)" in said
    assert "save captions as UTF-8" in said and "no-such-encoder" not in said
    assert main(["data", "score", str(gaps), *words]) == 1
    assert "no-such-encoder" in capsys.readouterr().err


def test_what_was_left_out_of_the_scores_is_told(gaps: Path, encoder_folder: Path, capsys) -> None:
    counts = {"not an image": 1, "missing image": 1, "missing caption": 2}
    told = f"4 samples left out ({', '.join(f'{reason}: {count}' for reason, count in counts.items())})"
    encoder = ["--encoder", str(encoder_folder), "--store", "store", *CPU]
    for data, more in ((str(gaps), encoder), ("store", [])):
        out = f"{Path(data).name}.parquet"
        assert main(["data", "score", data, *more, "--out", out, "--report", "page", "--json"]) == 0
        said = capsys.readouterr()
        assert f"dualenc: {data}: {told}" in said.err
        expected = {"data/dropped": 4} | {f"data/dropped/{reason}": count for reason, count in counts.items()}
        for report in (json.loads(said.out), json.loads(Path("page/report.json").read_text())):
            assert {key: value for key, value in report.items() if key.startswith("data/dropped")} == expected
            assert (report["pairs"], report["images"]) == (2, 4)
        assert "<td>data/dropped/missing caption</td>" in Path("page/report.html").read_text()


def test_what_was_left_out_of_either_side_is_told(gaps: Path, scored: Path, encoder_folder: Path, capsys) -> None:
    store, more = str(scored.with_suffix(".store")), ["--encoder", str(encoder_folder), *CPU, "--ks", "1"]
    assert main(["data", "overlap", str(gaps), store, *more, "--report", "page", "--json"]) in (0, 1)
    said = capsys.readouterr()
    assert f"dualenc: {gaps}: 2 samples left out (not an image: 1, missing image: 1)" in said.err
    assert json.loads(said.out)["data/dropped"] == 2 and store not in said.err.split("left out")[0]
    assert "<td>data/dropped/not an image</td>" in Path("page/report.html").read_text()
    write_tar(Path("broken/0.tar"), [("a.png", b"no picture"), ("a.txt", b"a caption")])
    assert main(["data", "overlap", store, "broken", *more]) == 1
    assert "error: broken: no image could be embedded" in capsys.readouterr().err


def test_test_data_without_captions_have_no_recall(scored: Path, encoder_folder: Path, capsys) -> None:
    write_tar(Path("bare/0.tar"), [m for i in range(3) for m in sample(f"b{i}", captions=[], seed=i)])
    words = [str(scored.with_suffix(".store")), "bare", "--encoder", str(encoder_folder), *CPU, "--report", "page"]
    assert main(["data", "overlap", *words]) in (0, 1)
    said = capsys.readouterr().out
    assert "no captions, so no recall" in said and "read the same" not in said and "Recall@" not in said
    assert "no captions, so no recall" in Path("page/report.html").read_text()
    assert json.loads(Path("page/report.json").read_text())["captioned"] == 0


def test_a_store_that_does_not_name_its_samples(scored: Path, encoder_folder: Path, capsys) -> None:
    shutil.copytree(scored.with_suffix(".store"), "store")
    Path("store/manifest.json").unlink()  # as clip-retrieval writes it
    for path in Path("store/metadata").glob("*.parquet"):
        pq.write_table(pq.read_table(path).drop_columns(["key"]), path)
    assert main(["data", "overlap", "store", "store", "--encoder", str(encoder_folder), *CPU]) == 1
    assert "store does not name its samples (column key)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--threshold", "7"], "--threshold 7"),
        (["--threshold", "nan"], "--threshold nan"),
        (["--out", "folder"], "--out folder is a folder"),
        (["--out", "file/x.parquet"], "file"),
        (["--report", "file"], "file"),
    ],
)
@pytest.mark.parametrize("verb", [["score", "gaps"], ["overlap", "gaps", "gaps"]])
def test_a_wrong_setting_is_told_before_the_encoder_works(verb, words, said: str, gaps: Path, capsys) -> None:
    Path("folder").mkdir()
    Path("file").write_text("mine")
    assert main(["data", *verb, "--encoder", "no-such-encoder", "--out", "x.parquet", *words]) == 1
    error = capsys.readouterr().err
    assert said in error and "no-such-encoder" not in error and error.count("\n") == 1
