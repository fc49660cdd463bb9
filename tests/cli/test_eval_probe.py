"""`dualenc eval probe`: a tiny encoder on shards, an image folder and a store; what does not fit is told before any work."""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import pytest

from dualenc.cli import eval_probe
from dualenc.files import write_json
from tests.small import COLOURS, png, sample, write_tar

CPU = ["--workers", "0", "--accelerator", "cpu", "--batch-size", "32"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train (32 images) and test (16) as shards of four colours with their names, val (12) as a folder by class."""
    root = tmp_path_factory.mktemp("probe")
    colours = sorted(COLOURS)  # an image folder's order
    for name, rows in (("train", range(32)), ("test", range(32, 48))):
        members = []
        for i in rows:
            colour, place = list(COLOURS)[i % 8], "in" if i % 8 < 4 else "out"
            facts = {"cls": colours.index(colour), "json": {"place": place}}
            members += sample(f"{name}{i:03d}", colour, seed=i, **facts)
        write_tar(root / name / "shard-000.tar", members)
        (root / name / "classnames.txt").write_text("\n".join(colours))
    for i in range(16):
        path = root / "val" / list(COLOURS)[i % 8] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(colour=COLOURS[list(COLOURS)[i % 8]], seed=100 + i))
    return root


@pytest.fixture(autouse=True)
def no_classifiers_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DUALENC_CLASSIFIERS", "off")


def probe(*words: str | Path) -> int:
    parser = argparse.ArgumentParser()
    eval_probe.register(parser.add_subparsers())
    options = parser.parse_args(["probe", *map(str, words), *CPU])
    return options.run(options)


def test_the_command(encoder_folder: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--encoder", encoder_folder, "--train", data / "train", "--val", data / "val", "--data", data / "test"]
    more = ["--shots", "4", "--seeds", "2", "--by", "place", "--bootstrap", "100", "--out", tmp_path / "out"]
    assert probe(*words, *more) == 0
    said = capsys.readouterr().out
    assert "Linear probe" in said and "4 images a class" in said and "Zero-shot" in said
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert [report[f"probe/{name}"] for name in ("train", "val", "images", "classes")] == [32, 16, 16, 8]
    assert report["probe/acc1"] > 0.5 > report["probe/zeroshot/acc1/chance"] and report["probe/shots/4/acc1/std"] >= 0
    assert report["probe/by/place/in/count"] == 8


def test_shots_are_those_that_train_has_unless_they_are_given(
    encoder_folder: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Four images a class, one of them held out."""
    words = ["--encoder", encoder_folder, "--train", data / "train", "--data", data / "test"]
    assert probe(*words, "--seeds", "1", "--bootstrap", "0") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "2 images a class" in said and "4 images a class" not in said
    assert "train has not so many images of every class beside those held out to validate on: 4, 8, 16 a class." in said
    with pytest.raises(ValueError, match="4 shots a class, but train has 3 images"):
        probe(*words, "--shots", "1,4")


def test_a_store_of_another_encoder_and_options_that_do_not_fit(
    encoder_folder: Path,
    encoder,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from dualenc.data.shards import open_source
    from dualenc.embed.run import write_store

    store = tmp_path / "store"
    write_store(encoder, open_source(str(data / "train")), store, workers=0, accelerator="cpu")
    words = ["--encoder", encoder_folder, "--data", data / "test", "--shots", "none", "--bootstrap", "0"]
    assert probe(*words, "--train", store, "--json") == 0, "the store has no names: its numbers are those of the shards"
    report = json.loads(capsys.readouterr().out)
    assert report["probe/acc1"] > 0.5 and not any("shots" in key or "/low" in key for key in report)
    manifest = json.loads((store / "manifest.json").read_text())
    write_json(store / "manifest.json", manifest | {"fingerprint": "0" * 64})
    with pytest.raises(ValueError, match="another encoder"):
        probe(*words, "--train", store)
    monkeypatch.setattr(eval_probe, "embedded_data", None)
    for more, what in (
        (["--shots", "1,two"], "whole numbers"),
        (["--bootstrap", "99"], "--bootstrap 99"),
        (["--templates", "nothing"], "no set or file"),
        (["--classes", "missing.txt"], "no such class file"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=what):
            probe(*words, "--train", store, *more)


def test_names_that_are_given_mend_those_beside_the_data(
    encoder_folder: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two classes of one name in the file beside the data, as in open_clip's ImageNet list."""
    shutil.copytree(data, tmp_path / "twice")
    for part in ("train", "test"):
        (tmp_path / "twice" / part / "classnames.txt").write_text("\n".join([*list(COLOURS)[1:], list(COLOURS)[1]]))
    words = ["--encoder", encoder_folder, "--shots", "none", "--bootstrap", "0", "--json"]
    found = []
    for root in (data, tmp_path / "twice"):
        more = ["--train", root / "train", "--data", root / "test", "--classes", ",".join(COLOURS)]
        assert probe(*words, *more) == 0
        found.append(json.loads(capsys.readouterr().out))
    assert found[0]["probe/acc1"] == found[1]["probe/acc1"]
    assert found[0]["probe/zeroshot/acc1"] == found[1]["probe/zeroshot/acc1"]


def test_data_that_is_learnt_from_is_refused(
    encoder_folder: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "link").symlink_to(data / "test")
    monkeypatch.setattr(eval_probe, "embedded_data", None)
    words = ["--encoder", encoder_folder, "--data", data / "test"]
    with pytest.raises(ValueError, match="is --train too"):
        probe(*words, "--train", f"{data}/train/../test")
    with pytest.raises(ValueError, match="is --val too"):
        probe(*words, "--train", data / "train", "--val", tmp_path / "link")
