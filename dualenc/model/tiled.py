"""What contrastive losses sum over all pairs of images and texts: as one matrix, or by tiles that are never all held.

Logits are scale · ⟨image, text⟩ (+ bias). b: images, T: texts, D: embedding dimension, n: edge of a tile. By tiles the
extra memory is O((b + T)·D + n²), forward and backward: the softmax's forward keeps the log-sum-exp of each row and
column, both from one pass, and its backward computes each tile again (four products of b·T·D in all). The sigmoid's
gradient needs no such sums, so its tiles are computed once (three products).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from dualenc.model.pairs import Relations, blocks

TILE = {"cpu": 1024}  # edge by type of device: a tile and its copies stay in the last-level cache
OTHER_TILE = 4096  # not measured: large enough to keep a GPU busy
PAYS = 2048  # from so many rows and columns (geometric mean) on, tiles take no longer than one matrix


class Sums(NamedTuple):
    """Over the pairs that are not left out: log-sum-exp of each row's and column's logits; and of the pairs that are left
    out by their marks, the sum of logits and the count by row and column (None unless asked for)."""

    row: Tensor  # (b,)
    column: Tensor  # (T,)
    row_marked: Tensor | None = None
    column_marked: Tensor | None = None
    row_count: Tensor | None = None
    column_count: Tensor | None = None


def edge(tile: int | None, rows: int, columns: int, device: torch.device) -> int:
    """Edge of the tiles, 0 for one matrix: `tile`, or where it is None the fastest for so many pairs."""
    if tile is not None:
        return tile
    return TILE.get(device.type, OTHER_TILE) if rows * columns >= PAYS**2 else 0


def softmax_sums(image: Tensor, text: Tensor, scale: Tensor, relations: Relations, marked: bool, tile: int) -> Sums:
    """image: (b, D), text: (T, D), rows that are left out being 0; scale: scalar of the same type → their Sums.

    marked: also what is left out by marks. tile: edge of the tiles, 0 for one matrix.
    """
    marked = marked and relations.marks is not None
    if tile:
        found = _SoftmaxSums.apply(image, text, scale, relations, marked, tile)
        return Sums(*found)
    logits = (scale * image) @ text.T  # (b, T)
    everything = slice(0, len(image)), slice(0, len(text))
    out = relations.left_out(*everything)
    kept = logits if out is None else logits.masked_fill(out, -torch.inf)
    sums = _log_sum(kept, 1), _log_sum(kept, 0)
    if not marked:
        return Sums(*sums)
    mask = relations.marked(*everything)
    mask = torch.zeros_like(logits, dtype=torch.bool) if mask is None else mask
    left = torch.where(mask, logits, 0)
    return Sums(*sums, left.sum(1), left.sum(0), mask.sum(1).to(left.dtype), mask.sum(0).to(left.dtype))


def _log_sum(logits: Tensor, dim: int) -> Tensor:
    """torch.logsumexp whose backward keeps its digits: exp(z − maximum − rest), where exp(z − sum) rounds a large sum."""
    most = _finite(logits.detach().amax(dim, keepdim=True))
    return torch.logsumexp(logits - most, dim) + most.squeeze(dim)


def _finite(shift: Tensor) -> Tensor:
    """What is subtracted from logits: 0 where all are left out, so that exp(−inf − shift) is 0."""
    return shift.masked_fill(shift == -torch.inf, 0)


def sigmoid_sum(image: Tensor, text: Tensor, scale: Tensor, bias: Tensor, relations: Relations, tile: int) -> Tensor:
    """Arguments as `softmax_sums` → scalar, the sum of log(1 + exp(logit)) over the pairs that are not left out."""
    if tile:
        return _SigmoidSum.apply(image, text, scale, bias, relations, tile)
    each = F.softplus((scale * image) @ text.T + bias, threshold=40)  # (b, T)
    out = relations.left_out(slice(0, len(image)), slice(0, len(text)))
    return (each if out is None else each.masked_fill(out, 0)).sum()


def _tiles(image: Tensor, text: Tensor, scale: Tensor, tile: int) -> Iterator[tuple[slice, slice, Tensor, Tensor]]:
    """rows, columns, the rows' scaled images (n, D), and the tile's logits (n, m) in a buffer that the next one reuses."""
    buffer = image.new_empty(min(tile, len(image)) * min(tile, len(text)))
    for rows in blocks(len(image), tile):
        x = image[rows] * scale
        for columns in blocks(len(text), tile):
            y = text[columns]
            z = buffer[: len(x) * len(y)].view(len(x), len(y))
            torch.mm(x, y.T, out=z)
            yield rows, columns, x, z


class _SoftmaxSums(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, image: Tensor, text: Tensor, scale: Tensor, relations: Relations, marked: bool, tile: int
    ) -> tuple[Tensor | None, ...]:
        left = _Marked(image, text) if marked else None
        shift = _shift(image, text, scale)
        sums = None if shift is None else _one_exponential(image, text, scale, relations, left, tile, shift)
        if sums is None:
            shift, left = None, _Marked(image, text) if marked else None
            sums = _two_exponentials(image, text, scale, relations, left, tile)
        ctx.save_for_backward(image, text, scale, *sums)
        ctx.relations, ctx.tile, ctx.shift = relations, tile, shift
        row, column, *shifts = sums
        by_row, by_column = (shift, shift) if shift is not None else shifts
        marks = left.sums() if left else (None,) * 4
        ctx.mark_non_differentiable(*(x for x in marks[2:] if x is not None))
        return row.log() + by_row, column.log() + by_column, *marks

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        image, text, scale, row, column, *shifts = ctx.saved_tensors
        of_row, of_column, *of_marked = gradients[:4]
        # what is left out altogether has no sum, and no gradient
        of_row, of_column = (torch.where(x > 0, g / x, 0) for g, x in ((of_row, row), (of_column, column)))
        d_image = _zeros(image) if ctx.needs_input_grad[0] or ctx.needs_input_grad[2] else None
        d_text = _zeros(text) if ctx.needs_input_grad[1] else None
        for rows, columns, x, z in _tiles(image, text, scale, ctx.tile):
            if ctx.shift is not None:  # rows that are left out are 0: they give nothing, and take nothing back
                g = _exp(z, ctx.shift).mul_(of_row[rows].unsqueeze(1) + of_column[columns])
            else:
                if (out := ctx.relations.left_out(rows, columns)) is not None:
                    z.masked_fill_(out, -torch.inf)
                g = (z - shifts[0][rows].unsqueeze(1)).exp_().mul_(of_row[rows].unsqueeze(1))
                g += z.sub_(shifts[1][columns]).exp_().mul_(of_column[columns])
            if (mask := ctx.relations.marked(rows, columns)) is not None:
                g = torch.where(
                    mask, 0 if of_marked[0] is None else of_marked[0][rows, None] + of_marked[1][columns], g
                )
            if d_image is not None:
                d_image[rows].addmm_(g, text[columns])
            if d_text is not None:
                d_text[columns].addmm_(g.T, x)
        d_scale = None if d_image is None else _scale_gradient(d_image, image, scale, ctx.tile)
        return d_image, d_text, d_scale, None, None, None


def _shift(image: Tensor, text: Tensor, scale: Tensor) -> float | None:
    """c such that exp(logit − c) cannot overflow, summed over any batch; None where this is not known without waiting.

    By Cauchy's inequality no logit is above scale · max|image| · max|text|.
    """
    if image.device.type != "cpu":
        return None
    most = float(
        scale.abs() * torch.linalg.vector_norm(image, dim=1).max() * torch.linalg.vector_norm(text, dim=1).max()
    )
    return max(most - 0.75 * _room(image), 0.0) if math.isfinite(most) else None


def _room(like: Tensor) -> float:
    """Logarithm of the type's largest number: 88 in float32."""
    return math.log(torch.finfo(like.dtype).max)


def _exp(logits: Tensor, shift: float) -> Tensor:
    """exp(logits − shift) in place."""
    return (logits.sub_(shift) if shift else logits).exp_()


def _one_exponential(
    image: Tensor, text: Tensor, scale: Tensor, relations: Relations, left: _Marked | None, tile: int, shift: float
) -> tuple[Tensor, ...] | None:
    """Sums of exp(logit − shift) by row (b,) and column (T,); None where one is so small that it lost digits.

    Terms below the type's least number vanish. They are below exp(−0.3 · room) of a sum of at least exp(−0.65 · room).
    """
    row, column = image.new_zeros(len(image)), image.new_zeros(len(text))
    valid_row = torch.ones_like(row) if relations.valid_image is None else relations.valid_image.to(row.dtype)
    valid_column = torch.ones_like(column) if relations.valid_text is None else relations.valid_text.to(row.dtype)
    least = math.exp(-0.65 * _room(image))
    for rows, columns, _, z in _tiles(image, text, scale, tile):
        mask = relations.marked(rows, columns)
        if left is not None and mask is not None:
            left.add(rows, columns, z, mask)
        u = _exp(z, shift)
        if mask is not None:
            u.masked_fill_(mask, 0)
        row[rows].addmv_(u, valid_column[columns])
        column[columns].addmv_(u.T, valid_row[rows])
        if columns.stop == len(text) and not row[rows].min() >= least:
            return None
    return (row, column) if column.min() >= least else None


def _two_exponentials(
    image: Tensor, text: Tensor, scale: Tensor, relations: Relations, left: _Marked | None, tile: int
) -> tuple[Tensor, ...]:
    """Sums of exp(logit − maximum) by row and column, for logits of any size, and the two maxima (online softmax).

    Where all of a row is left out, its sum and its maximum are 0.
    """
    most = [image.new_full((len(side),), -torch.inf) for side in (image, text)]
    sums = [image.new_zeros(len(side)) for side in (image, text)]
    for *places, _, z in _tiles(image, text, scale, tile):
        rows, columns = places
        if left is not None and (mask := relations.marked(rows, columns)) is not None:
            left.add(rows, columns, z, mask)
        if (out := relations.left_out(rows, columns)) is not None:
            z.masked_fill_(out, -torch.inf)
        for side, place in enumerate(places):
            new = torch.maximum(most[side][place], z.amax(1 - side))
            base = _finite(new)
            kept = sums[side][place] * (most[side][place] - base).exp()
            sums[side][place] = kept + (z - base.unsqueeze(1 - side)).exp_().sum(1 - side)
            most[side][place] = new
    return sums[0], sums[1], _finite(most[0]), _finite(most[1])


class _Marked:
    """Sum of logits and count of what is left out by marks, by row and by column."""

    def __init__(self, image: Tensor, text: Tensor):
        self.rows, self.columns = image.new_zeros(2, len(image)), image.new_zeros(2, len(text))

    def add(self, rows: slice, columns: slice, logits: Tensor, mask: Tensor) -> None:
        left = torch.where(mask, logits, 0)
        for part, each in enumerate((left, mask)):
            self.rows[part, rows] += each.sum(1)
            self.columns[part, columns] += each.sum(0)

    def sums(self) -> tuple[Tensor, ...]:
        return self.rows[0], self.columns[0], self.rows[1], self.columns[1]


def _zeros(like: Tensor) -> Tensor:
    return torch.zeros_like(like, memory_format=torch.contiguous_format)


def _scale_gradient(d_image: Tensor, image: Tensor, scale: Tensor, tile: int) -> Tensor:
    """d_image: (b, D) derivative by scale · image, made that by image in place → derivative by scale: ⟨it, image⟩."""
    d_scale = torch.zeros_like(scale)
    for rows in blocks(len(image), tile):
        d_scale += (d_image[rows] * image[rows]).sum()
        d_image[rows].mul_(scale)
    return d_scale


class _SigmoidSum(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, image: Tensor, text: Tensor, scale: Tensor, bias: Tensor, relations: Relations, tile: int
    ) -> Tensor:
        wanted = any(ctx.needs_input_grad)
        d_image = _zeros(image) if wanted else None
        d_text = _zeros(text) if wanted else None
        found, d_bias = image.new_zeros(len(image)), image.new_zeros(len(image))
        for rows, columns, x, z in _tiles(image, text, scale, tile):
            z.add_(bias)
            if (out := relations.left_out(rows, columns)) is not None:
                z.masked_fill_(out, -torch.inf)
            found[rows] += F.softplus(z, threshold=40).sum(1)
            if d_image is not None and d_text is not None:
                g = z.sigmoid_()
                d_bias[rows] += g.sum(1)
                d_image[rows].addmm_(g, text[columns])
                d_text[columns].addmm_(g.T, x)
        if d_image is not None and d_text is not None:
            d_scale = _scale_gradient(d_image, image, scale, tile)
            ctx.save_for_backward(d_image, d_text, d_scale, d_bias.sum())
        return found.sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        found = zip(ctx.saved_tensors, ctx.needs_input_grad, strict=False)
        return *(x * gradient if wanted else None for x, wanted in found), None, None
