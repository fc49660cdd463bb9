"""What the verbs of `dualenc eval` share: their options, the embedded data, the report at the end."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from dualenc.cli.common import compute, compute_options, is_store, print_json, printable, used_for

ENCODER = "encoder folder, .ckpt, open_clip NAME:TAG, or hf-hub:org/repo"
CLASSES = "class names: a,b,c, a .txt or .json file, or imagenet"
TEMPLATES = "prompt templates: imagenet, simple, plain, a .txt file, or one such as 'a photo of a {}.'"
Part = tuple[dict[str, Any], Any]  # what an `evaluate_*` function returns: values of the report, a section of the page


def report_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--encoder", required=True, help=ENCODER)
    parser.add_argument("--data", required=True, help="shards, a folder of images with captions, or a store")
    parser.add_argument("--out", help="write report.json and report.html into this folder")
    parser.add_argument("--curve", help="metrics.csv of the training run (default: log/metrics.csv beside the encoder)")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    compute_options(parser)


def embedded_data(options: argparse.Namespace, data: str, encoder: Any = None) -> tuple[Any, Any]:
    if options.curve and not Path(options.curve).is_file():
        raise FileNotFoundError(
            f"{options.curve}: no such file, so there is no training curve; check or leave out --curve"
        )
    from dualenc.data.shards import open_source
    from dualenc.embed.run import embed_source, read_embedded
    from dualenc.embed.store import open_store
    from dualenc.model.encoder import DualEncoder

    source = None if is_store(data) else open_source(data)  # before the encoder: a wrong path is told at once
    if encoder is None:
        store = open_store(data) if source is None else None
        encoder = DualEncoder.load(options.encoder, decode=options.decode or "exact", **used_for(store))
    if source is None:
        return encoder, read_embedded(data, encoder)
    return encoder, embed_source(encoder, source, **compute(options))


def finish(options: argparse.Namespace, encoder: Any, parts: list[Part], title: str) -> int:
    from dualenc.evaluate.report import write_report
    from dualenc.model.folder import versions

    report = {key: value for values, _ in parts for key, value in values.items()}
    if options.out:
        beside = Path(encoder.path).parent / "log" / "metrics.csv"
        curve = options.curve or (beside if Path(encoder.path).exists() and beside.is_file() else None)
        provenance = {
            "command": " ".join(["dualenc", *sys.argv[1:]]),
            "encoder": encoder.path,
            "fingerprint": encoder.fingerprint,
            "data": options.data,
            "versions": versions(),
        }
        page = write_report(options.out, report, [section for _, section in parts], curve, provenance, title)
        sys.stderr.write(f"report: {page}\n")
    if options.json:
        print_json(report)
        return 0
    for _, section in parts:
        sys.stdout.write(f"\n{section.title}: {section.about}\n")
        for table in section.tables:
            _print_table(table)
    return 0


def _print_table(table: Any) -> None:
    def cell(value: Any) -> str:
        if isinstance(value, str):
            return printable(value)
        low_high = f" [{100 * value.interval.low:.1f}, {100 * value.interval.high:.1f}]" if value.interval else ""
        return f"{100 * value.value:.1f} %{low_high}"

    rows = [table.columns, *[[cell(value) for value in row] for row in table.rows]]
    widths = [max(len(row[i]) for row in rows) for i in range(len(table.columns))]
    for row in rows:
        sys.stdout.write(
            "  " + "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() + "\n"
        )
