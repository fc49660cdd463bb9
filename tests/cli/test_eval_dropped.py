"""What was left out of the data stands in the report and on stderr: a smaller gallery is an easier one."""

from __future__ import annotations

import json

import pytest

from dualenc.cli import main
from tests.small import sample, write_tar

CPU = ["--workers", "0", "--accelerator", "cpu"]


@pytest.fixture
def shards(tmp_path):
    members = [m for i in range(8) for m in sample(f"k{i}", "red", [f"caption {i}"], seed=i)]
    members = [(name, b"no picture" if name.startswith("k3") and "txt" not in name else data) for name, data in members]
    write_tar(tmp_path / "shards" / "0.tar", members)
    return tmp_path / "shards"


def test_shards_and_their_store_say_the_same(shards, tmp_path, encoder_folder, capsys):
    encoder = ["--encoder", str(encoder_folder)]
    assert main(["embed", *encoder, "--data", str(shards), "--out", str(tmp_path / "store"), *CPU]) == 0
    for data in (shards, tmp_path / "store"):
        capsys.readouterr()
        assert main(["eval", "retrieval", *encoder, "--data", str(data), "--ks", "1", "--json", *CPU]) == 0
        said = capsys.readouterr()
        report = json.loads(said.out)
        reasons = {key: value for key, value in report.items() if key.startswith("data/dropped/")}
        assert report["data/dropped"] == 1 and list(reasons.values()) == [1]
        assert report["text_to_image/gallery"] == 7
        assert f"{data}: 1 samples left out ({next(iter(reasons)).removeprefix('data/dropped/')}: 1)" in said.err


def test_pictures_that_are_all_broken_are_no_missing_captions(tmp_path, encoder_folder, capsys):
    write_tar(tmp_path / "s" / "0.tar", [("a.png", b"no picture"), ("a.txt", b"a caption")])
    words = ["eval", "retrieval", "--encoder", str(encoder_folder), "--data", str(tmp_path / "s"), *CPU]
    assert main(words) == 1
    assert "no image could be embedded" in capsys.readouterr().err


def test_a_report_that_cannot_be_written_is_told_before_the_work(shards, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", "/proc/nowhere"):
        words = ["eval", "retrieval", "--encoder", "no-such-encoder", "--data", str(shards), "--out", str(out)]
        assert main(words) == 1
        assert "no-such-encoder" not in capsys.readouterr().err
