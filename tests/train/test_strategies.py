"""Strategies of which nobody has shown that they give the whole batch's gradient are refused."""

from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
from pytorch_lightning.callbacks import GradientAccumulationScheduler, ModelCheckpoint
from pytorch_lightning.strategies import (
    DDPStrategy,
    FSDPStrategy,
    ModelParallelStrategy,
    SingleDeviceStrategy,
    StrategyRegistry,
)
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook

from dualenc.train.strategies import check_strategy

DDP = [name for name in StrategyRegistry.available_strategies() if name.startswith("ddp")]


class Other(DDPStrategy):
    pass


def trainer(strategy, *callbacks):
    return SimpleNamespace(strategy=strategy, callbacks=list(callbacks))


def refused(message, *given, pieces=1):
    with pytest.raises(ValueError, match=message) as error:
        check_strategy(trainer(*given), pieces)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", DDP)
def test_ddp_is_known_by_all_its_names(name):
    found = StrategyRegistry.get(name)
    assert type(found) is DDPStrategy
    check_strategy(trainer(found, ModelCheckpoint()), pieces=4)


@pytest.mark.parametrize("settings", [{"devices": 1}, {"devices": 2}, {"devices": 2, "strategy": "ddp"}])
def test_what_a_trainer_takes_by_itself_is_known(settings):
    made = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, **settings)
    assert type(made.strategy) is (DDPStrategy if settings["devices"] == 2 else SingleDeviceStrategy)
    check_strategy(made)


@pytest.mark.parametrize("strategy", [ModelParallelStrategy, FSDPStrategy, Other])
def test_what_nobody_has_compared_is_refused(strategy):
    refused(
        f"trainer.strategy {strategy.__name__} has not been shown to give the gradients of the whole batch", strategy()
    )


def test_more_than_the_others_names_are_looked_at():
    assert len(DDP) >= 8 and "ddp_find_unused_parameters_true" in DDP


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ddp_comm_hook", bf16_compress_hook),
        ("ddp_comm_wrapper", lambda hook: hook),
        ("model_averaging_period", 4),
    ],
)
def test_ranks_that_exchange_something_else_than_the_mean_are_refused(name, value):
    refused(f"trainer.strategy has {name}, so gradients would not be the mean", DDPStrategy(**{name: value}))


def test_a_graph_that_is_declared_static_has_no_pieces():
    refused(r"static_graph in trainer\.strategy beside model\.accumulate 2", DDPStrategy(static_graph=True), pieces=2)
    check_strategy(trainer(DDPStrategy(static_graph=True)))
    check_strategy(trainer(DDPStrategy(static_graph=False)), pieces=2)


def test_accumulation_that_cuts_the_loss_is_refused():
    scheduler = GradientAccumulationScheduler(scheduling={0: 1, 4: 2})
    refused(r"GradientAccumulationScheduler in trainer\.callbacks", SingleDeviceStrategy(), scheduler)
