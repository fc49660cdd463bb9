"""Composition: does an image lie nearer to its true caption than to one with two words or a relation swapped?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from dualenc.evaluate.composition.caption_pairs import Pairs, compare, headlines, judge, kind_rows
from dualenc.evaluate.groups.groups import Report
from dualenc.evaluate.intervals import TIMES
from dualenc.evaluate.ranks import Floats, checked_rows, pair_scores
from dualenc.evaluate.sections import Embedded, Section, Table, TextEncoder, check_dim

KINDS = {"attribute": "Swapped attributes", "relation": "Swapped relation"}
NOTE = "Ties count as wrong. Chance is 50\u202f%."
GAP = " Of the gap: what random groups of these sizes would give."


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
    encoder: TextEncoder,
    embedded: Embedded,
    examples: int = 2,
    seed: int = 0,
    bootstrap: int = TIMES,
    by: Sequence[str] = (),
) -> tuple[Report, Section]:
    """Flat report and page section: "composition/attribute/accuracy", "…/low", "…/high", "…/count", "composition/relation/…"

    Swapped captions come from the samples' metadata `swap_attribute` and `swap_relation`; images without one are not
    counted. The true caption is the sample's first. by: metadata columns; the rest as `caption_pairs.compare`.
    ValueError: no swapped caption, no such column, another encoder's `embedded`.
    """
    check_dim(encoder, embedded)
    found = [(*pair, kind) for kind in KINDS for pair in zip(*swaps(embedded, kind), strict=True)]
    if not found:
        raise ValueError("no sample has swap_attribute or swap_relation captions; `dualenc data scenes` writes them")
    row, true, swapped, kind = zip(*found, strict=True)
    pairs = Pairs(np.array(row, np.int64), list(true), list(swapped), list(kind))
    compared = compare(
        embedded, pairs, judge(encoder, embedded, pairs), KINDS, "composition", by, bootstrap, seed, examples
    )
    rows = kind_rows(compared, KINDS, "composition")
    note = NOTE + (GAP if len(rows) > len(compared.kinds) else "")
    return compared.report, Section(
        title="Composition",
        about="Each image with its true caption against one that uses nearly the same words for something else.",
        headlines=headlines(compared.kinds, KINDS),
        tables=[Table(["", "Pairs", "Right"], rows, note), *compared.tables],
        examples=compared.examples,
    )


def swaps(embedded: Embedded, kind: str) -> tuple[list[int], list[str], list[str]]:
    """Rows with a swapped caption of this kind, their true captions and the swapped ones."""
    column = f"swap_{kind}"
    if column not in embedded.metadata.column_names:
        return [], [], []
    pairs = zip(embedded.metadata["caption"].to_pylist(), embedded.metadata[column].to_pylist(), strict=True)
    kept = [(row, true, swapped) for row, (true, swapped) in enumerate(pairs) if true and swapped]
    return [row for row, _, _ in kept], [true for _, true, _ in kept], [swapped for _, _, swapped in kept]
