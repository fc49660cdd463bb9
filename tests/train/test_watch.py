"""What is logged of a run's speed, and at which steps."""

import time
from types import SimpleNamespace

import pytest
import torch

from dualenc.data.dataset import Batches
from dualenc.train import watch
from dualenc.train.finite import NonFinite
from dualenc.train.module import ContrastiveModule
from dualenc.train.watch import Watch, memory
from tests.train.conftest import read_log

ALONE = {"val": None, "zeroshot": None}


class Module:
    device = torch.device("cpu")
    model = SimpleNamespace(logit_scale=torch.tensor(50.0).log())

    def __init__(self):
        self.logged = {}

    def log(self, name, value):
        assert name not in self.logged
        self.logged[name] = float(value)


class Loop:
    def _on_before_fetch(self):
        pass

    _on_after_fetch = _on_before_fetch


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(watch.time, "perf_counter", lambda: now[0])
    return now


def test_rates_are_those_of_the_time_since_the_last_log(clock):
    guard, loop = NonFinite("stop"), Loop()
    callback = Watch(guard)
    logs = SimpleNamespace(should_update_logs=False)
    trainer = SimpleNamespace(
        callbacks=[guard], world_size=4, fit_loop=SimpleNamespace(epoch_loop=loop), _logger_connector=logs
    )
    callback.on_train_start(trainer, None)
    for round_, (wait, validation) in enumerate([(0.5, 0.0), (2.0, 30.0), (0.0, 0.0)]):
        for step in range(3):
            logs.should_update_logs = step == 2
            loop._on_before_fetch()
            clock[0] += wait
            loop._on_after_fetch()
            guard.norm = torch.tensor(10.0 * round_ + step)
            callback.on_before_optimizer_step(trainer, None, None)
            clock[0] += 2.0
            if step == 1:
                callback.on_validation_start(trainer, None)
                clock[0] += validation
                callback.on_validation_end(trainer, None)
            callback.on_train_batch_end(trainer, module := Module(), None, {"key": ["k"] * 8}, step)
            assert bool(module.logged) == (step == 2)
        assert module.logged["train/samples_per_second"] == pytest.approx(4 * 8 / (2.0 + wait))
        assert module.logged["train/data_wait"] == pytest.approx(wait / (2.0 + wait))
        assert module.logged["train/grad_norm"] == 10.0 * round_ + 2
        assert module.logged["train/temperature"] == pytest.approx(1 / 50)
        assert module.logged["train/memory_gib"] > 0.05


def test_memory_is_the_most_until_now():
    before = memory(torch.device("cpu"))["memory_gib"]
    block = bytearray(b"x" * (300 << 20))
    with_block = memory(torch.device("cpu"))["memory_gib"]
    del block
    assert memory(torch.device("cpu"))["memory_gib"] == with_block >= before
    import resource

    assert with_block * (1 << 30) == resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def test_a_run_logs_them_every_n_steps(command, tmp_path, monkeypatch):
    """A loader that is slow shows, and the norm is that of the gradients, whatever is clipped."""
    norms = {}
    after = ContrastiveModule.on_after_backward

    def keep(self):
        grads = [p.grad.flatten().double() for p in self.parameters()]
        norms[self.global_step] = float(torch.cat(grads).norm())
        return after(self)

    monkeypatch.setattr(ContrastiveModule, "on_after_backward", keep)
    given = Batches.__getitem__
    monkeypatch.setattr(Batches, "__getitem__", lambda self, places: (time.sleep(0.3), given(self, places))[1])
    changes = {"trainer": {"log_every_n_steps": 3, "gradient_clip_val": 1e-3}, "data": ALONE}
    assert command("fit", tmp_path / "run", **changes) == 0
    log = read_log(tmp_path / "run" / "log" / "metrics.csv")
    assert dict(log["train/grad_norm"]) == pytest.approx({2: norms[2], 5: norms[5]}, rel=1e-4)
    for name in ("temperature", "samples_per_second", "data_wait", "memory_gib"):
        assert [at for at, _ in log[f"train/{name}"]] == [2, 5]
    assert all(0.2 < share <= 1 for _, share in log["train/data_wait"])
    assert all(0 < rate < 12 / 0.3 for _, rate in log["train/samples_per_second"])
    assert dict(log["train/temperature"])[2] == pytest.approx(0.07, rel=0.05)


def test_loggers_are_a_list_in_a_config(command, tmp_path):
    loggers = [
        {"class_path": "pytorch_lightning.loggers.CSVLogger", "init_args": {"save_dir": str(tmp_path), "name": "mine"}},
        {"class_path": "TensorBoardLogger", "init_args": {"save_dir": str(tmp_path), "name": "board"}},
    ]
    assert command("fit", tmp_path / "run", trainer={"logger": loggers, "max_epochs": 1}, data=ALONE) == 0
    assert "train/grad_norm" in read_log(tmp_path / "mine" / "version_0" / "metrics.csv")
    assert list((tmp_path / "board").rglob("events.out*"))


def test_a_logger_that_is_not_installed_is_one_line(command, tmp_path, capsys):
    try:
        import wandb  # noqa: F401
    except ImportError:
        pass
    else:
        pytest.skip("wandb is installed")
    logger = {"class_path": "pytorch_lightning.loggers.WandbLogger", "init_args": {"project": "p", "offline": True}}
    try:
        code = command("fit", tmp_path / "run", trainer={"logger": logger}, data=ALONE)
    except SystemExit as stop:
        code = stop.code
    assert code in (1, 2)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("dualenc: error:")]
    assert len(lines) == 1 and "wandb" in lines[0], lines
