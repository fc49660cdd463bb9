"""`dualenc fit|validate|test` as a user runs them."""

import math
import shutil

import numpy as np
import pytest
import torch

from dualenc.data.shards import open_source
from dualenc.embed.run import embed_source
from dualenc.evaluate.metrics import retrieval_metrics, zero_shot_metrics
from dualenc.model.encoder import DualEncoder
from dualenc.train import module
from dualenc.train.module import ContrastiveModule
from tests.train.conftest import read_log

NAMES = ["red", "green", "blue", "yellow", "black", "white", "purple", "orange"]


def test_a_run_leaves_what_it_should(finished):
    there = {p.relative_to(finished).as_posix() for p in finished.rglob("*") if p.is_file()}
    assert {"checkpoints/last.ckpt", "log/metrics.csv", "encoder/dualenc.json"} <= there
    assert any(name.startswith("log/events.out.tfevents") for name in there)
    assert len(list((finished / "checkpoints").glob("best-*.ckpt"))) == 1
    assert not list(finished.glob(".*"))


def test_the_loss_falls_and_the_log_has_its_keys(finished):
    log = read_log(finished / "log" / "metrics.csv")
    losses = [value for _, value in log["train/loss"]]
    assert len(losses) == 40 and np.mean(losses[:2]) > 3 and np.mean(losses[-4:]) < 2.2 < math.log(12)  # chance
    ways = ("text_to_image", "image_to_text")
    assert {f"val/{way}/recall@{k}" for way in ways for k in (1, 5, 10)} <= log.keys()
    assert {
        "val/mean_recall",
        "val/zeroshot_acc1",
        "val/zeroshot_mean_per_class_recall",
        "train/logit_scale",
    } <= log.keys()
    assert [v for _, v in log["data/seen"]] == [24.0] * 20
    assert [v for _, v in log["data/incomplete_batch"]] == [0.0] * 20


def test_the_schedule_is_logged(finished):
    name, series = next((n, s) for n, s in read_log(finished / "log" / "metrics.csv").items() if n.startswith("lr-"))
    rates = [rate for _, rate in series]
    expected = [0.0005, 0.001] + [0.0005 * (1 + math.cos(math.pi * s / 38)) for s in range(38)]
    assert rates == pytest.approx(expected), name


def by_hand(folder, shards):
    encoder = DualEncoder.load(folder)
    done = embed_source(encoder, open_source(shards), workers=0, accelerator="cpu")
    scores = retrieval_metrics(done.images, done.texts, done.image_row)
    prompts = [[f"a {name} picture", f"it is {name}"] for name in NAMES]
    rows = np.stack([encoder.embed_texts(both).mean(axis=0) for both in prompts])
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    target = np.array(done.metadata["label"].to_pylist())
    return scores, zero_shot_metrics(done.images @ rows.T, target)


@pytest.mark.parametrize("verb", ["validate", "test"])
def test_scores_equal_those_computed_by_hand(command, finished, val_shards, verb, tmp_path):
    best = next((finished / "checkpoints").glob("best-*.ckpt"))
    assert command(verb, tmp_path / "again", "--ckpt_path", best) == 0
    log = {k: v[-1][1] for k, v in read_log(tmp_path / "again" / verb / "metrics.csv").items()}
    prefix = "val" if verb == "validate" else "test"
    scores, zeroshot = by_hand(best, val_shards)
    recalls = {f"{prefix}/{k}": v for k, v in scores.items() if "recall@" in k}
    assert len(recalls) == 6
    for name, value in recalls.items():
        assert log[name] == pytest.approx(value, abs=1e-6), name
    assert log[f"{prefix}/mean_recall"] == pytest.approx(np.mean(list(recalls.values())), abs=1e-6)
    if verb == "validate":
        for name in ("acc1", "acc5", "mean_per_class_recall"):
            assert log[f"val/zeroshot_{name}"] == pytest.approx(zeroshot[name], abs=1e-6), name


def test_the_encoder_is_that_of_the_best_checkpoint(finished):
    encoder = DualEncoder.load(finished / "encoder")
    best = next((finished / "checkpoints").glob("best-*.ckpt"))
    assert encoder.fingerprint == DualEncoder.load(best).fingerprint
    step = int(best.stem.split("=")[1].split("-")[0])
    assert encoder.provenance["steps"] == step and encoder.provenance["samples_seen"] == step * 12
    recall = read_log(finished / "log" / "metrics.csv")["val/mean_recall"]
    value = max(v for _, v in recall)
    assert next(s + 1 for s, v in recall if v == value) == step  # the first of equals; steps are logged from 0


def test_the_best_checkpoint_need_not_be_the_last(command, tmp_path):
    worst = {"monitor": "val/mean_recall", "mode": "min"}  # before it has learnt anything
    assert command("fit", tmp_path / "run", checkpoint=worst, trainer={"max_epochs": 3}, model={"lr": 0.003}) == 0
    recall = [v for _, v in read_log(tmp_path / "run" / "log" / "metrics.csv")["val/mean_recall"]]
    assert recall.index(min(recall)) < len(recall) - 1
    best = DualEncoder.load(next((tmp_path / "run" / "checkpoints").glob("best-*.ckpt")))
    last = DualEncoder.load(tmp_path / "run" / "checkpoints" / "last.ckpt")
    assert DualEncoder.load(tmp_path / "run" / "encoder").fingerprint == best.fingerprint != last.fingerprint


def test_the_last_checkpoint_is_the_last_whatever_is_best(command, tmp_path):
    worst = {"monitor": "val/mean_recall", "mode": "min"}
    assert command("fit", tmp_path / "run", checkpoint=worst) == 0
    there = sorted(p.name for p in (tmp_path / "run" / "checkpoints").iterdir())
    assert len(there) == 2 and there[0].startswith("best-step=") and there[1] == "last.ckpt"
    last = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["global_step"] == 8 and there[0] != "best-step=8.ckpt"


def test_validation_does_not_touch_the_training_log(command, finished):
    before = (finished / "log" / "metrics.csv").read_bytes()
    assert command("validate", finished, "--ckpt_path", "last") == 0
    assert (finished / "log" / "metrics.csv").read_bytes() == before
    assert (finished / "validate" / "metrics.csv").is_file()


class Crash(Exception):
    pass


@pytest.mark.parametrize("workers", [0, 2])
def test_resuming_the_last_checkpoint_gives_the_uninterrupted_run(command, tmp_path, monkeypatch, workers):
    """Bit for bit, within an epoch, with the temperature at its clamp."""
    changes = {
        "model": {"lr": 0.01, "max_logit_scale": 14.0},
        "checkpoint": {"every_n_train_steps": 1, "monitor": None},
        "data": {"val": None, "zeroshot": None},
    }

    def fit(root, *words):
        return command("fit", root, *words, **changes)

    assert fit(tmp_path / "whole") == 0
    step = ContrastiveModule.training_step

    def fails(self, batch, number):
        if self.global_step == 5:
            raise Crash
        return step(self, batch, number)

    monkeypatch.setattr(ContrastiveModule, "training_step", fails)
    assert fit(tmp_path / "cut") == 1
    monkeypatch.setattr(ContrastiveModule, "training_step", step)
    assert not (tmp_path / "cut" / "encoder").exists()
    assert fit(tmp_path / "cut", "--ckpt_path", "last", "--data.workers", workers) == 0
    whole, cut = (torch.load(tmp_path / n / "checkpoints" / "last.ckpt", weights_only=True) for n in ("whole", "cut"))
    assert whole["global_step"] == cut["global_step"] == 8
    for key, tensor in whole["state_dict"].items():
        assert torch.equal(tensor, cut["state_dict"][key]), key
    marks = {DualEncoder.load(tmp_path / name / "encoder").fingerprint for name in ("whole", "cut")}
    assert len(marks) == 1
    logs = [dict(read_log(tmp_path / name / "log" / "metrics.csv")["train/loss"]) for name in ("whole", "cut")]
    assert logs[0] == logs[1] and len(logs[0]) == 8  # the steps before the crash included


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("verb", ["fit", "validate", "test"])
@pytest.mark.parametrize("by", ["path", "last"])
def test_a_checkpoint_cannot_run_code(command, finished, tmp_path, verb, by, capsys):
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    last.parent.mkdir(parents=True)
    content = torch.load(finished / "checkpoints" / "last.ckpt", weights_only=True)
    torch.save(content | {"more": Bomb(tmp_path / "ran")}, last)
    words = ("--ckpt_path", last) if by == "path" else ("--ckpt_path", "last", "--weights_only", "false")
    assert command(verb, tmp_path / "run", *words) == 1
    assert not (tmp_path / "ran").exists()
    assert capsys.readouterr().err.strip().splitlines()[-1].startswith("dualenc: error:")


def one_line(capsys):
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("dualenc: error:")]
    assert len(lines) == 1, lines
    return lines[0]


def nothing_left(root):
    return not root.exists() or not any(root.rglob("*"))


def test_a_loss_that_is_not_finite_stops_the_run(command, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(
        "dualenc.train.module.contrastive_loss", lambda i, t, s, **_: (i.sum() + t.sum() + s) * float("nan")
    )
    assert command("fit", tmp_path / "run") == 1
    message = one_line(capsys)
    assert "the loss is nan at step 0" in message and "model.lr" in message
    assert not (tmp_path / "run" / "encoder").exists()


def test_accumulating_gradients_is_refused(command, tmp_path, capsys):
    assert command("fit", tmp_path / "run", "--trainer.accumulate_grad_batches", 2) == 1
    assert "trainer.accumulate_grad_batches is 2" in one_line(capsys)
    assert nothing_left(tmp_path / "run")


@pytest.mark.parametrize(
    ("change", "unknown", "nearest"),
    [
        ({"model": {"vission": {"layers": 1}}}, "model.vission", "model.vision"),
        ({"data": {"batchsize": 3}}, "data.batchsize", "data.batch_size"),
        ({"trainer": {"max_epoch": 3}}, "trainer.max_epoch", "trainer.max_epochs"),
    ],
)
def test_an_unknown_setting_names_the_nearest(command, tmp_path, capsys, change, unknown, nearest):
    with pytest.raises(SystemExit) as stop:
        command("fit", tmp_path / "run", **change)
    assert stop.value.code == 2
    message = one_line(capsys)
    assert unknown in message and f"did you mean '{nearest}'" in message
    assert nothing_left(tmp_path / "run")


def test_an_abbreviated_option_is_refused(command, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        command("fit", tmp_path / "run", "--trainer.max_epoch", "3")
    assert stop.value.code == 2 and "trainer.max_epochs" in one_line(capsys)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": {"train": "no/shards"}}, "data.train: no/shards does not exist"),
        ({"data": {"val": "no/shards"}}, "data.val: no/shards does not exist"),
        ({"data": {"batch_size": 100}}, "batch_size 100 is larger than the data set (24 samples)"),
        ({"data": {"train": None}}, "data.train is not set"),
        ({"model": {"loss": "triplet"}}, "model.loss 'triplet' is unknown"),
        ({"model": {"name": "ViT-B-32"}}, "exactly one of model.start_from, model.name, or model.vision"),
        ({"model": {"text": {"widht": 3}}}, "did you mean 'width'"),
        ({"trainer": {"max_epochs": -1}}, "training has no end"),
    ],
)
def test_what_cannot_work_is_one_line(command, tmp_path, capsys, changes, message):
    assert command("fit", tmp_path / "run", **changes) == 1
    assert message in one_line(capsys)
    assert nothing_left(tmp_path / "run")


def test_an_encoder_that_is_there_is_not_overwritten(command, tmp_path, capsys):
    (tmp_path / "run" / "encoder").mkdir(parents=True)
    (tmp_path / "run" / "encoder" / "mine").write_text("x")
    assert command("fit", tmp_path / "run") == 1
    assert "encoder exists and is not empty" in one_line(capsys)
    assert [p.name for p in (tmp_path / "run").rglob("*")] == ["encoder", "mine"]


def test_fine_tuning_starts_from_an_encoder(command, finished, tmp_path):
    model = {"start_from": str(finished / "encoder"), "vision": None, "text": None, "embed_dim": None, "lr": 0.0}
    assert command("fit", tmp_path / "run", model=model, trainer={"max_epochs": 1}) == 0
    before, after = DualEncoder.load(finished / "encoder"), DualEncoder.load(tmp_path / "run" / "encoder")
    assert after.provenance["settings"]["start_from"] == str(finished / "encoder")
    assert before.fingerprint == after.fingerprint  # a learning rate of 0 leaves every weight as it was


def test_a_sigmoid_loss_trains_its_bias(command, tmp_path):
    assert command("fit", tmp_path / "run", "--model.loss", "sigmoid", trainer={"max_epochs": 2}) == 0
    encoder = DualEncoder.load(tmp_path / "run" / "encoder")
    assert float(encoder.model.logit_bias) != -10.0 and abs(float(encoder.model.logit_bias) + 10) < 1


def test_a_run_without_validation_writes_its_last_weights(command, tmp_path):
    assert command("fit", tmp_path / "run", data={"val": None, "zeroshot": None}, trainer={"max_epochs": 1}) == 0
    last = DualEncoder.load(tmp_path / "run" / "checkpoints" / "last.ckpt")
    assert DualEncoder.load(tmp_path / "run" / "encoder").fingerprint == last.fingerprint


def test_a_run_that_has_begun_is_not_begun_again(command, tmp_path, capsys):
    """Nor does a resume that fails cost the log."""
    one = {"max_epochs": 1}
    assert command("fit", tmp_path / "run", trainer=one) == 0
    shutil.rmtree(tmp_path / "run" / "encoder")
    log = (tmp_path / "run" / "log" / "metrics.csv").read_bytes()
    capsys.readouterr()
    assert command("fit", tmp_path / "run", trainer=one) == 1
    assert "would be overwritten; go on with --ckpt_path last" in one_line(capsys)
    for checkpoint in (tmp_path / "run" / "checkpoints").glob("*.ckpt"):
        checkpoint.write_bytes(checkpoint.read_bytes()[:20_000])
    assert command("fit", tmp_path / "run", "--ckpt_path", "last", trainer={"max_epochs": 2}) == 1
    one_line(capsys)
    assert (tmp_path / "run" / "log" / "metrics.csv").read_bytes() == log


def test_a_job_that_is_queued_again_goes_on(command, tmp_path):
    """SLURM starts the same command again; Lightning finds its own checkpoint."""
    assert command("fit", tmp_path / "run", trainer={"max_epochs": 1}) == 0
    shutil.rmtree(tmp_path / "run" / "encoder")
    shutil.copy(tmp_path / "run" / "checkpoints" / "last.ckpt", tmp_path / "run" / "hpc_ckpt_1.ckpt")
    assert command("fit", tmp_path / "run", trainer={"max_epochs": 2}) == 0
    last = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["global_step"] == 4 and last["epoch"] == 1


def test_a_run_that_fails_keeps_what_it_logged(command, tmp_path, monkeypatch):
    """With checkpoints elsewhere too: the folder of a run that has made a step is never removed."""
    loss, calls = module.contrastive_loss, []

    def spoilt(*rows, **settings):
        calls.append(1)
        return loss(*rows, **settings) * (float("nan") if len(calls) == 2 else 1)

    monkeypatch.setattr("dualenc.train.module.contrastive_loss", spoilt)
    elsewhere = tmp_path / "elsewhere"
    assert command("fit", tmp_path / "run", "--checkpoint.dirpath", elsewhere) == 1
    assert "train/loss" in read_log(tmp_path / "run" / "log" / "metrics.csv")


def test_a_resumed_run_has_the_rate_it_is_given(command, tmp_path):
    assert command("fit", tmp_path / "run", trainer={"max_epochs": 2}) == 0
    shutil.rmtree(tmp_path / "run" / "encoder")
    words = ["--ckpt_path", "last", "--model.lr", 1e-5]
    assert command("fit", tmp_path / "run", *words, trainer={"max_epochs": 4}) == 0
    rates = [
        rate
        for name, series in read_log(tmp_path / "run" / "log" / "metrics.csv").items()
        if name.startswith("lr-")
        for _, rate in series
    ]
    assert max(rates) > 1e-4 and min(rate for rate in rates if rate) < 1e-5


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--model.embed_dim", 8), "model: is not what it was"),
        (("--model.text_blocks", 0), "what is frozen, or model.layer_decay, is not what it was"),
        (("--model.layer_decay", 0.5), "what is frozen, or model.layer_decay, is not what it was"),
    ],
)
def test_other_towers_are_not_resumed(finished, command, tmp_path, capsys, words, told):
    shutil.copytree(finished, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "encoder")
    assert command("fit", tmp_path / "run", "--ckpt_path", "last", *words, trainer={"max_epochs": 30}) == 1
    assert told in one_line(capsys)


GIVEN_UP = ("--model.embed_dim", "null", "--model.vision", "null", "--model.text", "null")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--model.temperature", 0), "model.temperature is 0"),
        (("--model.max_logit_scale", 0.5), "model.max_logit_scale is 0.5"),
        (("--model.ema", 0.9, "--checkpoint.save_weights_only", "true"), "checkpoint.save_weights_only"),
        (("--data.batch_size", 1), "data.batch_size is 1"),
        (("--model.accumulate", 5), "data.batch_size 12 does not divide by 5"),
        (("--model.matryoshka", "[99]"), "embeddings have 16 dimensions"),
        (("--model.label_smoothing", 0.1, "--model.loss", "sigmoid"), "model.label_smoothing has no effect"),
        ((*GIVEN_UP, "--model.start_from", "ViT-B-32:none"), "ViT-B-32"),
    ],
)
def test_bad_settings_are_refused_before_any_work(command, tmp_path, capsys, words, told):
    assert command("fit", tmp_path / "run", *words) == 1
    assert told in one_line(capsys)
    assert nothing_left(tmp_path / "run")
