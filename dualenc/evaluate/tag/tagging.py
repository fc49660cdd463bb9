"""Labels of images by their classes' prompts: embeddings in, a table of labels out, block by block."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from dualenc.evaluate.zeroshot.zeroshot import class_scores
from dualenc.model.names import probabilities

NONE_OF_THESE = "none of these"  # the best class's cosine is below the threshold
UNDECIDED = "undecided"  # its probability is: other classes are about as likely
NO_LABEL = (NONE_OF_THESE, UNDECIDED)  # reasons of images that are sound
SCHEMA = pa.schema(
    {
        "key": pa.string(),
        "path": pa.string(),
        "label": pa.string(),  # null: see `reason`
        "score": pa.float32(),  # the best class's cosine, and
        "probability": pa.float32(),  # its share among the classes
        "reason": pa.string(),  # why there is no label: one of NO_LABEL, or what is wrong with the image
        "labels": pa.list_(pa.string()),  # the best classes, whether or not they reach the thresholds
        "scores": pa.list_(pa.float32()),
        "probabilities": pa.list_(pa.float32()),
    }
)
_CELLS = 1 << 22  # scores in memory at once: 80 MiB with their probabilities
Rows = npt.NDArray[np.float32]


class Block(NamedTuple):
    """Neighbouring images of a source: n of each."""

    keys: Sequence[str]
    paths: Sequence[str | None]  # the image file, or the shard that holds it; None where nobody knows
    reasons: Sequence[str | None]  # why an image has no embedding; None where it has one
    rows: Rows  # (n, D) unit rows; anything where there is a reason


class Rules(NamedTuple):
    """How scores become labels.

    scale: the encoder's own, of the probabilities. threshold: the cosine that the best class must reach, or the image
    shows NONE_OF_THESE; it is the same for any list of classes. min_probability: the share that it must have among the
    classes, or it is UNDECIDED between them; of an image that shows none of them it says nothing.
    """

    names: Sequence[str]
    scale: float
    top: int = 1
    threshold: float | None = None
    min_probability: float | None = None


def checked_rules(rules: Rules) -> Rules:
    """ValueError for rules that no image, or every image, would meet."""
    if rules.top < 1:
        raise ValueError(f"top {rules.top}: an image would get no class; use 1 to {len(rules.names)}")
    if rules.top > len(rules.names):
        raise ValueError(f"top {rules.top}: there are only {len(rules.names)} classes to name; use that many or fewer")
    if rules.threshold is not None and not -1 < rules.threshold < 1:
        raise ValueError(
            f"threshold {rules.threshold} is no cosine that decides; use one between -1 and 1, such as 0.2"
        )
    if rules.min_probability is not None and not 0 < rules.min_probability <= 1:
        raise ValueError(f"min-probability {rules.min_probability} must be above 0 and at most 1, such as 0.5")
    return rules


def labelled(block: Block, weights: Rows, rules: Rules) -> pa.Table:
    """One row an image, of SCHEMA. weights: the classifier, (C, D). ValueError: an embedding that is NaN or not unit."""
    good = np.flatnonzero([reason is None for reason in block.reasons])
    at_once = max(1, _CELLS // len(weights))
    parts = [_best(block.rows[good[i : i + at_once]], weights, rules) for i in range(0, len(good), at_once)]
    columns: dict[str, list] = {name: [None] * len(block.keys) for name in SCHEMA.names}
    columns |= {"key": [_text(key) for key in block.keys], "path": [p and _text(p) for p in block.paths]}
    columns["reason"] = list(block.reasons)
    for row, best in zip(good.tolist(), (best for part in parts for best in part), strict=True):
        columns["labels"][row], columns["scores"][row], columns["probabilities"][row] = best
        columns["score"][row], columns["probability"][row] = best[1][0], best[2][0]
        why = columns["reason"][row] = _why_not(best[1][0], best[2][0], rules)
        columns["label"][row] = best[0][0] if why is None else None
    return pa.table(columns, SCHEMA)


def _best(rows: Rows, weights: Rows, rules: Rules) -> Iterator[tuple[list[str], list[float], list[float]]]:
    """Of each row the names, cosines and probabilities of the best classes, best first; of two alike the first."""
    scores = class_scores(rows, weights)
    likely = probabilities(scores, rules.scale)
    if rules.top < len(weights):
        top = np.sort(np.argpartition(-scores, rules.top - 1, axis=1)[:, : rules.top], axis=1)
    else:
        top = np.tile(np.arange(len(weights)), (len(rows), 1))
    order = np.argsort(-np.take_along_axis(scores, top, 1), axis=1, kind="stable")
    top = np.take_along_axis(top, order, 1)
    values = (np.take_along_axis(of, top, 1).tolist() for of in (scores, likely))
    return zip(([rules.names[c] for c in best] for best in top.tolist()), *values, strict=True)


def _why_not(score: float, probability: float, rules: Rules) -> str | None:
    if rules.threshold is not None and score < rules.threshold:
        return NONE_OF_THESE
    if rules.min_probability is not None and probability < rules.min_probability:
        return UNDECIDED
    return None


def _text(name: str) -> str:
    """A file's name as text that a table can hold: bytes that are not UTF-8 become �."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
