"""Recall@K through an index beside exact Recall@K, and the index's ANN recall on the same queries.

Two different things. Recall@K: the share of queries with a right row among the first K, whether the K come from exact
search or from an index; the difference is what the index costs the task. ANN recall@K: how many of exact search's first
K rows the index finds, right or wrong. An index may lose a third of the neighbours and no right answer, or the reverse.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dualenc.evaluate.compare.differences import points
from dualenc.evaluate.index_rows import Matched, check_alike, match, what
from dualenc.evaluate.intervals import Interval, mean_intervals
from dualenc.evaluate.metrics import Side, sides
from dualenc.evaluate.metrics import ranks as exact_ranks
from dualenc.evaluate.ranks import Floats, Ints
from dualenc.evaluate.sections import Embedded, Headline, Section, Share, Table
from dualenc.index.exact import exact_search
from dualenc.index.recall import TIE, Truth, recall_per_query
from dualenc.index.vectors import BLOCK, Array, Rows
from dualenc.index.whose import fingerprint_of, refuse_foreign

WAYS = {"image": "text_to_image", "text": "image_to_text"}  # what an index of this side answers
TITLES = {"text_to_image": "Text → image", "image_to_text": "Image → text"}

Report = dict[str, Any]


def evaluate_through_index(
    index: Any,
    embedded: Embedded,
    exact_report: Mapping[str, Any],
    ks: Sequence[int] = (1, 5, 10),
    encoder: Any = None,
    ranks: Mapping[str, Ints] | None = None,
    relevant: Mapping[str, Sequence[Ints]] | None = None,
    seed: int = 0,
) -> tuple[Report, Section]:
    """ "index/WAY/recall@k" beside "…/exact" and "…/difference", and "index/WAY/ann_recall@k", with intervals by image.

    index: an open `Index`; of images it answers text_to_image, of texts image_to_text. It must hold each of the data's
    rows, known by key (captions by key and text). It may hold others: they are wrong answers to every query, so the exact
    numbers are then counted anew over the index's whole gallery, and stand apart from those of the data alone.
    exact_report: what `evaluate_retrieval` reported. encoder: a fingerprint, or what has one; it must be the index's.
    ranks, relevant: exact ranks per way, and right rows other than a query's own, where the caller has them.
    ValueError: a row that is missing or there twice, vectors of another encoder or of other pictures, k above the gallery.
    """
    if encoder is not None:
        refuse_foreign(index.fingerprint, fingerprint_of(encoder), "the encoder")
    way = WAYS[index.manifest["side"]]
    query, gallery, own = sides(embedded.images, embedded.texts, embedded.image_row, ks)[way]
    right = own if relevant is None or way not in relevant else list(relevant[way])
    matched = match(index, embedded, way)
    check_alike(index, matched, gallery)
    rank = exact_ranks(query, gallery, right) if ranks is None or way not in ranks else np.asarray(ranks[way])
    if len(matched.more):
        rank = _larger_gallery(index, matched.more, (query, gallery, right), rank)
    # As many more than K as a query has right rows, so that a tie at the K-th place shows: see `rank_found`.
    found = index.search(query, k=min(max(ks) + max(map(len, right)), len(index)))
    through = _rank_found(found[0], found[1], [matched.ids[rows] for rows in right])
    ann = _ann_recall(index, query, gallery, matched, found, ks)
    hit = np.stack([np.stack([through < k, rank < k], axis=1) for k in ks]).astype(np.float64)  # (K, Q, 2)
    image = embedded.image_row if way == "text_to_image" else np.arange(len(query))
    report = _report(way, ks, hit, ann, image, seed)
    report |= {f"index/{way}/gallery": len(index), f"index/{way}/rows_not_in_data": len(matched.more)}
    if not len(matched.more):  # to the last digit what stands above on the page
        for k in ks:
            _check_exact(report[f"index/{way}/recall@{k}/exact"], exact_report, f"{way}/recall@{k}")
    return report, _section(index, way, ks, report, len(query))


def _larger_gallery(index: Any, more: Ints, side: Side, rank: Ints) -> Ints:
    """Ranks (Q,) among the data's rows and the index's others. ValueError where the index no longer has their vectors."""
    query, gallery, right = side
    step, total = max(BLOCK, len(gallery)), rank.copy()
    for start in range(0, len(more), step):
        try:
            others = index.vectors(more[start : start + step])
        except ValueError as error:
            raise ValueError(
                f"the index {index.folder} holds {len(more):,} rows that are not in the data, and no original rows to "
                "search exactly; build an index of this data alone, or keep the rows"
            ) from error
        total += exact_ranks(query, np.concatenate([gallery, others]), right) - rank  # those that stand before it here
    return total


def _rank_found(ids: Ints, scores: np.ndarray, right: Sequence[Ints]) -> Ints:
    """Rank of the best right id among those found, (Q,), from 0; beyond every k where none was found.

    Ties count against the model, as in exact search: wrong ids that score as high (within rounding) stand before it.

    >>> ids, scores = np.array([[7, 3, 5]]), np.array([[0.9, 0.5, 0.5]])
    >>> _rank_found(ids, scores, [np.array([3])]), _rank_found(ids, scores, [np.array([8])])
    (array([2]), array([9223372036854775807]))
    """
    rank = np.full(len(ids), np.iinfo(np.int64).max)
    for q, rows in enumerate(right):
        mine = np.isin(ids[q], rows)
        if mine.any():
            best = scores[q][mine].max()
            rank[q] = int(((scores[q] >= best - TIE) & ~mine).sum())
    return rank


def _ann_recall(
    index: Any,
    query: np.ndarray,
    gallery: np.ndarray,
    matched: Matched,
    found: tuple[Ints, np.ndarray],
    ks: Sequence[int],
) -> Floats:
    """(K, Q): of exact search's first k rows over the same gallery, the share that the index found, tied ones alike."""
    ids, scores = found
    rows: Rows
    try:
        index.vectors(matched.ids[:1])
        rows, names = index.gallery(), index.ids
    except ValueError:  # only codes: the data's own rows are the truth (a larger gallery was refused)
        rows, names = Array(gallery), matched.ids
    place, score = exact_search(query, rows, max(ks))
    out = []
    for k in ks:
        last = score[:, k - 1 : k]
        above = (score[:, :k] > last + TIE).sum(axis=1, keepdims=True)
        true = Truth(names[place[:, :k]], last, above)
        out.append(recall_per_query(ids[:, :k], scores[:, :k], true, index.manifest["scores"] == "exact"))
    return np.stack(out)


def _report(way: str, ks: Sequence[int], hit: Floats, ann: Floats, image: Ints, seed: int) -> Report:
    report: Report = {}
    for k, both, near in zip(ks, hit, ann, strict=True):
        values = np.column_stack([both, both[:, 0] - both[:, 1], near])  # through, exact, difference, ANN recall
        names = [f"recall@{k}", f"recall@{k}/exact", f"recall@{k}/difference", f"ann_recall@{k}"]
        several = len(np.unique(image)) > 1
        intervals = mean_intervals(values, image, seed=seed) if several else [None] * len(names)
        for name, value, interval in zip(names, values.mean(axis=0), intervals, strict=True):
            report[f"index/{way}/{name}"] = float(value)
            if interval is not None:
                report |= {f"index/{way}/{name}/low": interval.low, f"index/{way}/{name}/high": interval.high}
    return report


def _check_exact(counted: float, exact_report: Mapping[str, Any], name: str) -> None:
    given = exact_report.get(name)
    if given is None or abs(given - counted) > 1e-9:
        raise ValueError(
            f"the exact report says {given} for {name}, these queries give {counted}: it is of other data or other right "
            "rows; give the report of this evaluation"
        )


def _section(index: Any, way: str, ks: Sequence[int], report: Report, queries: int) -> Section:
    def share(name: str) -> Share:
        low, high = (report.get(f"index/{way}/{name}/{end}") for end in ("low", "high"))
        between = None if low is None or high is None else Interval(low, high)
        return Share(report[f"index/{way}/{name}"], None, between)

    more = report[f"index/{way}/rows_not_in_data"]
    recalls: list[list[str | Share]] = [
        [
            f"Recall@{k}",
            share(f"recall@{k}"),
            share(f"recall@{k}/exact"),
            points(report, f"index/{way}/recall@{k}/difference"),
        ]
        for k in ks
    ]
    gallery = f"all {len(index):,} rows of the index" if more else f"the same {len(index):,} {what(way)}"
    larger = (
        f" The index holds {more:,} rows that are not in the data; they are wrong answers, and make both columns lower "
        "than the numbers over the data alone."
        if more
        else ""
    )
    kind = index.manifest["recipe"]["name"]
    return Section(
        title="Through the index",
        about=(
            f"The same {queries:,} {'captions' if way == 'text_to_image' else 'images'}, answered by the index "
            f"{index.folder} ({kind}) and by exact search over {gallery}.{larger}"
        ),
        headlines=[Headline(f"{TITLES[way]} R@{ks[0]}, index", share(f"recall@{ks[0]}"), "through the index")],
        tables=[
            Table(
                [TITLES[way], "Through the index", "Exact", "Difference"],
                recalls,
                "Recall@K: share of queries with a right answer among the first K; the difference is what the index costs.",
            ),
            Table(
                [TITLES[way], "ANN recall"],
                [[f"ANN recall@{k}", share(f"ann_recall@{k}")] for k in ks],
                "ANN recall@K: share of exact search's first K rows, right or wrong, that the index found. It says how well "
                "the index searches, not how well the encoder ranks.",
            ),
        ],
    )
