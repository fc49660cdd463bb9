"""`dualenc search` and `dualenc classify` on odd data and odd surroundings."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from dualenc.cli import main
from tests.small import COLOURS, png, sample, write_shards, write_tar


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoder_folder: Path) -> Path:
    """Twelve samples whose metadata has a column that is called as the hits' own ones."""
    monkeypatch.chdir(tmp_path)
    odd = [sample(f"k{i}", list(COLOURS)[i % 8], json={"score": "high", "id": "mine", "n": i}) for i in range(12)]
    write_tar(Path("shards/0.tar"), [member for members in odd for member in members])
    words = ["embed", "--encoder", str(encoder_folder), "--data", "shards", "--out", "store", "--workers", "0"]
    assert main(words) == 0
    assert main(["index", "build", "store", "index"]) == 0
    return Path("index")


def hits(capsys: pytest.CaptureFixture[str], *words: str) -> list[dict]:
    capsys.readouterr()
    assert main(["search", "index", *words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_own_score_and_id_stand(index: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = hits(capsys, "a red picture", "-k", "3")
    assert all(isinstance(hit["score"], float) and isinstance(hit["id"], int) for hit in found)
    assert [hit["score"] for hit in found] == sorted((hit["score"] for hit in found), reverse=True)


def test_text_image_and_both(index: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("red.png").write_bytes(png(colour=COLOURS["red"], seed=0))
    by_image = hits(capsys, "--image", "red.png", "-k", "1")[0]
    assert by_image["key"] == "k0"  # the very picture
    assert by_image["score"] == pytest.approx(1, abs=2e-3)
    text, both = (
        {hit["key"]: hit["score"] for hit in hits(capsys, *w, "-k", "12")}
        for w in (["cat"], ["cat", "--image", "red.png"])
    )
    image = {hit["key"]: hit["score"] for hit in hits(capsys, "--image", "red.png", "-k", "12")}
    ratio = [(text[key] + image[key]) / both[key] for key in text]  # both count equally: a sum, up to its length
    assert np.ptp(ratio) < 0.05 * abs(np.mean(ratio))


def test_where(index: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert {hit["n"] for hit in hits(capsys, "cat", "--where", "n >= 9")} == {9, 10, 11}


def test_nothing_to_search_for(index: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["search", "index"]) == 1
    assert "give a text, --image FILE, or both" in capsys.readouterr().err


def test_folders_named_like_recipes_are_not_in_the_way(index: Path) -> None:
    for name in ("flat", "auto", "ivf"):
        Path(name).mkdir()
    assert main(["index", "build", "store", "other"]) == 0


def test_a_foreign_encoder_is_refused(index: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from dualenc.model.encoder import DualEncoder
    from tests.small import loaded

    DualEncoder(loaded("vit", seed=1), device="cpu").save("foreign")
    assert main(["search", "index", "cat", "--encoder", "foreign"]) == 1
    assert "search with that encoder" in capsys.readouterr().err


def test_classify_leaves_out_what_does_not_decode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoder_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("pictures").mkdir()
    for name in ("a", "c"):
        Path(f"pictures/{name}.png").write_bytes(png(colour=COLOURS["red"]))
    Path("pictures/b.png").write_bytes(b"no picture")
    words = [
        "classify",
        "--encoder",
        str(encoder_folder),
        "--classes",
        "red,blue",
        "pictures",
        "--out",
        "labels.parquet",
    ]
    assert main(words) == 1
    assert "b.png" in capsys.readouterr().err
    table = pq.read_table("labels.parquet").to_pylist()
    assert [Path(row["path"]).name for row in table] == ["a.png", "c.png"]
    assert all(row["label"] == max(("red", "blue"), key=lambda name: row[f"score: {name}"]) for row in table)


def test_scoring_without_weights_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], shards: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    words = [
        "--config",
        "scenes",
        "--data.val",
        str(shards),
        "--data.zeroshot",
        "null",
        "--trainer.default_root_dir",
        "run",
    ]
    assert main(["validate", *words]) == 1
    assert "random weights" in capsys.readouterr().err
    for verb in ("validate", "fit"):
        assert main([verb, *words, "--ckpt_path", "last"]) == 1
        assert "no last.ckpt" in capsys.readouterr().err
    assert not Path("run").exists()


def test_missing_class_names_are_told_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], shards: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    write_shards(Path("classes"), 8, shards=1, prefix="c", cls=lambda i: i % 2)
    words = ["fit", "--config", "scenes", "--data.train", str(shards), "--data.val", "null", "--data.batch_size", "8"]
    assert main([*words, "--data.zeroshot", "classes", "--trainer.default_root_dir", "run"]) == 1
    assert "classnames.txt" in capsys.readouterr().err
    assert not Path("run/checkpoints").exists()


def test_settings_without_effect_are_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    encoder_folder: Path,
    shards: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["fit", "--data.train", str(shards), "--model.start_from", str(encoder_folder), "--model.embed_dim", "64"]
    assert main([*words, "--trainer.max_epochs", "1"]) == 1
    assert "model.embed_dim has no effect" in capsys.readouterr().err
