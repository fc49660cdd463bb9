"""Metrics as pure array functions, numpy only: no model, no files, no torch.

Recall@K is CLIP's hit rate: the share of queries with at least one relevant gallery row in the top K. A query's rank
is the number of irrelevant rows that score at least as high as its best relevant row, so ties count against the model
and a collapsed encoder, whose scores are all equal, gets 0. torchmetrics' `RetrievalRecall` is another quantity.

Ranks are exact (`ranks.py`). Everything here is a fraction 0..1 or a count, in flat dicts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from dualenc.evaluate.pairs import Side, check_k, checked_pairs, sides
from dualenc.evaluate.ranks import Floats, Ints, checked_rows, pair_scores, ranks, ranks_both_ways

__all__ = [
    "Side",
    "chance_recall",
    "class_metrics",
    "class_ranks",
    "left_out",
    "pair_scores",
    "per_class_recall",
    "rank_metrics",
    "ranks",
    "recall_at_k",
    "retrieval_metrics",
    "retrieval_ranks",
    "sides",
    "zero_shot_metrics",
]


def recall_at_k(
    query: npt.ArrayLike, gallery: npt.ArrayLike, relevant: Sequence[npt.ArrayLike], ks: Sequence[int] = (1, 5, 10)
) -> dict[str, float]:
    """Share of queries with at least one relevant gallery row in the top k, for each k: a hit rate, 0..1.

    query (Q, D), gallery (G, D): embeddings, any float type. relevant: Q lists; relevant[i] holds the gallery rows
    that are right for query i. Ties count against the model.
    ValueError: a query with no relevant row, NaN or infinity, k below 1 or above G, shapes that do not fit.

    Three queries on a line, four gallery rows; rows 2 and 3 are equal, so query 2 cannot have row 2 first:

    >>> gallery = [[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [0.0, 1.0]]
    >>> recall_at_k([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]], gallery, [[0], [1], [2]], ks=(1, 2))
    {'recall@1': 0.3333333333333333, 'recall@2': 1.0}
    """
    size = len(checked_rows(gallery, "gallery"))
    for k in ks:
        check_k(k, size)
    rank = ranks(query, gallery, relevant)
    return {f"recall@{k}": float((rank < k).mean()) for k in ks}


def rank_metrics(rank: npt.ArrayLike, ks: Sequence[int]) -> dict[str, float]:
    """Recall@k for each k, "mean_rank" and "median_rank" (both counted from 1) of ranks counted from 0, (Q,).

    >>> rank_metrics([0, 0, 0, 4], ks=(1,))
    {'recall@1': 0.75, 'mean_rank': 2.0, 'median_rank': 1.0}
    """
    rank = np.asarray(rank)
    recalls = {f"recall@{k}": float((rank < k).mean()) for k in ks}
    return recalls | {"mean_rank": float(rank.mean()) + 1, "median_rank": float(np.median(rank)) + 1}


def retrieval_metrics(
    images: npt.ArrayLike,
    texts: npt.ArrayLike,
    image_row: npt.ArrayLike,
    ks: Sequence[int] = (1, 5, 10),
    strict: bool = True,
    same: npt.ArrayLike | None = None,
) -> dict[str, float]:
    """Recall@k, mean and median rank, from text to image and from image to text.

    images (N, D), texts (T, D); image_row (T,): text t belongs to image image_row[t]; an image may have several.
    Recall is a fraction; ranks here count from 1, as people do. Every image needs a text. Duplicated images and
    captions are ordinary ties, unless `same` (N,) tells which images are: those with equal integers >= 0 are right for
    each other's captions, both ways. ValueError as `recall_at_k`, and for an image without a text.

    Two images; the second caption of image 0 lies nearer to image 1:

    >>> metrics = retrieval_metrics([[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]], [0, 0, 1], ks=(1,))
    >>> metrics["text_to_image/recall@1"], metrics["image_to_text/recall@1"], metrics["text_to_image/mean_rank"]
    (0.6666666666666666, 1.0, 1.3333333333333333)

    strict=False is for a validation loop that may have seen only a part: image_row[t] = -1 says that text t's image was
    not seen; such texts, and images without a text, ask nothing but stay in the gallery; a k above the gallery is left
    out. `left_out` names what is missing then. NaN and shapes that do not fit are errors still.
    """
    metrics: dict[str, float] = {}
    found = retrieval_ranks(images, texts, image_row, ks, strict, same)
    for way, gallery in zip(found, (len(np.asarray(images)), len(np.asarray(texts))), strict=True):
        rank = found[way][found[way] >= 0]
        if len(rank):
            fits = [k for k in ks if k <= gallery]
            metrics |= {f"{way}/{name}": value for name, value in rank_metrics(rank, fits).items()}
    return metrics


def retrieval_ranks(
    images: npt.ArrayLike,
    texts: npt.ArrayLike,
    image_row: npt.ArrayLike,
    ks: Sequence[int] = (),
    strict: bool = True,
    same: npt.ArrayLike | None = None,
) -> dict[str, Ints]:
    """The ranks behind `retrieval_metrics`: {"text_to_image": (T,), "image_to_text": (N,)} from 0, of one pass over scores.

    Arguments and errors as there (ks are only checked); a row that asks nothing (strict=False) has the rank -1.

    >>> retrieval_ranks([[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]], [0, 0, 1])
    {'text_to_image': array([0, 1, 0]), 'image_to_text': array([0, 0])}
    """
    images, texts, pairs = checked_pairs(images, texts, image_row, ks, strict, same)
    to_image, to_text = ranks_both_ways(texts, images, pairs)
    return {"text_to_image": to_image, "image_to_text": to_text}


def left_out(metrics: Mapping[str, float], ks: Sequence[int] = (1, 5, 10)) -> list[str]:
    """Names that `retrieval_metrics(..., strict=False)` did not give, for one line in the log.

    >>> left_out(retrieval_metrics([[1.0, 0.0]], [[1.0, 0.0], [0.0, 1.0]], [0, -1], ks=(1, 2), strict=False), ks=(1, 2))
    ['text_to_image/recall@2']
    """
    names = [*(f"recall@{k}" for k in ks), "mean_rank", "median_rank"]
    every = [f"{way}/{name}" for way in ("text_to_image", "image_to_text") for name in names]
    return [name for name in every if name not in metrics]


def chance_recall(relevant: npt.ArrayLike, gallery: int, k: int) -> float:
    """Recall@k of a random order, on average: relevant (Q,) counts each query's relevant rows among `gallery` rows.

    >>> chance_recall([1, 1], gallery=1000, k=5)
    0.005
    """
    check_k(k, gallery)
    counts, queries = np.unique(np.asarray(relevant), return_counts=True)  # few: the queries may be many
    drawn = np.arange(k)
    left = np.maximum(gallery - counts[:, None] - drawn, 0)  # irrelevant rows left at each draw
    return round(float(1.0 - np.average((left / (gallery - drawn)).prod(axis=1), weights=queries)), 12)


def zero_shot_metrics(scores: npt.ArrayLike, target: npt.ArrayLike) -> dict[str, float | None]:
    """Accuracy of class scores: {"acc1", "acc5" (None below 5 classes), "mean_per_class_recall"}, fractions 0..1.

    scores (N, C): higher is better, any scale. target (N,): the right class's column. Ties count against the model, as
    in retrieval: a class that scores as high as the right one stands before it, so equal scores everywhere give 0.
    Classes that do not occur in `target` are left out of the mean over classes (sklearn's `balanced_accuracy_score`).
    ValueError: NaN, fewer than two classes, no rows, a target outside 0..C-1, shapes that do not fit.

    >>> zero_shot_metrics([[0.9, 0.1], [0.7, 0.2], [0.5, 0.5]], [0, 0, 1])
    {'acc1': 0.6666666666666666, 'acc5': None, 'mean_per_class_recall': 0.5}
    """
    return class_metrics(class_ranks(scores, target), target, np.shape(scores)[1])


def class_metrics(rank: npt.ArrayLike, target: npt.ArrayLike, classes: int) -> dict[str, float | None]:
    """What `zero_shot_metrics` gives, of ranks counted from 0, (N,), of the right classes, (N,).

    >>> class_metrics([0, 0, 1], [0, 0, 1], classes=2)
    {'acc1': 0.6666666666666666, 'acc5': None, 'mean_per_class_recall': 0.5}
    """
    rank = np.asarray(rank)
    recall, _ = per_class_recall(rank, target, classes)
    return {
        "acc1": float((rank < 1).mean()),
        "acc5": float((rank < 5).mean()) if classes >= 5 else None,
        "mean_per_class_recall": float(np.nanmean(recall)),
    }


def class_ranks(scores: npt.ArrayLike, target: npt.ArrayLike) -> Ints:
    """Number of wrong classes that score at least as high as the right one: (N,) int64. As `zero_shot_metrics`.

    >>> class_ranks([[0.9, 0.1], [0.7, 0.7]], [0, 0])
    array([0, 1])
    """
    scores, target = np.asarray(scores), np.asarray(target)
    if scores.ndim != 2 or scores.shape[1] < 2 or len(scores) == 0:
        raise ValueError(f"scores have the shape {scores.shape}; they must be (rows, classes) with two classes or more")
    if target.shape != (len(scores),) or not np.issubdtype(target.dtype, np.integer):
        raise ValueError(
            f"target is {target.dtype} {target.shape}; it must be one integer for each of {len(scores)} rows"
        )
    if target.min() < 0 or target.max() >= scores.shape[1]:
        raise ValueError(
            f"targets span {target.min()}..{target.max()}, but there are {scores.shape[1]} classes (0 is the first)"
        )
    if np.isnan(scores).any():
        raise ValueError("the scores hold NaN, so no order can be told; check the embeddings")
    own = np.take_along_axis(scores, target[:, None], axis=1)
    return (scores >= own).sum(axis=1) - 1  # less the right class itself


def per_class_recall(rank: npt.ArrayLike, target: npt.ArrayLike, classes: int) -> tuple[Floats, Ints]:
    """Share of each class's rows with rank 0, (C,), NaN where a class does not occur; and rows per class, (C,).

    >>> per_class_recall([0, 3, 0], [0, 0, 1], classes=3)
    (array([0.5, 1. , nan]), array([2, 1, 0]))
    """
    rank, target = np.asarray(rank), np.asarray(target)
    count = np.bincount(target, minlength=classes)
    right = np.bincount(target[rank == 0], minlength=classes)
    return np.divide(right, count, out=np.full(classes, np.nan), where=count > 0), count
