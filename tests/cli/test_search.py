"""`dualenc search` and `dualenc classify` on odd data and odd surroundings."""

from __future__ import annotations

import json
import subprocess
import sys
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
    odd = [
        sample(f"k{i}", list(COLOURS)[i % 8], seed=i, json={"score": "high", "id": "mine", "n": i}) for i in range(12)
    ]
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


def near(index: Path, weights: dict[int, float], **search) -> list[int]:
    """Ids by the float64 sum of rows of the index."""
    from dualenc import Index

    rows = Index.open(index).vectors(range(12)).astype(np.float64)
    return np.argsort(-rows @ sum(weight * rows[i] for i, weight in weights.items()), kind="stable").tolist()


def test_weighted_terms(index: Path, capsys: pytest.CaptureFixture[str], encoder_folder: Path) -> None:
    from dualenc import DualEncoder, Index

    assert [hit["id"] for hit in hits(capsys, "2*#3 - 0.5*#1 + #7", "-k", "12")] == near(index, {3: 2, 1: -0.5, 7: 1})
    Path("red.png").write_bytes(png(colour=COLOURS["red"], seed=0))
    encoder, rows = DualEncoder.load(encoder_folder), Index.open(index).vectors(range(12)).astype(np.float64)
    query = 2 * encoder.embed_texts(["red car"])[0] + encoder.embed_images(["red.png"])[0] - 0.25 * rows[4]
    found = hits(capsys, '2*"red car" + red.png - 0.25*#4', "-k", "12")
    order = np.argsort(-rows @ query)
    assert [hit["id"] for hit in found] == order.tolist()
    expected = (rows @ query / np.linalg.norm(query))[order]
    assert np.abs(np.array([hit["score"] for hit in found]) - expected).max() < 1e-4


def test_a_row_is_looked_up_without_an_encoder(index: Path) -> None:
    code = """
import sys
from dualenc.cli import main
assert main(["search", "index", "#5", "-k", "3", "--json", "--where", "n > 2"]) == 0
print(*sorted({"torch", "open_clip", "pytorch_lightning"} & set(sys.modules)), file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    found = [hit["id"] for hit in json.loads(done.stdout)]
    assert found == [i for i in near(index, {5: 1}) if i > 2][:3]
    assert found[0] == 5
    assert done.stderr.strip() == ""


def test_pages_threshold_and_groups(index: Path, capsys: pytest.CaptureFixture[str]) -> None:
    every = hits(capsys, "#2", "-k", "12")
    assert len(every) == 12
    assert hits(capsys, "#2", "-k", "3", "--offset", "4") == every[4:7]
    assert hits(capsys, "#2", "-k", "9", "--offset", "10") == every[10:]
    assert hits(capsys, "#2", "--offset", "12") == []
    least = every[5]["score"] - 1e-6
    assert hits(capsys, "#2", "-k", "12", "--threshold", str(least)) == [hit for hit in every if hit["score"] >= least]
    one = hits(capsys, "#2", "-k", "12", "--group-by", "caption")
    firsts = {hit["caption"]: hit for hit in reversed(every)}
    assert one == sorted(firsts.values(), key=lambda hit: -hit["score"])
    assert len(one) < 12
    assert hits(capsys, "#2", "-k", "12", "--group-by", "key") == every
    assert main(["search", "index", "#2", "-k", "2", "--offset", "4"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["5", "6"]
    assert main(["search", "index", "#2", "--threshold", "1.5"]) == 0
    assert capsys.readouterr().out == "nothing found\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["#99"], "id 99 is not in the index of 12 rows"),
        (['"a" +'], "the query is read as several terms, but the end is neither"),
        (["#1 - #1"], "cancel"),
        (["cat", "-k", "0"], "-k 0"),
        (["cat", "--offset", "-1"], "offset"),
        (["cat", "--group-by", "height"], "group_by='height' is no column"),
        (["cat", "--where", "height > 5"], "height"),
        (["cat", "--image", "nowhere.png"], "nowhere.png"),
        ([" "], "empty"),
    ],
)
def test_what_goes_wrong_is_one_line(
    index: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    capsys.readouterr()
    assert main(["search", "index", *words]) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert said in line
    assert "Traceback" not in line


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
