"""What a user gets wrong: one line that says what, why and what to do; a non-zero exit code; nothing left half-written."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

from dualenc.cli import main
from tests.small import sample, write_shards, write_tar

ROOT = Path(__file__).parent.parent.parent
FIT = [
    "fit",
    "--config",
    "scenes",
    "--data.val",
    "null",
    "--data.zeroshot",
    "null",
    "--trainer.default_root_dir",
    "run",
]


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def refused(capsys: pytest.CaptureFixture[str], words: list[str], *mentions: str) -> str:
    """Run a command that must fail with one line that holds every mention; returns the line."""
    try:
        code = main(words)
    except SystemExit as exit_:
        code = int(exit_.code or 0)
    error = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert code != 0
    assert len(error) == 1, error
    assert "Traceback" not in error[0]
    for mention in mentions:
        assert mention in error[0], error[0]
    return error[0]


def left() -> list[str]:
    return sorted(p.name for p in Path().iterdir())


def test_unknown_config_key(capsys: pytest.CaptureFixture[str]) -> None:
    Path("typo.yaml").write_text("model: {wieght_decay: 0.1}\n")
    refused(capsys, ["fit", "--config", "typo.yaml"], "model.wieght_decay", "did you mean 'model.weight_decay'")
    assert left() == ["typo.yaml"]


def test_unknown_option(capsys: pytest.CaptureFixture[str]) -> None:
    refused(capsys, [*FIT, "--model.lrr", "1"], "--model.lrr", "did you mean")
    refused(capsys, [*FIT, "--trainer.max_epoch", "1"], "--trainer.max_epoch")


def test_unknown_tower_size(capsys: pytest.CaptureFixture[str], shards: Path) -> None:
    refused(capsys, [*FIT, "--data.train", str(shards), "--model.vision.widht", "3"], "widht", "did you mean 'width'")
    assert left() == []


def test_unknown_config_name(capsys: pytest.CaptureFixture[str]) -> None:
    refused(capsys, ["fit", "--config", "nosuch"], "nosuch", "scenes")


@pytest.mark.parametrize(
    "words",
    [
        [*FIT, "--data.train", "nowhere"],
        ["embed", "--encoder", "ENCODER", "--data", "nowhere", "--out", "store"],
        ["embed", "--encoder", "./nowhere", "--data", "SHARDS", "--out", "store"],
        ["index", "build", "nowhere", "index"],
        ["search", "nowhere", "a cat"],
        ["data", "check", "nowhere"],
        ["data", "pack", "nowhere", "out"],
        ["eval", "retrieval", "--encoder", "ENCODER", "--data", "nowhere"],
        ["classify", "--encoder", "ENCODER", "--classes", "a,b", "nowhere"],
    ],
    ids=lambda words: " ".join(words[:2]),
)
def test_missing_path(capsys: pytest.CaptureFixture[str], encoder_folder: Path, shards: Path, words: list[str]) -> None:
    named = [{"ENCODER": str(encoder_folder), "SHARDS": str(shards)}.get(word, word) for word in words]
    refused(capsys, named, "nowhere")
    assert left() == []


def test_empty_data_set(capsys: pytest.CaptureFixture[str], encoder_folder: Path) -> None:
    Path("empty").mkdir()
    refused(capsys, [*FIT, "--data.train", "empty"], "empty", "neither shards")
    refused(capsys, ["embed", "--encoder", str(encoder_folder), "--data", "empty", "--out", "store"], "empty")
    refused(capsys, ["data", "pack", "empty", "out"], "empty")
    assert left() == ["empty"]


def test_shards_of_which_no_image_decodes(capsys: pytest.CaptureFixture[str], encoder_folder: Path) -> None:
    write_shards(Path("bad"), 4, shards=1, broken=(0, 1, 2, 3))
    words = ["embed", "--encoder", str(encoder_folder), "--data", "bad", "--out", "store", "--workers", "0"]
    refused(capsys, words, "no image could be embedded", "data check")
    refused(capsys, [*FIT, "--data.train", "bad", "--data.batch_size", "4", "--data.workers", "0"], "data check")
    assert main(["data", "check", "bad"]) == 1
    assert left() == ["bad"]


def test_batch_larger_than_the_data_set(capsys: pytest.CaptureFixture[str], shards: Path) -> None:
    refused(capsys, [*FIT, "--data.train", str(shards), "--data.batch_size", "1000"], "1000", "24", "data.batch_size")
    assert left() == []


@pytest.mark.parametrize("verb", ["classify", "eval zeroshot"])
def test_class_list_with_one_class(
    capsys: pytest.CaptureFixture[str], encoder_folder: Path, val_shards: Path, verb: str
) -> None:
    data = [str(val_shards)] if verb == "classify" else ["--data", str(val_shards)]
    refused(capsys, [*verb.split(), "--encoder", str(encoder_folder), "--classes", "cat", *data], "cat", "two or more")


def test_long_caption_is_cut_and_counted(caplog: pytest.LogCaptureFixture, encoder_folder: Path) -> None:
    write_tar(Path("long/0.tar"), sample("a", captions=["word " * 500]) + sample("b", captions=["short"]))
    words = ["embed", "--encoder", str(encoder_folder), "--data", "long", "--out", "store", "--workers", "0"]
    assert main(words) == 0
    assert "1 captions were cut" in caplog.text


def test_text_in_another_script(capsys: pytest.CaptureFixture[str], encoder_folder: Path, shards: Path) -> None:
    assert (
        main(["embed", "--encoder", str(encoder_folder), "--data", str(shards), "--out", "store", "--workers", "0"])
        == 0
    )
    assert main(["index", "build", "store", "index"]) == 0
    assert main(["search", "index", "一只红色的圆 כדור أحمر 🎈", "-k", "3", "--grid", "hits.png"]) == 0
    assert len([line for line in capsys.readouterr().out.splitlines() if line.endswith(".tar")]) == 3


@pytest.mark.parametrize(
    "damage", ["config missing", "weights missing", "weights altered", "config altered", "weights cut"]
)
def test_damaged_encoder_folder(
    capsys: pytest.CaptureFixture[str], encoder_folder: Path, shards: Path, damage: str
) -> None:
    shutil.copytree(encoder_folder, "encoder")
    name = "open_clip_config.json" if "config" in damage else "open_clip_model.safetensors"
    file = Path("encoder") / name
    data = bytearray(file.read_bytes())
    if "missing" in damage:
        file.unlink()
    elif "cut" in damage:
        file.write_bytes(data[: len(data) // 2])
    else:
        data[-20] ^= 1
        file.write_bytes(data)
    refused(capsys, ["embed", "--encoder", "encoder", "--data", str(shards), "--out", "store"], name)
    assert left() == ["encoder"]


def outputs(encoder: Path, shards: Path, out: str) -> list[list[str]]:
    return [
        ["data", "scenes", out, "--train", "300", "--val", "30", "--test", "30"],
        ["embed", "--encoder", str(encoder), "--data", str(shards), "--out", out, "--workers", "0"],
        [
            *FIT[:-1],
            out,
            "--data.train",
            str(shards),
            "--data.batch_size",
            "4",
            "--data.workers",
            "0",
            "--trainer.max_epochs",
            "1",
        ],
    ]


@pytest.mark.parametrize("place", ["in the way", "not writable"])
def test_output_that_cannot_be_written(
    capsys: pytest.CaptureFixture[str], encoder_folder: Path, shards: Path, place: str
) -> None:
    Path("file").write_text("mine")
    out = "file/out" if place == "in the way" else "/proc/out"
    if place == "not writable" and not Path("/proc").is_dir():
        pytest.skip("needs a folder that refuses even root; /proc is one on Linux")
    for words in outputs(encoder_folder, shards, out):
        refused(capsys, words, out.split("/")[1] if place == "not writable" else "file")
    assert left() == ["file"]
    assert Path("file").read_text() == "mine"


def test_full_disk(encoder_folder: Path, shards: Path) -> None:
    """A file size limit stops writes as a full disk does: an OSError in the middle of a file."""
    limited = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)); from dualenc.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    words = outputs(encoder_folder, shards, "out")[0]
    ran = subprocess.run([sys.executable, "-c", limited, *words], capture_output=True, text=True, cwd=os.getcwd())
    assert ran.returncode == 1, ran.stderr
    assert "File too large" in ran.stderr
    assert "Traceback" not in ran.stderr
    assert left() == []


def test_an_existing_output_is_not_overwritten(
    capsys: pytest.CaptureFixture[str], encoder_folder: Path, shards: Path
) -> None:
    Path("out/encoder").mkdir(parents=True)
    Path("out/encoder/mine").write_text("x")
    for words in outputs(encoder_folder, shards, "out"):
        refused(capsys, words, "out")
    assert [str(p) for p in Path("out").rglob("*")] == ["out/encoder", "out/encoder/mine"]


def test_debug_shows_the_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(FileNotFoundError):
        main(["--debug", "data", "check", "nowhere"])


def test_truncated_shard_is_read_as_far_as_it_goes(capsys: pytest.CaptureFixture[str], encoder_folder: Path) -> None:
    write_shards(Path("cut"), 8, shards=1)
    tar = next(Path("cut").glob("*.tar"))
    with tarfile.open(tar) as opened:
        last = opened.getmembers()[-1]
    tar.write_bytes(tar.read_bytes()[: last.offset_data - 100])
    assert main(["data", "check", "cut"]) == 1
    assert "truncated shard" in capsys.readouterr().out
    assert main(["embed", "--encoder", str(encoder_folder), "--data", "cut", "--out", "store", "--workers", "0"]) == 0
    assert "truncated shard" in capsys.readouterr().out


def test_interruption_is_said(tmp_path: Path) -> None:
    """Ctrl-C in the middle of training: one line, exit code 130, and the checkpoint that was there."""
    write_shards(Path("many"), 64, shards=1)
    words = [
        *FIT,
        "--data.train",
        "many",
        "--data.batch_size",
        "8",
        "--data.workers",
        "0",
        "--trainer.max_epochs",
        "10000",
    ]
    run = subprocess.Popen(
        [sys.executable, "-m", "dualenc", *words],
        stderr=subprocess.PIPE,
        text=True,
        # a shell's background job, which the tests may be, ignores Ctrl-C, and hands that on
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 120
    while not list(Path("run").glob("checkpoints/last*.ckpt")) and time.monotonic() < deadline and run.poll() is None:
        time.sleep(0.2)
    run.send_signal(signal.SIGINT)
    _, error = run.communicate(timeout=60)
    assert run.returncode == 130, error
    assert "interrupted" in error.splitlines()[-1]
    assert list(Path("run").glob("checkpoints/last*.ckpt"))


@pytest.mark.parametrize("content", [b"junk", b""])
def test_checkpoint_that_is_none(capsys: pytest.CaptureFixture[str], shards: Path, content: bytes) -> None:
    Path("bad.ckpt").write_bytes(content)
    refused(capsys, [*FIT, "--data.train", str(shards), "--ckpt_path", "bad.ckpt"], "bad.ckpt", "not a checkpoint")


def test_another_programs_manifest_is_left_alone(
    capsys: pytest.CaptureFixture[str], encoder_folder: Path, shards: Path
) -> None:
    Path("mine").mkdir()
    Path("mine/manifest.json").write_text("[1]")
    refused(capsys, ["embed", "--encoder", str(encoder_folder), "--data", str(shards), "--out", "mine"], "mine")
    assert Path("mine/manifest.json").read_text() == "[1]"
