"""`dualenc data bench` as a user runs it, on tiny shards and for moments."""

import json
import time

import pytest
import yaml

from dualenc.cli import main
from dualenc.data.prepare import Prepare
from dualenc.train import bench as module
from dualenc.train.bench import bench
from dualenc.train.module import ContrastiveModule

PARTS = ("read", "decode", "tokenize", "collate", "together", "loader", "step")


@pytest.fixture
def config(settings, tmp_path):
    """config(data={…}): the path of a configuration as `fit` takes it, whose run folder must not come to be."""

    def make(**changes):
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump(settings(tmp_path / "run", **changes)))
        return str(path)

    return make


@pytest.mark.parametrize(
    "data", [{}, {"workers": 2}, {"cache": 32}, {"cache": 32, "workers": 2}, {"captions": 2, "shuffle_block": 4}]
)
def test_every_part_is_measured(config, tmp_path, monkeypatch, data):
    monkeypatch.chdir(tmp_path)
    found = bench(["--config", config(data=data)], seconds=0.02).to_json()
    assert tuple(found["samples_per_second"]) == PARTS
    assert all(rate > 0 for rate in found["samples_per_second"].values())
    rates = found["samples_per_second"]
    assert rates["together"] < min(rates["read"], rates["tokenize"], rates["collate"])
    assert found["expected"] <= min(rates["loader"], rates["step"]) * 1.01
    assert found["settings"]["workers"] == data.get("workers", 0) and found["settings"]["cache"] == data.get("cache")
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


def slow(monkeypatch, owner, name, seconds):
    work = getattr(owner, name)

    def slower(*args, **kwargs):
        time.sleep(seconds)
        return work(*args, **kwargs)

    monkeypatch.setattr(owner, name, slower)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_slow_loader_is_found(config, monkeypatch, workers):
    slow(monkeypatch, Prepare, "__call__", 0.02)
    found = bench(["--config", config(data={"workers": workers})], seconds=0.05)
    assert found.bottleneck == "data" and found.rates["decode"] < 50 and found.rates["together"] < 50
    assert found.rates["step"] > found.rates["loader"] and found.rates["loader"] < max(1, workers) * 55
    assert found.workers_needed > workers


def test_a_slow_step_is_found(config, monkeypatch):
    slow(monkeypatch, ContrastiveModule, "training_step", 0.2)
    found = bench(["--config", config(), "--data.workers", "1"], seconds=0.05)
    assert found.bottleneck == "compute" and found.rates["step"] < 12 / 0.2 and found.settings["workers"] == 1


def test_a_step_that_takes_long_is_measured_on_part_of_the_batch(config, monkeypatch):
    monkeypatch.setattr(module, "STEP_SECONDS", 1e-6)
    assert bench(["--config", config()], seconds=0.01).settings["step_samples"] == 8
    monkeypatch.setattr(module, "STEP_SECONDS", 1e6)
    assert bench(["--config", config()], seconds=0.01).settings["step_samples"] == 12


def test_one_device_of_several_is_measured(config):
    found = bench(["--config", config(trainer={"devices": 3, "strategy": "ddp"})], seconds=0.01)
    assert found.settings["devices"] == 3 and found.settings["batch_size"] == 12 and found.settings["step_samples"] == 4


def test_devices_that_do_not_divide_the_batch_are_refused(config):
    with pytest.raises(ValueError, match="batch_size 12 does not divide by 5 ranks"):
        bench(["--config", config(trainer={"devices": 5})], seconds=0.01)


def test_a_finished_run_can_be_measured(settings, finished, tmp_path):
    """Its encoder is there, which `fit` would refuse to overwrite; nothing of it changes."""
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(settings(finished) | {"ckpt_path": "last"}))
    assert bench(["--config", str(path)], seconds=0.01).rates["step"] > 0
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before


def test_a_stream_is_timed_as_a_whole(config, shards):
    pipes = [f"pipe:cat {path}" for path in sorted(shards.glob("*.tar"))]
    found = bench(["--config", config(data={"train": pipes})], seconds=0.02)
    assert found.settings["stream"] and found.rates["loader"] > 0 and found.rates["step"] > 0
    assert [name for name in PARTS if found.rates[name] is None] == [
        "read",
        "decode",
        "tokenize",
        "collate",
        "together",
    ]


def test_samples_that_do_not_decode_are_no_obstacle(config, val_shards):
    found = bench(["--config", config(data={"train": str(val_shards)})], seconds=0.01)
    assert found.rates["step"] > 0


def test_nothing_usable_is_an_error(config, tmp_path_factory):
    from tests.small import write_shards

    broken = write_shards(tmp_path_factory.mktemp("broken"), 12, broken=tuple(range(12)))
    with pytest.raises(ValueError, match="none of the samples tried can be used") as error:
        bench(["--config", config(data={"train": str(broken)})], seconds=0.01)
    assert "\n" not in str(error.value)


def test_the_command(config, capsys, monkeypatch):
    monkeypatch.setattr(bench, "__defaults__", (0.01,))
    assert main(["data", "bench", "--config", config(), "--json", "--data.workers=1"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["settings"]["workers"] == 1 and found["bottleneck"] in ("data", "compute")
    assert found["verdict"] and set(found["samples_per_second"]) == set(PARTS)
    assert main(["data", "bench", "--config", config()]) == 0
    assert "the training step" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--data.train", "no/shards"], "data.train: no/shards does not exist"),
        (["--data.batch_size", "100"], "batch_size 100 is larger than the data set (24 samples)"),
        (["--data.cache", "16"], "data.cache 16 is smaller than the model's images"),
        (["--model.loss", "triplet"], "model.loss 'triplet' is unknown"),
        (["--data.trian", "x"], "did you mean 'data.train'"),
        (["--config", "no-such"], "no-such: no such file, and no configs of that name"),
    ],
)
def test_what_cannot_work_is_one_line(config, capsys, words, message):
    path = config()
    try:
        code = main(["data", "bench", "--config", path, *words])
    except SystemExit as stop:
        code = stop.code
    lines = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    assert code in (1, 2) and len(lines) == 1 and lines[0].startswith("dualenc: error:") and message in lines[0]
