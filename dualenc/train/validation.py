"""What validation collects over batches and ranks, and the scores it makes of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from dualenc.data.dataset import warn_once
from dualenc.evaluate.metrics import left_out, retrieval_metrics, zero_shot_metrics
from dualenc.model.names import zero_shot_classifier
from dualenc.model.towers import image_features, text_features_sorted
from dualenc.train.gather import gathered


class Embeddings:
    """Embeddings of one evaluation set, with which caption belongs to which image."""

    def __init__(self) -> None:
        self._batches: list[dict[str, np.ndarray]] = []

    def add(self, model: nn.Module, batch: dict[str, Any]) -> None:
        row = batch["text_row"]
        kept = batch["valid"][row]
        part = {"image": image_features(model, batch["image"]), "position": batch["position"], "valid": batch["valid"]}
        if len(row):
            part |= {
                "text": text_features_sorted(model, batch["all_text"])[kept],
                "owner": batch["position"][row][kept],
            }
        if "label" in batch:
            part["label"] = batch["label"]
        self._batches.append(
            {
                k: v.detach().cpu().float().numpy() if k in ("image", "text") else v.cpu().numpy()
                for k, v in part.items()
            }
        )

    def whole(self) -> dict[str, np.ndarray]:
        """All ranks' rows in the order of the data set: image (N, D), label (N,), text (T, D), image_row (T,)."""
        batches = [b for part in gathered(self._batches) for b in part]
        merged = {k: np.concatenate([b[k] for b in batches if k in b]) for k in set().union(*batches)}
        valid = merged["valid"]
        position = merged["position"][valid]
        order = np.argsort(position)
        whole = {"image": merged["image"][valid][order]}
        if len(merged.get("label", ())) == len(valid):
            whole["label"] = merged["label"][valid][order]
        if "text" in merged:
            place = np.argsort(merged["owner"], kind="stable")
            whole["text"] = merged["text"][place]
            whole["image_row"] = np.searchsorted(position[order], merged["owner"][place])
        return whole

    def recall(self) -> dict[str, float]:
        """Recall@1/5/10 both ways and their mean, over what was seen; k above the gallery is left out."""
        rows = self.whole()
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
    """Zero-shot metrics of an evaluation set with labels, without those that are undefined."""
    rows = seen.whole()
    if "label" not in rows:
        raise ValueError(
            "data.zeroshot: samples have no KEY.cls, so there is nothing to compare with; add classes or leave it out"
        )

    def embed_texts(texts: list[str]) -> np.ndarray:
        device = next(model.parameters()).device
        with torch.no_grad():
            return text_features_sorted(model, tokenizer(texts).to(device)).float().cpu().numpy()

    classifier = zero_shot_classifier(embed_texts, names, templates)  # (C, D)
    scores = zero_shot_metrics(rows["image"] @ classifier.T, rows["label"])
    return {k: v for k, v in scores.items() if v is not None}
