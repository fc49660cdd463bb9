"""Recall@K through an index beside exact Recall@K, and the index's ANN recall on the same queries.

Two different things. Recall@K: the share of queries with a right row among the first K, whether the K come from exact
search or from an index; the difference is what the index costs the task. ANN recall@K: how many of exact search's first
K rows the index finds, right or wrong. An index may lose a third of the neighbours and no right answer, or the reverse.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from dualenc.evaluate.compare.differences import points
from dualenc.evaluate.index_rows import Matched, check_alike, match, what
from dualenc.evaluate.intervals import TIMES, Interval, mean_intervals
from dualenc.evaluate.metrics import Side, sides
from dualenc.evaluate.metrics import ranks as exact_ranks
from dualenc.evaluate.ranks import Floats, Ints, pair_scores
from dualenc.evaluate.sections import Embedded, Headline, Section, Share, Table
from dualenc.evaluate.top_hits import is_right, relevant_codes
from dualenc.index.exact import exact_search
from dualenc.index.recall import TIE, Truth, recall_per_query
from dualenc.index.vectors import BLOCK, Array, Rows, unit_rows
from dualenc.index.whose import fingerprint_of, refuse_foreign

WAYS = {"image": "text_to_image", "text": "image_to_text"}  # what an index of this side answers
TITLES = {"text_to_image": "Text → image", "image_to_text": "Image → text"}

Report = dict[str, Any]


def check_index(index: Any, embedded: Embedded, encoder: Any = None) -> Matched:
    """The data's rows in an open index, quickly; ValueError as `evaluate_through_index`, for before any ranking."""
    if encoder is not None:
        refuse_foreign(index.fingerprint, fingerprint_of(encoder), "the encoder")
    way = WAYS[index.manifest["side"]]
    matched = match(index, embedded, way)
    check_alike(index, matched, embedded.images if way == "text_to_image" else embedded.texts)
    return matched


def evaluate_through_index(
    index: Any,
    embedded: Embedded,
    exact_report: Mapping[str, Any],
    ks: Sequence[int] = (1, 5, 10),
    encoder: Any = None,
    ranks: Mapping[str, Ints] | None = None,
    relevant: Mapping[str, Sequence[Ints]] | None = None,
    seed: int = 0,
    times: int = TIMES,
    cluster: Ints | None = None,
) -> tuple[Report, Section]:
    """ "index/WAY/recall@k" beside "…/exact" and "…/difference", and "index/WAY/ann_recall@k", with intervals by image.

    Each k is a search of its own that asks for k rows, as a user does: an index looks at more candidates the more rows it
    is asked for. index: an open `Index`; of images it answers text_to_image, of texts image_to_text. It must hold each
    of the data's rows, known by key (captions by key and text). It may hold others: they are wrong answers to every
    query, so the exact numbers are then counted anew over the index's whole gallery, and stand apart from those of the
    data alone.
    exact_report: what `evaluate_retrieval` reported. encoder: a fingerprint, or what has one; it must be the index's.
    ranks, relevant: exact ranks per way, and right rows other than a query's own, where the caller has them. times:
    draws behind the intervals, 0 for none; cluster (N,): images with equal integers are drawn together.
    ValueError: a row that is missing or there twice, vectors of another encoder or of other pictures, k above the gallery.
    """
    way = WAYS[index.manifest["side"]]
    query, gallery, own = sides(embedded.images, embedded.texts, embedded.image_row, ks)[way]
    right = own if relevant is None or way not in relevant else list(relevant[way])
    matched = check_index(index, embedded, encoder)
    rank = exact_ranks(query, gallery, right) if ranks is None or way not in ranks else np.asarray(ranks[way])
    if len(matched.more):
        rank = _larger_gallery(index, matched.more, (query, gallery, right), rank)
    rows, ids = _exact_rows(index, gallery, matched)
    place, score = exact_search(query, rows, max(ks))
    at = _rows_of(ids, matched.ids)
    codes = relevant_codes([at[own_rows] for own_rows in right], len(ids))
    hits, ann = [], []
    for k in ks:
        found, estimated = index.search(query, k=k)
        last = score[:, k - 1 : k]
        hits.append([_hit(query, rows, _rows_of(ids, found), rank, codes, last[:, 0]), rank < k])
        truth = Truth(ids[place[:, :k]], last, (score[:, :k] > last + TIE).sum(axis=1, keepdims=True))
        ann.append(recall_per_query(found, estimated, truth, index.manifest["scores"] == "exact"))
    image = np.arange(len(embedded.images)) if cluster is None else cluster
    image = image[embedded.image_row] if way == "text_to_image" else image
    hit = np.array(hits, np.float64).transpose(0, 2, 1)  # (K, Q, 2)
    report = _report(way, ks, hit, np.stack(ann), image, times, seed)
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


def _exact_rows(index: Any, gallery: np.ndarray, matched: Matched) -> tuple[Rows, Ints]:
    """What exact search looks in, and the id of each row: the index's own rows, or the data's where it has only codes."""
    try:
        index.vectors(matched.ids[:1])
    except ValueError:  # a larger gallery was refused
        return Array(gallery), matched.ids
    return index.gallery(), np.asarray(index.ids)


def _rows_of(ids: Ints, wanted: Ints) -> Ints:
    """Where each of `wanted`, of any shape, stands in `ids` (N,); -1 where it does not.

    >>> _rows_of(np.array([7, 3]), np.array([[3, -1]]))
    array([[ 1, -1]])
    """
    order = np.argsort(ids)
    row = order[np.minimum(np.searchsorted(ids, wanted, sorter=order), len(ids) - 1)]
    return np.where(ids[row] == wanted, row, -1)


def _hit(
    query: np.ndarray, rows: Rows, found: Ints, rank: Ints, codes: Ints, last: np.ndarray
) -> npt.NDArray[np.bool_]:
    """Whether a right row is among the k that were found (Q, k), as row numbers: (Q,).

    Ties count against the model, as in exact search: a right row that exact search has no place for among its first k
    (rank, (Q,)), because it only ties with the last of them (its score: last, (Q,)), was listed by chance.
    """
    mine = (found >= 0) & is_right(np.arange(len(found))[:, None], found, codes, len(rows))
    beyond = rank >= found.shape[1]
    best = np.full(len(found), -np.inf)
    q, place = np.nonzero(mine & beyond[:, None])
    if len(q):
        theirs = unit_rows(rows.take(found[q, place]), "the rows found")
        np.maximum.at(best, q, pair_scores(query, theirs, q, np.arange(len(q))))
    return mine.any(axis=1) & ~(beyond & (best >= last - TIE))


def _report(way: str, ks: Sequence[int], hit: Floats, ann: Floats, image: Ints, times: int, seed: int) -> Report:
    report: Report = {}
    for k, both, near in zip(ks, hit, ann, strict=True):
        values = np.column_stack([both, both[:, 0] - both[:, 1], near])  # through, exact, difference, ANN recall
        names = [f"recall@{k}", f"recall@{k}/exact", f"recall@{k}/difference", f"ann_recall@{k}"]
        several = times > 0 and len(np.unique(image)) > 1
        intervals = (
            mean_intervals(values, image, times, seed, [True, True, False, True]) if several else [None] * len(names)
        )
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
                "Recall@K: share of queries with a right answer among the first K; the difference is what the index costs. Each "
                "K is a search of its own, with k = K.",
            ),
            Table(
                [TITLES[way], "ANN recall"],
                [[f"ANN recall@{k}", share(f"ann_recall@{k}")] for k in ks],
                "ANN recall@K: share of exact search's first K rows, right or wrong, that the index found. It says how well "
                "the index searches, not how well the encoder ranks.",
            ),
        ],
    )
