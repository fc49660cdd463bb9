"""Every shipped config trains, and every shipped recipe builds, on tiny data."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from dualenc.cli import main
from dualenc.files import shipped
from tests.small import TEXT, VISION

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
    if name.startswith("finetune_"):
        return  # the weights that they start from are the user's, and so is what they cost
    assert re.search(r"Cost: \d+\.\d min", text), "what it costs"
    assert re.search(r"R@1 / 5 / 10 \d+\.\d", text), "what it reached"


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder of two blocks a tower, in place of the pretrained one that a config names."""
    folder = tmp_path_factory.mktemp("start") / "encoder"
    from dualenc.model.folder import Loaded, make_tokenizer, save_folder
    from dualenc.model.towers import build

    text = TEXT | {"layers": 2}
    cfg = {"embed_dim": 16, "vision_cfg": VISION["vit"] | {"layers": 2}, "text_cfg": text, "quick_gelu": False}
    save_folder(folder, Loaded(build(cfg, {}), make_tokenizer(text), cfg, {}))
    return folder


def started(config: str, start: Path, train: Path) -> list[str]:
    """What a fine-tuning config needs beside data: where to start from, and what is made of it before."""
    words = ["--model.start_from", str(start)]
    if "image_store:" in config or "hard_negatives:" in config:
        assert main(["embed", "--encoder", str(start), "--data", str(train), "--out", "store", "--workers", "0"]) == 0
    if "image_store:" in config:
        words += ["--data.image_store", "store"]
    if "hard_negatives:" in config:
        assert main(["data", "mine", "store", "mined.parquet"]) == 0
        words += ["--data.hard_negatives", "mined.parquet"]
    return words


@pytest.mark.parametrize("name", CONFIGS)
def test_config_trains(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shards: Path, val_shards: Path, start: Path
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
    if "start_from:" in config:
        words += started(config, start, shards)
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
