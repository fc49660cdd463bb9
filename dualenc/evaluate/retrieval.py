"""Retrieval on embedded samples: exact Recall@K, mean and median rank, both ways, with example queries."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from dualenc.evaluate.groups.groups import Measure, by_group, groups_of
from dualenc.evaluate.intervals import TIMES, Interval
from dualenc.evaluate.metrics import chance_recall, rank_metrics
from dualenc.evaluate.page.words import brackets
from dualenc.evaluate.pairs import checked_pairs
from dualenc.evaluate.rank_intervals import rank_intervals
from dualenc.evaluate.ranks import Array, Ints, pair_scores, ranks_both_ways
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

TITLES = {"text_to_image": "Text → image", "image_to_text": "Image → text"}
ASKED = {"text_to_image": "captions", "image_to_text": "images"}
SHOWN = 5  # hits shown for an example query

Report = dict[str, float | int | str | None]


class _Asked(NamedTuple):
    """One way: who asks, who answers, and the pairs (asks[i], right[i]) of rows that are right for each other."""

    query: Array
    gallery: Array
    asks: Ints
    right: Ints


def evaluate_retrieval(
    encoder: TextEncoder,
    embedded: Embedded,
    ks: Sequence[int] = (1, 5, 10),
    examples: int = 3,
    seed: int = 0,
    bootstrap: int = TIMES,
    by: Sequence[str] = (),
    same: str | None = None,
    ranks: Mapping[str, Ints] | None = None,
) -> tuple[Report, Section]:
    """Flat report and page section of retrieval both ways: "text_to_image/recall@1", "…/mean_rank", "…/queries", …

    Keys that end in "/chance" say what a random order would give, "/low" and "/high" where the value lies with 95 %, by
    `bootstrap` draws of images with all their captions (0: none). `examples` found and as many missed queries a way,
    drawn at random. by: metadata columns; recall, mean and median rank by each one's values, see `groups.by_group`; a
    caption belongs to its image's group. same: a metadata column; images with the same value there are right for each
    other's captions, both ways, and are drawn together. ranks: `retrieval_ranks` of these rows (with this `same`), where the
    caller has them.
    ValueError as `retrieval_metrics`, no such column, and where `embedded` is not this encoder's.
    """
    check_dim(encoder, embedded)
    named = {column: groups_of(embedded.metadata, column) for column in by}  # before the work: a typo is told at once
    alike = same_images(embedded, same)
    images, texts, (text, image) = checked_pairs(embedded.images, embedded.texts, embedded.image_row, ks, same=alike)
    asked = {"text_to_image": _Asked(texts, images, text, image), "image_to_text": _Asked(images, texts, image, text)}
    rank = dict(zip(TITLES, ranks_both_ways(texts, images, (text, image)), strict=True)) if ranks is None else ranks
    if any(len(rank[way]) != len(side.query) for way, side in asked.items()):
        raise ValueError("the ranks are of other data; give those that retrieval_ranks found for these rows")
    image_of = {"text_to_image": np.asarray(embedded.image_row), "image_to_text": np.arange(len(images))}
    own = image_clusters(alike, len(images))
    cluster = {way: own[rows] for way, rows in image_of.items()}
    report: Report = {}
    for way, side in asked.items():
        report |= _numbers(way, side, rank[way], ks)
    for name, between in rank_intervals(rank, cluster, ks, bootstrap, seed).items():
        report |= {f"{name}/low": between.low, f"{name}/high": between.high}
    tables = [_overall(report, ks, bootstrap, same)]
    for column, names in named.items():
        for way, rows in image_of.items():
            grouped = [names[row] for row in rows]
            counted = "images" if same is None else "different images"
            values, table = _by_group(way, rank[way], grouped, cluster[way], ks, column, bootstrap, seed, counted)
            report |= values
            tables.append(table)
    shown = [
        _examples(way, embedded, side, rank[way], pick(rank[way] == 0, examples, seed)) for way, side in asked.items()
    ]
    return report, _section(report, ks, tables, [part for part in shown if part.rows], same)


def _numbers(way: str, side: _Asked, rank: Ints, ks: Sequence[int]) -> Report:
    report: Report = {f"{way}/{name}": value for name, value in rank_metrics(rank, ks).items()}
    counts = np.bincount(side.asks, minlength=len(side.query))
    report |= {f"{way}/recall@{k}/chance": chance_recall(counts, len(side.gallery), k) for k in ks}
    return report | {f"{way}/queries": len(side.query), f"{way}/gallery": len(side.gallery)}


def same_images(embedded: Embedded, column: str | None) -> Ints | None:
    """(N,) a number for each value of a metadata column, -1 where an image has none: `same` of `retrieval_metrics`."""
    if column is None:
        return None
    groups_of(embedded.metadata, column, cut=False)  # what it refuses; its names are for reading
    values = embedded.metadata[column].to_pylist()
    kept = [None if value == "" or value != value else value for value in values]  # no text, NaN
    number = {value: i for i, value in enumerate(dict.fromkeys(value for value in kept if value is not None))}
    if len(number) == sum(value is not None for value in kept):
        raise ValueError(f"no two images share a {column}, so none are the same; leave it out, or name another column")
    return np.array([-1 if value is None else number[value] for value in kept], np.int64)


def image_clusters(same: Ints | None, images: int) -> Ints:
    """(N,) integers, equal where images are no independent samples: those declared the same; others stand alone.

    >>> image_clusters(np.array([0, -1, 0, -1]), 4)
    array([0, 5, 0, 7])
    """
    alone = np.arange(images)
    return alone if same is None else np.where(same < 0, images + alone, same)


def _by_group(
    way: str,
    rank: Ints,
    names: list[str | None],
    cluster: Ints,
    ks: Sequence[int],
    column: str,
    times: int,
    seed: int,
    counted: str,
) -> tuple[Report, Table]:
    values = {f"{way}/recall@{k}": rank < k for k in ks} | {f"{way}/mean_rank": rank + 1}
    measures = {f"{way}/recall@{k}": Measure(f"R@{k}") for k in ks}
    measures[f"{way}/mean_rank"] = Measure("Mean rank", lower=True, share=False)
    measures[f"{way}/median_rank"] = Measure("Median rank", lower=True, share=False)
    first = next(iter(measures))
    measures[first] = measures[first]._replace(title=f"{TITLES[way]} {measures[first].title}")
    medians = {f"{way}/median_rank": rank + 1}
    return by_group(values, names, cluster, times, seed, f"by/{column}/", measures, medians, counted)


def _overall(report: Report, ks: Sequence[int], bootstrap: int, same: str | None) -> Table:
    def place(name: str) -> str:
        value, low, high = (report.get(f"{name}{end}") for end in ("", "/low", "/high"))
        return f"{value:,.1f}" if low is None else f"{value:,.1f} {brackets(f'{low:,.1f}', f'{high:,.1f}')}"

    rows: list[list[str | Share]] = [[f"Recall@{k}", *(_share(report, way, k) for way in TITLES)] for k in ks]
    rows += [
        [f"{name.capitalize()} rank", *(place(f"{way}/{name}_rank") for way in TITLES)] for name in ("mean", "median")
    ]
    note = (
        "Recall@K: share of queries with at least one right answer among the first K. Ties count as misses. "
        "Rank 1 is best."
    )
    if any(key.endswith("/low") for key in report):
        together = f", those with the same {same} together" if same else ""
        note += (
            f" Intervals: 95\u202f%, {bootstrap:,} draws of images with all their captions{together}, as queries; the gallery "
            "stays whole."
        )
    return Table(["", *TITLES.values()], rows, note)


def _share(report: Report, way: str, k: int) -> Share:
    value, chance, low, high = (report.get(f"{way}/recall@{k}{end}") for end in ("", "/chance", "/low", "/high"))
    between = Interval(low, high) if isinstance(low, float) and isinstance(high, float) else None
    return Share(float(value or 0), float(chance or 0), between)


def _section(
    report: Report, ks: Sequence[int], tables: list[Table], shown: list[Examples], same: str | None
) -> Section:
    first = [*sorted(ks)][:2]
    about = (
        f"Each of {report['text_to_image/queries']:,} captions looks for its image among "
        f"{report['text_to_image/gallery']:,} images, and each image for a caption of its own among all captions."
    )
    if same is not None:
        about += f" Images with the same {same} are right for each other's captions."
    return Section(
        title="Retrieval",
        about=about,
        headlines=[
            Headline(f"{TITLES[way]} R@{k}", _share(report, way, k), f"of {ASKED[way]} have {_what(way)} {_where(k)}")
            for way, k in [*(("text_to_image", k) for k in first), ("image_to_text", first[0])]
        ],
        tables=tables,
        examples=shown,
    )


def _what(way: str) -> str:
    return "their own image" if way == "text_to_image" else "a caption of their own"


def _where(k: int) -> str:
    return "ranked first" if k == 1 else f"among the first {k}"


def _examples(way: str, embedded: Embedded, side: _Asked, rank: Ints, picked: Sequence[int]) -> Examples:
    query, gallery, asks, all_right = side
    captions = embedded.text_metadata["caption"]

    def image(row: int, right: bool | None = None, note: str = "") -> Item:
        return picture_item(embedded, row, right, note)

    def text(row: int, right: bool | None = None, note: str = "") -> Item:
        return Item(captions[row].as_py() or "", right=right, note=note)

    asking: Callable[[int], Item]
    asking, answer = (text, image) if way == "text_to_image" else (image, text)
    rows = []
    for q in picked:
        scores = pair_scores(query, gallery, np.full(len(gallery), q), np.arange(len(gallery)))
        right = np.isin(np.arange(len(gallery)), all_right[asks == q])
        order = np.lexsort((right, -scores))  # of equal scores the wrong one stands first, as in the rank
        place = int(np.argmax(right[order]))
        shown = [*range(SHOWN)] if place < SHOWN else [*range(SHOWN - 1), place]  # what was asked for is always seen
        items = [
            answer(int(order[at]), bool(right[order[at]]), _note(scores[order[at]], at))
            for at in shown
            if at < len(order)
        ]
        found = bool(rank[q] == 0)
        rows.append(Example(asking(q), items, found, "found first" if found else f"right one at place {rank[q] + 1:,}"))
    note = "Drawn at random, found ones before missed ones; with each hit its cosine."
    return Examples(f"{TITLES[way]}: examples", note, rows)


def _note(score: float, at: int) -> str:
    return f"{score:.3f}" if at < SHOWN else f"{score:.3f} · place\u00a0{at + 1:,}"
