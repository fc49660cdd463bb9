"""What was left out of the data stands in the report and on stderr: a smaller gallery is an easier one."""

from __future__ import annotations

import json

import pytest

from dualenc.cli import main
from dualenc.model.folder import save_folder
from tests.small import loaded, sample, write_tar

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


def test_a_comparison_says_it_of_what_both_were_given(shards, tmp_path, encoder_folder, capsys):
    save_folder(tmp_path / "other", loaded("vit", seed=5))
    write_tar(
        tmp_path / "classed" / "0.tar", [*sample("a", cls=0), *sample("b", cls=1), ("c.png", b"no"), ("c.cls", b"1")]
    )
    (tmp_path / "classed" / "classnames.txt").write_text("red\nblue")
    encoders = [str(encoder_folder), str(tmp_path / "other")]
    words = [word for encoder in encoders for word in ("--encoder", encoder)]
    for name, encoder in zip("ab", encoders, strict=True):
        made = ["embed", "--encoder", encoder, "--data", str(shards), "--out", str(tmp_path / name), *CPU]
        assert main(made) == 0
    more = {2: ["--data", str(shards), "--zeroshot", str(tmp_path / "classed")]}
    more[1] = ["--data", str(tmp_path / "a"), "--data-b", str(tmp_path / "b")]
    for count, data in more.items():
        capsys.readouterr()
        assert main(["eval", "compare", *words, *data, "--ks", "1", "--json", *CPU]) == 0
        report = json.loads(capsys.readouterr().out)
        reasons = {key: value for key, value in report.items() if key.startswith("data/dropped/")}
        assert report["data/dropped"] == count == sum(reasons.values())


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
