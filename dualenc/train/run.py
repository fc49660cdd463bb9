"""`dualenc fit|validate|test`: the LightningCLI, with one-line errors and our own defaults."""

from __future__ import annotations

import contextlib
import csv
import difflib
import math
import re
import shutil
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import dualenc.torchvision_ops  # noqa: F401  (before Lightning)

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import LearningRateMonitor, ModelCheckpoint
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from pytorch_lightning.utilities import rank_zero_only

from dualenc.data.module import PairData
from dualenc.data.stream.remote import is_remote
from dualenc.files import refuse_existing, shipped, whole_file
from dualenc.model.folder import read_checkpoint
from dualenc.train.average import Average
from dualenc.train.callbacks import ExactGradients, KeepLogs, Progress, WriteEncoder
from dualenc.train.chance import SameChance
from dualenc.train.checkpoint import Moved, WholeFiles, last_checkpoints, newest
from dualenc.train.finite import NonFinite
from dualenc.train.module import ContrastiveModule
from dualenc.train.signals import StopAtSignal, caught
from dualenc.train.watch import Watch

NOISE = (  # true of our own loaders by design, or of no use to a user
    ".*args parameter is intended.*",
    ".*does not have many workers.*",
    ".*overridden `on_before_batch_transfer`.*",
    ".*exists and is not empty.*",
    ".*`isinstance.treespec, LeafSpec.` is deprecated.*",
    ".*number of training batches.*logging interval.*",
)


class Parser(LightningArgumentParser):
    """One line per error, with the nearest known option; no abbreviations, which would set the wrong option quietly."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **(kwargs | {"allow_abbrev": False}))

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:  # type: ignore[override]
        text = " ".join(str(message).split())
        unknown = re.search(r"(?:accept option '|arguments: --)([\w.]+)", text)
        near = difflib.get_close_matches(unknown[1], known_options(self), 1) if unknown else []
        if text.startswith("Unexpected config"):
            text += " the file must hold settings, such as trainer:, model: and data:"
        hint = f"; did you mean {near[0]!r}?" if near else ""
        sys.stderr.write(f"dualenc: error: {text}{hint}\n")
        raise SystemExit(2)


def known_options(parser: Any) -> list[str]:
    """The names of a parser's options and of those of its subcommands."""
    within = [p for action in parser._actions if isinstance(action.choices, dict) for p in action.choices.values()]
    return [action.dest for each in (parser, *within) for action in each._actions]


class CLI(LightningCLI):
    """ContrastiveModule and PairData; everything a run leaves lies under trainer.default_root_dir."""

    fresh: Path | None = None  # that folder, where this run is the first to use it
    under_way: pl.Trainer | None = None

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.link_arguments("model", "data.spec", compute_fn=lambda model: model.spec, apply_on="instantiate")
        parser.add_lightning_class_args(ModelCheckpoint, "checkpoint")
        parser.set_defaults({"checkpoint.mode": "max"})

    def _parse_ckpt_path(self) -> None:
        """Lightning lets the settings inside a checkpoint win over the config, for paths but not for "last": the config wins."""

    def before_instantiate_classes(self) -> None:
        config = self.config[self.subcommand]
        root = Path(config.trainer.default_root_dir or "runs/fit")
        config.trainer.default_root_dir = str(root)
        config.weights_only = True  # nothing in a checkpoint is unpickled
        CLI.fresh, CLI.under_way = None if root.exists() else root, None
        config.checkpoint.dirpath = config.checkpoint.dirpath or str(root / "checkpoints")
        if config.data.val and config.checkpoint.monitor is None:
            config.checkpoint.monitor = "val/mean_recall"
        if config.checkpoint.filename is None:
            config.checkpoint.filename = "best-{step}" if config.checkpoint.monitor else "newest-{step}"
        if config.model.ema is not None and config.checkpoint.save_weights_only:
            raise ValueError(
                "checkpoint.save_weights_only would leave out the averages of model.ema, and the encoder would not be the one "
                "that was validated; leave one of them out"
            )
        self._last = last_checkpoints(config.checkpoint)
        config.checkpoint.every_n_train_steps = config.checkpoint.train_time_interval = None  # of last.ckpt alone
        if config.trainer.precision is None and torch.cuda.is_available() and torch.cuda.is_bf16_supported():
            config.trainer.precision = "bf16-mixed"
        self._check_checkpoint(config)
        if self.subcommand == "fit":
            if config.ckpt_path is None:
                refuse_existing(root / "encoder")  # before hours of training, not after
                if not any(
                    root.glob("hpc_ckpt_*.ckpt")
                ):  # Lightning's own, of a SLURM job that was put in the queue again
                    _refuse_begun(Path(config.checkpoint.dirpath))
            for key in ("train", "val", "zeroshot"):
                _check_paths(f"data.{key}", config.data[key])

    def _check_checkpoint(self, config: Any) -> None:
        """Without the weights that were asked for, Lightning would go on with random ones."""
        if config.ckpt_path is None and self.subcommand != "fit" and config.model.start_from is None:
            raise ValueError(
                f"nothing trained to {self.subcommand}: these towers have random weights; give --ckpt_path last, the path of "
                "a .ckpt, or --model.start_from ENCODER"
            )
        if config.ckpt_path == "last":
            config.ckpt_path = str(newest(config.checkpoint.dirpath))
        if config.ckpt_path not in (None, "best", "hpc") and not Path(config.ckpt_path).is_file():
            raise FileNotFoundError(f"{config.ckpt_path}: no such checkpoint; check --ckpt_path")
        if config.ckpt_path not in (None, "best", "hpc"):
            read_checkpoint(Path(config.ckpt_path))

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        config = self.config[self.subcommand]
        root = Path(config.trainer.default_root_dir)
        if config.trainer.logger in (None, True):
            version = "log" if self.subcommand == "fit" else self.subcommand  # validation must not replace the curve
            kwargs["logger"] = [
                CSVLogger(root, name="", version=version, flush_logs_every_n_steps=10),
                TensorBoardLogger(root, name="", version=version, default_hp_metric=False),
            ]
            if self.subcommand == "fit" and config.ckpt_path is not None:
                known = config.ckpt_path not in ("best", "hpc")  # which only Lightning knows
                _go_on(kwargs["logger"][0], Path(config.ckpt_path) if known else None)
        if config.trainer.enable_progress_bar is not False:
            given = self.config_init[self.subcommand].trainer.callbacks or []
            kwargs["callbacks"] = [*(given if isinstance(given, list) else [given]), Progress()]
        plugins = config.trainer.plugins or []
        kwargs["plugins"] = [*(plugins if isinstance(plugins, list) else [plugins]), WholeFiles()]
        trainer: Any = super().instantiate_trainer(**kwargs)
        CLI.under_way = trainer
        if self.subcommand != "fit":
            return trainer
        guard = NonFinite(config.model.non_finite)
        writers = [c for c in trainer.callbacks if isinstance(c, ModelCheckpoint)]  # after all that enters a checkpoint
        trainer.callbacks = [
            *(c for c in trainer.callbacks if c not in writers),
            *(ExactGradients(), SameChance(), guard, Average(config.model.ema, guard), KeepLogs()),
            *((Watch(guard), LearningRateMonitor("step")) if trainer.loggers else ()),
            *(Moved(), *writers, *self._last),
            StopAtSignal(Path(config.checkpoint.dirpath, "last.ckpt")),
            WriteEncoder(root / "encoder"),
        ]
        return trainer


@rank_zero_only
def _go_on(logger: CSVLogger, checkpoint: Path | None) -> None:
    """Keep the metrics.csv that is there, which Lightning deletes, up to the checkpoint: the steps after it come again."""
    done = math.inf if checkpoint is None else read_checkpoint(checkpoint)["global_step"]
    path = Path(logger.log_dir, "metrics.csv")
    aside = path.with_name("metrics.before.csv")  # until the new file is whole
    if path.is_file():
        path.replace(aside)
    writer = logger.experiment  # would delete metrics.csv
    if not aside.is_file():
        return
    with open(aside, newline="") as file:
        before = [row for row in csv.DictReader(file) if None not in row.values()]  # a kill may have cut the last one
    if before:
        writer.metrics_keys = list(before[0])
        with whole_file(path) as partial, open(partial, "w", newline="") as file:
            rows = csv.DictWriter(file, writer.metrics_keys)
            rows.writeheader()
            rows.writerows(row for row in before if int(row["step"]) < done)
    aside.unlink()


def _refuse_begun(checkpoints: Path) -> None:
    """FileExistsError where a run has left checkpoints, which a new one would overwrite."""
    if found := sorted(checkpoints.glob("last*.ckpt")):
        raise FileExistsError(
            f"{found[0]} is of a run that has begun, and would be overwritten; go on with --ckpt_path last, name another "
            "trainer.default_root_dir, or remove it"
        )


def _check_paths(name: str, value: Any) -> None:
    for path in value if isinstance(value, list) else [value]:
        local = path and not is_remote(path) and not any(c in path for c in "*{[")
        if local and not Path(path).exists():
            raise FileNotFoundError(f"{name}: {path} does not exist, so there is no data to read; check the path")


def run(argv: list[str]) -> None:
    """Run `fit`, `validate` or `test` with command-line arguments; `--config NAME` also takes the name of a shipped config.

    A run that fails before it has learnt anything leaves no folder behind that was not there before.
    """
    for pattern in NOISE:
        warnings.filterwarnings("ignore", message=pattern)
    try:
        with caught() if argv[:1] == ["fit"] else contextlib.nullcontext():
            CLI(ContrastiveModule, PairData, **cli_settings(argv), save_config_kwargs={"overwrite": True})
    except BaseException:
        if CLI.fresh is not None and not _has_learnt(CLI.under_way) and getattr(rank_zero_only, "rank", 0) == 0:
            shutil.rmtree(CLI.fresh, ignore_errors=True)
        raise


def _has_learnt(trainer: pl.Trainer | None) -> bool:
    """Whether a step was made with a sample that could be used: then the log is worth keeping."""
    if trainer is None or trainer.global_step == 0:
        return False
    module: Any = trainer.lightning_module
    return trainer.current_epoch > 0 or module.counts.any_seen()


def cli_settings(argv: Sequence[str]) -> dict[str, Any]:
    """What `CLI` is made with, for these words of a command line."""
    return {
        "args": [_config(argument, before) for before, argument in zip(["", *argv], argv, strict=False)],
        "parser_class": Parser,
        "trainer_defaults": {
            "use_distributed_sampler": False,
            "log_every_n_steps": 10,
            "sync_batchnorm": torch.cuda.is_available(),
        },
        "seed_everything_default": 0,
    }


def _config(argument: str, before: str) -> str:
    """`--config NAME` and `--config=NAME` to the path of that config."""
    if before in ("--config", "-c"):
        return str(shipped("configs", argument))
    name, equals, value = argument.partition("=")
    return f"{name}={shipped('configs', value)}" if name == "--config" and equals else argument
