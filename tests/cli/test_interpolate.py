"""`dualenc interpolate`: one encoder, or a curve with its report; what is refused before any work."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from dualenc.cli import main
from dualenc.model.encoder import DualEncoder
from dualenc.model.folder import save_folder
from tests.small import COLOURS, loaded, write_tar

CPU = ["--workers", "0", "--accelerator", "cpu"]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """Folders of two encoders, [start, tuned], by architecture."""
    root = tmp_path_factory.mktemp("pairs")
    for name in ("vit", "resnet"):
        for seed in (1, 2):
            save_folder(root / name / str(seed), loaded(name, seed=seed))
    return {name: [str(root / name / "1"), str(root / name / "2")] for name in ("vit", "resnet")}


@pytest.fixture(scope="module")
def classed(val_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("classed")
    for path in val_shards.glob("*.tar"):
        shutil.copy(path, folder)
    (folder / "classnames.txt").write_text("\n".join(COLOURS))
    return str(folder)


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_one_encoder_is_written(pairs: dict[str, list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["interpolate", *pairs["vit"], "half"]) == 0
    assert "half: the encoder at alpha 0.5" in capsys.readouterr().out
    assert main(["interpolate", *pairs["vit"], "end", "--alpha", "1", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    start, tuned = (DualEncoder.load(path, device="cpu") for path in pairs["vit"])
    half, end = (DualEncoder.load(path, device="cpu") for path in ("half", "end"))
    assert said == {"encoder": "end", "alpha": 1.0, "fingerprint": tuned.fingerprint}
    assert end.fingerprint == tuned.fingerprint
    assert half.provenance["interpolated"]["alpha"] == 0.5
    assert half.provenance["interpolated"]["start"] == {"encoder": pairs["vit"][0], "fingerprint": start.fingerprint}
    one, other, between = (e.model.state_dict()["visual.proj"] for e in (start, tuned, half))
    assert (between - (one + other) / 2).abs().max() < 1e-6


def test_towers_with_batch_norm_need_data(
    pairs: dict[str, list[str]], shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["interpolate", *pairs["resnet"], "out"]) == 1
    error = capsys.readouterr().err
    assert "--data SHARDS" in error and error.count("\n") == 1
    assert not Path("out").exists()
    words = ["--data", str(shards), "--batch-size", "12", "--batches", "2", *CPU]
    assert main(["interpolate", *pairs["resnet"], "out", *words]) == 0
    made = DualEncoder.load("out", device="cpu").provenance["interpolated"]
    assert made["statistics"] == {"data": str(shards), "batches": 2, "batch_size": 12}
    assert main(["interpolate", *pairs["resnet"], "start", "--alpha", "0"]) == 0
    assert DualEncoder.load("start").fingerprint == DualEncoder.load(pairs["resnet"][0]).fingerprint


def test_a_curves_ends_are_what_eval_says(
    pairs: dict[str, list[str]], shards: Path, classed: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["interpolate", *pairs["resnet"], "wise", "--new", str(shards), "--old", classed, "--alphas", "1,0,0.5"]
    assert main([*words, "--data", str(shards), "--json", *CPU]) == 0
    captured = capsys.readouterr()
    report = json.loads(captured.out)
    assert [line.split(":")[0] for line in captured.err.splitlines() if line.startswith("alpha ")] == [
        "alpha 0",
        "alpha 0.5",
        "alpha 1",
    ]
    for alpha, encoder in zip(("0", "1"), pairs["resnet"], strict=True):
        asked = ["--encoder", encoder, "--json", *CPU]
        assert main(["eval", "retrieval", "--data", str(shards), *asked]) == 0
        said = json.loads(capsys.readouterr().out)
        names = [f"{way}/recall@{k}" for way in ("text_to_image", "image_to_text") for k in (1, 5, 10)]
        assert {n: report[f"alpha/{alpha}/new/{n}"] for n in names} == {n: said[n] for n in names}
        assert main(["eval", "zeroshot", "--data", classed, *asked]) == 0
        said = json.loads(capsys.readouterr().out)
        assert report[f"alpha/{alpha}/old/zeroshot/acc1"] == report[f"alpha/{alpha}/old/score"] == said["zeroshot/acc1"]
    saved = json.loads(Path("wise/report.json").read_text())
    assert {key: saved[key] for key in report} == report
    means = {alpha: report[f"alpha/{alpha}/mean"] for alpha in ("0", "0.5", "1")}
    assert means[f"{report['best_alpha']:g}"] == max(means.values())
    best = DualEncoder.load("wise/encoder", device="cpu")
    assert best.fingerprint == saved["provenance/fingerprint"]
    assert best.provenance["interpolated"]["alpha"] == report["best_alpha"]
    assert sorted(path.name for path in Path("wise").iterdir()) == ["encoder", "report.html", "report.json"]
    assert saved["provenance/start/encoder"] == pairs["resnet"][0]


def test_the_best_encoder_is_said_with_the_data_it_was_chosen_on(
    pairs: dict[str, list[str]], shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["interpolate", *pairs["vit"], "wise", "--new", str(shards), "--alphas", "0,1", *CPU]) == 0
    out = capsys.readouterr().out
    assert f"the best of 2 on {shards}: measure it on data that had no part in the choice" in out
    assert "old" not in " ".join(json.loads(Path("wise/report.json").read_text()))


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--alpha", "1.5"], "alpha 1.5 lies outside 0..1"),
        (["--alpha", "nan"], "alpha nan lies outside 0..1"),
        (["--new", "SHARDS", "--alphas", "0,2"], "alpha 2 lies outside 0..1"),
        (["--new", "SHARDS", "--alphas", "0,half"], "'0,half' is not a list of numbers"),
        (["--new", "SHARDS", "--alphas", "0.5"], "two points or more"),
        (["--new", "SHARDS", "--alpha", "0.5"], "--alpha has no effect beside --new"),
        (["--old", "SHARDS"], "--old is for a curve"),
        (["--alphas", "0,1"], "--alphas is for a curve"),
        (["--new", "nowhere"], "nowhere"),
        (["--new", "SHARDS", "--old", "nowhere"], "nowhere"),
        (["--data", "nowhere"], "nowhere"),
        (["--data", "SHARDS", "--batches", "0"], "--batches is 0"),
        (["--data", "SHARDS", "--batch-size", "1"], "--batch-size is 1"),
    ],
)
def test_what_makes_no_sense_is_refused_before_the_encoders_are_read(
    capsys: pytest.CaptureFixture[str], shards: Path, words: list[str], says: str
) -> None:
    words = [str(shards) if word == "SHARDS" else word for word in words]
    assert main(["interpolate", "no/start", "no/tuned", "out", *words]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert says in line
    assert list(Path().iterdir()) == []


def test_encoders_that_do_not_fit_are_refused(pairs: dict[str, list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["interpolate", pairs["vit"][0], pairs["resnet"][1], "out"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{pairs['vit'][0]} and {pairs['resnet'][1]} differ in their architecture: vision_cfg/layers" in line
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize("curve", [False, True])
def test_nothing_of_the_users_is_overwritten(
    pairs: dict[str, list[str]], shards: Path, capsys: pytest.CaptureFixture[str], curve: bool
) -> None:
    Path("out").mkdir()
    Path("out/mine").write_text("x")
    words = ["--new", str(shards), *CPU] if curve else []
    assert main(["interpolate", *pairs["vit"], "out", *words]) == 1
    assert "out exists and is not empty" in capsys.readouterr().err
    assert [path.name for path in Path("out").iterdir()] == ["mine"]


def test_a_curve_that_could_not_be_written_is_told_before_it_is_measured(
    pairs: dict[str, list[str]], shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("file").write_text("mine")
    assert main(["interpolate", *pairs["vit"], "file/out", "--new", str(shards), "--alphas", "0,1", *CPU]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "file" in line  # and no alpha before it


def test_a_curve_that_fails_leaves_nothing(
    pairs: dict[str, list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = [[(f"{i}.png", b"no picture"), (f"{i}.txt", b"a caption")] for i in range(12)]
    write_tar(tmp_path / "bad" / "0.tar", [member for some in bad for member in some])
    assert main(["interpolate", *pairs["vit"], "out", "--new", "bad", "--alphas", "0,1", *CPU]) == 1
    assert "error: " in capsys.readouterr().err
    assert [path.name for path in Path().iterdir()] == ["bad"]
