"""Right captions against wrong ones: to which of two does an image lie nearer? By kind of change, and by group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from dualenc.evaluate.groups.groups import Measure, Report, by_group, groups_of
from dualenc.evaluate.groups.split import key_of
from dualenc.evaluate.intervals import TIMES, Interval
from dualenc.evaluate.page.words import points
from dualenc.evaluate.ranks import Floats, Ints, checked_rows, pair_scores
from dualenc.evaluate.sections import (
    Embedded,
    Example,
    Examples,
    Headline,
    Item,
    Share,
    Table,
    TextEncoder,
    pick,
    picture_item,
)

CHANCE = 0.5
TEXTS = 4096  # texts between two steps of the progress bar


class Pairs(NamedTuple):
    """P right captions, each with a wrong one of the same image."""

    row: Ints  # (P,) the image's row
    right: list[str]
    wrong: list[str]
    kind: list[str]  # how the wrong caption was made


class Judged(NamedTuple):
    """(P,) the image's cosine with its right and with the wrong caption; a tie is wrong."""

    right: Floats
    wrong: Floats

    @property
    def won(self) -> npt.NDArray[np.bool_]:
        return self.right > self.wrong


class Compared(NamedTuple):
    """What pairs give: report keys, the accuracy of each kind, tables by group, examples of each kind."""

    report: Report
    kinds: dict[str, Share]
    tables: list[Table]
    examples: list[Examples]


def embed_once(encoder: TextEncoder, texts: Sequence[str]) -> tuple[npt.NDArray[np.float32], Ints]:
    """Each different text embedded once: rows (U, D), and (T,) the row of each text, so that equal texts tie exactly."""
    number = {text: i for i, text in enumerate(dict.fromkeys(texts))}
    different = list(number)
    parts = []
    with tqdm(total=len(different), desc="embedding captions", unit="text", disable=None) as bar:
        for start in range(0, len(different), TEXTS):
            parts.append(encoder.embed_texts(different[start : start + TEXTS]))
            bar.update(len(parts[-1]))
    return np.concatenate(parts), np.array([number[text] for text in texts], np.int64)


def judge(encoder: TextEncoder, embedded: Embedded, pairs: Pairs) -> Judged:
    """Both scores of every pair, in float64. ValueError: NaN, no pairs."""
    images = checked_rows(embedded.images, "images")
    both = [text for pair in zip(pairs.right, pairs.wrong, strict=True) for text in pair]  # neighbours: one batch
    texts, at = embed_once(encoder, both)
    texts = checked_rows(texts, "captions")
    return Judged(
        pair_scores(images, texts, pairs.row, at[0::2]),
        pair_scores(images, texts, pairs.row, at[1::2]),
    )


def compare(
    embedded: Embedded,
    pairs: Pairs,
    judged: Judged,
    titles: Mapping[str, str],
    prefix: str,
    by: Sequence[str] = (),
    bootstrap: int = TIMES,
    seed: int = 0,
    examples: int = 2,
) -> Compared:
    """Accuracy by kind (titles: kind -> its name on the page, in the page's order) and by metadata columns, with examples.

    Report: "PREFIX/KIND/accuracy", "…/low", "…/high" (95 %, by `bootstrap` draws of images with all their pairs; 0:
    none), "…/chance", "PREFIX/KIND/count" (pairs), with KIND as `split.key_of` writes it; with two kinds of two images or
    more the worst and the gap, as `groups.by_group` gives them; and its keys under "PREFIX/by/COLUMN/". ValueError: no such
    column.
    """
    groups = {column: groups_of(embedded.metadata, column) for column in by}  # before the work: a typo is told at once
    won = {"accuracy": judged.won.astype(np.float64)}
    found, _ = by_group(won, pairs.kind, pairs.row, bootstrap, seed, f"{prefix}/")
    report: Report = {}
    kinds: dict[str, Share] = {}
    kind_of = np.array(pairs.kind)
    shown = []
    for kind in (kind for kind in titles if kind in pairs.kind):
        own, mine = f"{prefix}/{key_of(kind)}", np.flatnonzero(kind_of == kind)
        key = f"{own}/accuracy"
        kinds[kind] = share_of(found, key, CHANCE)
        report |= {k: found[k] for k in (key, f"{key}/low", f"{key}/high") if k in found}
        report |= {f"{key}/chance": CHANCE, f"{own}/count": len(mine)}
        picked = mine[pick(judged.won[mine], examples, seed)]
        if len(picked):
            rows = [_example(embedded, pairs, judged, int(i)) for i in picked]
            shown.append(
                Examples(titles[kind], "Drawn at random, right ones before wrong ones; with each its cosine.", rows)
            )
    extremes = tuple(f"{prefix}/{what}/" for what in ("worst", "worst_group", "gap"))
    # None where there are not two to compare
    report |= {key: value for key, value in found.items() if key.startswith(extremes) and value is not None}
    tables = []
    for column, names in groups.items():
        name = [names[row] for row in pairs.row]
        values, table = by_group(
            won, name, pairs.row, bootstrap, seed, f"{prefix}/by/{column}/", {"accuracy": Measure("Right")}
        )
        report |= values
        tables.append(table)
    return Compared(report, kinds, tables, shown)


def share_of(report: Report, key: str, chance: float | None) -> Share:
    """A value of the report with its interval, where it has one."""
    value, low, high = report[key], report.get(f"{key}/low"), report.get(f"{key}/high")
    assert isinstance(value, float)
    between = Interval(low, high) if isinstance(low, float) and isinstance(high, float) else None
    return Share(value, chance, between)


def headlines(kinds: Mapping[str, Share], titles: Mapping[str, str]) -> list[Headline]:
    return [Headline(titles[kind], share, "of images prefer their true caption") for kind, share in kinds.items()]


def kind_rows(compared: Compared, titles: Mapping[str, str], prefix: str) -> list[list[str | Share]]:
    """Rows of a table: a kind's title, its pairs, its accuracy; below them the gap where there are several."""
    report = compared.report
    rows: list[list[str | Share]] = [
        [titles[kind], f"{report[f'{prefix}/{key_of(kind)}/count']:,}", share] for kind, share in compared.kinds.items()
    ]
    gap = f"{prefix}/gap/accuracy"
    if gap in report:
        share = share_of(report, gap, None)
        rows.append(["Gap, best less worst", "", points(share.value, share.interval)])
    chance = report.get(f"{gap}/chance")
    if isinstance(chance, float):
        rows.append(["Gap of random groups", "", points(chance)])
    return rows


def _example(embedded: Embedded, pairs: Pairs, judged: Judged, i: int) -> Example:
    won = bool(judged.won[i])
    items = [
        Item(pairs.right[i], right=True, note=f"{judged.right[i]:.3f}"),
        Item(pairs.wrong[i], right=False, note=f"{judged.wrong[i]:.3f}"),
    ]
    note = "right" if won else "a tie" if judged.right[i] == judged.wrong[i] else "prefers the wrong one"
    return Example(picture_item(embedded, int(pairs.row[i])), items if won else items[::-1], won, note)
