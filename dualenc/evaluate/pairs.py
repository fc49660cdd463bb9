"""Which captions and images are right for each other, as pairs of rows. Numpy only."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from dualenc.evaluate.ranks import Array, Ints, checked_rows

Side = tuple[Array, Array, list[Ints]]  # query, gallery, relevant
MOST_PAIRS = 100_000_000  # 1.6 GB; more are classes rather than copies of an image


def right_pairs(owner: Ints, images: int, same: npt.ArrayLike | None = None) -> tuple[Ints, Ints]:
    """Rows (text, image) that are right for each other, sorted by text: two (P,) arrays, no pair twice.

    owner (T,): the text's own image, -1 for none. same (N,): integers; images with equal ones are right for each
    other's captions, those below 0 for their own alone.

    >>> right_pairs(np.array([0, 2, -1]), 3, same=[7, -1, 7])
    (array([0, 0, 1, 1]), array([0, 2, 0, 2]))
    """
    asks = np.flatnonzero(owner >= 0)
    if same is None:
        return asks, owner[asks]
    group = np.asarray(same)
    if group.shape != (images,) or not np.issubdtype(group.dtype, np.integer):
        raise ValueError(f"same is {group.dtype} {group.shape}; it must be one integer for each of {images} images")
    group = np.where(group < 0, group.max(initial=0) + 1 + np.arange(images), group)  # alone: a number of its own
    _, group, size = np.unique(group, return_inverse=True, return_counts=True)
    members, first = np.argsort(group, kind="stable"), np.cumsum(size) - size
    own = group[owner[asks]]
    if (pairs := int(size[own].sum())) > MOST_PAIRS:
        raise ValueError(
            f"{pairs:,} pairs of caption and image would be right, above {MOST_PAIRS:,}: images in {len(size):,} groups are "
            "classes rather than copies; name a column with more values, or measure zero-shot"
        )
    count = size[own]
    within = np.arange(pairs) - np.repeat(np.cumsum(count) - count, count)
    return np.repeat(asks, count), members[np.repeat(first[own], count) + within]


def checked_pairs(
    images: npt.ArrayLike,
    texts: npt.ArrayLike,
    image_row: npt.ArrayLike,
    ks: Sequence[int],
    strict: bool = True,
    same: npt.ArrayLike | None = None,
) -> tuple[Array, Array, tuple[Ints, Ints]]:
    """(images, texts, `right_pairs`), checked as `retrieval_metrics` says."""
    images, texts = checked_rows(images, "images", empty=not strict), checked_rows(texts, "texts", empty=not strict)
    owner = _owners(image_row, len(texts), len(images), lowest=0 if strict else -1)
    pairs = right_pairs(owner, len(images), same)
    silent = np.flatnonzero(np.bincount(pairs[1], minlength=len(images)) == 0)
    if strict and len(silent):
        raise ValueError(
            f"image row {silent[0]} has no text ({len(silent)} such images): it can never be found; leave it out"
        )
    for k in ks:
        check_k(k, min(len(images), len(texts)) if strict else k)
    return images, texts, pairs


def sides(
    images: npt.ArrayLike,
    texts: npt.ArrayLike,
    image_row: npt.ArrayLike,
    ks: Sequence[int],
    strict: bool = True,
    same: npt.ArrayLike | None = None,
) -> dict[str, Side]:
    """{"text_to_image": (query, gallery, relevant), "image_to_text": …}, checked as `retrieval_metrics` says.

    With strict=False only those rows are queries that have a right answer.
    """
    images, texts, (text, image) = checked_pairs(images, texts, image_row, ks, strict, same)
    order = np.argsort(image, kind="stable")
    return {
        "text_to_image": _side(texts, images, text, image),
        "image_to_text": _side(images, texts, image[order], text[order]),
    }


def _side(query: Array, gallery: Array, asking: Ints, right: Ints) -> Side:
    """asking: query rows in order, each as often as it has right answers."""
    asks, first = np.unique(asking, return_index=True)
    relevant = np.split(right, first[1:]) if len(asks) else []
    return (query if len(asks) == len(query) else query[asks]), gallery, relevant


def check_k(k: int, gallery: int) -> None:
    if k < 1:
        raise ValueError(f"k is {k}; it counts gallery rows, so it must be at least 1")
    if k > gallery:
        raise ValueError(
            f"k is {k}, but the gallery has only {gallery} rows, so every query would hit; use a smaller k"
        )


def _owners(image_row: npt.ArrayLike, texts: int, images: int, lowest: int) -> Ints:
    owner = np.asarray(image_row)
    if owner.shape != (texts,) or (texts and not np.issubdtype(owner.dtype, np.integer)):
        raise ValueError(f"image_row is {owner.dtype} {owner.shape}; it must be one integer for each of {texts} texts")
    if texts and (owner.min() < lowest or owner.max() >= images):
        raise ValueError(f"image_row spans {owner.min()}..{owner.max()}, but there are images {lowest}..{images - 1}")
    return owner.astype(np.int64)
