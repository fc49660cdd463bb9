"""The LightningModule: two towers, a contrastive loss over the whole batch of all ranks, validation by Recall@K."""

from __future__ import annotations

import collections
import logging
import math
from typing import Any

import dualenc.torchvision_ops  # noqa: F401  (before Lightning)

import pytorch_lightning as pl
import torch
from torch import Tensor

from dualenc.model import folder
from dualenc.model.losses import contrastive_loss, sigmoid_loss
from dualenc.model.names import class_files
from dualenc.model.spec import input_spec
from dualenc.model.towers import image_features, text_features
from dualenc.train import accounting, start
from dualenc.train.gather import gather_rows, gathered
from dualenc.train.schedule import total_steps, warmup_cosine
from dualenc.train.validation import Embeddings, zero_shot_scores

log = logging.getLogger("dualenc")

MOST_EMPTY = 10  # batches in a row without a usable sample, after which training stops


class ContrastiveModule(pl.LightningModule):
    """Trains two open_clip towers.

    Args:
        start_from: an encoder folder, a .ckpt, or open_clip's NAME:TAG or hf-hub:… whose weights to start from.
        name: a built-in open_clip architecture such as ViT-B-32, with random weights.
        embed_dim: width of an embedding, where the towers are given by their sizes; 256 unless given.
        vision: the image tower's sizes, open_clip's vision_cfg (also timm_model_name).
        text: the text tower's sizes, open_clip's text_cfg.
        quick_gelu: OpenAI's approximation of GELU, as its own weights need.
        preprocess: changes to open_clip's preprocessing (mean, std, interpolation, resize_mode).
        loss: softmax (CLIP) or sigmoid (SigLIP).
        temperature: initial temperature; unless given, 0.07 for softmax, 0.1 for sigmoid, or that of `start_from`.
        max_logit_scale: upper clamp of the logit scale, 1 / the lowest temperature.
        lr: peak learning rate.
        weight_decay: decoupled weight decay of matrices; gains, biases and temperature have none.
        betas: AdamW's decay rates.
        warmup_steps: steps of linear warm-up before the cosine falls to zero at the last step.
    """

    def __init__(
        self,
        start_from: str | None = None,
        name: str | None = None,
        embed_dim: int | None = None,
        vision: dict[str, Any] | None = None,
        text: dict[str, Any] | None = None,
        quick_gelu: bool = False,
        preprocess: dict[str, Any] | None = None,
        loss: str = "softmax",
        temperature: float | None = None,
        max_logit_scale: float = 100.0,
        lr: float = 1e-3,
        weight_decay: float = 0.2,
        betas: tuple[float, float] = (0.9, 0.98),
        warmup_steps: int = 50,
    ):
        super().__init__()
        if loss not in ("softmax", "sigmoid"):
            raise ValueError(f"model.loss {loss!r} is unknown; use softmax or sigmoid")
        if sum(x is not None for x in (start_from, name, vision)) != 1:
            raise ValueError(
                "give exactly one of model.start_from, model.name, or model.vision with model.text: the towers"
            )
        for key, number in {"lr": lr, "weight_decay": weight_decay, "warmup_steps": warmup_steps}.items():
            if not number >= 0:
                raise ValueError(f"model.{key} is {number}, but it cannot be negative; set 0 or more")
        ignored = {"text": text, "embed_dim": embed_dim, "quick_gelu": quick_gelu} if vision is None else {}
        for key, value in ignored.items():
            if value:
                raise ValueError(
                    f"model.{key} has no effect beside model.{'name' if name else 'start_from'}; remove one of them"
                )
        self.save_hyperparameters()
        self.loss, self.max_logit_scale, self.lr, self.weight_decay = loss, max_logit_scale, lr, weight_decay
        self.betas, self.warmup_steps = betas, warmup_steps
        sizes = {"embed_dim": embed_dim, "vision": vision, "text": text, "quick_gelu": quick_gelu}
        started = start.towers(start_from, name, sizes, preprocess or {}, loss, temperature)
        self.model, self.tokenizer, self.model_cfg, _ = started
        self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.counts = accounting.Counts()
        self._seen: dict[int, Embeddings] = {}  # by the number of the evaluation loader, like the next
        self._shown: dict[int, accounting.Counts] = {}
        self._empty = 0  # batches in a row of which nothing could be used

    def setup(self, stage: str) -> None:
        """What validation will need is looked for before training, not after its first epoch."""
        source = getattr(self.trainer.datamodule, "sources", {}).get("zeroshot")  # type: ignore[attr-defined]
        if source is not None:
            class_files(self.trainer.datamodule.paths["zeroshot"])  # type: ignore[attr-defined]
            if all(source.sample(i, ("cls",)).label() is None for i in range(min(len(source), 100))):
                raise ValueError(
                    f"data.zeroshot: {source.path} has no KEY.cls, so no right classes; add them or leave it out"
                )

    @property
    def spec(self) -> dict[str, Any]:
        """What the data module needs to know of the towers."""
        return input_spec(self.model, self.tokenizer)

    def loaded(self) -> folder.Loaded:
        """The encoder as it stands, for an encoder folder."""
        return folder.Loaded(self.model, self.tokenizer, self.model_cfg, self.provenance())

    def provenance(self) -> dict[str, Any]:
        """How these weights came about, in plain types."""
        plain = {k: v for k, v in self.hparams.items() if not k.startswith("_") and v is not None}
        seen = (
            self.global_step * getattr(getattr(self.trainer, "datamodule", None), "batch_size", 0)
            if self._trainer
            else 0
        )
        return {"settings": plain, "steps": int(self.global_step), "samples_seen": int(seen)}

    def training_step(self, batch: dict[str, Any], _: int) -> Tensor:
        tokens = batch.get("texts", batch["text"].unsqueeze(1))  # (B, K, L)
        texts = text_features(self.model, tokens.flatten(0, 1)).view(len(tokens), -1)  # (B, K·D)
        image, text, valid = gather_rows(image_features(self.model, batch["image"]), texts, batch["valid"])
        self.counts.add(batch)
        if not valid.any():
            return self._no_loss(image, text)
        self._empty = 0
        loss = self._loss(image, text) if valid.all() else self._loss(image[valid], text[valid])
        if not torch.isfinite(loss):
            raise ValueError(
                f"the loss is {loss.item()} at step {self.global_step}, so training stops before it spoils the weights; "
                "lower model.lr, lengthen model.warmup_steps or set trainer.gradient_clip_val"
            )
        self.log("train/loss", loss, prog_bar=True)
        self.log("train/logit_scale", self.model.logit_scale.exp().detach())  # type: ignore[operator]
        return loss

    def _no_loss(self, image: Tensor, text: Tensor) -> Tensor:
        """Zero with zero gradients, for a batch of which nothing can be used: its shard may be broken, the next is read.

        ValueError after MOST_EMPTY in a row.
        """
        self._empty += 1
        if self._empty == MOST_EMPTY:
            raise ValueError(
                f"no sample of {MOST_EMPTY} batches in a row could be used, so nothing is learnt; `dualenc data check` says "
                "what is wrong with the data"
            )
        return 0 * (image.sum() + text.sum() + sum(p.sum() for p in self.parameters() if p.requires_grad))

    def _loss(self, image: Tensor, text: Tensor) -> Tensor:
        """image (B, D), text (B, K·D): the mean over K captions of the loss of that caption with the image."""
        with torch.autocast(image.device.type, enabled=False):  # logits in half precision cost 1 % of the gradient
            if image.dtype in (torch.float16, torch.bfloat16):
                image, text = image.float(), text.float()
            return torch.stack([self._pair_loss(image, one) for one in text.split(image.shape[1], dim=1)]).mean()

    def _pair_loss(self, image: Tensor, text: Tensor) -> Tensor:
        scale = self.model.logit_scale.exp()  # type: ignore[operator]
        if self.loss == "sigmoid":
            return sigmoid_loss(image, text, scale, self.model.logit_bias)  # type: ignore[arg-type]
        return contrastive_loss(image, text, scale)

    def optimizer_step(self, *args: Any, **settings: Any) -> None:
        super().optimizer_step(*args, **settings)  # checkpoints are written before on_train_batch_end: clamp here
        with torch.no_grad():  # CLIP clamps so that training stays stable (Radford et al. 2021, 2.5)
            self.model.logit_scale.clamp_(0, math.log(self.max_logit_scale))  # type: ignore[union-attr,operator]

    def on_train_epoch_start(self) -> None:
        self.counts.clear()  # not at an epoch's end: that of a run ended by max_steps may go on

    def on_train_epoch_end(self) -> None:
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        counted = self.counts.total()
        accounting.refuse_nothing(counted)
        left = data.left_over(accounting.samples(counted))
        if data.streams is not None:  # each rank has its own
            left["incomplete_batch"] = sum(gathered(left["incomplete_batch"]))
        total = counted + collections.Counter(data.listed)
        if self.trainer.is_global_zero:
            accounting.report(total, left, self.current_epoch)
        self.log_dict(accounting.metrics(total, left, data.names), rank_zero_only=True)

    def validation_step(self, batch: dict[str, Any], _: int, dataloader_idx: int = 0) -> None:
        self._seen.setdefault(dataloader_idx, Embeddings()).add(self.model, batch)
        self._shown.setdefault(dataloader_idx, accounting.Counts()).add(batch)

    test_step = validation_step

    def on_validation_epoch_end(self) -> None:
        self._report("val")

    def on_test_epoch_end(self) -> None:
        self._report("test")

    def _report(self, prefix: str) -> None:
        data = self.trainer.datamodule  # type: ignore[attr-defined]
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
            self.log_dict(metrics, rank_zero_only=True)
        self._seen.clear()
        self._shown.clear()

    def configure_optimizers(self) -> Any:
        trained = [p for p in self.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in trained if p.ndim >= 2], "weight_decay": self.weight_decay},
            {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(groups, lr=self.lr, betas=self.betas, eps=1e-8)
        total = total_steps(self.trainer)
        if not math.isfinite(total):
            raise ValueError(
                "training has no end that is known, so the cosine schedule has no length; set trainer.max_steps (the only way "
                "for streams, whose length nobody knows) or max_epochs"
            )
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: warmup_cosine(step, self.warmup_steps, int(total))
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["dualenc"] = {
            "model_cfg": self.model_cfg,
            "preprocess_cfg": folder.preprocess_of(self.model),
            "training": self.provenance(),
            "counts": self.counts.state(),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        fit = checkpoint.get("loops", {}).get("fit_loop")  # checkpoints of weights alone have none
        if self.trainer.is_global_zero and fit and not fit["epoch_loop.batch_progress"]["is_last_batch"]:
            self.counts.load(checkpoint["dualenc"].get("counts", []))
