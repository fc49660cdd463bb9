"""Callbacks by themselves; `test_run.py` has them in a run."""

from types import SimpleNamespace

import pytest
import torch
from pytorch_lightning.strategies import SingleDeviceStrategy

from dualenc.train import callbacks
from dualenc.train.callbacks import ExactGradients, Progress, WriteEncoder


def test_accumulation_is_refused_in_training_alone():
    trainer, towers = SimpleNamespace(accumulate_grad_batches=4, world_size=1), torch.nn.Linear(1, 1)
    ExactGradients().setup(trainer, towers, "validate")
    with pytest.raises(ValueError, match=r"accumulate_grad_batches is 4.*set it to 1") as error:
        ExactGradients().setup(trainer, towers, "fit")
    assert "\n" not in str(error.value)


def test_batch_norm_over_ranks_is_told(caplog):
    norm, plain = torch.nn.Sequential(torch.nn.BatchNorm2d(3)), torch.nn.LayerNorm(3)
    for ranks, towers, told in ((1, norm, 0), (2, plain, 0), (2, norm, 1)):
        caplog.clear()
        towers.accumulate = 1
        trainer = SimpleNamespace(
            accumulate_grad_batches=1,
            world_size=ranks,
            strategy=SingleDeviceStrategy(),
            callbacks=[],
            datamodule=SimpleNamespace(batch_size=4),
        )
        ExactGradients().setup(trainer, towers, "fit")
        assert len([r for r in caplog.records if "batch norm normalises by" in r.getMessage()]) == told


def test_samples_per_second(monkeypatch):
    bar, now = Progress(), [100.0]
    monkeypatch.setattr(callbacks.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(callbacks.TQDMProgressBar, "on_train_epoch_start", lambda *_: None)
    monkeypatch.setattr(callbacks.TQDMProgressBar, "get_metrics", lambda *_: {"v_num": 3})
    logged = SimpleNamespace(should_update_logs=False)
    trainer = SimpleNamespace(
        global_step=20,
        datamodule=SimpleNamespace(batch_size=256),
        callback_metrics={"train/loss": 1.25},
        _logger_connector=logged,
    )
    assert bar.get_metrics(trainer, None) == {}
    bar.on_train_epoch_start(trainer)
    assert bar.get_metrics(trainer, None) == {}  # no step yet, no rate, and no look at the loss
    now[0], trainer.global_step = 104.0, 30
    assert bar.get_metrics(trainer, None) == {"samples/s": "640"}  # 10 steps of 256 in 4 s
    logged.should_update_logs = True
    assert bar.get_metrics(trainer, None)["train/loss"] == "1.250"
    logged.should_update_logs, trainer.callback_metrics = False, {"train/loss": 9.0}
    assert bar.get_metrics(trainer, None)["train/loss"] == "1.250"  # of the step that was logged last


@pytest.mark.parametrize(
    "trainer", [{"is_global_zero": False, "fast_dev_run": 0}, {"is_global_zero": True, "fast_dev_run": 1}]
)
def test_other_ranks_and_trials_write_nothing(trainer, tmp_path):
    WriteEncoder(tmp_path / "e").on_fit_end(SimpleNamespace(**trainer), None)
    assert not (tmp_path / "e").exists()
