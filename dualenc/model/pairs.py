"""Which texts of a batch belong to which images, and what follows from it: positives, weights, pairs that are left out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Pairs:
    """Ids of the rows of a batch, on the features' device. B: images, T: texts; with K captions apart, T is (B, K).

    image: (B,) int64, the group of each image; a negative one leaves the row out, as query and as negative.
    text: (T,) int64, the group of each text, likewise. A pair of equal groups is positive. A row without a positive
        is no query, but it stays a negative of the others.
    image_marks: (B, M) int64, the marks of each image's own captions.
    text_marks: (T,) int64. Where a text's mark is among an image's, but their groups differ, the pair is left out: it is
        neither positive nor negative (a false negative, such as an equal caption of another image).
    """

    image: Tensor
    text: Tensor
    image_marks: Tensor | None = None
    text_marks: Tensor | None = None


@dataclass(frozen=True)
class Relations:
    """Some rows of images (b of B: those of this rank) against all T texts: what a loss needs to know of their pairs.

    valid_image (b,) and valid_text (T,): False where a row is left out. positives (b,): texts that belong to each image.
    row_weight (b,), column_weight (T,): share of each query's cross-entropy in the loss, 0 where it is no query.
    pair_weight (b,): the weight of each positive logit of an image's row, from both directions.
    images, texts: how many of all B and T are valid.
    """

    valid_image: Tensor | None
    valid_text: Tensor | None
    positives: Tensor
    row_weight: Tensor
    column_weight: Tensor
    pair_weight: Tensor
    images: Tensor
    texts: Tensor
    first: int = 0  # text that belongs to the first image, where row i belongs to row i
    group: tuple[Tensor, Tensor] | None = None  # groups of the images (b,) and of the texts (T,); None: row i to row i
    marks: tuple[Tensor, Tensor] | None = None  # (b, M) and (T,)

    def partners(self, text: Tensor) -> Tensor:
        """text: (T, D), rows that are left out being 0 → (b, D), the sum of the texts that belong to each image."""
        if self.group is None:
            return text if len(text) == len(self.positives) else text[self.first : self.first + len(self.positives)]
        image, of_text = self.group
        order = of_text.sort().values
        place = torch.searchsorted(order, of_text)  # the same for all texts of a group
        sums = torch.zeros_like(text).index_add(0, place, text)
        place = torch.searchsorted(order, image).clamp(max=len(text) - 1)
        return torch.where(self.positives.unsqueeze(1) > 0, sums[place], 0)

    def marked(self, rows: slice, columns: slice) -> Tensor | None:
        """Valid pairs of a tile that are left out by their marks: (n, m) bool; None where there is none for certain."""
        if self.marks is None or self.group is None:
            return None
        image_marks, text_marks = self.marks[0][rows], self.marks[1][columns]
        image, text = self.group[0][rows], self.group[1][columns]
        if image.device.type != "cpu":  # elsewhere looking for the columns would wait for the device
            return _equal_marks(image_marks, text_marks) & _strangers(image, text)
        hit = torch.isin(text_marks, image_marks).nonzero().flatten()
        found = _equal_marks(image_marks, text_marks[hit]) & _strangers(image, text[hit])
        if not found.any():
            return None
        return found.new_zeros(len(image), len(text)).index_copy_(1, hit, found)

    def left_out(self, rows: slice, columns: slice) -> Tensor | None:
        """All pairs of a tile that do not count: (n, m) bool; None where there is none for certain."""
        out = self.marked(rows, columns)
        if self.valid_image is None or self.valid_text is None:
            return out
        invalid = ~(self.valid_image[rows].unsqueeze(1) & self.valid_text[columns])
        return invalid if out is None else out | invalid


def _equal_marks(image_marks: Tensor, text_marks: Tensor) -> Tensor:
    """(n, M), (m,) → (n, m) bool: the text's mark is among the image's."""
    found = torch.zeros(len(image_marks), len(text_marks), dtype=torch.bool, device=text_marks.device)
    for mark in image_marks.unbind(1):
        found |= mark.unsqueeze(1) == text_marks
    return found


def _strangers(image: Tensor, text: Tensor) -> Tensor:
    """(n,), (m,) → (n, m) bool: both count, and they do not belong together."""
    return (image.unsqueeze(1) != text) & (image.unsqueeze(1) >= 0) & (text >= 0)


def rows_to_rows(images: int, texts: int, first: int, like: Tensor) -> Relations:
    """Row i belongs to row i, and nothing is left out: images of T texts, the first of which belongs to the text `first`."""
    share = torch.full((images,), 0.5 / texts, dtype=like.dtype, device=like.device)
    count = torch.tensor(float(texts), dtype=like.dtype, device=like.device)
    return Relations(
        valid_image=None,
        valid_text=None,
        positives=torch.ones_like(share),
        row_weight=share,
        column_weight=share.new_full((texts,), 0.5 / texts),
        pair_weight=2 * share,
        images=count,
        texts=count,
        first=first,
    )


def by_groups(
    image: Tensor, every_image: Tensor, text: Tensor, marks: tuple[Tensor, Tensor] | None, like: Tensor
) -> Relations:
    """Relations by ids: groups of some images (b,), of all images (B,) and of all texts (T,); marks of the two sides."""
    positives = torch.where(image >= 0, _count(image, text), 0).to(like.dtype)
    siblings = _count(image, every_image).to(like.dtype)  # images of the same group, itself among them
    every_query = (every_image >= 0) & (_count(every_image, text) > 0)
    text_query = (text >= 0) & (_count(text, every_image) > 0)
    of_row = 0.5 / every_query.sum().clamp(min=1).to(like.dtype)
    of_column = 0.5 / text_query.sum().clamp(min=1).to(like.dtype)
    query = positives > 0
    pair_weight = of_row / positives.clamp(min=1) + of_column / siblings.clamp(min=1)
    return Relations(
        valid_image=image >= 0,
        valid_text=text >= 0,
        positives=positives,
        row_weight=of_row * query,
        column_weight=of_column * text_query,
        pair_weight=pair_weight * query,
        images=(every_image >= 0).sum().to(like.dtype),
        texts=(text >= 0).sum().to(like.dtype),
        group=(image, text),
        marks=marks,
    )


def _count(ids: Tensor, among: Tensor) -> Tensor:
    """How often each id occurs among others, by sorting: no matrix, and no wait for the device."""
    order = among.sort().values
    return torch.searchsorted(order, ids, right=True) - torch.searchsorted(order, ids)


def blocks(length: int, size: int) -> Iterator[slice]:
    """0..length in slices of a size; the last may be shorter."""
    for start in range(0, length, size):
        yield slice(start, min(start + size, length))
