"""`dualenc eval sweep`: its files, its exit code, and a YAML that is refused before any work."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

from dualenc.cli import eval_sweep
from dualenc.cli.common import group
from tests.small import COLOURS, write_shards


def run(*arguments: str) -> int:
    parser = argparse.ArgumentParser(prog="dualenc")
    eval_sweep.register(group(parser.add_subparsers(), "eval", "measure an encoder"))
    options = parser.parse_args(["eval", "sweep", *arguments, "--workers", "0", "--accelerator", "cpu"])
    return options.run(options)


@pytest.fixture
def sweep(encoder_folder: Path, shards: Path, tmp_path: Path) -> Path:
    write_shards(tmp_path / "classed", 8, shards=1, prefix="c", cls=lambda i: i)
    (tmp_path / "classed" / "classnames.txt").write_text("\n".join(COLOURS))
    path = tmp_path / "sweep.yaml"
    path.write_text(
        f"encoders: [{{name: tiny, path: {encoder_folder}}}]\n"
        f"data: [{{name: pairs, path: {shards}}}, {{name: colours, path: {tmp_path}/classed, task: zeroshot}}]\n"
    )
    return path


def test_a_sweep_leaves_its_files_and_says_its_rows(
    sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert run(str(sweep), "--out", str(out)) == 0
    said = capsys.readouterr().out
    assert "tiny" in said and "Text → image R@1" in said and "own" in said
    assert {"results.csv", "results.parquet", "report.json", "report.html", "rows"} <= {p.name for p in out.iterdir()}
    report = json.loads((out / "report.json").read_text())
    assert 0 <= report["tiny/pairs/text_to_image/recall@1"] <= 1
    assert 0 <= report["tiny/colours/own/acc1"] <= 1
    assert report["provenance/versions/torch"]
    assert "Every combination" in (out / "report.html").read_text()
    assert run(str(sweep), "--out", str(out), "--json") == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(one["encoder"], one["data"], one["task"]) for one in rows] == [
        ("tiny", "pairs", "retrieval"),
        ("tiny", "colours", "zeroshot"),
    ]
    assert rows[1]["acc1"] == report["tiny/colours/own/acc1"]


def test_a_row_that_fails_is_in_the_table_and_in_the_exit_code(
    sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep.write_text(sweep.read_text() + "ks: [1, 999]\n")
    assert run(str(sweep), "--out", str(tmp_path / "out")) == 1
    said = capsys.readouterr()
    assert "1 of 2 failed; the same command tries them again" in said.err
    assert "999" in (tmp_path / "out" / "results.csv").read_text()
    assert "colours" in said.out


def test_a_typo_is_told_before_any_work(sweep: Path, tmp_path: Path) -> None:
    sweep.write_text(sweep.read_text().replace("task:", "taks:"))
    with pytest.raises(ValueError, match=r"data\[1\] has 'taks'.*did you mean 'task'"):
        run(str(sweep), "--out", str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_the_yaml_of_the_help_is_a_sweep(tmp_path: Path) -> None:
    from dualenc.evaluate.sweep.spec import combinations, read_sweep

    yaml = eval_sweep.ABOUT.split("SWEEP.yaml:\n")[1].split("\nThe folder")[0]
    (tmp_path / "example.yaml").write_text(yaml)
    assert len(combinations(read_sweep(tmp_path / "example.yaml"))) == 3 * (1 + 3)
