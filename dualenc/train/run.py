"""`dualenc fit|validate|test`: the LightningCLI, with one-line errors and our own defaults."""

from __future__ import annotations

import difflib
import re
import shutil
import sys
import warnings
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
from dualenc.files import refuse_existing, shipped
from dualenc.model.folder import read_checkpoint
from dualenc.train.callbacks import ExactGradients, Progress, WriteEncoder
from dualenc.train.module import ContrastiveModule

NOISE = (  # true of our own loaders by design, or of no use to a user
    ".*args parameter is intended.*",
    ".*does not have many workers.*",
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
        CLI.fresh = None if root.exists() else root
        config.checkpoint.dirpath = config.checkpoint.dirpath or str(root / "checkpoints")
        if config.data.val and config.checkpoint.monitor is None:
            config.checkpoint.monitor = "val/mean_recall"
        if config.checkpoint.filename is None:
            config.checkpoint.filename = "best-{step}" if config.checkpoint.monitor else "newest-{step}"
        config.checkpoint.save_last = config.checkpoint.monitor is None  # else it would be the best's copy: see _last
        if config.trainer.precision is None and torch.cuda.is_available() and torch.cuda.is_bf16_supported():
            config.trainer.precision = "bf16-mixed"
        self._check_checkpoint(config)
        if self.subcommand == "fit":
            if config.ckpt_path is None:
                refuse_existing(root / "encoder")  # before hours of training, not after
            for key in ("train", "val", "zeroshot"):
                _check_paths(f"data.{key}", config.data[key])

    def _check_checkpoint(self, config: Any) -> None:
        """Without the weights that were asked for, Lightning would go on with random ones."""
        if config.ckpt_path is None and self.subcommand != "fit" and config.model.start_from is None:
            raise ValueError(
                f"nothing trained to {self.subcommand}: these towers have random weights; give --ckpt_path last, the path of "
                "a .ckpt, or --model.start_from ENCODER"
            )
        if config.ckpt_path == "last" and not list(Path(config.checkpoint.dirpath).glob("last*.ckpt")):
            raise FileNotFoundError(
                f"{config.checkpoint.dirpath}: no last.ckpt, so there is nothing to go on from; leave --ckpt_path out to start"
            )
        if config.ckpt_path not in (None, "last", "best", "hpc") and not Path(config.ckpt_path).is_file():
            raise FileNotFoundError(f"{config.ckpt_path}: no such checkpoint; check --ckpt_path")
        if config.ckpt_path not in (None, "last", "best", "hpc"):
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
                _go_on(kwargs["logger"][0])
        if config.trainer.enable_progress_bar is not False:
            given = self.config_init[self.subcommand].trainer.callbacks or []
            kwargs["callbacks"] = [*(given if isinstance(given, list) else [given]), Progress()]
        trainer: Any = super().instantiate_trainer(**kwargs)
        trainer.callbacks += [ExactGradients(), *([LearningRateMonitor("step")] if trainer.loggers else [])]
        if self.subcommand == "fit":
            last = [_last(config.checkpoint)] if config.checkpoint.monitor else []
            trainer.callbacks += [*last, WriteEncoder(root / "encoder")]
        return trainer


def _last(best: Any) -> ModelCheckpoint:
    """Writes last.ckpt as often as `best` looks; Lightning's `save_last` writes one only when there is a new best."""
    when = ("every_n_train_steps", "every_n_epochs", "train_time_interval", "save_on_train_epoch_end")
    often = {name: best[name] for name in when}
    return ModelCheckpoint(best.dirpath, filename="last", enable_version_counter=False, **often)


@rank_zero_only
def _go_on(logger: CSVLogger) -> None:
    """Keep the metrics.csv that is there, which Lightning deletes: a resumed run's curve would lose its beginning."""
    path = Path(logger.log_dir, "metrics.csv")
    if path.is_file():
        before = path.read_text()
        writer = logger.experiment  # opens the log: the file is gone
        path.write_text(before)
        writer.metrics_keys = before.splitlines()[0].split(",")


def _check_paths(name: str, value: Any) -> None:
    for path in value if isinstance(value, list) else [value]:
        if path and not any(c in path for c in "*{[") and not Path(path).exists():
            raise FileNotFoundError(f"{name}: {path} does not exist, so there is no data to read; check the path")


def run(argv: list[str]) -> None:
    """Run `fit`, `validate` or `test` with command-line arguments; `--config NAME` also takes the name of a shipped config.

    A run that fails before its first checkpoint leaves no folder behind that was not there before.
    """
    for pattern in NOISE:
        warnings.filterwarnings("ignore", message=pattern)
    settings: dict[str, Any] = {
        "args": [_config(argument, before) for before, argument in zip(["", *argv], argv, strict=False)],
        "parser_class": Parser,
        "trainer_defaults": {
            "use_distributed_sampler": False,
            "log_every_n_steps": 10,
            "sync_batchnorm": torch.cuda.is_available(),
        },
        "seed_everything_default": 0,
        "save_config_kwargs": {"overwrite": True},
    }
    try:
        CLI(ContrastiveModule, PairData, **settings)
    except BaseException:
        if CLI.fresh is not None and not (CLI.fresh / "checkpoints").exists():
            shutil.rmtree(CLI.fresh, ignore_errors=True)
        raise


def _config(argument: str, before: str) -> str:
    """`--config NAME` and `--config=NAME` to the path of that config."""
    if before in ("--config", "-c"):
        return str(shipped("configs", argument))
    name, equals, value = argument.partition("=")
    return f"{name}={shipped('configs', value)}" if name == "--config" and equals else argument
