"""A sweep on the page: accuracy against parameters and against samples seen, the table of every row, what failed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from dualenc.evaluate.intervals import Interval
from dualenc.evaluate.page.figure import LINES, count, legend, panel
from dualenc.evaluate.page.words import interval, percent
from dualenc.evaluate.sections import Headline, Panel, Section, Share, Table
from dualenc.evaluate.sweep.evidence import Outcome
from dualenc.evaluate.sweep.table import row, templates_of

AXES = {"parameters": "parameters", "samples_seen": "samples seen in training"}
MARKERS = ["o", "s", "^", "D"]  # as many as LINES: points differ by more than their colour
MOST_NAMES = 12  # points with their encoder's name beside them; more would lie over each other
MAIN = {
    "retrieval": {"text_to_image/recall@{k}": "Text → image R@{k}", "image_to_text/recall@{k}": "Image → text R@{k}"},
    "zeroshot": {"acc1": "Acc@1", "acc5": "Acc@5", "mean_per_class_recall": "Mean per class", "map": "mAP"},
}


class Spot(NamedTuple):
    """A point of a figure."""

    encoder: str
    x: int
    share: Share


def panels(outcomes: Sequence[Outcome]) -> list[Panel]:
    """For each data set the main metric over parameters, and over samples seen: where two encoders or more differ."""
    drawn = []
    for data in dict.fromkeys(one.combination.data for one in outcomes):
        own = [one for one in outcomes if one.combination.data == data and one.report is not None]
        for axis, words in AXES.items():
            series = _series(own, axis)
            if len({spot.x for spots in series.values() for spot in spots}) > 1:
                drawn.append(_panel(data.name, series, words))
    return drawn


def sections(outcomes: Sequence[Outcome]) -> list[Section]:
    """The page: every row with its figures, and what was measured on what."""
    about = "What the rows stand for; the same fingerprint is the same encoder, the same checksum the same data."
    return [_rows(outcomes), Section("Encoders and data", about, tables=[_encoders(outcomes), _data(outcomes)])]


def _rows(outcomes: Sequence[Outcome]) -> Section:
    tasks = dict.fromkeys(one.combination.data.task for one in outcomes)
    tables = [_results([one for one in outcomes if one.combination.data.task == task]) for task in tasks]
    failed = [one for one in outcomes if one.error is not None]
    if failed:
        tables.append(_failures(failed))
    encoders = len({one.combination.encoder for one in outcomes})
    data = len({one.combination.data for one in outcomes})
    return Section(
        title="Every combination",
        about=(
            f"{_count(encoders, 'encoder')} on {_count(data, 'data set')}: {_count(len(outcomes), 'combination')}, of "
            f"which {len(failed) or 'none'} failed. The best of many rows is partly luck; what it is worth is told by data "
            "that had no part in the choice."
        ),
        headlines=_best(outcomes),
        tables=tables,
        figures=panels(outcomes),
    )


def values(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """report.json: "ENCODER/DATA/TEMPLATES/METRIC", or "…/error"."""
    report: dict[str, Any] = {}
    for one in outcomes:
        parts = (one.combination.encoder.name, one.combination.data.name, templates_of(one))
        name = "/".join(filter(None, parts))
        report |= {f"{name}/{key}": value for key, value in (one.report or {}).items()}
        report |= {} if one.dropped is None else {f"{name}/dropped": one.dropped}
        report |= {} if one.error is None else {f"{name}/error": one.error}
    return report


def shares(outcome: Outcome) -> dict[str, Share]:
    """The metrics that a row shows, by their titles, best known first."""
    report = outcome.report or {}
    names = {
        key.format(k=k): title.format(k=k)
        for key, title in MAIN[outcome.combination.data.task].items()
        for k in outcome.settings.get("ks", [0])
    }
    return {title: _share(report, key) for key, title in names.items() if report.get(key) is not None}


def _share(report: dict[str, Any], key: str) -> Share:
    low, high = report.get(f"{key}/low"), report.get(f"{key}/high")
    ends = None if low is None or high is None else Interval(low, high)
    return Share(report[key], report.get(f"{key}/chance"), ends)


def _series(outcomes: Sequence[Outcome], axis: str) -> dict[str, list[Spot]]:
    """Name of a line -> its points: both ways of retrieval at the first K, or zero-shot's first metric by templates."""
    series: dict[str, list[Spot]] = {}
    for one in outcomes:
        x, found = row(one)[axis], shares(one)
        if not x or not found:  # the axis is logarithmic: it has no 0
            continue
        if one.combination.data.task == "retrieval":
            k = len(one.settings["ks"])
            chosen = dict([*found.items()][::k])
        else:
            title, share = next(iter(found.items()))
            chosen = {f"{title}, {templates_of(one)}": share}
        for name, share in chosen.items():
            series.setdefault(name, []).append(Spot(one.combination.encoder.name, x, share))
    return dict([*series.items()][: len(LINES)])


def _panel(data: str, series: dict[str, list[Spot]], words: str) -> Panel:
    places = [spot.x for spots in series.values() for spot in spots]
    aside = (max(places) / min(places)) ** 0.02  # so that the points of one encoder do not hide each other

    def draw(axes: Any) -> None:
        for i, (name, spots) in enumerate(series.items()):
            x = [spot.x * aside ** (i - (len(series) - 1) / 2) for spot in spots]
            for at, spot in zip(x, spots, strict=True):
                if spot.share.interval is not None:
                    axes.plot([at] * 2, [100 * end for end in spot.share.interval], "-", color=LINES[i], alpha=0.45)
            axes.plot(
                x, [100 * spot.share.value for spot in spots], MARKERS[i], color=LINES[i], markersize=7, label=name
            )
        first = next(iter(series.values()))
        if len(first) <= MOST_NAMES:
            for spot in first:
                place = (spot.x, 100 * spot.share.value)
                text = spot.encoder if len(spot.encoder) <= 20 else "…" + spot.encoder[-19:]
                axes.annotate(text, place, (7, -3), textcoords="offset points", fontsize=9, annotation_clip=False)
        axes.set_xscale("log")
        axes.set_xlabel(words)
        axes.margins(x=0.16, y=0.14)
        if len(series) > 1:
            legend(axes)

    said = [f"{s.encoder} {name} {percent(s.share.value)}" for name, spots in series.items() for s in spots]
    return panel(f"{data}: %, over {words}", f"{data} over {words}: " + "; ".join(said), draw, (4.8, 3.4))


def _results(outcomes: Sequence[Outcome]) -> Table:
    zeroshot = outcomes[0].combination.data.task == "zeroshot"
    done = [one for one in outcomes if one.report is not None]
    titles = list(dict.fromkeys(title for one in done for title in shares(one)))
    rows: list[list[str | Share]] = []
    for one in done:
        found, facts = _cells(one), row(one)
        known = [_number(facts["parameters"]), _number(facts["samples_seen"])]
        names = [one.combination.encoder.name, one.combination.data.name, *([templates_of(one) or ""] * zeroshot)]
        rows.append([*names, *(found.get(title, "–") for title in titles), *known])
    columns = ["Encoder", "Data", *(["Templates"] * zeroshot), *titles, "Parameters", "Samples seen"]
    return Table(columns, rows, "In brackets 95 % intervals. Everything is in results.csv.")


def _cells(outcome: Outcome) -> dict[str, str | Share]:
    """A row's metrics by their titles: the first with a bar, to be compared down the table, the others as text."""
    found = shares(outcome)
    said = {title: f"{percent(share.value)} {interval(share)}".strip() for title, share in found.items()}
    return {**said, **dict([*found.items()][:1])}


def _failures(failed: Sequence[Outcome]) -> Table:
    rows: list[list[str | Share]] = [
        [one.combination.encoder.name, one.combination.data.name, templates_of(one) or "", one.error or ""]
        for one in failed
    ]
    return Table(["Failed", "Data", "Templates", "Why"], rows, "The next run of the same command tries these again.")


def _encoders(outcomes: Sequence[Outcome]) -> Table:
    found = {one.combination.encoder: one.facts for one in outcomes}
    rows: list[list[str | Share]] = [
        [encoder.name, encoder.path, facts.fingerprint[:16] if facts else "–"] for encoder, facts in found.items()
    ]
    return Table(["Encoder", "Loaded from", "Fingerprint begins"], rows)


def _data(outcomes: Sequence[Outcome]) -> Table:
    found = {one.combination.data: one.data for one in outcomes}
    dropped = {one.combination.data: one.dropped for one in outcomes if one.dropped is not None}
    rows: list[list[str | Share]] = []
    for data, sums in found.items():
        counts = [_number(sums and sums.samples), _number(dropped.get(data))]
        rows.append([data.name, data.path, data.task, *counts, sums.value[:16] if sums else "–"])
    covers = sorted({sums.covers for sums in found.values() if sums})
    columns = ["Data", "Read from", "Task", "Samples", "Left out", "SHA-256 begins"]
    return Table(columns, rows, f"Covers {'; '.join(covers)}.")


def _best(outcomes: Sequence[Outcome]) -> list[Headline]:
    """The best row of each data set, at most four."""
    best = []
    for data in list(dict.fromkeys(one.combination.data for one in outcomes))[:4]:
        own = [one for one in outcomes if one.combination.data == data and shares(one)]
        if own:
            top = max(own, key=lambda one: next(iter(shares(one).values())).value)
            title, share = next(iter(shares(top).items()))
            by = " · ".join(filter(None, (top.combination.encoder.name, top.combination.templates)))
            best.append(Headline(f"{data.name}: {title}", share, f"the best of {len(own)}: {by}"))
    return best


def _count(number: int, thing: str) -> str:
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def _number(value: int | None) -> str:
    return "–" if value is None else count(value)
