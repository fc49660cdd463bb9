"""`dualenc eval zeroshot`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from dualenc.cli.common import command
from dualenc.cli.evaluation import CLASSES, TEMPLATES, Part, embedded_data, finish, report_options


def register(evaluations: Any) -> None:
    parser = command(
        evaluations,
        "zeroshot",
        run,
        "zero-shot classification",
        "dualenc eval zeroshot --encoder runs/demo/encoder --data runs/demo/shards/colour --out runs/colour",
    )
    report_options(parser)
    parser.add_argument("--classes", help=CLASSES + " (default: classnames.txt beside the data)")
    parser.add_argument("--templates", help=TEMPLATES + " (default: those beside the data, else plain)")


def run(options: argparse.Namespace) -> int:
    encoder, embedded = embedded_data(options, options.data)
    part = zeroshot_part(options, encoder, embedded, options.data, options.classes, options.templates)
    return finish(options, encoder, [part], "Zero-shot classification")


def zeroshot_part(
    options: argparse.Namespace,
    encoder: Any,
    embedded: Any,
    data: str,
    classes: str | None = None,
    prompts: str | None = None,
    named: bool = False,
) -> Part:
    from dualenc.evaluate.zeroshot import evaluate_zeroshot
    from dualenc.model.names import class_files, class_names, templates

    beside = class_files(data) if classes is None else (class_names(classes), templates())
    chosen = templates(prompts) if prompts else beside[1]
    name = f"zeroshot/{Path(data).name}" if named else "zeroshot"
    title = f"Zero-shot: {Path(data).name}" if named else "Zero-shot classification"
    return evaluate_zeroshot(encoder, embedded, beside[0], chosen, name=name, title=title)
