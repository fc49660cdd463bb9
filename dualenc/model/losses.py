"""Contrastive losses over a whole batch. B: images, T: texts, D: embedding dimension, K: captions of each image.

Row i of one side belongs to row i of the other, unless `Pairs` say otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dualenc.model import ranks as over
from dualenc.model.pairs import Pairs, Relations, by_groups, rows_to_rows
from dualenc.model.tiled import Sums, edge, sigmoid_sum, softmax_sums

__all__ = ["Pairs", "contrastive_loss", "sigmoid_loss"]


def contrastive_loss(
    image: Tensor,
    text: Tensor,
    logit_scale: Tensor,
    *,
    pairs: Pairs | None = None,
    label_smoothing: float = 0.0,
    dims: Sequence[int] | None = None,
    tile: int | None = None,
    ranks: bool = False,
) -> Tensor:
    """Symmetric temperature-scaled cross-entropy (InfoNCE), as in CLIP (Radford et al. 2021, figure 3).

    image: (B, D), text: (T, D) unit rows; logit_scale: scalar, already exponentiated. Returns a scalar: the mean of the
    image→text and the text→image cross-entropy, computed in float32 at least. text of (B, K, D): K captions of each image,
    apart: the mean of K losses.

    pairs: which texts belong to which images; a row's target is uniform over its positives (Khosla et al. 2020, eq. 2).
    label_smoothing: this share of a row's target is spread over its pairs that are not left out (Szegedy et al. 2016).
    dims: the mean of the losses of the first d dimensions, normalised again (Matryoshka, Kusupati et al. 2022).
    tile: edge of the tiles by which the loss is computed; 0 holds all logits, None chooses.
    ranks: the rows are this process's equal slice of the batch (torch.distributed): the loss is that of the whole batch,
        and the mean over ranks of the parameters' gradients is that of one process.
    ValueError for shapes that do not fit and settings out of range. No row with a positive: 0, with gradients of 0.
    """
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"label_smoothing is {label_smoothing}, but it is a share of the target; use 0 to below 1")
    _check(image, text, pairs, dims, tile)
    with torch.autocast(image.device.type, enabled=False):  # its products would lose digits that sums here rely on
        batch = _Batch.of(image, text, pairs, ranks)
        scale = logit_scale.to(batch.image.dtype)
        parts = []
        for rows, columns, relations in batch.losses(dims):
            n = edge(tile, len(rows), len(columns), rows.device)
            sums = softmax_sums(rows, columns, scale, relations, label_smoothing > 0, n)
            parts.append((rows, columns, relations, sums))
        column_sums = torch.stack([sums.column for *_, sums in parts])  # (losses, T)
        if batch.several:
            column_sums = over.log_sum_over_ranks(column_sums)
        own, common = image.new_zeros((), dtype=scale.dtype), image.new_zeros((), dtype=scale.dtype)
        for (rows, columns, relations, sums), column_sum in zip(parts, column_sums, strict=True):
            own = own + _weighted(relations.row_weight, sums.row)
            own = (
                own
                - (1 - label_smoothing) * scale * (relations.pair_weight * _positive(rows, columns, relations)).sum()
            )
            common = common + _weighted(relations.column_weight, column_sum)
            if label_smoothing:
                own = own - label_smoothing * _smoothing(rows, columns, scale, relations, sums, batch.several)
        return batch.result(own / len(parts), common / len(parts))


def sigmoid_loss(
    image: Tensor,
    text: Tensor,
    logit_scale: Tensor,
    logit_bias: Tensor,
    *,
    pairs: Pairs | None = None,
    dims: Sequence[int] | None = None,
    tile: int | None = None,
    ranks: bool = False,
) -> Tensor:
    """Pairwise sigmoid loss, as in SigLIP (Zhai et al. 2023, algorithm 1).

    Arguments and errors as `contrastive_loss`; logit_bias: scalar. Returns a scalar: the sum over all pairs that are not
    left out, each positive or negative, divided by the number of images that are not left out.
    """
    _check(image, text, pairs, dims, tile)
    with torch.autocast(image.device.type, enabled=False):
        batch = _Batch.of(image, text, pairs, ranks)
        scale, bias = logit_scale.to(batch.image.dtype), logit_bias.to(batch.image.dtype)
        parts = []
        for rows, columns, relations in batch.losses(dims):
            n = edge(tile, len(rows), len(columns), rows.device)
            # -log sigmoid(z) of a positive is log(1 + exp(z)) − z
            negatives = sigmoid_sum(rows, columns, scale, bias, relations, n)
            positives = scale * _positive(rows, columns, relations).sum() + bias * relations.positives.sum()
            parts.append((negatives - positives) / relations.images.clamp(min=1))
        own = torch.stack(parts).mean()
        return batch.result(own, torch.zeros_like(own))


class _Batch(NamedTuple):
    """This process's images (b, D) against all K texts (K of (T, D)), rows that are left out being 0; and their relations."""

    image: Tensor
    texts: tuple[Tensor, ...]
    relations: list[Relations]
    several: bool  # more than one rank

    @classmethod
    def of(cls, image: Tensor, text: Tensor, pairs: Pairs | None, ranks: bool) -> _Batch:
        kind = torch.promote_types(torch.promote_types(image.dtype, text.dtype), torch.float32)
        rank, count = over.rank_and_ranks() if ranks else (0, 1)
        image, text = image.to(kind), text if count > 1 else text.to(kind)
        ids = [] if pairs is None else [x for x in (pairs.image, pairs.text, pairs.text_marks) if x is not None]
        if count > 1:
            text, ids = over.all_texts(text, ids, kind)
        if pairs is None:
            texts = text.unbind(1) if text.ndim == 3 else (text,)
            return cls(
                image, texts, [rows_to_rows(len(image), len(text), rank * len(image), image)] * len(texts), count > 1
            )
        every_image, of_text, *text_marks = ids
        image = torch.where(pairs.image.unsqueeze(1) >= 0, image, 0)
        text = torch.where(of_text.unsqueeze(-1) >= 0, text, 0)
        found = []
        apart = [x.unbind(1) if x.ndim == 2 else (x,) for x in (of_text, *text_marks)]  # of each of the K captions
        for group, *mark in zip(*apart, strict=True):
            marks = None if pairs.image_marks is None else (pairs.image_marks, mark[0])
            found.append(by_groups(pairs.image, every_image, group.contiguous(), marks, image))
        return cls(image, text.unbind(1) if text.ndim == 3 else (text,), found, count > 1)

    def losses(self, dims: Sequence[int] | None) -> list[tuple[Tensor, Tensor, Relations]]:
        """Images, texts and relations of each loss whose mean is asked for: one for each prefix and caption."""
        found = []
        for dim in [None] if dims is None else dims:
            image = self.image if dim is None else F.normalize(self.image[:, :dim], dim=1)
            for text, relations in zip(self.texts, self.relations, strict=True):
                found.append((image, text if dim is None else F.normalize(text[:, :dim], dim=1), relations))
        return found

    def result(self, own: Tensor, common: Tensor) -> Tensor:
        return over.total(own, common) if self.several else own + common


def _positive(image: Tensor, text: Tensor, relations: Relations) -> Tensor:
    """(b,): sum over each image's own texts of ⟨image, text⟩."""
    return (image * relations.partners(text)).sum(1)


def _weighted(weight: Tensor, value: Tensor) -> Tensor:
    """Σ weight · value over what has a weight; what has none may be infinite."""
    return (weight * torch.where(weight > 0, value, 0)).sum()


def _smoothing(image: Tensor, text: Tensor, scale: Tensor, relations: Relations, sums: Sums, several: bool) -> Tensor:
    """Scalar: Σ over this process's rows of the logits that are not left out, each by its share of a smoothed target."""
    row_count, column_count = relations.texts, relations.images
    if sums.row_count is not None and sums.column_count is not None:
        counts = over.sum_over_ranks(sums.column_count) if several else sums.column_count
        row_count, column_count = row_count - sums.row_count, column_count - counts
    by_row = relations.row_weight / row_count.clamp(min=1)
    by_column = relations.column_weight / column_count.clamp(min=1)
    whole = ((by_row @ image) * text.sum(0)).sum() + (image.sum(0) * (by_column @ text)).sum()
    if sums.row_marked is None or sums.column_marked is None:
        return scale * whole
    return scale * whole - (by_row * sums.row_marked).sum() - (by_column * sums.column_marked).sum()


def _check(image: Tensor, text: Tensor, pairs: Pairs | None, dims: Sequence[int] | None, tile: int | None) -> None:
    """ValueError for shapes that do not fit each other and for settings out of range."""
    rows = f"image {tuple(image.shape)} and text {tuple(text.shape)}"
    if (
        image.ndim != 2
        or text.ndim not in (2, 3)
        or image.shape[-1] != text.shape[-1]
        or not len(image)
        or not text.numel()
    ):
        raise ValueError(
            f"{rows} must be (B, D) and (T, D), or (B, D) and (B, K, D), with B > 0: embeddings of equal width"
        )
    if len(image) != len(text) and (pairs is None or text.ndim == 3):
        raise ValueError(
            f"{rows} must have equal B: row i of one is the pair of row i of the other; leave out samples that lack either, "
            "or give pairs"
        )
    if pairs is not None:
        _check_pairs(image, text, pairs)
    if dims is not None and not (len(dims) and all(1 <= dim <= image.shape[1] for dim in dims)):
        raise ValueError(
            f"dims {list(dims)} must be lengths of prefixes of the {image.shape[1]} dimensions; use 1 to that"
        )
    if tile is not None and tile < 0:
        raise ValueError(f"tile is {tile}, but it is the edge of a tile; use 0 for none, 1 or more, or None to choose")


def _check_pairs(image: Tensor, text: Tensor, pairs: Pairs) -> None:
    shapes = [("image", pairs.image, image.shape[:1]), ("text", pairs.text, text.shape[:-1])]
    if (pairs.image_marks is None) != (pairs.text_marks is None):
        raise ValueError(
            "pairs have marks of one side only, which mark nothing; give image_marks and text_marks, or neither"
        )
    if pairs.image_marks is not None and pairs.text_marks is not None:
        shapes += [
            ("image_marks", pairs.image_marks[..., 0], image.shape[:1]),
            ("text_marks", pairs.text_marks, text.shape[:-1]),
        ]
    for name, ids, shape in shapes:
        if ids.shape != shape or ids.dtype != torch.int64:
            raise ValueError(
                f"pairs.{name} is {ids.dtype} {tuple(ids.shape)}, but it needs one int64 for each row: {tuple(shape)}"
                f"{' of M marks' if name == 'image_marks' else ''}"
            )
