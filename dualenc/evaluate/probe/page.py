"""How the probes are shown: one table, the few-shot curve beside the zero-shot line, the choice of strength."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dualenc.evaluate.intervals import Interval
from dualenc.evaluate.page.figure import INK, LINES, STYLES, legend, panel
from dualenc.evaluate.page.words import percent, points
from dualenc.evaluate.probe.data import Sets
from dualenc.evaluate.probe.numbers import METRICS, ZERO, Fitted, Report, absent_classes
from dualenc.evaluate.sections import (
    Embedded,
    Example,
    Examples,
    Headline,
    Item,
    Panel,
    Section,
    Share,
    Table,
    listed,
    pick,
    picture_item,
)

EXAMPLES = 3  # right and as many wrong


def page(
    report: Report,
    test: Embedded,
    found: Sets,
    full: Fitted,
    shots: Sequence[int],
    tables: Sequence[Table],
    seeds: int,
    seed: int,
) -> Section:
    """The section; `tables`: those by group."""
    held = " (a fifth of each class of train, held out)" if report["probe/held_out"] else ""
    share = report["probe/test_in_train"]
    seen = f" {percent(share)} of the test images are in train or val too, which flatters the probe." if share else ""
    figures = [_curve(report, shots)] if shots else []
    shown = _examples(test, found, full, seed)
    return Section(
        title="Linear probe",
        about=(
            f"{report['probe/images']:,} test images into {report['probe/classes']:,} classes by a logistic regression on "
            f"frozen embeddings, learnt from {report['probe/train']:,} images; strength chosen on "
            f"{report['probe/val']:,} validation images{held}, which the probe of all images learns from too: "
            f"{listed(found.classes, 12)}.{seen}"
        ),
        headlines=[Headline("Linear probe", _share(report, "probe/acc1"), "of images get the right class")],
        tables=[_overall(report, shots, seeds, absent_classes(found)), *tables],
        figures=[*figures, _choice(full)],
        examples=[shown] if shown.rows else [],
    )


def _overall(report: Report, shots: Sequence[int], seeds: int, absent: Sequence[str]) -> Table:
    ways = {"Zero-shot": ZERO} if f"{ZERO}acc1" in report else {}
    ways |= {f"{count} {'image' if count == 1 else 'images'} a class": f"probe/shots/{count}/" for count in shots}
    ways |= {"All of train": "probe/"}
    columns = ["Learnt from", *METRICS.values()]
    columns += ["Over zero-shot"] if ZERO in ways.values() else []
    columns += ["Seeds differ by"] if shots else []
    rows: list[list[str | Share]] = []
    for name, prefix in ways.items():
        row: list[str | Share] = [name, *(_share(report, f"{prefix}{metric}") for metric in METRICS)]
        if ZERO in ways.values():
            gain = None if prefix == ZERO else _share(report, f"{prefix}gain/acc1")
            row.append("–" if gain is None else points(gain.value, gain.interval))
        if shots:
            deviation = report.get(f"{prefix}acc1/std")
            row.append("–" if deviation is None else f"± {100 * deviation:.1f} points")
        rows.append(row)
    notes = ["Intervals: 95 %, test images drawn anew. Mean over classes: of the share that each class gets right."]
    if shots:
        notes.append(f"Few images: the mean over {seeds} draws of them, and its standard deviation.")
    if left_out := report.get("probe/shots/left_out"):
        beside = " beside those held out to validate on" if report["probe/held_out"] else ""
        notes.append(f"Left out, as train has not so many images of every class{beside}: {left_out} a class.")
    if absent:
        notes.append(f"Without a test image, and counted nowhere: {listed(absent, 12)}.")
    return Table(columns, rows, " ".join(notes))


def _share(report: Mapping[str, Any], key: str) -> Share:
    low, high = report.get(f"{key}/low"), report.get(f"{key}/high")
    interval = None if low is None or high is None else Interval(low, high)
    return Share(report[key], report.get(f"{key}/chance"), interval)


def _curve(report: Report, shots: Sequence[int]) -> Panel:
    """Accuracy against images a class, the probe on all of train at the right, zero-shot as a line across."""
    counts = sorted(shots)
    keys = [*(f"probe/shots/{count}/acc1" for count in counts), "probe/acc1"]
    shares = [_share(report, key) for key in keys]
    zero = report.get(f"{ZERO}acc1")

    def draw(axes: Any) -> None:
        place = np.arange(len(keys))
        values = [100 * share.value for share in shares]
        axes.plot(place, values, STYLES[0], color=LINES[0], marker="o", markersize=4, label="probe")
        for x, share in zip(place, shares, strict=True):
            if share.interval is not None:
                axes.plot([x, x], [100 * end for end in share.interval], "-", color=LINES[0], linewidth=1.2)
        if zero is not None:
            axes.axhline(100 * zero, color=LINES[1], linestyle=STYLES[1], label="zero-shot")
            legend(axes)
        axes.set_xticks(place, [*map(str, counts), "all"])
        axes.set_xlabel("images a class", color=INK)
        axes.set_ylabel("right, %", color=INK)

    said = [f"{count} a class {percent(share.value)}" for count, share in zip(counts, shares, strict=False)]
    said += [f"all {percent(shares[-1].value)}"] + ([] if zero is None else [f"zero-shot {percent(zero)}"])
    return panel("Few-shot probes", f"Right answers by images learnt from: {', '.join(said)}.", draw)


def _choice(full: Fitted) -> Panel:
    tried, chosen = full.choice.tried, full.choice.power

    def draw(axes: Any) -> None:
        axes.plot([each.power for each in tried], [100 * each.accuracy for each in tried], marker="o", markersize=4)
        axes.axvline(chosen, color=LINES[1], linestyle=STYLES[1])
        axes.set_xlabel("strength C, power of ten", color=INK)
        axes.set_ylabel("right on validation, %", color=INK)

    best = max(each.accuracy for each in tried)
    words = f"Validation accuracy at {len(tried)} strengths; the best, {percent(best)}, at C = 1e{chosen:g}, was taken."
    return panel("Choice of the penalty", words, draw)


def _examples(test: Embedded, found: Sets, full: Fitted, seed: int) -> Examples:
    rows = []
    for i in pick(full.right, EXAMPLES, seed):
        logits = full.probe.scores(found.test.rows[i][None])[0]
        right = np.arange(len(found.classes)) == found.test.target[i]
        chance = np.exp(logits - logits.max())
        chance /= chance.sum()
        top = np.lexsort((right, -logits))[:3]
        items = [Item(found.classes[c], right=bool(right[c]), note=f"{100 * chance[c]:.0f} %") for c in top]
        note = "right" if full.right[i] else f"it is {found.classes[found.test.target[i]]}"
        rows.append(Example(picture_item(test, int(found.test.row[i])), items, bool(full.right[i]), note))
    return Examples("Examples", "Drawn at random, right ones before wrong ones; with each class its probability.", rows)
