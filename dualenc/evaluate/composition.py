"""Composition: does an image lie nearer to its true caption than to one with two words or a relation swapped?"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from dualenc.evaluate.ranks import Floats, checked_rows, pair_scores
from dualenc.evaluate.sections import (
    Embedded,
    Example,
    Examples,
    Headline,
    Item,
    Section,
    Share,
    Table,
    TextEncoder,
    check_dim,
    pick,
    picture_item,
)

KINDS = {"attribute": "Swapped attributes", "relation": "Swapped relation"}
CHANCE = 0.5


def composition_metrics(
    images: npt.ArrayLike, true_text: npt.ArrayLike, swapped_text: npt.ArrayLike
) -> dict[str, float]:
    """{"accuracy": share of images nearer to their true text than to the swapped one, "count"}: a tie is wrong.

    images, true_text, swapped_text: (N, D), row by row. ValueError: NaN, no rows, shapes that differ.

    >>> composition_metrics([[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [0.6, 0.8]], [[0.6, 0.8], [0.6, 0.8]])
    {'accuracy': 0.5, 'count': 2}
    """
    true, swapped = pair_cosines(images, true_text, swapped_text)
    return {"accuracy": float((true > swapped).mean()), "count": len(true)}


def pair_cosines(images: npt.ArrayLike, true_text: npt.ArrayLike, swapped_text: npt.ArrayLike) -> tuple[Floats, Floats]:
    """Each image's score with its true and with its swapped text: (N,) and (N,) float64."""
    images = checked_rows(images, "images")
    sides = [checked_rows(true_text, "true texts"), checked_rows(swapped_text, "swapped texts")]
    for texts in sides:
        if texts.shape != images.shape:
            raise ValueError(
                f"images are {images.shape} and their texts {texts.shape}; give one text row for each image"
            )
    row = np.arange(len(images))
    return pair_scores(images, sides[0], row, row), pair_scores(images, sides[1], row, row)


def evaluate_composition(
    encoder: TextEncoder, embedded: Embedded, examples: int = 2, seed: int = 0
) -> tuple[dict[str, float | int], Section]:
    """Flat report and page section: "composition/attribute/accuracy", "…/count", "composition/relation/accuracy", …

    Swapped captions come from the samples' metadata `swap_attribute` and `swap_relation`; images without one are not
    counted. The true caption is the sample's first. ValueError: no swapped caption, another encoder's `embedded`.
    """
    check_dim(encoder, embedded)
    report: dict[str, float | int] = {}
    shown: list[Examples] = []
    rows: list[list[str | Share]] = []
    for kind, title in KINDS.items():
        row, true, swapped = swaps(embedded, kind)
        if not row:
            continue
        texts = encoder.embed_texts(true + swapped)  # in one call: both captions of a pair through the same arithmetic
        scores = pair_cosines(embedded.images[row], texts[: len(row)], texts[len(row) :])
        right = scores[0] > scores[1]
        share = Share(float(right.mean()), CHANCE)
        report |= {f"composition/{kind}/accuracy": share.value, f"composition/{kind}/accuracy/chance": CHANCE}
        report[f"composition/{kind}/count"] = len(row)
        rows.append([title, f"{len(row):,}", share])
        examined = [_example(embedded, row[i], true[i], swapped[i], *scores, i) for i in pick(right, examples, seed)]
        if examined:
            shown.append(
                Examples(
                    title, "Drawn at random, right ones before wrong ones; with each caption its cosine.", examined
                )
            )
    if not rows:
        raise ValueError("no sample has swap_attribute or swap_relation captions; `dualenc data scenes` writes them")
    return report, Section(
        title="Composition",
        about="Each image with its true caption against one that uses nearly the same words for something else.",
        headlines=[
            Headline(str(title), share, "of images prefer their true caption")
            for title, _, share in rows
            if isinstance(share, Share)
        ],
        tables=[Table(["", "Pairs", "Right"], rows, "Ties count as wrong. Chance, the tick on a bar, is 50\u202f%.")],
        examples=shown,
    )


def swaps(embedded: Embedded, kind: str) -> tuple[list[int], list[str], list[str]]:
    """Rows with a swapped caption of this kind, their true captions and the swapped ones."""
    column = f"swap_{kind}"
    if column not in embedded.metadata.column_names:
        return [], [], []
    pairs = zip(embedded.metadata["caption"].to_pylist(), embedded.metadata[column].to_pylist(), strict=True)
    kept = [(row, true, swapped) for row, (true, swapped) in enumerate(pairs) if true and swapped]
    return [row for row, _, _ in kept], [true for _, true, _ in kept], [swapped for _, _, swapped in kept]


def _example(
    embedded: Embedded, row: int, true: str, swapped: str, true_score: Floats, swapped_score: Floats, i: int
) -> Example:
    right = bool(true_score[i] > swapped_score[i])
    items = [
        Item(true, right=True, note=f"{true_score[i]:.3f}"),
        Item(swapped, right=False, note=f"{swapped_score[i]:.3f}"),
    ]
    note = "right" if right else "prefers the swap"
    return Example(picture_item(embedded, row), items if right else items[::-1], right, note)
