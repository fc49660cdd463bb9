"""What validation collects over batches and ranks, and the scores it makes of it."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dualenc.data.dataset import warn_once
from dualenc.evaluate.metrics import class_ranks, left_out, per_class_recall, retrieval_metrics
from dualenc.model.names import first_alike, twins_behind, zero_shot_classifier
from dualenc.model.towers import image_features, text_features_sorted
from dualenc.train.ranks import from_first, rank_and_ranks, rows_to_first, total

ROWS_AT_ONCE = 4096  # rows of class scores held at a time
PARTS = {"image": np.float32, "text": np.float32} | dict.fromkeys(("position", "valid", "label", "owner"), np.int64)


class Embeddings:
    """Embeddings of one evaluation set, with which caption belongs to which image."""

    def __init__(self) -> None:
        self._batches: list[dict[str, np.ndarray]] = []

    def add(self, model: nn.Module, batch: dict[str, Any]) -> None:
        row = batch["text_row"]
        kept = batch["valid"][row]
        images = _float32(image_features(model, batch["image"]))
        part = {"image": images, "position": batch["position"], "valid": batch["valid"]}
        if len(row):
            texts = _float32(text_features_sorted(model, batch["all_text"]))
            part |= {"text": texts[kept], "owner": batch["position"][row][kept]}
        if "label" in batch:
            part["label"] = batch["label"]
        self._batches.append({k: v.cpu().numpy().astype(PARTS[k], copy=False) for k, v in part.items()})

    def whole(self) -> dict[str, np.ndarray] | None:
        """All ranks' rows in the order of the data set, on the first rank: image (N, D), label (N,), text (T, D),
        image_row (T,); None on the others. Every rank must call it."""
        merged = rows_to_first({name: self._own(name) for name in PARTS})
        return None if merged is None else _in_order(merged)

    def _own(self, name: str) -> np.ndarray:
        """This rank's rows of one kind; none where the data set has none of it."""
        parts = [batch[name] for batch in self._batches if name in batch]
        return (
            np.concatenate(parts) if parts else np.empty((0, self.dim) if name in ("image", "text") else 0, PARTS[name])
        )

    @property
    def dim(self) -> int:
        """D."""
        return self._batches[0]["image"].shape[1]

    def recall(self) -> dict[str, float]:
        """Recall@1/5/10 both ways and their mean, over what was seen; k above the gallery is left out. The same on every
        rank, and every rank must call it: the first computes them."""
        rows = self.whole()
        return from_first(lambda: _recall(rows or {}))


def _float32(rows: Tensor) -> Tensor:
    """Unit rows in float32: what half precision has normalised is unit to three digits only."""
    rows = rows.detach()
    return F.normalize(rows.float(), dim=-1) if rows.dtype in (torch.float16, torch.bfloat16) else rows.float()


def _in_order(merged: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    valid = merged["valid"].astype(bool)
    position = merged["position"][valid]
    order = np.argsort(position)
    whole = {"image": merged["image"][valid][order]}
    if len(merged["label"]) == len(valid):
        whole["label"] = merged["label"][valid][order]
    if len(merged["text"]):
        place = np.argsort(merged["owner"], kind="stable")
        whole["text"] = merged["text"][place]
        whole["image_row"] = np.searchsorted(position[order], merged["owner"][place])
    return whole


def _recall(rows: dict[str, np.ndarray]) -> dict[str, float]:
    if "text" not in rows or not len(rows["image"]):
        raise ValueError(
            "no sample of the evaluation set has both an image and a caption; `dualenc data check` says why"
        )
    owned = np.unique(rows["image_row"])  # images without captions cannot be queries
    scores = retrieval_metrics(
        rows["image"][owned], rows["text"], np.searchsorted(owned, rows["image_row"]), strict=False
    )
    if missing := left_out(scores):
        warn_once(f"left out, as there are too few images or captions to rank: {', '.join(missing)}")
    recalls = {k: v for k, v in scores.items() if "recall@" in k}
    return {**recalls, "mean_recall": float(np.mean(list(recalls.values()))) if recalls else 0.0}


def zero_shot_scores(
    model: nn.Module, tokenizer: Any, seen: Embeddings, names: list[str], templates: list[str]
) -> dict[str, float]:
    """Zero-shot metrics of an evaluation set with labels, without those that are undefined; the same on every rank.

    Every rank must call it: each embeds its share of the prompts, the first computes the metrics.
    """
    classifier = total(_own_classes(model, tokenizer, seen.dim, names, templates))  # (C, D)
    rows = seen.whole()
    return from_first(lambda: _zero_shot(rows or {}, classifier, first_alike([[name] for name in names])))


def _own_classes(model: nn.Module, tokenizer: Any, dim: int, names: list[str], templates: list[str]) -> np.ndarray:
    """The classifier with this rank's share of rows; the others are zero. Calls are dealt out whole, so that each class
    is embedded together with the same others whatever the number of ranks, and comes out the same to the bit."""
    device, (rank, ranks), calls = next(model.parameters()).device, rank_and_ranks(), itertools.count()

    def embed_texts(texts: list[str]) -> np.ndarray:
        if next(calls) % ranks != rank:
            return np.zeros((len(texts), dim), np.float32)
        with torch.no_grad():
            return _float32(text_features_sorted(model, tokenizer(texts).to(device))).cpu().numpy()

    return zero_shot_classifier(embed_texts, names, templates)


def _zero_shot(rows: dict[str, np.ndarray], classifier: np.ndarray, first: np.ndarray) -> dict[str, float]:
    if "label" not in rows:
        raise ValueError(
            "data.zeroshot: samples have no KEY.cls, so there is nothing to compare with; add classes or leave it out"
        )
    images, target, classes = rows["image"], rows["label"], len(classifier)
    starts = range(0, max(1, len(images)), ROWS_AT_ONCE)
    blocks = [slice(start, start + ROWS_AT_ONCE) for start in starts]
    rank = np.concatenate([class_ranks((images[some] @ classifier.T)[:, first], target[some]) for some in blocks])
    rank -= twins_behind(first)[target]
    recall, _ = per_class_recall(rank, target, classes)
    scores = {"acc1": float((rank < 1).mean())} | ({"acc5": float((rank < 5).mean())} if classes >= 5 else {})
    return scores | {"mean_per_class_recall": float(np.nanmean(recall))}
