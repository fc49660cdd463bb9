"""What the verbs of `dualenc eval` share: their options, the embedded data, the report at the end."""

from __future__ import annotations

import argparse
import contextlib
import shutil
import sys
import tempfile
import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dualenc.cli.common import compute, compute_options, data_names, print_json, printable, used_for

ENCODER = "encoder folder, .ckpt, open_clip NAME:TAG, or hf-hub:org/repo"
CLASSES = (
    "class names: a,b,c, a .txt or .json file (a list, or an object {class: prompts}), FILE.json#NAME, or imagenet"
)
TEMPLATES = (
    "prompt templates: imagenet, simple, plain, a .txt or .json file, FILE.json#NAME, or one such as 'a photo of a {}.'"
)
CURE = "give --classes"  # where nothing names the classes, of verbs that take it
WIDTH = 200  # of what is no terminal
Part = tuple[dict[str, Any], Any]  # what an `evaluate_*` function returns: values of the report, a section of the page


def report_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--encoder", required=True, help=ENCODER)
    parser.add_argument(
        "--data",
        required=True,
        help="shards, images (captions in NAME.txt, or one sub-folder a class), a CSV/TSV/JSONL/parquet table, or a store",
    )
    parser.add_argument("--out", help="write report.json and report.html into this folder")
    parser.add_argument("--curve", help="metrics.csv of the training run (default: log/metrics.csv beside the encoder)")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    compute_options(parser)


def bootstrap_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--bootstrap",
        type=int,
        default=1000,
        metavar="N",
        help="draws behind the 95 %% intervals, 100 to 100,000; 0: none (default 1000)",
    )


def check_draws(bootstrap: int) -> None:
    """ValueError for a number of draws that has no 95 % interval, or that never ends."""
    if bootstrap != 0 and not 100 <= bootstrap <= 100_000:
        raise ValueError(f"--bootstrap {bootstrap}: a 95 % interval takes 100 to 100,000 draws; 0 gives none")


def published_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--published",
        metavar="DATA",
        help="compare with open_clip's published numbers for imagenet, imagenetv2, cifar10, cifar100, flickr30k or coco; exit "
        "code 1 where they differ by more than 0.2 points",
    )


def check_published(options: argparse.Namespace, task: str) -> None:
    """ValueError, before the work, where nothing is published of this encoder, this data or this task."""
    if options.published:
        from dualenc.evaluate.published import check_names

        check_names(options.encoder, options.published, task)


def add_published(options: argparse.Namespace, parts: list[Part]) -> None:
    """The comparison with what is published, where it was asked for, as one more part."""
    if options.published:
        from dualenc.evaluate.published import compare_published

        parts.append(compare_published(parts[0][0], options.encoder, options.published))


def embedded_data(options: argparse.Namespace, data: str, encoder: Any = None) -> tuple[Any, Any]:
    """The encoder, loaded unless it is given, and what it made of the data, or what a store holds. What was left out is told,
    and kept for the report."""
    source = opened(options, data)  # before the encoder: a wrong path is told at once
    if encoder is None:
        encoder = load_encoder(options, data)
    return encoder, embedded_rows(options, data, source, encoder)


def opened(options: argparse.Namespace, data: str) -> Any:
    """The samples of the data, None of a store. FileNotFoundError or OSError also where the training curve is missing or no
    report can be written."""
    if options.curve and not Path(options.curve).is_file():
        raise FileNotFoundError(
            f"{options.curve}: no such file, so there is no training curve; check or leave out --curve"
        )
    check_out(options.out)
    from dualenc.data.shards import open_source
    from dualenc.embed.store import is_store

    return None if is_store(data) else open_source(data)


def load_encoder(options: argparse.Namespace, data: str) -> Any:
    """The encoder of --encoder, for data or a store of its embeddings."""
    from dualenc.embed.store import is_store, open_store
    from dualenc.model.encoder import DualEncoder

    store = open_store(data) if is_store(data) else None
    return DualEncoder.load(options.encoder, decode=options.decode or "exact", **used_for(store))


def embedded_rows(options: argparse.Namespace, data: str, source: Any, encoder: Any) -> Any:
    """What the encoder makes of a source, or what a store (source: None) holds. What was left out is told, and kept for the
    report. ValueError: nothing is left."""
    from dualenc.embed.run import embed_source, read_embedded

    embedded = read_embedded(data, encoder) if source is None else embed_source(encoder, source, **compute(options))
    unlisted = {} if source is None else {reason: len(names) for reason, names in source.problems.items()}
    note_dropped(options, data, Counter(embedded.dropped) + Counter(unlisted))
    if not len(embedded.images):
        raise ValueError(
            f"{data}: no image could be embedded, so there is nothing to measure; see `dualenc data check`"
        )
    return embedded


def check_out(out: str | None) -> None:
    """OSError, before the work, where no report can be written."""
    if out:
        Path(out).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass


def note_dropped(options: argparse.Namespace, data: str, counts: Mapping[str, int]) -> None:
    """Count what was left out of the data, for the report, and say so at once: a smaller gallery is an easier one."""
    if "dropped" not in options:
        options.dropped = {}
    options.dropped[data] = Counter(counts)  # once for two encoders that embed the same data
    if counts:
        reasons = ", ".join(f"{reason}: {count:,}" for reason, count in counts.items())
        sys.stderr.write(
            f"dualenc: {printable(data)}: left out: {printable(reasons)}; what a shard that is cut short held is not counted\n"
            if any("shard" in reason for reason in counts)
            else f"dualenc: {printable(data)}: {sum(counts.values()):,} samples left out ({printable(reasons)})\n"
        )


def dropped(options: argparse.Namespace) -> dict[str, int]:
    """What `note_dropped` counted, for a report, over all of the data."""
    counts: Counter[str] = sum(getattr(options, "dropped", {}).values(), Counter())
    return {"data/dropped": sum(counts.values())} | {f"data/dropped/{name}": n for name, n in counts.items()}


def classed_sets(paths: Sequence[str]) -> list[str]:
    """A name for each data set of --zeroshot. Before the work: ValueError or FileNotFoundError where one has no images, no
    class names or no labels."""
    from dualenc.data.shards import open_source
    from dualenc.embed.store import is_store, open_store
    from dualenc.evaluate.zeroshot.prompts import read_prompts

    names = data_names(paths)
    for data in paths:
        there = open_store(data) if is_store(data) else open_source(data)
        read_prompts(data)
        if not _labelled(there):
            raise ValueError(
                f"{data}: no image has a class, so accuracy cannot be told; add KEY.cls files, or leave it out of --zeroshot"
            )
    return names


def _labelled(data: Any) -> bool:
    """Whether an image of a store or a source has a class."""
    from dualenc.data.sample import BadSample
    from dualenc.embed.store import Store

    if isinstance(data, Store):
        table = data.metadata()
        return "label" in table.column_names and table["label"].null_count < len(table)
    for i in range(len(data)):
        with contextlib.suppress(BadSample, OSError):  # counted where samples are embedded
            if data.read(i, "cls") is not None:
                return True
    return False


def finish(options: argparse.Namespace, encoder: Any, parts: list[Part], title: str) -> int:
    """Write what was asked for, and print the tables; the exit code. encoder: one, or a list of those compared."""
    from dualenc.evaluate.page.provenance import provenance
    from dualenc.evaluate.page.report import write_report

    report = {key: value for values, _ in parts for key, value in values.items()}
    report |= dropped(options)
    if options.out:
        curve = options.curve or _own_curve(encoder)
        others = [getattr(options, name, None) for name in ("train", "val", "data_b")] + getattr(
            options, "zeroshot", []
        )
        data = [options.data, *filter(None, others)]
        made = provenance(["dualenc", *sys.argv[1:]], encoder, data, **getattr(options, "provenance", {}))
        page = write_report(options.out, report, [section for _, section in parts], curve, made, title)
        sys.stderr.write(f"report: {page}\n")
    differs = any(key.startswith("published/") and key.endswith("/agrees") and not report[key] for key in report)
    if options.json:
        print_json(report)
        return int(differs)
    for _, section in parts:
        sys.stdout.write(f"\n{_plain(section.title)}: {_plain(section.about)}\n")
        for table in section.tables:
            print_table(table)
    return int(differs)


def _own_curve(encoder: Any) -> Path | None:
    """The metrics of the run that trained this encoder, where they lie beside it."""
    path = Path("" if isinstance(encoder, list) else encoder.path)
    beside = path.parent / "log" / "metrics.csv"
    return beside if path.name and path.exists() and beside.is_file() else None


def _plain(text: str) -> str:
    """Text of a page for a terminal: its narrow spaces as plain ones."""
    return printable(text.replace("\u202f", " ").replace("\u00a0", " "))


def print_table(table: Any) -> None:
    """A table of a page for a terminal: where it is wider than that, its rows one under the other, a line a cell."""
    wide = shutil.get_terminal_size((WIDTH, 24)).columns - 2
    head = [_plain(column) for column in table.columns]
    rows = [[_cell(value, table.tick) for value in row] for row in table.rows]
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    if sum(widths) + 2 * len(widths) <= wide:
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in [head, *rows]]
    else:
        names = max(map(len, head[1:]), default=0)
        lines = []
        for first, *others in rows:
            lines.append(first or head[0])
            lines += [f"  {name.ljust(names)}  {cell}" for name, cell in zip(head[1:], others, strict=True) if cell]
    lines += textwrap.wrap(_plain(table.note), min(wide, 110))
    sys.stdout.writelines(f"  {line}".rstrip() + "\n" for line in lines)


def _cell(value: Any, tick: str) -> str:
    if isinstance(value, str):
        return _plain(value)
    if value.value is None:
        return "-"
    low_high = f" [{100 * value.interval.low:.1f}, {100 * value.interval.high:.1f}]" if value.interval else ""
    chance = "" if value.chance is None else f", {tick} {100 * value.chance:.1f}"
    return f"{100 * value.value:.1f} %{low_high}{chance}"
