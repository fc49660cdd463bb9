"""The benchmarks of training on toy data: each runs, compares what it says, and what it counts is right by another way."""

from __future__ import annotations

import dataclasses
import inspect
import json
import shutil
import statistics
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dualenc.torchvision_ops  # noqa: F401  (before open_clip)

import numpy as np
import pytest
import torch
import yaml

from tests.small import TEXT, VISION, loaded, write_shards

ROOT = Path(__file__).resolve().parents[1]
TOWERS = {"model__embed_dim": 16, "model__vision": VISION["vit"], "model__text": TEXT}


@pytest.fixture
def benchmarks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> SimpleNamespace:
    """The modules; what they record goes to tmp_path."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    import record
    import train_accumulate
    import train_flickr8k
    import train_flickr8k_peer
    import train_inside
    import train_ranks
    import train_step

    monkeypatch.setattr(record, "RESULTS", tmp_path)
    monkeypatch.setattr(train_step, "RESULTS", tmp_path)
    return SimpleNamespace(
        flickr8k=train_flickr8k,
        peer=train_flickr8k_peer,
        inside=train_inside,
        step=train_step,
        accumulate=train_accumulate,
        ranks=train_ranks,
    )


@pytest.fixture(scope="module")
def splits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train, val and test, of 24, 12 and 16 pictures with two captions each."""
    folder = tmp_path_factory.mktemp("splits")
    for name, count in {"train": 24, "val": 12, "test": 16}.items():
        write_shards(folder / name, count, shards=1, prefix=name)
    return folder


# What a sample buys


def test_a_plan_shows_as_many_samples_as_asked_for(benchmarks) -> None:
    plan = benchmarks.flickr8k.plan
    for samples, epochs in {51_000: 9, 204_000: 35}.items():
        run = plan("base", 0, samples, 6000)
        assert (run.epochs, run.shown) == (epochs, epochs * 23 * 256)
    for name in benchmarks.flickr8k.RECIPES:
        for samples in (51_000, 204_000):
            run = plan(name, 0, samples, 6000)
            assert run.epochs % run.every == 0 and run.epochs // run.every >= 3 and abs(run.shown / samples - 1) < 0.06
    with pytest.raises(ValueError, match="batch of 256"):
        plan("base", 0, 51_000, 100)


def test_recipes_name_settings_that_there_are(benchmarks) -> None:
    from dualenc.data.module import PairData
    from dualenc.data.transforms import Augment
    from dualenc.train.module import ContrastiveModule

    known = {f"model.{name}" for name in inspect.signature(ContrastiveModule).parameters}
    known |= {f"data.{name}" for name in inspect.signature(PairData).parameters}
    known |= {f"data.augment.{field.name}" for field in dataclasses.fields(Augment)}
    for options in (benchmarks.flickr8k.PLAIN, *benchmarks.flickr8k.RECIPES.values()):
        for option in options:
            assert option.partition("=")[0].removeprefix("--") in known, option


def test_the_plain_recipe_does_not_depend_on_the_config(benchmarks) -> None:
    """Whatever the config sets that is neither the towers' sizes nor a place, PLAIN sets as well."""
    config = yaml.safe_load((ROOT / "configs" / "flickr8k.yaml").read_text())
    sizes = {"model.embed_dim", "model.vision", "model.text", "data.train", "data.val", "data.test", "data.workers"}
    named = {f"model.{name}" for name in config["model"]} | {f"data.{name}" for name in config["data"]}
    named = (named - {"data.augment"}) | {f"data.augment.{name}" for name in config["data"]["augment"]}
    plain = {option.partition("=")[0].removeprefix("--") for option in benchmarks.flickr8k.PLAIN}
    assert config["trainer"]["gradient_clip_val"] == 1.0 and named - sizes - plain == set()
    assert {name: config["model"][name] for name in ("embed_dim",)} == {"embed_dim": benchmarks.peer.MODEL["embed_dim"]}
    assert benchmarks.peer.MODEL["vision_cfg"] == config["model"]["vision"]
    assert benchmarks.peer.MODEL["text_cfg"] == config["model"]["text"]


@pytest.fixture
def called(benchmarks, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[list[str]]:
    """The commands that train_flickr8k.py runs, in this process: importing would take longer than training."""
    from dualenc.cli import main

    words: list[list[str]] = []

    def run(command: list[str], **_) -> subprocess.CompletedProcess:
        words.append(command)
        if command[1] == "-m":
            return subprocess.CompletedProcess(command, main(command[3:]))
        with monkeypatch.context() as patch:
            patch.setattr("sys.argv", [*command[1:], "--batch-size=8"])
            benchmarks.peer.main()
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(benchmarks.flickr8k, "subprocess", SimpleNamespace(run=run, STDOUT=subprocess.STDOUT))
    monkeypatch.setattr(benchmarks.flickr8k, "RUNS", tmp_path / "runs")
    plain = [option for option in benchmarks.flickr8k.PLAIN if "batch_size" not in option]
    monkeypatch.setattr(benchmarks.flickr8k, "PLAIN", [*plain, "--data.batch_size=8", "--trainer.accelerator=cpu"])
    return words


def test_what_a_sample_buys(benchmarks, called, splits: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    words = ["train_flickr8k.py", "--shards", str(splits), "--variants", "base,open_clip", "--samples", "48"]
    monkeypatch.setattr("sys.argv", words)
    benchmarks.flickr8k.main()
    assert len(called) == 2 and "--ckpt_path=last" not in called[0]
    found = json.loads((tmp_path / "train_flickr8k.json").read_text())["results"]["48"]
    assert set(found) == {"base", "open_clip"}
    for name, entry in found.items():
        assert entry["samples"] == 48 and entry["epochs"] == 2 and entry["runs"]["0"]["seconds"] > 0
        encoder = tmp_path / "runs" / "48" / f"{name}-seed0" / "encoder"
        by_hand = recall_by_hand(encoder, splits / "test")
        assert {way: entry["runs"]["0"][way] for way in by_hand} == pytest.approx(by_hand, abs=1e-6)
        assert entry["mean"]["recall@10"] == pytest.approx(statistics.mean(by_hand.values()), abs=1e-6)
    shutil.rmtree(tmp_path / "runs" / "48" / "base-seed0" / "checkpoints")
    benchmarks.flickr8k.main()
    assert len(called) == 2 and capsys.readouterr().out.count("48 samples") == 4  # nothing trained or scored again


def recall_by_hand(folder: Path, shards: Path) -> dict[str, float]:
    """Recall@10 by open_clip's own loading and preprocessing and a sort."""
    import open_clip
    import train_flickr8k_peer as peer

    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    model.eval()
    own, trained = (some.transforms[-1] for some in (transform, peer.image_transform(64, is_train=False)))
    assert [*own.mean, *own.std] == [*trained.mean, *trained.std]
    pairs = peer.read(shards)
    with torch.no_grad():
        images = model.encode_image(torch.stack([transform(image) for image, _ in pairs]), normalize=True)
        tokens = peer.SimpleTokenizer(context_length=24)([caption for _, some in pairs for caption in some])
        scores = images.double() @ model.encode_text(tokens, normalize=True).double().T
    owner = [row for row, (_, some) in enumerate(pairs) for _ in some]
    to_image = [row in scores[:, t].topk(10).indices for t, row in enumerate(owner)]
    to_text = [any(owner[t] == row for t in scores[row].topk(10).indices) for row in range(len(pairs))]
    return {
        "text_to_image/recall@10": statistics.mean(map(float, to_image)),
        "image_to_text/recall@10": statistics.mean(map(float, to_text)),
    }


def test_a_run_that_fails_stops_no_other(benchmarks, called, splits: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setitem(benchmarks.flickr8k.RECIPES, "wrong", ["--model.lr=-1"])
    begun = tmp_path / "runs" / "24" / "wrong-seed0" / "checkpoints"
    begun.mkdir(parents=True)
    (begun / "last.ckpt").write_bytes(b"")
    words = ["train_flickr8k.py", "--shards", str(splits), "--variants", "wrong,open_clip", "--samples", "24"]
    monkeypatch.setattr("sys.argv", words)
    with pytest.raises(SystemExit):
        benchmarks.flickr8k.main()
    assert "--ckpt_path=last" in called[0] and "wrong-seed0 failed" in capsys.readouterr().err
    assert set(json.loads((tmp_path / "train_flickr8k.json").read_text())["results"]["24"]) == {"open_clip"}


def test_means_and_spreads(benchmarks, monkeypatch) -> None:
    results: dict = {}
    for seed, value in {0: 0.1, 1: 0.3, 2: 0.2}.items():
        scores = dict.fromkeys(["recall@10", *benchmarks.flickr8k.SCORES], value)
        benchmarks.flickr8k.note(results, benchmarks.flickr8k.plan("base", seed, 51_000, 6000), scores, 1)
    entry = results["51000"]["base"]
    assert entry["mean"]["recall@10"] == 0.2 and entry["standard_deviation"]["recall@10"] == pytest.approx(0.1)
    peer = dict.fromkeys(["recall@10", *benchmarks.flickr8k.SCORES], 0.1)
    benchmarks.flickr8k.note(results, benchmarks.flickr8k.plan("open_clip", 0, 51_000, 6000), peer, 1)
    best = benchmarks.flickr8k.table(results).splitlines()[2]
    assert best.split() == ["base", "20.00", "10.00", "2.00×", "3", "0.0"]


def test_the_peer_keeps_its_best_weights(benchmarks, splits: Path, monkeypatch) -> None:
    scores, seen = [0.1, 0.3, 0.2], []
    monkeypatch.setattr(
        benchmarks.peer, "mean_recall", lambda model, *_: seen.append(snapshot(model)) or scores[len(seen) - 1]
    )
    options = SimpleNamespace(epochs=3, validate_every=1, batch_size=8, seed=0)
    train = benchmarks.peer.read(splits / "train")
    assert len(train) == 24 and train[1][1] == ["a green picture number 1", "number 1 is green"]
    weights, best = benchmarks.peer.fit(train, [], options)
    assert best == 0.3 and all(torch.equal(weights[name], value) for name, value in seen[1].items())
    assert not torch.equal(seen[1]["visual.conv1.weight"], seen[2]["visual.conv1.weight"])


def snapshot(model) -> dict:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


# A step


def toy(benchmarks, splits: Path) -> dict:
    return benchmarks.step.measure(str(splits / "train"), 4, 2, "cpu", toy=True)


def test_a_step_against_open_clip(benchmarks, splits: Path, monkeypatch) -> None:
    shapes: dict[str, list] = {"ours": [], "theirs": []}
    from dualenc.train.module import ContrastiveModule

    training_step, peer_step = ContrastiveModule.training_step, benchmarks.step.Peer.step

    def ours(self, batch, number):
        shapes["ours"].append((batch["image"].dtype, batch["text"].shape))
        return training_step(self, batch, number)

    def theirs(self, image, text):
        shapes["theirs"].append((image.dtype, text.shape))
        return peer_step(self, image, text)

    monkeypatch.setattr(ContrastiveModule, "training_step", ours)
    monkeypatch.setattr(benchmarks.step.Peer, "step", theirs)
    found = toy(benchmarks, splits)
    assert shapes["theirs"] == [(torch.float32, (4, 77))] * 4
    lengths = [shape[1] for _, shape in shapes["ours"][:-1]]
    assert [n == 77 for n in lengths] == [False, True, True, False, False, True] and {
        dtype for dtype, _ in shapes["ours"]
    } == {torch.uint8}
    assert found["tokens"] == [n for n in lengths if n != 77][1:]
    pairs = zip(found["seconds"]["open_clip"], found["seconds"]["ours"], strict=True)
    assert found["gain"] == pytest.approx(statistics.median(a / b for a, b in pairs), abs=1e-3)
    assert json.loads(json.dumps(found)) == found and "ours over open_clip's" in benchmarks.step.table({"cpu": found})
    flops, tokens = found["arithmetic"]["flops_a_step"], found["tokens"][0]
    block = (
        3 * 4 * 2 * 12 * 32**2
    )  # of a block of width 32: forward and twice that backward, 4 rows, 12 matrices' worth
    saved = (flops["open_clip"] - flops["ours"]) / (block * (77 - tokens))
    assert 0.95 < saved < 2  # attention's own products, which grow with the square, come on top


def test_the_peer_gets_what_its_own_transform_gives(benchmarks) -> None:
    from PIL import Image

    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    module: Any = torch.nn.Module()
    module.model = loaded("vit").model
    transform = benchmarks.peer.image_transform(32, is_train=False, mean=[0.5, 0.4, 0.3], std=[0.25, 0.2, 0.3])
    batch = {"image": torch.from_numpy(pixels).permute(0, 3, 1, 2), "text": torch.ones(2, 5, dtype=torch.int64)}
    image, text = benchmarks.step.as_open_clip(batch, module)
    torch.testing.assert_close(image, torch.stack([transform(Image.fromarray(one)) for one in pixels]))
    assert image.is_contiguous() and text.shape == (2, 77) and text.sum() == 10 and text[0, :5].all()


def test_a_step_on_other_data_is_no_comparison(benchmarks, splits: Path, monkeypatch) -> None:
    as_open_clip = benchmarks.step.as_open_clip

    def other(batch, module):
        image, text = as_open_clip(batch, module)
        return image.flip(0), text

    monkeypatch.setattr(benchmarks.step, "as_open_clip", other)
    with pytest.raises(AssertionError, match="first losses differ"):
        toy(benchmarks, splits)


# Accumulation and ranks


def test_what_is_kept_for_backward_is_counted(benchmarks) -> None:
    module = torch.nn.Linear(50, 100, bias=False)
    x = torch.randn(8, 50, requires_grad=True)  # or the weights would not be kept
    with benchmarks.inside.Saved(module) as saved:
        for part in x.clone().split(4):  # linear keeps its input (4, 50), exp its output (4, 100), both float32
            module(part.clone()).exp().sum().backward()
        assert saved.most == 4 * (4 * 50 + 4 * 100) and saved.now == 0
        y = module(x)
        (y.exp() * y.exp()).sum().backward()  # two exp of the same y keep a result each, and the product the same two
    assert saved.most == 4 * (8 * 50 + 2 * 8 * 100) and saved.now == 0
    expected = torch.nn.Linear(50, 100, bias=False)
    expected.load_state_dict(module.state_dict())
    for part in x.split(4):
        expected(part).exp().sum().backward()
    y = expected(x)
    (y.exp() * y.exp()).sum().backward()
    torch.testing.assert_close(module.weight.grad, expected.weight.grad)


def words(benchmarks, splits: Path, **more) -> list[str]:
    settings = TOWERS | {"trainer__accelerator": "cpu", "data__train": str(splits / "train")} | more
    return benchmarks.inside.words(**settings)


def test_accumulation_keeps_less(benchmarks, splits: Path) -> None:
    found = benchmarks.accumulate.measure(str(splits / "train"), 8, 4, 2, 1, TOWERS)
    assert found["kept_mib"]["in_one"] > 0.1 and found["memory"] < 0.5
    assert found["memory"] == pytest.approx(found["kept_mib"]["in_pieces"] / found["kept_mib"]["in_one"], rel=0.02)
    ratios = [b / a for a, b in zip(found["seconds"]["in_one"], found["seconds"]["in_pieces"], strict=True)]
    assert found["time"] == pytest.approx(statistics.median(ratios), rel=0.05) and len(ratios) == 2
    assert benchmarks.accumulate.table(found | {"memory": 0.3}).splitlines()[2].endswith("MISSED")


def test_two_ranks(benchmarks, splits: Path) -> None:
    found = benchmarks.ranks.measure(words(benchmarks, splits), 4, 1, 1)
    rates, gains = found["samples_per_second"], found["gain"]
    assert set(rates) == {"one", "two", "ranks", "ranks_same_batch"} and min(rates.values()) > 0
    assert gains["ranks"] == pytest.approx(rates["ranks"] / rates["one"], rel=0.05, abs=0.01)
    assert found["efficiency"] == pytest.approx(rates["ranks"] / rates["two"], rel=0.05, abs=0.01)
    assert benchmarks.ranks.table(found | {"efficiency": 0.5}).splitlines()[1].endswith("MISSED")


def test_ranks_share_one_batch(benchmarks, splits: Path) -> None:
    """Each of two keeps about half of what one process keeps: they are one training, not two."""
    options = words(benchmarks, splits, data__batch_size=8)
    processes = [
        benchmarks.inside.Process([*options, "--trainer.devices=1"], 1, 1),
        *benchmarks.inside.group(options, 1, 2),
    ]
    for process in processes:
        process.begin("saved")
    one, *two = (process.finish() for process in processes)
    for process in processes:
        process.end()
    assert all(0.4 * one < each < 0.75 * one for each in two)


def test_a_process_that_fails_is_told(benchmarks, splits: Path) -> None:
    process = benchmarks.inside.Process(words(benchmarks, splits, data__batch_size=1000), 1, 1)
    with pytest.raises(RuntimeError, match="ended before its step"):
        process.step()
    process.end()


def test_the_losses(benchmarks: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import loss

    found = loss.exact(64, 16, 10)
    assert found["largest_difference"] <= 1e-10 and len(found["gradients"]) == 13
    small = ["--rank-batch", "64", "--dim", "16", "--repeats", "1"]
    monkeypatch.setattr("sys.argv", ["loss.py", "--only", "ranks", *small])
    monkeypatch.setattr(loss, "RESULTS", tmp_path, raising=False)
    loss.main()
    entry = json.loads((tmp_path / "loss.json").read_text())["results"]["ranks"]
    assert entry["relative_difference"] < 1e-4 and set(entry["seconds"]) == {"gather", "ring"}


def test_the_profile_of_a_step(benchmarks: SimpleNamespace, splits: Path, tmp_path: Path) -> None:
    import train_profile

    config = tmp_path / "config.yaml"
    model = {name.removeprefix("model__"): value for name, value in TOWERS.items()}
    data = {"train": str(splits / "train"), "batch_size": 4, "workers": 0}
    trainer = {"max_steps": 50, "accelerator": "cpu", "devices": 1, "default_root_dir": str(tmp_path / "run")}
    config.write_text(yaml.safe_dump({"trainer": trainer, "model": model, "data": data}))
    found = train_profile.main(["--config", str(config), "--steps", "2"])
    assert set(found["milliseconds"]) == {"forward", "backward", "optimizer", "rest"}
    assert all(taken > 0 for taken in found["milliseconds"].values())
    assert any("addmm" in one["name"] or "mm" in one["name"] for one in found["operators"])
    assert "waits for the device" in train_profile.table(found).splitlines()[-1]
