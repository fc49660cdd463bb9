"""Validation and test of two towers: Recall@K with all captions, zero-shot accuracy, and what was left out."""

from __future__ import annotations

from typing import Any

import dualenc.torchvision_ops  # noqa: F401  (before Lightning)

import pytorch_lightning as pl
from torch import nn

from dualenc.model.names import class_files
from dualenc.train import accounting
from dualenc.train.validation import Embeddings, zero_shot_scores


class Scored(pl.LightningModule):
    """A LightningModule with `model` and `tokenizer` whose validation and test log their scores, the same on all ranks."""

    model: nn.Module
    tokenizer: Any

    def __init__(self) -> None:
        super().__init__()
        self._seen: dict[int, Embeddings] = {}  # by the number of the evaluation loader, like the next
        self._shown: dict[int, accounting.Counts] = {}

    def check_classes(self) -> None:
        """ValueError or FileNotFoundError for data.zeroshot without classes: before training, not after its first epoch."""
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        source = getattr(data, "sources", {}).get("zeroshot")
        if source is None:
            return
        class_files(data.paths["zeroshot"])
        if all(source.sample(i, ("cls",)).label() is None for i in range(min(len(source), 100))):
            raise ValueError(
                f"data.zeroshot: {source.path} has no KEY.cls, so no right classes; add them or leave it out"
            )

    def validation_step(self, batch: dict[str, Any], _: int, dataloader_idx: int = 0) -> None:
        self._seen.setdefault(dataloader_idx, Embeddings()).add(self.model, batch)
        self._shown.setdefault(dataloader_idx, accounting.Counts()).add(batch)

    test_step = validation_step

    def on_validation_epoch_end(self) -> None:
        self._report("val")

    def on_test_epoch_end(self) -> None:
        self._report("test")

    def _report(self, prefix: str) -> None:
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        names = [name for name in ("val", "zeroshot") if name in data.sources] if prefix == "val" else ["test"]
        for place, name in enumerate(names):
            seen = self._seen.pop(place, None)
            if seen is None or self.trainer.sanity_checking:
                continue
            account = accounting.evaluated(self._shown[place].total(), name)
            if name == "zeroshot":
                metrics = zero_shot_scores(self.model, self.tokenizer, seen, *class_files(data.paths["zeroshot"]))
                metrics = {f"{prefix}/zeroshot_{k}": v for k, v in (metrics | account).items()}
            else:
                metrics = {f"{prefix}/{k}": v for k, v in (seen.recall() | account).items()}
            self.log_dict(metrics)
        self._seen.clear()
        self._shown.clear()
