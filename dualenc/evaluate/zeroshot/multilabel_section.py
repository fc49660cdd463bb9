"""Zero-shot evaluation where an image may hold several classes: average precision, its intervals, and by group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from dualenc.evaluate.groups.gap import Measure, Source, compare
from dualenc.evaluate.groups.split import Split
from dualenc.evaluate.intervals import TIMES, draws
from dualenc.evaluate.ranks import Floats, Ints
from dualenc.evaluate.sections import (
    Embedded,
    Example,
    Examples,
    Headline,
    Item,
    Section,
    Table,
    listed,
    pick,
    picture_item,
)
from dualenc.evaluate.zeroshot.multilabel import (
    affordable_times,
    average_precision_per_class,
    chance_precision,
    drawn_precisions,
    mean_precision,
    precision_intervals,
    precisions_among,
)
from dualenc.evaluate.zeroshot.numbers import Named, Report, unit_rows
from dualenc.evaluate.zeroshot.page import classes_shown, share_of, write_classes

METRIC = "mean_average_precision"
Mask = npt.NDArray[np.bool_]


def evaluate_lists(
    embedded: Embedded,
    named: Named,
    row: Ints,
    held: Mask,
    scores: npt.NDArray[np.float32],
    groups: Mapping[str, Sequence[str | None]],
    examples: int = 3,
    seed: int = 0,
    times: int = TIMES,
    per_class: str | Path | None = None,
) -> tuple[Report, Section]:
    """Flat report and page section: "zeroshot/mean_average_precision", "…/average_precision/CLASS", …

    row (N,): rows of the metadata; held (N, C): which classes each shows; scores (N, C): cosines; groups: by column,
    each image's group. times: bootstrap draws at the most; many images and classes get fewer (`affordable_times`).
    Chance is what a random order gives in the mean (`chance_precision`).
    """
    name = named.key
    times = min(times, affordable_times(*scores.shape))
    table, whole = measured(named, held, scores, times, seed)
    report: Report = {f"{name}/{METRIC}{end}": value for end, value in whole.items()}
    report |= {f"{name}/images": len(row), f"{name}/unlabelled": len(embedded.images) - len(row)} | named.counts()
    absent = table.filter(pc.is_null(table["average_precision"]))["class"].to_pylist()
    report |= {f"{name}/absent": len(absent), f"{name}/absent_names": ", ".join(absent) or None, f"{name}/draws": times}
    for one in table.to_pylist():
        if one["average_precision"] is not None:
            report[f"{name}/average_precision/{one['class']}"] = one["average_precision"]
    tables = []
    for column, group in groups.items():
        found, shown = by_groups(scores, held, group, f"{name}/by/{column}/", times, seed)
        report |= found
        tables.append(shown)
    if per_class is not None:
        write_classes(per_class, table)
    return report, _page(embedded, named, report, [*tables, _by_class(table)], (row, held, scores), examples, seed)


def measured(
    named: Named, held: Mask, scores: npt.NDArray[np.float32], times: int = TIMES, seed: int = 0
) -> tuple[pa.Table, dict[str, float]]:
    """Every class (class, number, images, average_precision, low, high, chance), and of their mean {"": value, "/low", …}."""
    each = average_precision_per_class(scores, held)
    some = ~np.isnan(each)
    chance = chance_precision(held.sum(axis=0), len(held))
    whole = {"": float(each[some].mean()), "/chance": float(chance[some].mean())}
    ends = np.full((len(each), 2), np.nan)
    if times and len(scores) > 1:
        mean, *of_classes = precision_intervals(scores, held, times, seed)
        whole |= {"/low": mean.low, "/high": mean.high}
        ends = np.array(of_classes)
    columns = {"average_precision": each, "low": ends[:, 0], "high": ends[:, 1], "chance": chance}
    table = pa.table(
        {"class": named.unique, "number": np.arange(len(each)), "images": held.sum(axis=0)}
        | {name: pa.array(values, mask=np.isnan(values)) for name, values in columns.items()}
    )
    return table, whole


def by_groups(
    scores: npt.NDArray[np.float32],
    held: Mask,
    group: Sequence[str | None],
    prefix: str,
    times: int = TIMES,
    seed: int = 0,
) -> tuple[Report, Table]:
    """mAP by group: (N,) names, None for images without one. A group's is over the classes that occur in it."""
    split = Split.of(group, None)
    row_of = unit_rows(split)
    among = precisions_among(scores, held)

    def value(units: Ints) -> Floats:
        return mean_precision(among(row_of[units])[None])

    def drawn(units: Ints, own_seed: int) -> Floats:
        rows = row_of[units]
        precisions = drawn_precisions(scores[rows], held[rows])
        return np.concatenate([mean_precision(precisions(c)) for c in draws(len(rows), times, own_seed)])[:, None]

    return compare(split, Source(value, drawn), [METRIC], times, seed, prefix, {METRIC: Measure("mAP")})


def _by_class(table: pa.Table) -> Table:
    shown = classes_shown(table, "average_precision", "Average precision")
    note = f"{shown.note} Chance is what a random order gives in the mean."
    return shown._replace(note=note.strip())


def _page(
    embedded: Embedded,
    named: Named,
    report: Report,
    tables: list[Table],
    results: tuple[Ints, Mask, npt.NDArray[np.float32]],
    examples: int,
    seed: int,
) -> Section:
    row, held, scores = results
    share = share_of(report, f"{named.key}/{METRIC}")
    found = _first_is_held(scores, held)
    picked = pick(found, examples, seed)
    shown = [_example(embedded, int(row[i]), scores[i], held[i], named.unique, bool(found[i])) for i in picked]
    note = (
        "Average precision of a class: of the images ranked down to one that shows it, the share that does, in the mean. "
        f"Ties count against the model. 95 % interval: images drawn anew, {report[f'{named.key}/draws']:,} times."
    )
    return Section(
        title=named.title,
        about=(
            f"{len(row):,} images with {held.sum() / len(row):.1f} classes each in the mean, {named.about()}: "
            f"{listed(named.unique, 12)}."
        ),
        headlines=[Headline(named.title, share, "mean average precision over classes")],
        tables=[Table(["", "Mean over classes"], [["Average precision (mAP)", share]], note), *tables],
        examples=[Examples("Examples", "Drawn at random, those whose first class is right before others.", shown)],
    )


def _first_is_held(scores: npt.NDArray[np.float32], held: Mask) -> Mask:
    best = scores == scores.max(axis=1, keepdims=True)
    return (best & held).any(axis=1) & ~(best & ~held).any(axis=1)  # a tie counts as wrong


def _example(
    embedded: Embedded, row: int, scores: npt.NDArray[np.float32], held: Mask, names: Sequence[str], found: bool
) -> Example:
    top = np.lexsort((held, -scores))[:3]
    items = [Item(names[c], right=bool(held[c]), note=f"{scores[c]:.3f}") for c in top]
    has = [name for name, is_held in zip(names, held, strict=True) if is_held]
    return Example(picture_item(embedded, row), items, found, listed(has, 4) if has else "none of the classes")
