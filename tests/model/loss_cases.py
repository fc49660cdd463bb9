"""Batches with every option of the losses, and the losses by the definition, pair by pair: what all tests of them share."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import normalize

from dualenc.model.losses import Pairs, contrastive_loss, sigmoid_loss

D = 6


@dataclass(frozen=True)
class Case:
    image: Tensor  # (B, D), not normalised
    text: Tensor  # (T, D) or (B, K, D), likewise
    pairs: Pairs | None = None
    label_smoothing: float = 0.0
    dims: tuple[int, ...] | None = None
    scale: float = 10.0
    bias: float = -5.0


def ids(values: list) -> Tensor:
    return torch.tensor(values, dtype=torch.int64)


def features(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def cases() -> dict[str, Case]:
    """By name. B is 8, a multiple of 1, 2 and 4 ranks."""
    image, text, captions = features(8, D), features(8, D, seed=1), features(8, 3, D, seed=2)
    longer = features(12, D, seed=3)
    groups = Pairs(ids([0, 1, 1, 2, -1, 5, 6, 2]), ids([1, 0, 0, 2, 2, -1, 9, 6, 6, 1, -1, 6]))  # 5 and 9 stand alone
    marks = replace(
        groups,
        image_marks=ids([[10, 11], [12, 12], [13, 12], [10, 14], [15, 16], [17, 10], [18, 11], [10, 10]]),
        text_marks=ids([12, 10, 99, 10, 14, 10, 11, 18, 10, 13, 15, -1]),
    )
    own = Pairs(ids([0, 1, -1, 3, 4, 4, 6, 7]), ids([[x] * 3 for x in (0, 1, -1, 3, 4, 4, 6, 7)]))
    own_marks = replace(
        own, image_marks=ids([[k % 3, k % 4] for k in range(8)]), text_marks=ids([[k % 3, k % 4, 7] for k in range(8)])
    )
    all_alike = Pairs(
        ids([1] * 8), ids([2] * 11 + [1]), ids([[5]] * 8), ids([5] * 12)
    )  # one positive, all else left out
    invalid = Pairs(ids([-1] * 8), ids([-1] * 8))
    strangers = Pairs(ids([0] * 8), ids([1] * 8))
    found = {
        "rows": Case(image, text),
        "groups": Case(image, longer, groups),
        "marks": Case(image, longer, marks),
        "captions": Case(image, captions),
        "own captions": Case(image, captions, own),
        "own captions, marks": Case(image, captions, own_marks),
        "all left out but one": Case(image, longer, all_alike),
        "nothing valid": Case(image, text, invalid),
        "no positives": Case(image, text, strangers),
        "more texts": Case(image, longer, Pairs(torch.arange(8), torch.arange(12))),
    }
    smoothed = {f"{name}, smoothed": replace(case, label_smoothing=0.1) for name, case in found.items()}
    prefixes = {
        f"{name}, prefixes": replace(found[name], dims=(2, 5, D)) for name in ("rows", "marks", "own captions, marks")
    }
    both = {"all options": replace(found["own captions, marks"], dims=(1, 4), label_smoothing=0.3)}
    return found | smoothed | prefixes | both


def definition(case: Case, image: Tensor, text: Tensor, scale: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Both losses of unit rows, pair by pair, in float64."""
    pairs = case.pairs
    if pairs is None:
        number = torch.arange(len(image))
        pairs = Pairs(number, number if text.ndim == 2 else number.unsqueeze(1).expand(text.shape[:2]))
    found = []
    for d in case.dims or (None,):
        for k in range(text.shape[1] if text.ndim == 3 else 1):
            one = (lambda x, k=k: None if x is None else x[:, k]) if text.ndim == 3 else (lambda x: x)
            x, y = (
                (image, one(text))
                if d is None
                else (normalize(image[:, :d], dim=1), normalize(one(text)[:, :d], dim=1))
            )
            here = Pairs(pairs.image, one(pairs.text), pairs.image_marks, one(pairs.text_marks))
            found.append(_softmax_and_sigmoid(here, case.label_smoothing, x, y, scale, bias))
    softmax, sigmoid = zip(*found, strict=True)
    return sum(softmax) / len(found), sum(sigmoid) / len(found)


def _softmax_and_sigmoid(pairs: Pairs, smoothing: float, image: Tensor, text: Tensor, scale: Tensor, bias: Tensor):
    groups, text_groups = pairs.image.tolist(), pairs.text.tolist()
    marks = [[]] * len(groups) if pairs.image_marks is None else pairs.image_marks.tolist()
    text_marks = [None] * len(text_groups) if pairs.text_marks is None else pairs.text_marks.tolist()
    logits = {}  # of the pairs that are not left out
    positive = set()
    for i, group in enumerate(groups):
        for j, other in enumerate(text_groups):
            if group < 0 or other < 0 or (group != other and text_marks[j] in marks[i]):
                continue
            logits[i, j] = scale * (image[i] * text[j]).sum()
            if group == other:
                positive.add((i, j))
    zero = 0 * (scale + bias) + 0 * torch.nan_to_num(image).sum() + 0 * torch.nan_to_num(text).sum()
    softmax = zero
    for side, count in ((0, len(groups)), (1, len(text_groups))):
        rows = []
        for row in range(count):
            mine = [pair for pair in logits if pair[side] == row]
            wanted = [pair for pair in mine if pair in positive]
            if not wanted:
                continue
            z = torch.stack([logits[pair] for pair in mine])
            target = [(1 - smoothing) * (pair in positive) / len(wanted) + smoothing / len(mine) for pair in mine]
            rows.append(-(z.new_tensor(target) * torch.log_softmax(z, 0)).sum())
        if rows:
            softmax = softmax + torch.stack(rows).mean() / 2
    sigmoid = zero
    for pair, z in logits.items():
        sigmoid = sigmoid - torch.nn.functional.logsigmoid((z + bias) * (1 if pair in positive else -1))
    return softmax, sigmoid / max(1, sum(group >= 0 for group in groups))


def both(case: Case, image: Tensor, text: Tensor, scale: Tensor, bias: Tensor, **options) -> tuple[Tensor, Tensor]:
    """Both losses of unit rows by dualenc."""
    shared = {"dims": case.dims, "pairs": case.pairs} | options
    return (
        contrastive_loss(image, text, scale, label_smoothing=case.label_smoothing, **shared),
        sigmoid_loss(image, text, scale, bias, **shared),
    )


def values_and_gradients(losses, case: Case, dtype=torch.float64, **options) -> list[list[Tensor]]:
    """For both losses: value, and gradients by image, text, scale and bias."""
    found = []
    for which in (0, 1):
        image, text = (normalize(x, dim=-1).to(dtype).requires_grad_() for x in (case.image, case.text))
        kind = torch.promote_types(dtype, torch.float32)
        scale = torch.tensor(case.scale, dtype=kind, requires_grad=True)
        bias = torch.tensor(case.bias, dtype=kind, requires_grad=True)
        loss = losses(case, image, text, scale, bias, **options)[which]
        (3 * loss).backward()
        gradients = [x.grad for x in (image, text, scale)] + [bias.grad if which else torch.zeros(())]
        found.append([loss.detach(), *gradients])
    return found
