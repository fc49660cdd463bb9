"""A tiny training set-up: its configuration, and one run that several tests look at."""

from __future__ import annotations

import csv
import shutil

import pytest
import yaml

from dualenc.cli import main
from tests.small import TEXT, VISION


@pytest.fixture(scope="session")
def zeroshot_shards(val_shards, tmp_path_factory):
    """The validation shards with names for their classes, as CLIP_benchmark has them."""
    folder = tmp_path_factory.mktemp("zeroshot")
    for path in val_shards.glob("*.tar"):
        shutil.copy(path, folder)
    (folder / "classnames.txt").write_text("red\ngreen\nblue\nyellow\nblack\nwhite\npurple\norange\n")
    (folder / "zeroshot_classification_templates.txt").write_text("a {c} picture\nit is {c}\n")
    return folder


@pytest.fixture(scope="session")
def settings(shards, val_shards, zeroshot_shards):
    """The configuration of a run of 8 steps over 4 epochs, as nested dicts."""

    def make(root, **changes):
        config = {
            "seed_everything": 0,
            "trainer": {"max_epochs": 4, "accelerator": "cpu", "devices": 1, "default_root_dir": str(root)},
            "model": {"embed_dim": 16, "vision": VISION["vit"], "text": TEXT, "lr": 0.001, "warmup_steps": 2},
            "data": {
                "train": str(shards),
                "val": str(val_shards),
                "test": str(val_shards),
                "zeroshot": str(zeroshot_shards),
                "batch_size": 12,
                "workers": 0,
                "augment": {"scale": [1.0, 1.0], "ratio": [1.0, 1.0]},
            },
        }
        config["trainer"] |= {"log_every_n_steps": 1, "enable_model_summary": False}
        for name, value in changes.items():
            config[name] = config.get(name, {}) | value
        return config

    return make


@pytest.fixture(scope="session")
def command(settings):
    """command("fit", root, "--model.lr", "1", data={…}): the exit code of `dualenc fit --config …`."""

    def run(verb, root, *words, **changes):
        path = root.parent / f"{root.name}.yaml"
        path.write_text(yaml.safe_dump(settings(root, **changes)))
        return main([verb, "--config", str(path), *map(str, words)])

    return run


@pytest.fixture(scope="session")
def finished(command, tmp_path_factory):
    """The folder of a finished run."""
    root = tmp_path_factory.mktemp("finished") / "run"
    assert command("fit", root, trainer={"max_epochs": 20, "check_val_every_n_epoch": 5}) == 0
    return root


def read_log(path):
    """name -> [(step, value)] of a metrics.csv."""
    series = {}
    with open(path, newline="") as file:
        for row in csv.DictReader(file):
            for name, value in row.items():
                if name != "step" and value != "":
                    series.setdefault(name, []).append((int(row["step"]), float(value)))
    return series
