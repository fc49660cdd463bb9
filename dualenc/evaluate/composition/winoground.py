"""Winoground: two images and two captions of the same words in another order; which belongs to which?

Thrush et al., Winoground: Probing Vision and Language Models for Visio-Linguistic Compositionality (CVPR 2022), whose
data are facebook/winoground on Hugging Face: examples.jsonl beside a folder of images.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from dualenc.data.lookup import find
from dualenc.evaluate.composition.caption_pairs import embed_once, share_of
from dualenc.evaluate.composition.sugarcrepe import refuse_missing
from dualenc.evaluate.groups.groups import Measure, Report, by_group
from dualenc.evaluate.intervals import TIMES, mean_intervals
from dualenc.evaluate.ranks import Floats, Ints, checked_rows, pair_scores
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

PREFIX = "composition/winoground"
SCORES = {"text_score": "Text score", "image_score": "Image score", "group_score": "Group score"}
MEANINGS = {
    "text_score": "each image prefers its own caption",
    "image_score": "each caption prefers its own image",
    "group_score": "both at once",
}
CHANCE = {"text_score": 1 / 4, "image_score": 1 / 4, "group_score": 1 / 6}
TAGS = ("collapsed_tag", "num_main_preds", "secondary_tag")  # the tables of the paper
SOURCE = (
    "accept the terms of facebook/winoground on Hugging Face, then `hf download --repo-type dataset "
    "facebook/winoground --local-dir winoground` and `unzip winoground/data/images.zip -d winoground/data`"
)


class Quad(NamedTuple):
    """One example: the names of its two images, its two captions, and its other fields."""

    images: tuple[str, str]
    captions: tuple[str, str]
    tags: dict[str, Any]


def read_winoground(path: str | Path) -> list[Quad]:
    """The examples of `examples_file`: a line is {"image_0", "image_1", "caption_0", "caption_1", …tags}. ValueError names
    the line that is wrong."""
    file = examples_file(path)
    try:
        lines = file.read_bytes().decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{file} is not UTF-8 ({error.reason} at byte {error.start}); get it again: {SOURCE}"
        ) from None
    quads = [_quad(line, f"{file}, line {number}") for number, line in enumerate(lines, 1) if line.strip()]
    if not quads:
        raise ValueError(f"{file} holds no examples, so nothing can be compared; {SOURCE}")
    return quads


def examples_file(path: str | Path) -> Path:
    """path: examples.jsonl, or the folder (or its `data`) that holds it. FileNotFoundError says where it is had."""
    place = Path(path)
    for file in (place, place / "examples.jsonl", place / "data" / "examples.jsonl"):
        if file.is_file():
            return file
    raise FileNotFoundError(f"{place}: no examples.jsonl there, so there is nothing to compare; {SOURCE}")


def _quad(line: str, place: str) -> Quad:
    names = ("image_0", "image_1", "caption_0", "caption_1")
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError):
        fields = None
    found: list[Any] = [fields.get(name) for name in names] if isinstance(fields, dict) else []
    if not found or not all(isinstance(value, str) and value.strip() for value in found):
        raise ValueError(f"{place} is no JSON object with the texts {', '.join(names)}; correct it")
    tags = {name: value for name, value in fields.items() if name not in names}
    return Quad((found[0], found[1]), (found[2], found[3]), tags)


def image_names(quads: Sequence[Quad]) -> list[str]:
    """The names of the images, each once."""
    return list(dict.fromkeys(name for quad in quads for name in quad.images))


def winoground_right(scores: npt.ArrayLike) -> dict[str, npt.NDArray[np.bool_]]:
    """Which examples are right, by score: (N,) each. scores (N, 2, 2): scores[n, c, i] of caption c with image i.

    text: given an image, its own caption scores higher than the other, for both images; image: given a caption, its own
    image does, for both captions; group: both (§3.1 of the paper). Strictly higher: a tie is wrong. ValueError: NaN.

    >>> found = winoground_right([[[0.9, 0.8], [0.1, 0.85]], [[0.5, 0.5], [0.5, 0.5]]])
    >>> {name: right.tolist() for name, right in found.items()}
    {'text_score': [True, False], 'image_score': [True, False], 'group_score': [True, False]}
    """
    scores = np.asarray(scores, np.float64)
    if scores.ndim != 3 or scores.shape[1:] != (2, 2) or not len(scores) or not np.isfinite(scores).all():
        raise ValueError(
            f"scores are {scores.shape}, NaN or infinite; give (examples, 2 captions, 2 images), one or more"
        )
    own0, own1, other0, other1 = scores[:, 0, 0], scores[:, 1, 1], scores[:, 0, 1], scores[:, 1, 0]
    text = (own0 > other1) & (own1 > other0)
    image = (own0 > other0) & (own1 > other1)
    return {"text_score": text, "image_score": image, "group_score": text & image}


def evaluate_winoground(
    encoder: TextEncoder,
    embedded: Embedded,
    quads: Sequence[Quad],
    examples: int = 3,
    seed: int = 0,
    bootstrap: int = TIMES,
    by: Sequence[str] = (),
) -> tuple[Report, Section]:
    """Flat report and page section: "composition/winoground/text_score", "…/image_score", "…/group_score", with "/low",
    "/high" (95 %, `bootstrap` draws of examples, which share no images) and "/chance"; "…/count"; by tag
    "…/by/collapsed_tag/Object/text_score", …, as `groups.by_group` gives them.

    by: fields of the examples to group by (default: those of TAGS that there are). embedded: the images, found by their
    keys. ValueError: a field that no example has, another encoder's `embedded`. FileNotFoundError: a missing image.
    """
    check_dim(encoder, embedded)
    names = image_names(quads)
    row = dict(zip(names, find(embedded.metadata["key"].to_pylist(), names).tolist(), strict=True))
    refuse_missing([name for name in names if row[name] < 0], len(names), SOURCE)
    groups = {field: _groups(quads, field) for field in by or _tags(quads)}
    image_row = np.array([[row[name] for name in quad.images] for quad in quads], np.int64)  # (N, 2)
    scores = _scores(encoder, embedded, quads, image_row)
    right = winoground_right(scores)
    values = {name: found.astype(np.float64) for name, found in right.items()}
    report: Report = {f"{PREFIX}/count": len(quads)}
    drawn = bootstrap and len(quads) > 1
    between = mean_intervals(np.stack([*values.values()], axis=1), None, bootstrap, seed, shares=True) if drawn else []
    for i, (name, found) in enumerate(values.items()):
        report |= {f"{PREFIX}/{name}": float(found.mean()), f"{PREFIX}/{name}/chance": CHANCE[name]}
        if between:
            report |= {f"{PREFIX}/{name}/low": between[i].low, f"{PREFIX}/{name}/high": between[i].high}
    measures = {name: Measure(title) for name, title in SCORES.items()}
    tables = []
    for field, group in groups.items():
        some, table = by_group(
            values, group, None, bootstrap, seed, f"{PREFIX}/by/{field}/", measures, counted="examples"
        )
        report |= some
        tables.append(table)
    picked = pick(right["group_score"], examples, seed)
    shown = [one for i in picked for one in _examples(embedded, quads[i], image_row[i], scores[i])]
    return report, _section(report, tables, shown, len(quads))


def _scores(encoder: TextEncoder, embedded: Embedded, quads: Sequence[Quad], image_row: Ints) -> Floats:
    """(N, 2 captions, 2 images)."""
    images = checked_rows(embedded.images, "images")
    texts, at = embed_once(encoder, [caption for quad in quads for caption in quad.captions])
    caption = at.reshape(-1, 2)
    pairs = [pair_scores(images, texts, image_row[:, i], caption[:, c]) for c in (0, 1) for i in (0, 1)]
    return np.stack(pairs, axis=1).reshape(-1, 2, 2)


def _tags(quads: Sequence[Quad]) -> list[str]:
    return [field for field in TAGS if any(quad.tags.get(field) not in (None, "") for quad in quads)]


def _groups(quads: Sequence[Quad], field: str) -> list[str | None]:
    if not any(field in quad.tags for quad in quads):
        there = dict.fromkeys(name for quad in quads for name in quad.tags)
        raise ValueError(f"no example has the field {field!r} to group by; they have {', '.join(there) or 'none'}")
    values = [quad.tags.get(field) for quad in quads]
    return [None if value in (None, "") else str(value) for value in values]


def _section(report: Report, tables: list[Table], shown: list[Example], count: int) -> Section:
    shares = {name: share_of(report, f"{PREFIX}/{name}", CHANCE[name]) for name in SCORES}
    rows: list[list[str | Share]] = [[SCORES[name], MEANINGS[name], share] for name, share in shares.items()]
    note = "Share of examples where all comparisons come out strictly right."
    drawn = "Drawn at random, those with a right group score first; an example's two images stand one after the other."
    return Section(
        title="Composition: Winoground",
        about=f"{count:,} examples, each two images and two captions of the same words in another order.",
        headlines=[Headline(SCORES[name], share, f"of examples: {MEANINGS[name]}") for name, share in shares.items()],
        tables=[Table(["", "Right when", "Examples"], rows, note), *tables],
        examples=[Examples("Examples", drawn, shown)] if shown else [],
    )


def _examples(embedded: Embedded, quad: Quad, image_row: Ints, scores: Floats) -> list[Example]:
    """An example's two images, each with both captions."""
    rows = []
    for i in (0, 1):
        own, other = scores[i, i], scores[1 - i, i]
        found = bool(own > other)
        items = [
            Item(quad.captions[i], right=True, note=f"{own:.3f}"),
            Item(quad.captions[1 - i], right=False, note=f"{other:.3f}"),
        ]
        note = "right" if found else "a tie" if own == other else "prefers the other caption"
        rows.append(Example(picture_item(embedded, int(image_row[i])), items if found else items[::-1], found, note))
    return rows
