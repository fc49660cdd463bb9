"""Every command in the README runs, in its order, on tiny data; its results table is the one that the records give."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from dualenc.cli import main
from dualenc.data.stream.loader import StreamOptions
from dualenc.data.transforms import Augment

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
TINY = {
    "data scenes": ["--train", "256", "--val", "40", "--test", "40"],
    "fit": ["--trainer.max_epochs", "1", "--data.batch_size", "64", "--trainer.log_every_n_steps", "1"],
    "validate": ["--data.batch_size", "64"],
    "test": ["--data.batch_size", "64"],
}


def blocks(language: str) -> list[str]:
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
    return [text for name, text in fenced if name == language]


def commands() -> list[list[str]]:
    """Every `dualenc …` line of the README's bash blocks."""
    lines = [line.strip() for block in blocks("bash") for line in block.splitlines()]
    found = [
        shlex.split(line.removeprefix(".venv/bin/"), comments=True)
        for line in lines
        if line.removeprefix(".venv/bin/").startswith("dualenc ")
    ]
    return [words[1:] for words in found]


@pytest.fixture
def own_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What a reader has already: a folder of photos with captions, and a table."""
    monkeypatch.chdir(tmp_path)
    photos = tmp_path / "photos"
    photos.mkdir()
    rng = np.random.default_rng(0)
    for name in ("beach", "forest"):
        Image.fromarray(rng.integers(0, 255, (48, 64, 3), dtype=np.uint8)).save(photos / f"{name}.jpg")
        (photos / f"{name}.txt").write_text(f"a {name}\n")
    (tmp_path / "captions.csv").write_text("file,title\nphotos/beach.jpg,a beach\nphotos/forest.jpg,a forest\n")
    return tmp_path


def test_every_command_runs(own_pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    listed = commands()
    assert len(listed) > 15
    # the two commands at the top use what `make demo` leaves, which the later ones make step by step
    for words in [w for w in listed if w is not listed[0]]:
        extra = next((TINY[verb] for verb in TINY if " ".join(words).startswith(verb)), [])
        if words[0] == "fit" and "--ckpt_path" in words:
            extra = [*extra, "--trainer.max_epochs", "2"]
        assert main([*words, *extra]) == 0, f"dualenc {shlex.join(words)}: {capsys.readouterr().err}"
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), {})
    for made in ("hits.png", "runs/demo/evaluation/report.html", "runs/demo/encoder/dualenc.json"):
        assert (own_pictures / made).stat().st_size > 500, made


def test_every_setting_exists() -> None:
    from dualenc.data.module import PairData

    examples = [yaml.safe_load(block) for block in blocks("yaml")]
    assert len(examples) >= 2
    for example in examples:
        given = example["data"]
        made = {"augment": Augment(**given.pop("augment", {})), "stream": StreamOptions(**given.pop("stream", {}))}
        PairData(**given, **made)


def test_the_table_is_rendered_from_the_records() -> None:
    assert len(list((ROOT / "benchmarks" / "results").glob("line_*.json"))) >= 3
    subprocess.run([sys.executable, "benchmarks/table.py", "--check"], cwd=ROOT, check=True)


def test_the_tree_names_what_exists() -> None:
    tree = next(block for block in blocks("") if "dualenc/" in block)
    inside = re.findall(r"^  ([a-z_]+/)", tree, re.MULTILINE)
    assert len(inside) >= 6
    for name in inside:
        assert (ROOT / "dualenc" / name).is_dir(), name
