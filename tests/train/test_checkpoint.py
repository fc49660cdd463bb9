"""Checkpoints: whole or not there, the one to go on from, and chance that a checkpoint need not hold."""

import io
import multiprocessing
import os
import random
import signal
import time
from types import SimpleNamespace

import pytest
import torch
from pytorch_lightning.callbacks import ModelCheckpoint

from dualenc.train.chance import SameChance, step_seed
from dualenc.train.checkpoint import LEFT_OVER, Moved, WholeFiles, newest

forked = multiprocessing.get_context("fork")


def content(step):
    about = {"model_cfg": {}, "preprocess_cfg": {}, "training": {}}
    return {"global_step": step, "dualenc": about, "state_dict": {"w": torch.full((50_000,), float(step))}}


def steps_of(path):
    found = torch.load(path, weights_only=True)
    assert torch.equal(found["state_dict"]["w"], content(found["global_step"])["state_dict"]["w"])
    return found["global_step"]


def write(path, step, after=None):
    """Write a checkpoint; with `after`, be killed once that share of its bytes is written."""
    save = torch.save
    if after is not None:

        def killed(value, partial):
            whole = io.BytesIO()
            save(value, whole)
            data = whole.getvalue()
            with open(partial, "wb") as file:
                file.write(data[: int(after * len(data))])
            os.kill(os.getpid(), signal.SIGKILL)

        torch.save = killed
    WholeFiles().save_checkpoint(content(step), path)


def in_another_process(*arguments):
    process = forked.Process(target=write, args=arguments)
    process.start()
    process.join(60)
    return process.exitcode


@pytest.mark.parametrize("after", [0.0, 0.3, 0.999, 1.0])
def test_a_kill_in_the_middle_of_writing_leaves_the_one_before(tmp_path, after):
    last = tmp_path / "last.ckpt"
    assert in_another_process(last, 1) == 0
    assert in_another_process(last, 2, after) == -signal.SIGKILL
    assert steps_of(last) == 1 and newest(tmp_path) == last
    (left,) = tmp_path.glob(".last.ckpt.*.tmp")
    os.utime(left, (0, time.time() - LEFT_OVER - 5))
    (tmp_path / ".last.ckpt.new.tmp").write_bytes(b"being written")
    (tmp_path / ".other.txt.old.tmp").write_bytes(b"not ours")
    os.utime(tmp_path / ".other.txt.old.tmp", (0, 0))
    newest(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [".last.ckpt.new.tmp", ".other.txt.old.tmp", "last.ckpt"]


def _write_on(path, start):
    for step in range(start, 10**6):
        write(path, step)


@pytest.mark.full
def test_kills_at_random_moments_lose_nothing(tmp_path):
    rng, last, before = random.Random(), tmp_path / "last.ckpt", 0
    write(last, 0)
    for _ in range(60):
        process = forked.Process(target=_write_on, args=(last, before + 1))
        process.start()
        time.sleep(rng.random() * 0.1)
        process.kill()
        process.join()
        assert steps_of(last) >= before
        before = steps_of(last)
    assert before > 0


def test_the_newest_last_one_is_found(tmp_path):
    for age, (name, step) in enumerate({"last.ckpt": 9, "last-v1.ckpt": 3, "best-step=20.ckpt": 20}.items()):
        write(tmp_path / name, step)
        os.utime(tmp_path / name, (0, 1000 - age))
    assert newest(tmp_path) == tmp_path / "last.ckpt"
    os.utime(tmp_path / "last.ckpt", (0, 500))
    assert newest(tmp_path) == tmp_path / "last-v1.ckpt"


def test_what_cannot_be_read_is_passed_over_and_named(tmp_path, caplog):
    for name, step in {"last.ckpt": 9, "best-step=4.ckpt": 4, "newest-step=11.ckpt": 11, "z-step=2.ckpt": 2}.items():
        write(tmp_path / name, step)
    for name in ("last.ckpt", "newest-step=11.ckpt"):
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-1000])
    (tmp_path / "empty.ckpt").touch()
    assert newest(tmp_path) == tmp_path / "best-step=4.ckpt"  # by steps, not by name
    named = sorted(r.getMessage().split(" cannot be read")[0].rsplit("/")[-1] for r in caplog.records)
    assert named == ["empty.ckpt", "last.ckpt", "newest-step=11.ckpt"]


def test_nothing_to_go_on_from(tmp_path):
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(FileNotFoundError, match="nothing to go on from; leave --ckpt_path out"):
            newest(folder)


def test_a_run_goes_on_from_an_older_checkpoint(command, tmp_path, caplog):
    """Those of the best score are written at an epoch's end: from there too, no sample is skipped or seen twice."""
    worst = {"monitor": "val/mean_recall", "mode": "min"}  # is one of an early epoch
    assert command("fit", tmp_path / "run", checkpoint=worst) == 0
    folder = tmp_path / "run" / "checkpoints"
    whole = torch.load(folder / "last.ckpt", weights_only=True)
    (folder / "last.ckpt").write_bytes(b"damaged")
    (tmp_path / "run" / "encoder").rename(tmp_path / "encoder")
    assert steps_before(folder) < 8
    assert command("fit", tmp_path / "run", "--ckpt_path", "last", checkpoint=worst) == 0
    assert "last.ckpt cannot be read" in caplog.text
    again = torch.load(folder / "last.ckpt", weights_only=True)
    assert again["global_step"] == 8 and again["epoch"] == whole["epoch"]
    for name, tensor in whole["state_dict"].items():
        assert torch.equal(tensor, again["state_dict"][name]), name


def steps_before(folder):
    return int(next(folder.glob("best-*.ckpt")).stem.split("=")[1])


def test_seeds_depend_on_all_three():
    seeds = {step_seed(*some) for some in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 11, 0), (0, 1, 1)]}
    assert len(seeds) == 6 and all(0 <= seed < 1 << 63 for seed in seeds)
    assert step_seed(3, 4, 5) == step_seed(3, 4, 5) == 5458649844187008935


def test_chance_is_that_of_the_step(monkeypatch):
    from types import SimpleNamespace

    monkeypatch.setenv("PL_GLOBAL_SEED", "7")
    draws = []
    for before, step, rank in ((1, 5, 0), (2, 5, 0), (1, 6, 0), (1, 5, 1)):
        torch.manual_seed(before)
        SameChance().on_train_batch_start(SimpleNamespace(global_step=step, global_rank=rank), None, None, 0)
        draws.append(float(torch.rand(())))
    assert draws[0] == draws[1] and len(set(draws)) == 3


def test_a_run_that_was_moved_goes_on_with_the_best_that_lies_there(tmp_path):
    old, new = tmp_path / "old", tmp_path / "new"
    writer = ModelCheckpoint(dirpath=new, monitor="val/mean_recall")
    state = {
        "dirpath": str(old),
        "best_model_path": str(old / "best.ckpt"),
        "kth_best_model_path": str(old / "best.ckpt"),
        "last_model_path": "",
        "best_k_models": {str(old / "best.ckpt"): 0.5},
        "best_model_score": 0.5,
    }
    checkpoint = {"callbacks": {"ModelCheckpoint": state, "Other": {"steps": 1}}}
    Moved().on_load_checkpoint(SimpleNamespace(checkpoint_callbacks=[writer]), None, checkpoint)
    assert state["dirpath"] == str(new) and state["best_model_path"] == str(new / "best.ckpt")
    assert state["best_k_models"] == {str(new / "best.ckpt"): 0.5} and state["last_model_path"] == ""
    assert checkpoint["callbacks"]["Other"] == {"steps": 1}


def test_a_bit_that_turned_is_found(tmp_path):
    """torch loads such a file without a word."""
    for name, step in (("last.ckpt", 9), ("best-step=3.ckpt", 3)):
        tensors = {"weight": torch.arange(4096.0)}
        torch.save({"state_dict": tensors, "global_step": step, "dualenc": {"model_cfg": {}}}, tmp_path / name)
    data = bytearray((tmp_path / "last.ckpt").read_bytes())
    place = bytes(data).index(torch.arange(1000.0, 1004.0).numpy().tobytes())
    data[place] ^= 1
    assert newest(tmp_path).name == "last.ckpt"
    (tmp_path / "last.ckpt").write_bytes(data)
    assert newest(tmp_path).name == "best-step=3.ckpt"
    (tmp_path / "best-step=3.ckpt").write_bytes(b"PK")
    with pytest.raises(ValueError, match="no checkpoint there can be read"):
        newest(tmp_path)
