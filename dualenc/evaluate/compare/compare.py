"""Two encoders on the same queries: both values, their difference with its interval, and whether it is more than chance.

Both answer the very same queries, so what counts is the difference query by query: its mean's 95 % interval comes from
drawing whole images anew for both at once, its p value from flipping the sign of whole images (`significance.py`).
Several metrics are looked at, so p is also given as Holm's correction adjusts it for their number.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from dualenc.evaluate.compare.same_rows import example, image_keys, places, text_names
from dualenc.evaluate.compare.significance import PATTERNS, holm, sign_flip_test
from dualenc.evaluate.intervals import TIMES, mean_intervals
from dualenc.evaluate.ranks import Floats, Ints
from dualenc.evaluate.sections import Embedded

WAYS = {"text_to_image": "Text → image", "image_to_text": "Image → text"}
SURE = 0.05  # an adjusted p value below it is called a difference

Report = dict[str, Any]


class Outcome(NamedTuple):
    """What both encoders scored at each of Q queries, in one metric that is a mean over queries."""

    key: str  # the metric's name in reports, such as text_to_image/recall@1
    title: str  # and on the page
    a: Floats  # (Q,)
    b: Floats  # (Q,)
    cluster: Ints  # (Q,) the image that a query belongs to: an image's queries stand or fall together
    share: bool = True  # a fraction, higher is better; else a place, lower is better


class Aligned(NamedTuple):
    """Another encoder's embeddings of the same images and captions, in the first one's order."""

    images: npt.NDArray[np.float32]  # (N, D)
    texts: npt.NDArray[np.float32]  # (T, D)


def aligned(a: Embedded, b: Embedded) -> Aligned:
    """B's rows in A's order, matched by key, captions by key and text. ValueError where one holds what the other lacks."""
    keys_a, keys_b = image_keys(a, "the data of A"), image_keys(b, "the data of B")
    image = matched(keys_a, keys_b, "images")
    text = matched(text_names(a, keys_a, "the data of A"), text_names(b, keys_b, "the data of B"), "captions")
    return Aligned(b.images[image], b.texts[text])


def matched(a: Sequence[Any], b: Sequence[Any], what: str) -> Ints:
    """Where each name of A stands in B, (len(a),). ValueError, with a count and an example, for one that only one has."""
    for mine, other, whose in ((a, b, "A"), (b, a, "B")):
        place = places(mine, other)
        if missing := int((place < 0).sum()):
            raise ValueError(
                f"{missing:,} of {len(mine):,} {what} are only in the data of {whose}, such as {example(mine, place)}: the "
                "two would answer different queries; give both the same data"
            )
    return places(a, b)


def retrieval_outcomes(
    a: Mapping[str, Ints], b: Mapping[str, Ints], image_row: Ints, ks: Sequence[int], cluster: Ints | None = None
) -> list[Outcome]:
    """Recall@k for each k, and the mean rank (from 1), both ways. a, b: ranks from 0, {"text_to_image": (T,), …}.

    cluster (N,): integers, equal where images are no independent samples; None: each is one.
    """
    found = []
    for way, title in WAYS.items():
        image = np.asarray(image_row) if way == "text_to_image" else np.arange(len(a[way]))
        image = image if cluster is None else cluster[image]
        for k in ks:
            found.append(Outcome(f"{way}/recall@{k}", f"{title} R@{k}", _hits(a[way], k), _hits(b[way], k), image))
        place = [rank[way].astype(np.float64) + 1 for rank in (a, b)]
        found.append(Outcome(f"{way}/mean_rank", f"{title} mean rank", place[0], place[1], image, share=False))
    return found


def class_outcomes(a: Ints, b: Ints, classes: int, name: str = "zeroshot", title: str = "Zero-shot") -> list[Outcome]:
    """Accuracy at 1, and at 5 where there are five classes. a, b (N,): wrong classes above the right one, image by image."""
    image = np.arange(len(a))
    return [
        Outcome(f"{name}/acc{k}", f"{title} accuracy@{k}", _hits(a, k), _hits(b, k), image)
        for k in (1, 5)
        if classes >= k
    ]


def _hits(rank: Ints, k: int) -> Floats:
    return (rank < k).astype(np.float64)


def compare_outcomes(
    outcomes: Sequence[Outcome], times: int = TIMES, patterns: int = PATTERNS, seed: int = 0
) -> Report:
    """For each metric "a/KEY", "b/KEY" and "difference/KEY" (B less A), each with /low and /high; "difference/KEY/p",
    "…/p_holm" over all of them, and how many queries B "…/won" and "…/lost" against A.

    times: draws of the bootstrap; patterns: sign patterns drawn. The same for the same seed, whatever else is compared.
    ValueError: two outcomes of one key.
    """
    keys = [outcome.key for outcome in outcomes]
    if twice := [key for i, key in enumerate(keys) if key in keys[:i]]:
        raise ValueError(f"two outcomes are called {twice[0]}, so one would stand for both; name them apart")
    report: Report = {}
    for outcome in outcomes:
        values = np.column_stack([outcome.a, outcome.b, outcome.b - outcome.a])
        intervals = mean_intervals(values, outcome.cluster, times, seed, shares=[outcome.share, outcome.share, False])
        for side, value, interval in zip(("a", "b", "difference"), values.mean(axis=0), intervals, strict=True):
            name = f"{side}/{outcome.key}"
            report |= {name: float(value), f"{name}/low": interval.low, f"{name}/high": interval.high}
        better = values[:, 2] if outcome.share else -values[:, 2]
        name = f"difference/{outcome.key}"
        report[f"{name}/p"] = sign_flip_test(values[:, 2], outcome.cluster, patterns, seed)
        report |= {f"{name}/won": int((better > 0).sum()), f"{name}/lost": int((better < 0).sum())}
    adjusted = holm([report[f"difference/{outcome.key}/p"] for outcome in outcomes])
    report |= {f"difference/{o.key}/p_holm": p for o, p in zip(outcomes, adjusted, strict=True)}
    return report | {"metrics_compared": len(outcomes)}


def verdict(report: Mapping[str, Any], outcome: Outcome) -> str:
    """ "A" or "B", whichever is better beyond chance after Holm's correction, or "" where neither is."""
    name = f"difference/{outcome.key}"
    if report[f"{name}/p_holm"] >= SURE or not report[name]:
        return ""
    return "B" if (report[name] > 0) == outcome.share else "A"
