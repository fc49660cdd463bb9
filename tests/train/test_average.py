"""The moving average of the weights: its values, what validation and checkpoints see, and resuming."""

from types import SimpleNamespace

import pytest
import torch

from dualenc import DualEncoder
from dualenc.train.average import TRAINED, Average
from dualenc.train.finite import NonFinite
from dualenc.train.module import ContrastiveModule
from tests.train.conftest import read_log

ALONE = {"data": {"val": None, "zeroshot": None}}


class Module(torch.nn.Module):
    device = torch.device("cpu")

    def __init__(self, dtype=torch.float32):
        super().__init__()
        self.frozen, self.layer = torch.nn.Linear(2, 2).requires_grad_(False), torch.nn.Linear(2, 2)
        self.norm = torch.nn.BatchNorm1d(2)
        self.to(dtype)


def trainer():
    return SimpleNamespace(state=SimpleNamespace(fn="fit"))


def walk(module, seed):
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if "frozen" not in name and tensor.is_floating_point():
                tensor.add_(torch.randn(tensor.shape, generator=torch.Generator().manual_seed(seed)))


def test_values_are_those_of_the_formula_in_float64():
    module, guard = Module(), NonFinite("skip")
    average = Average(0.3, guard)
    average.on_train_start(trainer(), module)
    names = [name for name, _ in module.named_parameters() if "frozen" not in name]
    names += ["norm.running_mean", "norm.running_var"]
    expected = {name: module.state_dict()[name].double() for name in names}
    count = 0
    for step in range(12):
        walk(module, step)
        left_out = step in (2, 7)
        guard.skipped = torch.tensor(float(left_out))
        average.on_train_batch_end(trainer(), module)
        decay = min(0.3, (1 + count) / (10 + count))
        if not left_out:
            count += 1
            for name in names:
                expected[name] = decay * expected[name] + (1 - decay) * module.state_dict()[name].double()
    checkpoint = {"state_dict": module.state_dict()}
    average.on_save_checkpoint(trainer(), module, checkpoint)
    assert checkpoint["ema"]["count"] == count == 10 and set(checkpoint["ema"]["average"]) == set(names)
    assert checkpoint["state_dict"].keys() == checkpoint[TRAINED].keys() == module.state_dict().keys()
    for name, tensor in module.state_dict().items():
        assert torch.equal(checkpoint[TRAINED][name], tensor)
        wanted = expected.get(name, tensor.double())
        assert torch.allclose(checkpoint["state_dict"][name].double(), wanted, atol=1e-6), name


def test_a_step_that_was_left_out_moves_nothing():
    module, guard = Module(), NonFinite("skip")
    average = Average(0.9, guard)
    average.on_train_start(trainer(), module)
    walk(module, 0)
    average.on_train_batch_end(trainer(), module)
    before = {name: tensor.clone() for name, tensor in average._average.items()}
    guard.skipped = torch.tensor(1.0)
    average.on_train_batch_end(trainer(), module)
    assert all(torch.equal(before[name], tensor) for name, tensor in average._average.items())


def test_half_precision_is_averaged_in_float32():
    module, average = Module(torch.bfloat16), Average(0.999)
    average.on_train_start(trainer(), module)
    assert {tensor.dtype for tensor in average._average.values()} == {torch.float32}
    kept = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    average.on_train_batch_end(trainer(), module)
    walk(module, 1)
    trained = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    average.on_validation_epoch_start(trainer(), module)
    assert all(torch.equal(tensor, kept[name]) for name, tensor in module.state_dict().items())
    average.on_validation_end(trainer(), module)
    assert all(torch.equal(tensor, trained[name]) for name, tensor in module.state_dict().items())


@pytest.mark.parametrize("decay", [1.0, -0.1, 2])
def test_a_decay_that_is_none_is_refused(decay):
    with pytest.raises(ValueError, match=f"model.ema is {decay}"):
        Average(decay)


@pytest.fixture(scope="module")
def averaged(command, tmp_path_factory):
    root = tmp_path_factory.mktemp("averaged") / "run"
    assert command("fit", root, "--model.ema", 0.5, model={"lr": 0.003}, checkpoint={"monitor": "val/mean_recall"}) == 0
    return root


def test_the_encoder_and_whoever_reads_a_checkpoint_get_the_average(averaged, command, tmp_path):
    last = averaged / "checkpoints" / "last.ckpt"
    state = torch.load(last, weights_only=True)
    weight = "model.visual.proj"
    assert not torch.equal(state["state_dict"][weight], state[TRAINED][weight])
    best = next((averaged / "checkpoints").glob("best-*.ckpt"))
    assert DualEncoder.load(averaged / "encoder").fingerprint == DualEncoder.load(best).fingerprint
    assert command("fit", tmp_path / "run", "--model.ema", 0.5, **ALONE) == 0
    ends = [DualEncoder.load(tmp_path / "run" / name).fingerprint for name in ("encoder", "checkpoints/last.ckpt")]
    assert ends[0] == ends[1]


def test_validation_scores_the_average(averaged, command, tmp_path):
    """The score in the log is that of the checkpoint's `state_dict`, class embeddings of zero-shot included."""
    assert command("validate", tmp_path / "again", "--ckpt_path", averaged / "checkpoints" / "last.ckpt") == 0
    scores = read_log(tmp_path / "again" / "validate" / "metrics.csv")
    log = read_log(averaged / "log" / "metrics.csv")
    names = [name for name in scores if name.startswith("val/")]
    assert len(names) > 8
    for name in names:
        assert scores[name][-1][1] == log[name][-1][1], name


class Crash(Exception):
    pass


@pytest.fixture
def crashes(monkeypatch):
    def at(step_number):
        step = ContrastiveModule.training_step

        def fails(self, batch, number):
            if self.global_step == step_number:
                monkeypatch.setattr(ContrastiveModule, "training_step", step)
                raise Crash
            return step(self, batch, number)

        monkeypatch.setattr(ContrastiveModule, "training_step", fails)

    return at


def test_a_resumed_average_is_the_uninterrupted_one(command, tmp_path, crashes):
    """To the bit, with patch dropout: with towers whose random draws matter, within an epoch."""
    vision = {"image_size": 32, "patch_size": 8, "layers": 1, "width": 32, "head_width": 16, "patch_dropout": 0.5}
    changes = {"model": {"vision": vision, "lr": 0.003, "ema": 0.7}, "checkpoint": {"every_n_train_steps": 1}, **ALONE}
    assert command("fit", tmp_path / "whole", **changes) == 0
    crashes(5)
    assert command("fit", tmp_path / "cut", **changes) == 1
    assert command("fit", tmp_path / "cut", "--ckpt_path", "last", **changes) == 0
    whole, cut = (torch.load(tmp_path / n / "checkpoints" / "last.ckpt", weights_only=True) for n in ("whole", "cut"))
    for part in ("state_dict", TRAINED):
        for name, tensor in whole[part].items():
            assert torch.equal(tensor, cut[part][name]), name
    assert whole["ema"]["count"] == cut["ema"]["count"] == 8
    marks = {DualEncoder.load(tmp_path / name / "encoder").fingerprint for name in ("whole", "cut")}
    assert len(marks) == 1


def test_going_on_with_or_without_an_average_is_told(command, tmp_path, caplog):
    for name, first, then, told in (
        ("dropped", ["--model.ema", 0.5], [], "averaged weights are left out"),
        ("begun", [], ["--model.ema", 0.5], "has no averaged weights"),
    ):
        assert command("fit", tmp_path / name, *first, "--trainer.max_steps", 3, **ALONE) == 0
        before = torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True)
        caplog.clear()
        (tmp_path / name / "encoder").rename(tmp_path / f"{name}-encoder")
        words = ["--ckpt_path", "last", "--trainer.max_steps", 4, "--model.lr", 0]
        assert command("fit", tmp_path / name, *then, *words, **ALONE) == 0
        assert any(told in record.getMessage() for record in caplog.records)
        after = torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True)
        trained = before.get(TRAINED, before["state_dict"])  # goes on from the trained weights, not from the average
        for key, tensor in trained.items():
            if "running" not in key:
                assert torch.allclose(after.get(TRAINED, after["state_dict"])[key], tensor, atol=2e-3), key


def test_readers_of_tied_weights_get_the_average_by_both_names():
    module = torch.nn.Module()
    module.one, module.other = torch.nn.Linear(2, 2, bias=False), torch.nn.Linear(2, 2, bias=False)
    module.other.weight = module.one.weight
    module.device = torch.device("cpu")
    average = Average(0.5)
    average.on_train_start(trainer(), module)
    with torch.no_grad():
        module.one.weight.add_(1)
    average.on_train_batch_end(trainer(), module)
    checkpoint = {"state_dict": module.state_dict()}
    average.on_save_checkpoint(trainer(), module, checkpoint)
    one, other = (checkpoint["state_dict"][f"{name}.weight"] for name in ("one", "other"))
    assert torch.equal(one, other) and not torch.equal(one, module.one.weight)
