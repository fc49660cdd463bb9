"""Retrieval on embedded samples: exact Recall@K, mean and median rank, both ways, with example queries."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from dualenc.evaluate.metrics import Side, chance_recall, rank_metrics, sides
from dualenc.evaluate.ranks import Ints, pair_scores, ranks
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


def evaluate_retrieval(
    encoder: TextEncoder, embedded: Embedded, ks: Sequence[int] = (1, 5, 10), examples: int = 3, seed: int = 0
) -> tuple[dict[str, float | int], Section]:
    """Flat report and page section of retrieval both ways: "text_to_image/recall@1", "…/mean_rank", "…/queries", …

    Keys that end in "/chance" say what a random order would give. `examples` found and as many missed queries a way,
    drawn at random. ValueError as `retrieval_metrics`, and where `embedded` is not this encoder's.
    """
    check_dim(encoder, embedded)
    report: dict[str, float | int] = {}
    shown: list[Examples] = []
    for way, side in sides(embedded.images, embedded.texts, embedded.image_row, ks).items():
        query, gallery, relevant = side
        rank = ranks(query, gallery, relevant)
        report |= {f"{way}/{name}": value for name, value in rank_metrics(rank, ks).items()}
        counts = [len(rows) for rows in relevant]
        report |= {f"{way}/recall@{k}/chance": chance_recall(counts, len(gallery), k) for k in ks}
        report |= {f"{way}/queries": len(query), f"{way}/gallery": len(gallery)}
        if examples:
            shown.append(_examples(way, embedded, side, rank, pick(rank == 0, examples, seed)))
    return report, _section(report, ks, [part for part in shown if part.rows])


def _section(report: dict[str, float | int], ks: Sequence[int], shown: list[Examples]) -> Section:
    def share(way: str, k: int) -> Share:
        return Share(report[f"{way}/recall@{k}"], report[f"{way}/recall@{k}/chance"])

    rows: list[list[str | Share]] = [[f"Recall@{k}", *(share(way, k) for way in TITLES)] for k in ks]
    rows += [
        [f"{name.capitalize()} rank", *(f"{report[f'{way}/{name}_rank']:,.1f}" for way in TITLES)]
        for name in ("mean", "median")
    ]
    first = [*sorted(ks)][:2]
    return Section(
        title="Retrieval",
        about=(
            f"Each of {report['text_to_image/queries']:,} captions looks for its image among "
            f"{report['text_to_image/gallery']:,} images, and each image for a caption of its own among all captions."
        ),
        headlines=[
            Headline(f"{TITLES[way]} R@{k}", share(way, k), f"of {ASKED[way]} have {_what(way)} {_where(k)}")
            for way, k in [*(("text_to_image", k) for k in first), ("image_to_text", first[0])]
        ],
        tables=[
            Table(
                ["", *TITLES.values()],
                rows,
                "Recall@K: share of queries with at least one right answer among the first K. Ties count as misses. "
                "Rank 1 is best. The tick on a bar is what chance would give.",
            )
        ],
        examples=shown,
    )


def _what(way: str) -> str:
    return "their own image" if way == "text_to_image" else "a caption of their own"


def _where(k: int) -> str:
    return "ranked first" if k == 1 else f"among the first {k}"


def _examples(way: str, embedded: Embedded, side: Side, rank: Ints, picked: list[int]) -> Examples:
    query, gallery, relevant = side
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
        right = np.isin(np.arange(len(gallery)), relevant[q])
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
