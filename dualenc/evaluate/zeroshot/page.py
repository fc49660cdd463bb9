"""How a zero-shot evaluation is shown: its tables, figures and examples, and the file with every class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from dualenc.evaluate.intervals import Interval, wilson
from dualenc.evaluate.metrics import per_class_recall
from dualenc.evaluate.sections import (
    Embedded,
    Example,
    Examples,
    Headline,
    Item,
    Section,
    Share,
    Table,
    listed,
    pick,
    picture_item,
)
from dualenc.evaluate.zeroshot.confusion import confusion_panel, confusion_table, mistaken_for
from dualenc.evaluate.zeroshot.numbers import WORDS, Judged, Named, Report
from dualenc.evaluate.zeroshot.scale import calibration_table, reliability_panel
from dualenc.files import whole_file

TABLE_ROWS = 30  # a longer table of classes shows its best and worst halves of this


def page(
    embedded: Embedded, named: Named, judged: Judged, report: Report, groups: list[Table], examples: int, seed: int
) -> Section:
    """The section of the page; `groups`: the tables by group."""
    target, predicted = judged.target, judged.predicted
    tables = [_overall(report, named), *groups, classes_shown(class_table(judged, named), "recall", "Right")]
    figures = [confusion_panel(named.unique, target, predicted)]
    if (target != predicted).any():
        tables.append(confusion_table(named.unique, target, predicted))
    if judged.calibration is not None:
        tables.insert(1, calibration_table(judged.calibration, report, named.key))
        figures.insert(0, reliability_panel(judged.calibration))
    shown = _examples(embedded, judged, named.unique, pick(judged.rank == 0, examples, seed))
    return Section(
        title=named.title,
        about=f"{len(judged.row):,} images {named.about()}: {listed(named.unique, 12)}.",
        headlines=[Headline(named.title, share_of(report, f"{named.key}/acc1"), "of images get the right class")],
        tables=tables,
        figures=[figure for figure in figures if figure is not None],
        examples=[shown] if shown.rows else [],
    )


def share_of(report: Mapping[str, Any], key: str) -> Share:
    """A value of the report with its chance and interval, as the page shows it."""
    low, high = report.get(f"{key}/low"), report.get(f"{key}/high")
    between = None if low is None or high is None else Interval(low, high)
    return Share(float(report[key] or 0), report.get(f"{key}/chance"), between)


def class_table(judged: Judged, named: Named) -> pa.Table:
    """Every class: class, number, images, right, recall with its interval (low, high), mistaken_for.

    The interval is Wilson's (1927), which tells of few images what it can: 2 right of 2 are 34 % to 100 %.
    """
    recall, count = per_class_recall(judged.rank, judged.target, len(named.classes))
    some = count > 0
    right = np.where(some, np.round(np.nan_to_num(recall) * count), 0).astype(np.int64)
    low, high = wilson(right, count)
    columns = {"recall": recall, "low": low, "high": high}
    return pa.table(
        {"class": named.unique, "number": np.arange(len(count)), "images": count, "right": right}
        | {name: pa.array(np.where(some, values, 0), mask=~some) for name, values in columns.items()}
        | {"mistaken_for": mistaken_for(named.unique, judged.target, judged.predicted)}
    )


def classes_shown(table: pa.Table, metric: str, word: str) -> Table:
    """The table of classes for the page: those that occur, in their order; of many the best and the worst."""
    rows = [row for row in table.to_pylist() if row[metric] is not None]
    absent = [row["class"] for row in table.to_pylist() if row[metric] is None]
    notes = [f"Without an image, and counted nowhere: {listed(absent, 12)}."] if absent else []
    if len(rows) > TABLE_ROWS:
        half = TABLE_ROWS // 2
        notes.insert(0, f"The {half} best and {half} worst of {len(rows):,} classes; all are in report.json.")
        rows = sorted(rows, key=lambda row: (-row[metric], row["number"]))
        rows = rows[:half] + rows[-half:]
    last = {"mistaken_for": "Mistaken for"} if "mistaken_for" in table.column_names else {}
    cells: list[list[str | Share]] = []
    for row in rows:
        chance = row.get("chance")
        between = None if row["low"] is None else Interval(row["low"], row["high"])
        cells.append([row["class"], f"{row['images']:,}", Share(row[metric], chance, between), *(row[c] for c in last)])
    return Table(["Class", "Images", word, *last.values()], cells, " ".join(notes))


def check_format(path: str | Path) -> None:
    """ValueError unless `write_classes` can write to a file of that name."""
    if Path(path).suffix.lower() not in (".csv", ".parquet"):
        raise ValueError(f"{path}: a table of classes is written as .csv or .parquet; end the name with one of them")


def write_classes(path: str | Path, table: pa.Table) -> None:
    """Write a table as .csv or .parquet, whole or not at all."""
    import pyarrow.csv
    import pyarrow.parquet

    check_format(path)
    write = pyarrow.csv.write_csv if Path(path).suffix.lower() == ".csv" else pyarrow.parquet.write_table
    with whole_file(path) as partial:
        write(table, partial)


def _overall(report: Report, named: Named) -> Table:
    rows: list[list[str | Share]] = [
        [word, share_of(report, f"{named.key}/{key}")]
        for key, word in WORDS.items()
        if report[f"{named.key}/{key}"] is not None
    ]
    note = "Ties count as wrong. The interval is 95 %, images drawn anew."
    if report[f"{named.key}/absent"]:
        note += " The mean is over the classes that occur."
    if named.duplicates:
        note += (
            " A class with the prompts of one before it is never chosen, as that one ties with it and stands first: "
            f"{listed([named.unique[c] for c in named.duplicates], 12)}."
        )
    return Table(["", "Accuracy"], rows, note)


def _examples(embedded: Embedded, judged: Judged, names: Sequence[str], picked: Sequence[int]) -> Examples:
    rows = []
    for i in picked:
        scores, target, rank = judged.scores[i], judged.target[i], judged.rank[i]
        right = np.arange(len(names)) == target
        top = np.lexsort((right, -scores))[:3]
        items = [Item(names[c], right=bool(right[c]), note=f"{scores[c]:.3f}") for c in top]
        note = "right" if rank == 0 else f"{names[target]}, at place {rank + 1:,}"
        rows.append(Example(picture_item(embedded, int(judged.row[i])), items, bool(rank == 0), note))
    return Examples("Examples", "Drawn at random, right ones before wrong ones; with each class its cosine.", rows)
