"""`evaluate_compare`: two encoders on one data set, as a report, a section of the page, and a table of every query."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from dualenc.evaluate.compare.compare import (
    WAYS,
    Aligned,
    Outcome,
    Report,
    aligned,
    compare_outcomes,
    retrieval_outcomes,
    verdict,
)
from dualenc.evaluate.compare.differences import points
from dualenc.evaluate.compare.figures import differences, recall_curves
from dualenc.evaluate.compare.significance import PATTERNS
from dualenc.evaluate.intervals import TIMES, Interval
from dualenc.evaluate.metrics import Side, retrieval_ranks, sides
from dualenc.evaluate.page.words import brackets, signed
from dualenc.evaluate.per_query import names
from dualenc.evaluate.ranks import Ints
from dualenc.evaluate.retrieval import image_clusters, same_images
from dualenc.evaluate.sections import (
    Embedded,
    Example,
    Examples,
    Headline,
    Item,
    Section,
    Share,
    Table,
    pick,
    picture_item,
)
from dualenc.evaluate.top_hits import Hits, top_hits


class Comparison(NamedTuple):
    report: Report
    section: Section
    queries: pa.Table  # way, query_row, key, text, rank_a, rank_b, change: each query of both ways


def evaluate_compare(
    a: Embedded,
    b: Embedded,
    encoders: tuple[str, str] = ("A", "B"),
    ks: Sequence[int] = (1, 5, 10),
    more: Sequence[Outcome] = (),
    examples: int = 4,
    seed: int = 0,
    times: int = TIMES,
    patterns: int = PATTERNS,
    same: str | None = None,
) -> Comparison:
    """Retrieval of two encoders on the same images and captions, in any order; `compare_outcomes` says the keys.

    a, b: what each encoder made of the data. encoders: their names, for the page. more: outcomes beside retrieval, such
    as `class_outcomes`, which are corrected for together. examples: queries shown a way that
    B won, and as many it lost. same: a column of A's metadata; images with one value there are right for each other's
    captions, are drawn together and share a sign.
    ValueError: other images or captions in one than in the other, k above the gallery, an image without a caption.
    """
    other = aligned(a, b)
    alike = same_images(a, same)
    ranks_a = retrieval_ranks(a.images, a.texts, a.image_row, ks, same=alike)
    ranks_b = retrieval_ranks(other.images, other.texts, a.image_row, ks, same=alike)
    cluster = image_clusters(alike, len(a.images))
    outcomes = [*retrieval_outcomes(ranks_a, ranks_b, a.image_row, ks, cluster), *more]
    report = compare_outcomes(outcomes, times, patterns, seed)
    report |= {f"{way}/queries": len(rank) for way, rank in ranks_a.items()}
    shown = [_examples(a, other, alike, way, ranks_a[way], ranks_b[way], examples, seed) for way in WAYS]
    section = Section(
        title="Comparison",
        about=_about(report, outcomes, encoders) + _shared(same),
        headlines=[_headline(report, outcome) for outcome in outcomes if outcome.key.endswith(("recall@1", "/acc1"))],
        tables=[_differences(report, outcomes), _changed(ranks_a, ranks_b)],
        figures=[
            differences(report, [outcome for outcome in outcomes if outcome.share]),
            recall_curves(ranks_a["text_to_image"], ranks_b["text_to_image"], len(a.images), "text_to_image"),
        ],
        examples=[part for part in shown if part.rows],
    )
    return Comparison(report, section, _queries(a, ranks_a, ranks_b))


def _about(report: Report, outcomes: Sequence[Outcome], encoders: tuple[str, str]) -> str:
    sure = [verdict(report, outcome) for outcome in outcomes]
    better = [f"{name} is better in {sure.count(name)}" for name in ("B", "A") if name in sure]
    said = " and ".join(better) if better else "Neither is better in any"
    return (
        f"A is {encoders[0]}, B is {encoders[1]}. Both answered the same {report['text_to_image/queries']:,} captions and "
        f"{report['image_to_text/queries']:,} images. {said} of {len(outcomes)} metrics beyond chance (5 % for all together)."
    )


def _shared(same: str | None) -> str:
    return (
        f" Images with the same {same} are right for each other's captions, and no two independent ones."
        if same
        else ""
    )


def _share(report: Report, name: str) -> Share:
    return Share(report[name], None, Interval(report[f"{name}/low"], report[f"{name}/high"]))


def _headline(report: Report, outcome: Outcome) -> Headline:
    name = f"difference/{outcome.key}"
    meaning = (
        f"A has {100 * report[f'a/{outcome.key}']:.1f} %: {points(report, name)}, {_p(report[f'{name}/p_holm'])} (Holm)"
    )
    return Headline(f"{outcome.title}: B", _share(report, f"b/{outcome.key}"), meaning)


def _differences(report: Report, outcomes: Sequence[Outcome]) -> Table:
    rows: list[list[str | Share]] = []
    for outcome in outcomes:
        name = f"difference/{outcome.key}"
        if outcome.share:
            sides: list[str | Share] = [_share(report, f"{side}/{outcome.key}") for side in "ab"]
            difference = points(report, name)
        else:
            sides = [f"{report[f'{side}/{outcome.key}']:,.1f}" for side in "ab"]
            low, high = (signed(report[f"{name}/{end}"]) for end in ("low", "high"))
            difference = f"{signed(report[name])} {brackets(low, high)}"
        p = [_value(report[f"{name}/{kind}"]) for kind in ("p", "p_holm")]
        count = f"{report[f'{name}/won']:,} / {report[f'{name}/lost']:,}"
        rows.append([outcome.title, *sides, difference, *p, count, verdict(report, outcome) or "–"])
    return Table(
        ["", "A", "B", "B less A", "p", "p (Holm)", "Won / lost by B", "Better"],
        rows,
        "Intervals: 95 %, images drawn anew with all their captions, the same ones for both. p: share of sign flips of whole "
        "images that give as large a difference. p (Holm): adjusted for the number of metrics; below 0.05 one is called "
        "better. Won / lost: queries at which B does better / worse than A. A lower mean rank is better.",
    )


def _changed(ranks_a: Mapping[str, Ints], ranks_b: Mapping[str, Ints]) -> Table:
    rows: list[list[str | Share]] = []
    for way, title in WAYS.items():
        a, b = ranks_a[way] == 0, ranks_b[way] == 0
        counts = [(a & b).sum(), (a & ~b).sum(), (~a & b).sum(), (~a & ~b).sum()]
        rows.append([title, *(f"{count:,}" for count in counts)])
    return Table(
        ["Right answer ranked first", "By both", "By A alone", "By B alone", "By neither"],
        rows,
        "The difference of R@1 is that of the two middle columns.",
    )


def _examples(
    a: Embedded, b: Aligned, alike: Ints | None, way: str, rank_a: Ints, rank_b: Ints, count: int, seed: int
) -> Examples:
    """Queries that one encoder answers right at first and the other does not, with what each of them ranked first."""
    changed = np.flatnonzero((rank_a == 0) != (rank_b == 0))
    won = rank_b[changed] == 0
    picked = changed[pick(won, count, seed)]
    first = [_first(sides(some.images, some.texts, a.image_row, (), same=alike)[way], picked) for some in (a, b)]
    keys, captions = names(a, "text")

    def item(image: bool, row: int, right: bool | None = None, note: str = "") -> Item:
        if image:
            return picture_item(a, row, right, note)
        return Item(captions[row].as_py() or keys[row].as_py() or f"caption {row}", right=right, note=note)

    rows = []
    for i, q in enumerate(picked):
        items = [
            item(
                way == "text_to_image", int(hits.rows[i, 0]), bool(hits.right[i, 0]), f"{name}: {hits.scores[i, 0]:.3f}"
            )
            for name, hits in zip("AB", first, strict=True)
        ]
        found = bool(rank_b[q] == 0)
        places = f"place {rank_a[q] + 1:,} with A, {rank_b[q] + 1:,} with B"
        rows.append(
            Example(item(way != "text_to_image", int(q)), items, found, f"{'won' if found else 'lost'}: {places}")
        )
    note = (
        f"B alone ranks a right answer first for {int(won.sum()):,} queries (won), A alone for {int((~won).sum()):,} (lost). "
        "Drawn at random from both: what A ranked first, and what B did, with the cosine."
    )
    return Examples(f"{WAYS[way]}: won and lost", note, rows)


def _first(side: Side, picked: Ints) -> Hits:
    query, gallery, relevant = side
    if not len(picked):
        nothing = np.empty((0, 1))
        return Hits(nothing.astype(np.int64), nothing, nothing.astype(np.bool_))
    return top_hits(query[picked], gallery, [relevant[q] for q in picked], top=1)


def _queries(a: Embedded, ranks_a: Mapping[str, Ints], ranks_b: Mapping[str, Ints]) -> pa.Table:
    """Every query: its ranks from 1, and "won" or "lost" where one encoder alone has a right answer first."""
    tables = []
    for way, rank_a in ranks_a.items():
        keys, texts = names(a, "text" if way == "text_to_image" else "image")
        rank_b = ranks_b[way]
        change = np.select([(rank_b == 0) & (rank_a != 0), (rank_a == 0) & (rank_b != 0)], ["won", "lost"], "")
        columns = {
            "way": [way] * len(rank_a),
            "query_row": np.arange(len(rank_a)),
            "key": keys,
            "text": texts,
            "rank_a": rank_a + 1,
            "rank_b": rank_b + 1,
            "change": pa.array(change, pa.string(), mask=change == ""),
        }
        tables.append(pa.table(columns))
    return pa.concat_tables(tables)


def _p(value: float) -> str:
    return f"p {'=' if value >= 0.001 else '<'} {_value(value).removeprefix('< ')}"


def _value(p: float) -> str:
    """A p value as people print it.

    >>> _value(0.0312), _value(0.0001), _value(1.0)
    ('0.031', '< 0.001', '1.000')
    """
    return f"{p:.3f}" if p >= 0.001 else "< 0.001"
