"""The LightningModule: two towers, a contrastive loss over the whole batch of all ranks, validation by Recall@K."""

from __future__ import annotations

import collections
import dataclasses
import json
import math
from typing import Any

import dualenc.torchvision_ops  # noqa: F401  (before Lightning)

import torch
from torch import Tensor

from dualenc.model import folder
from dualenc.model.finetune import check_training, prepare
from dualenc.model.freeze import keep_frozen_eval
from dualenc.model.lora import Lora, merged
from dualenc.model.losses import Pairs, contrastive_loss, sigmoid_loss
from dualenc.model.ranks import rank_and_ranks
from dualenc.model.spec import input_spec
from dualenc.model.towers import image_features, text_features
from dualenc.train import accounting, start
from dualenc.train.accumulate import CachedFeatures, reduced_once
from dualenc.train.image_store import ImageRows, image_rows
from dualenc.train.optimizer import make_optimizer, parameter_groups, take_rates
from dualenc.train.pairs import captions_of, pairs_of
from dualenc.train.ranks import of_all
from dualenc.train.schedule import total_steps, warmup_cosine
from dualenc.train.scored import Scored
from dualenc.train.settings import check_settings, prefixes
from dualenc.train.speed import compile_towers

MOST_EMPTY = 10  # batches in a row without a usable sample, after which training stops


class ContrastiveModule(Scored):
    """Trains two open_clip towers.

    Args:
        start_from: an encoder folder, a .ckpt, or open_clip's NAME:TAG or hf-hub:… whose weights to start from.
        name: a built-in open_clip architecture such as ViT-B-32, with random weights.
        image_blocks: how many of the image tower's last blocks are trained, with what follows them; null trains all of
            it, 0 freezes it (LiT).
        text_blocks: the same of the text tower.
        lora: train low-rank changes of the weights instead of the weights.
        patch_dropout: share of an image's patches that a training step leaves out (FLIP); vision transformers only.
        ema: decay of an average of the weights, such as 0.999: validated and written in their place; null keeps none.
        grad_checkpointing: compute activations again in the backward pass instead of keeping them.
        compile: compile the towers with torch.compile.
        embed_dim: width of an embedding, where the towers are given by their sizes; 256 unless given.
        vision: the image tower's sizes, open_clip's vision_cfg (also timm_model_name).
        text: the text tower's sizes, open_clip's text_cfg.
        quick_gelu: OpenAI's approximation of GELU, as its own weights need.
        preprocess: changes to open_clip's preprocessing (mean, std, interpolation, resize_mode).
        loss: softmax (CLIP) or sigmoid (SigLIP).
        label_smoothing: share of each softmax target that is spread over the whole batch.
        positives: each takes the captions of an image apart, as so many losses; group makes all captions of one image, and
            of images with equal keys, positives of one loss.
        mask_false_negatives: a caption that equals one of an image's own is no negative of it, and equal keys are one image.
        matryoshka: lengths of prefixes that are trained beside the whole embedding, such as [64, 128]; the loss is the mean of
            all.
        tile: edge of the tiles in which the loss is computed, so that no B×B matrix is held; 0 never tiles, null where it pays.
        accumulate: forward passes that a batch is cut into; the gradient stays that of the whole batch.
        non_finite: what a step does whose loss or gradient is not finite: stop the run, or skip the step and name its samples.
        temperature: initial temperature; unless given, 0.07 for softmax, 0.1 for sigmoid, or that of `start_from`.
        max_logit_scale: upper clamp of the logit scale, 1 / the lowest temperature.
        lr: peak learning rate.
        layer_decay: factor of the learning rate from each block to the one below it; 1 gives all the same.
        weight_decay: decoupled weight decay of matrices; gains, biases and temperature have none.
        betas: AdamW's decay rates.
        warmup_steps: steps of linear warm-up before the cosine falls to zero at the last step.
    """

    def __init__(
        self,
        start_from: str | None = None,
        name: str | None = None,
        image_blocks: int | None = None,
        text_blocks: int | None = None,
        lora: Lora | None = None,
        patch_dropout: float = 0.0,
        ema: float | None = None,
        grad_checkpointing: bool = False,
        compile: bool = False,
        embed_dim: int | None = None,
        vision: dict[str, Any] | None = None,
        text: dict[str, Any] | None = None,
        quick_gelu: bool = False,
        preprocess: dict[str, Any] | None = None,
        loss: str = "softmax",
        label_smoothing: float = 0.0,
        positives: str = "each",
        mask_false_negatives: bool = False,
        matryoshka: list[int] | None = None,
        tile: int | None = None,
        accumulate: int = 1,
        non_finite: str = "stop",
        temperature: float | None = None,
        max_logit_scale: float = 100.0,
        lr: float = 1e-3,
        layer_decay: float = 1.0,
        weight_decay: float = 0.2,
        betas: tuple[float, float] = (0.9, 0.98),
        warmup_steps: int = 50,
    ):
        super().__init__()
        check_settings(locals())
        check_training(image_blocks, text_blocks, lora, patch_dropout, layer_decay)
        self.save_hyperparameters()
        self.hparams["lora"] = None if lora is None else dataclasses.asdict(lora)  # plain, for checkpoints
        self.loss, self.positives, self.mask_false_negatives = loss, positives, mask_false_negatives
        self.tile, self.label_smoothing = tile, label_smoothing
        self.max_logit_scale, self.accumulate = max_logit_scale, accumulate
        sizes = {"embed_dim": embed_dim, "vision": vision, "text": text, "quick_gelu": quick_gelu}
        started = start.towers(start_from, name, sizes, preprocess or {}, loss, temperature)
        self.model, self.tokenizer, self.model_cfg, _ = started
        if compile:
            compile_towers(self.model)
        prepare(self.model, image_blocks, text_blocks, lora, patch_dropout, layer_decay, grad_checkpointing)
        if loss == "softmax" and getattr(self.model, "logit_bias", None) is not None:
            self.model.logit_bias.requires_grad_(False)  # type: ignore[union-attr,operator]
        self.prefixes = prefixes(matryoshka, int(self.model_cfg["embed_dim"]))
        self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.counts = accounting.Counts()
        self._empty: int | Tensor = 0  # batches in a row of which nothing could be used
        self._rows: ImageRows | None = None  # of a frozen image tower
        self._cached: CachedFeatures | None = None  # of the step under way
        self._replayed = False  # whether a step has shown that its second pass repeats the first
        self.embed = {"image": self._images, "text": self._texts}

    def train(self, mode: bool = True) -> ContrastiveModule:
        super().train(mode)
        keep_frozen_eval(self.model)
        return self

    def setup(self, stage: str) -> None:
        """What training and validation will need is looked for before any work."""
        if stage == "fit":
            start_from, preprocess = self.hparams["start_from"], self.hparams["preprocess"]
            self._rows = image_rows(self.trainer.datamodule, self.model, start_from, preprocess)  # type: ignore[attr-defined]
        self.check_classes()

    @property
    def spec(self) -> dict[str, Any]:
        """What the data module needs to know of the towers."""
        return input_spec(self.model, self.tokenizer)

    def loaded(self) -> folder.Loaded:
        """The encoder as it stands, for an encoder folder."""
        return folder.Loaded(merged(self.model), self.tokenizer, self.model_cfg, self.provenance())

    def provenance(self) -> dict[str, Any]:
        """How these weights came about, in plain types."""
        plain = {k: v for k, v in self.hparams.items() if not k.startswith("_") and v is not None}
        seen = (
            self.global_step * getattr(getattr(self.trainer, "datamodule", None), "batch_size", 0)
            if self._trainer
            else 0
        )
        return {"settings": plain, "steps": int(self.global_step), "samples_seen": int(seen)}

    def on_before_batch_transfer(self, batch: dict[str, Any], _: int) -> dict[str, Any]:
        return batch if self._rows is None else self._rows.attach(batch)

    def training_step(self, batch: dict[str, Any], _: int) -> Tensor:
        self.counts.add(batch)
        pairs = pairs_of(batch, rank_and_ranks()[0], self.positives, self.mask_false_negatives)
        if self.accumulate > 1:
            context = self.trainer.precision_plugin.forward_context
            self._cached = CachedFeatures(self.embed, batch, self.accumulate, self.model, context)
            loss = self._loss(self._cached.image, self._cached.text, pairs)
        else:
            loss = self._loss(self._images(batch), self._texts(batch), pairs)
        self._refuse_empty((loss.detach() == 0) & ~batch["valid"].any())  # of all ranks, as the loss is
        self.log("train/loss", loss.detach())
        self.log("train/logit_scale", self.model.logit_scale.exp().detach())  # type: ignore[operator]
        return loss

    def backward(self, loss: Tensor, *args: Any, **settings: Any) -> None:
        super().backward(loss, *args, **settings)
        if self._cached is not None:
            self._cached.backward(check=not self._replayed)
            self._cached, self._replayed = None, True

    def _images(self, batch: dict[str, Any]) -> Tensor:
        """Unit rows (B, D)."""
        return batch["image_embedding"] if "image_embedding" in batch else image_features(self.model, batch["image"])

    def _texts(self, batch: dict[str, Any]) -> Tensor:
        """Unit rows (B, K, D) of the K captions of each image."""
        tokens = captions_of(batch)  # (B, K, L)
        return text_features(self.model, tokens.flatten(0, 1)).view(*tokens.shape[:2], -1)

    def _loss(self, image: Tensor, text: Tensor, pairs: Pairs) -> Tensor:
        """The loss over the whole batch of all ranks; image (B, D), text (B, K, D) are of this one."""
        text = text.flatten(0, 1) if self.positives == "group" else text
        scale = self.model.logit_scale.exp()  # type: ignore[operator]
        common: dict[str, Any] = {"pairs": pairs, "dims": self.prefixes, "tile": self.tile, "ranks": True}
        if self.loss == "sigmoid":
            return sigmoid_loss(image, text, scale, self.model.logit_bias, **common)  # type: ignore[arg-type]
        return contrastive_loss(image, text, scale, label_smoothing=self.label_smoothing, **common)

    def _refuse_empty(self, empty: Tensor) -> None:
        """ValueError after MOST_EMPTY batches in a row of which nothing could be used: one may be that of a broken shard."""
        self._empty = (self._empty + 1) * empty
        # on a GPU a look makes the host wait
        often = self.device.type == "cpu" or self.trainer._logger_connector.should_update_logs
        if often and self._empty >= MOST_EMPTY:
            raise ValueError(
                f"no sample of {MOST_EMPTY} batches in a row could be used, so nothing is learnt; `dualenc data check` says "
                "what is wrong with the data"
            )

    def optimizer_step(self, *args: Any, **settings: Any) -> None:
        with reduced_once(self.trainer, self.accumulate):
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
            left["incomplete_batch"] = sum(of_all(left["incomplete_batch"]))
        total = counted + collections.Counter(data.listed)
        if self.trainer.is_global_zero:
            accounting.report(total, left, self.current_epoch)
        self.log_dict(accounting.metrics(total, left, data.names), rank_zero_only=True)

    def _groups(self) -> list[dict[str, Any]]:
        return parameter_groups(
            self.model, *(self.hparams[name] for name in ("lr", "weight_decay", "layer_decay", "betas"))
        )

    def configure_optimizers(self) -> Any:
        optimizer = make_optimizer(self._groups())
        total = total_steps(self.trainer)
        if not math.isfinite(total):
            raise ValueError(
                "training has no end that is known, so the cosine schedule has no length; set trainer.max_steps (the only way "
                "for streams, whose length nobody knows) or max_epochs"
            )
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: warmup_cosine(step, self.hparams["warmup_steps"], int(total))
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["dualenc"] = {
            "model_cfg": self.model_cfg,
            "preprocess_cfg": folder.preprocess_of(self.model),
            "lora": self.hparams["lora"],
            "training": self.provenance(),
            "counts": self.counts.state(),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        _refuse_other_weights(checkpoint["state_dict"], self.state_dict())
        theirs, ours = (json.dumps(lora) for lora in (checkpoint["dualenc"].get("lora"), self.hparams["lora"]))
        if theirs != ours:
            raise ValueError(
                f"the checkpoint was trained with model.lora {theirs}, and now it is {ours}: the same weights would mean another "
                "encoder; set it to what it was"
            )
        if self.trainer.state.fn == "fit":
            take_rates(checkpoint, self._groups())
        fit = checkpoint.get("loops", {}).get("fit_loop")  # checkpoints of weights alone have none
        if self.trainer.is_global_zero and fit and not fit["epoch_loop.batch_progress"]["is_last_batch"]:
            self.counts.load(checkpoint["dualenc"].get("counts", []))


def _refuse_other_weights(theirs: dict[str, Tensor], ours: dict[str, Tensor]) -> None:
    """ValueError where a checkpoint's tensors are not those of these towers."""
    for name in [*ours, *theirs]:
        shapes = [None if name not in state else tuple(state[name].shape) for state in (theirs, ours)]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"the checkpoint has {name} of shape {shapes[0]}, and these towers have {shapes[1]}: model: is not what it was; "
                "set it back, or begin anew with model.start_from"
            )
