"""Where every sample of an epoch went, per source and over ranks; and checkpoints that are whole."""

import logging
import shutil
from pathlib import Path

import pytest
import torch

from dualenc.data.dataset import warn_once
from dualenc.data.shards import open_source
from dualenc.train import accounting
from dualenc.train.accounting import Counts, metrics, report, short_names
from dualenc.train.checkpoint import WholeFiles
from tests.small import sample, write_tar
from tests.train.conftest import read_log


def batch(**changes):
    rows = {"origin": [0, 1, 1, 0], "reason": [None, None, "not an image", "padding"], "truncated": 2}
    return rows | changes


def test_counts_are_of_all_ranks_and_sources(monkeypatch):
    counts = Counts()
    counts.add(batch())
    counts.add(batch(dropped=[(1, "missing image", 3)]))
    monkeypatch.setattr(accounting, "of_all", lambda part: [part, {(0, "seen"): 10, (0, "zero bytes"): 1}])
    total = counts.total()
    assert total == {
        (0, "seen"): 12,
        (1, "seen"): 2,
        (1, "not an image"): 2,
        (1, "missing image"): 3,
        (0, "zero bytes"): 1,
        (-1, "captions_cut"): 4,
    }
    assert metrics(total, {"incomplete_batch": 5}, ["x/a", "x/b"]) == {
        "data/seen": 14.0,
        "data/dropped/not_an_image": 2.0,
        "data/dropped/missing_image": 3.0,
        "data/dropped/zero_bytes": 1.0,
        "data/captions_cut": 4.0,
        "data/incomplete_batch": 5.0,
        "data/a/seen": 12.0,
        "data/a/dropped/zero_bytes": 1.0,
        "data/b/seen": 2.0,
        "data/b/dropped/not_an_image": 2.0,
        "data/b/dropped/missing_image": 3.0,
    }
    assert not any(name.startswith("data/a") for name in metrics(total, {}, ["x/a"]))


def test_counts_go_on_from_a_checkpoint():
    counts, later = Counts(), Counts()
    counts.add(batch())
    later.load(counts.state())
    for each in (counts, later):
        each.add(batch(origin=[0, 0, 0, 0]))
    assert counts.total() == later.total()
    counts.clear()
    assert counts.total() == {}


def test_the_line_of_an_epoch(caplog):
    caplog.set_level(logging.INFO, "dualenc")
    report({(0, "seen"): 5888, (-1, "captions_cut"): 0}, {"incomplete_batch": 112}, 3)
    report({(0, "seen"): 5, (1, "seen"): 5, (0, "zero bytes"): 2, (1, "zero bytes"): 1}, {}, 4)
    report(
        {(0, "seen"): 7, (1, "shard left for other epochs"): 2, (1, "rest of a shard left for other epochs"): 1}, {}, 5
    )
    first, second, third = caplog.records
    assert (
        third.getMessage() == "epoch 5: 7 samples seen; left: 2 shard, 1 rest of a shard" and third.levelname == "INFO"
    )
    assert first.getMessage() == "epoch 3: 5,888 samples seen; left: 112 incomplete batch" and first.levelname == "INFO"
    assert second.getMessage() == "epoch 4: 10 samples seen; dropped: 3 zero bytes" and second.levelname == "WARNING"


@pytest.mark.parametrize(
    ("names", "short"),
    [
        (["runs/a/train", "runs/b/train"], ["a_train", "b_train"]),
        (["runs/a", "b"], ["a", "b"]),
        (["one"], ["one"]),
        (["same", "same"], ["0", "1"]),
        (["https://host/x-{0..9}.tar", "pipe:cat y.tar"], ["x-{0__9}_tar", "pipe:cat y_tar"]),
        (["https://me:pw@h/a.tar?sig=SECRET", "https://h/b.tar"], ["a_tar", "b_tar"]),
        ([], []),
    ],
)
def test_names_are_short_and_differ(names, short):
    assert short_names(names) == short


def test_everything_is_accounted_for_in_a_run(command, tmp_path, caplog):
    """Of two sources: 21 good samples, one without caption, one broken, one without image, one shard cut short."""
    good = [m for i in range(12) for m in sample(f"a{i}", seed=i)]
    write_tar(
        tmp_path / "a" / "0.tar", good + sample("silent", captions=[]) + [("broken.png", b"x"), ("broken.txt", b"t")]
    )
    cut = write_tar(tmp_path / "b" / "0.tar", [m for i in range(10) for m in sample(f"b{i}", seed=i)])
    cut.write_bytes(cut.read_bytes()[:-14_000])
    write_tar(tmp_path / "b" / "1.tar", [("lonely.txt", b"no image"), *sample("last")])
    train = [str(tmp_path / name) for name in "ab"]
    data = {"train": train, "val": None, "zeroshot": None, "batch_size": 4}
    assert command("fit", tmp_path / "run", data=data, trainer={"max_epochs": 2}) == 0
    log = read_log(tmp_path / "run" / "log" / "metrics.csv")
    assert len(log["data/seen"]) == 2
    for step, _ in log["data/seen"]:
        now = {
            name: dict(series)[step]
            for name, series in log.items()
            if name.startswith("data/") and step in dict(series)
        }
        assert now["data/dropped/missing_image"] == now["data/b/dropped/missing_image"] == 1
        assert now["data/shards/truncated_shard"] == now["data/b/shards/truncated_shard"] == 1
        reasons = ("missing_caption", "image_does_not_decode", "not_an_image")
        dropped = sum(now.get(f"data/dropped/{reason}", 0) for reason in reasons)
        assert now["data/seen"] + dropped + now["data/incomplete_batch"] == len(open_source(train)) >= 20
        assert now["data/seen"] == now["data/a/seen"] + now["data/b/seen"]
    lines = [r.getMessage() for r in caplog.records if r.getMessage().startswith("epoch ")]
    assert len(lines) == 2 and "1 truncated shard" in lines[0] and "1 missing image" in lines[0]


def test_what_a_bounded_epoch_does_not_reach_is_told(command, tmp_path, caplog):
    """Ended by its steps within an epoch, and then gone on with."""
    caplog.set_level(logging.INFO, "dualenc")
    data, root = {"val": None, "zeroshot": None, "batch_size": 5}, tmp_path / "run"
    assert command("fit", root, data=data, trainer={"max_steps": 2}) == 0
    shutil.rmtree(root / "encoder")
    assert command("fit", root, "--ckpt_path", "last", data=data, trainer={"max_steps": 4}) == 0
    lines = [r.getMessage() for r in caplog.records if r.getMessage().startswith("epoch ")]
    assert lines == [
        "epoch 0: 10 samples seen; left: 4 incomplete batch, 10 not reached",
        "epoch 0: 20 samples seen; left: 4 incomplete batch",
    ]


def test_an_evaluation_tells_what_it_leaves_out(command, tmp_path, caplog):
    warn_once.cache_clear()
    assert command("fit", tmp_path / "run", trainer={"max_epochs": 1}) == 0
    log = read_log(tmp_path / "run" / "log" / "metrics.csv")
    for name in ("val/", "val/zeroshot_"):
        assert log[f"{name}seen"][0][1] == 11 and log[f"{name}dropped/not_an_image"][0][1] == 1
    told = [r.getMessage() for r in caplog.records if "left out of the scores" in r.getMessage()]
    assert sorted(told) == [f"{name}: left out of the scores: 1 not an image" for name in ("val", "zeroshot")]


def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(tmp_path, monkeypatch):
    path = tmp_path / "last.ckpt"
    WholeFiles().save_checkpoint({"step": 1}, path)
    real = torch.save

    def fails(value, where):
        real(value, where)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", fails)
    with pytest.raises(OSError, match="No space left"):
        WholeFiles().save_checkpoint({"step": 2}, path)
    assert torch.load(path, weights_only=True) == {"step": 1} and [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]


@pytest.fixture
def written(monkeypatch):
    """(step, name) of each checkpoint, in the order in which they are written."""
    found = []
    real = WholeFiles.save_checkpoint

    def save(self, checkpoint, path, storage_options=None):
        found.append((checkpoint["global_step"], Path(path).name))
        real(self, checkpoint, path)

    monkeypatch.setattr(WholeFiles, "save_checkpoint", save)
    return found


def test_checkpoints_by_steps_and_by_time(command, tmp_path, written):
    """Both clocks write last.ckpt, and the best one still follows validation."""
    assert command("fit", tmp_path / "steps", checkpoint={"every_n_train_steps": 3}, trainer={"max_epochs": 4}) == 0
    assert [step for step, name in written if name == "last.ckpt"] == [2, 3, 4, 6, 8]  # 6 is an epoch's end too
    assert all(step % 2 == 0 for step, name in written if name != "last.ckpt")
    written.clear()
    assert command("fit", tmp_path / "time", "--checkpoint.train_time_interval", "0:00:00") == 0
    assert {step for step, name in written if name == "last.ckpt"} == set(range(1, 9))


def test_validation_within_an_epoch_leaves_a_checkpoint(command, tmp_path, written):
    assert command("fit", tmp_path / "run", trainer={"max_epochs": 2, "val_check_interval": 1}) == 0
    assert [step for step, name in written if name == "last.ckpt"] == [1, 2, 3, 4]
