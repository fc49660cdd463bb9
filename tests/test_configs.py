"""Every shipped config trains, and every shipped recipe builds, on tiny data."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from dualenc.cli import main
from dualenc.files import shipped

ROOT = Path(__file__).parent.parent
CONFIGS = sorted(path.stem for path in (ROOT / "configs").glob("*.yaml"))
RECIPES = sorted(path.stem for path in (ROOT / "index").glob("*.yaml"))


def test_there_are_some() -> None:
    assert {"scenes", "flickr8k", "emoji"} <= set(CONFIGS)
    assert {"flat", "hnsw", "ivf", "auto"} <= set(RECIPES)


@pytest.mark.parametrize("name", CONFIGS)
def test_config_opens_with_command_cost_and_result(name: str) -> None:
    head = [line for line in shipped("configs", name).read_text().splitlines() if line.startswith("#")]
    text = " ".join(head)
    assert f"dualenc fit --config {name}" in text
    assert re.search(r"Cost: \d+\.\d min", text), "what it costs"
    assert re.search(r"R@1 / 5 / 10 \d+\.\d", text), "what it reached"


@pytest.mark.parametrize("name", CONFIGS)
def test_config_trains(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shards: Path, val_shards: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    config = (ROOT / "configs" / f"{name}.yaml").read_text()
    words = [
        "fit",
        "--config",
        name,
        "--trainer.max_epochs",
        "1",
        "--trainer.default_root_dir",
        "run",
        "--data.batch_size",
        "8",
    ]
    words += [
        "--data.train",
        str(shards),
        "--data.val",
        str(val_shards),
        "--data.workers",
        "0",
        "--trainer.enable_progress_bar",
        "false",
    ]
    if "zeroshot:" in config:
        shutil.copytree(val_shards, "zeroshot")
        Path("zeroshot/classnames.txt").write_text("\n".join(f"class {i}" for i in range(8)))
        words += ["--data.zeroshot", "zeroshot"]
    assert main(words) == 0
    assert (tmp_path / "run" / "encoder" / "dualenc.json").is_file()


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_builds(name: str, tmp_path: Path) -> None:
    from dualenc import Index

    rng = np.random.default_rng(0)
    rows = rng.normal(size=(600, 16)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    index = Index.build(rows, tmp_path / "index", recipe=name)
    ids, scores = index.search(rows[:5], k=1)
    assert ids[:, 0].tolist() == [0, 1, 2, 3, 4]
    assert np.allclose(scores[:, 0], 1, atol=1e-3)
