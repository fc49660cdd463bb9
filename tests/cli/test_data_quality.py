"""`dualenc data score|filter|overlap`, from shards to tables, new shards, pages and exit codes."""

from __future__ import annotations

import json
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
