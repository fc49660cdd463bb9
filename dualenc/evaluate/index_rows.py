"""Which rows of an index are the images, or the captions, of the data at hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from dualenc.evaluate.compare.same_rows import column, example, image_keys, numbered, places, text_names, unique_keys
from dualenc.evaluate.ranks import Ints
from dualenc.evaluate.sections import Embedded

CHECKED = 100  # rows of the index that are compared with the data's own
ALIKE = 0.99  # their cosine at the least: float16 and bfloat16 stay above 0.999, other weights or images far below


class Matched(NamedTuple):
    """The data's rows in the index."""

    ids: Ints  # (G,) the id of each gallery row of the data
    more: Ints  # (E,) ids that are not in the data: a larger gallery


def match(index: Any, embedded: Embedded, way: str) -> Matched:
    """Ids of the data's gallery rows. ValueError: one that is missing, or of which nobody knows which it is."""
    whose = f"the index {index.folder}"
    keys = image_keys(embedded)
    theirs: Sequence[Any] = column(index.metadata, "key", whose)
    names: Sequence[Any] = keys
    if way == "text_to_image":
        theirs = unique_keys(list(theirs), whose)
    else:
        names = text_names(embedded, keys)
        theirs = numbered(list(zip(theirs, column(index.metadata, "caption", whose), strict=True)))
    place = places(names, theirs)
    if missing := int((place < 0).sum()):
        raise ValueError(
            f"{missing:,} of the data's {len(names):,} {what(way)} are not in {whose}, such as {example(names, place)}: "
            "through it they could never be found; build the index of a store of this data, or add them"
        )
    more = np.delete(np.arange(len(theirs)), place)
    if way == "image_to_text" and (both := {theirs[row][0] for row in more} & set(keys)):
        key = sorted(both, key=str)[0]
        raise ValueError(
            f"{whose} holds captions of {key!r} that the data does not ({len(both):,} such images): they would count as "
            "wrong answers; evaluate on the data that the index was built of"
        )
    ids = index.ids
    return Matched(ids[place], ids[more])


def check_alike(index: Any, matched: Matched, gallery: np.ndarray) -> None:
    """ValueError where the index has other vectors under the same names: another encoder, or other pictures."""
    some = np.unique(np.linspace(0, len(gallery) - 1, CHECKED).astype(np.int64))
    try:
        theirs = index.vectors(matched.ids[some])
    except ValueError:  # only codes are left: the fingerprint must do
        return
    if theirs.shape[1] == gallery.shape[1]:
        cosine = np.einsum("ij,ij->i", theirs.astype(np.float64), gallery[some])
        if (worst := float(cosine.min())) > ALIKE:
            return
        wrong = f"{(cosine <= ALIKE).sum()} of {len(some)} rows compared have a cosine down to {worst:.2f}"
    else:
        wrong = f"{theirs.shape[1]} values a row, the data {gallery.shape[1]}"
    raise ValueError(
        f"the index {index.folder} holds other vectors under the data's names ({wrong}): another encoder made them, or "
        "other pictures; build it again from a store of this data"
    )


def what(way: str) -> str:
    return "images" if way == "text_to_image" else "captions"
