"""`dualenc eval zeroshot`."""

from __future__ import annotations

import argparse
from typing import Any

from dualenc.cli.common import command
from dualenc.cli.evaluation import (
    CLASSES,
    CURE,
    TEMPLATES,
    Part,
    add_published,
    bootstrap_option,
    check_draws,
    check_published,
    embedded_data,
    finish,
    published_option,
    report_options,
)


def register(evaluations: Any) -> None:
    parser = command(
        evaluations,
        "zeroshot",
        run,
        "zero-shot classification",
        "dualenc eval zeroshot --encoder runs/demo/encoder --data runs/demo/shards/colour --by objects --out runs/colour",
    )
    report_options(parser)
    parser.add_argument(
        "--classes",
        help=CLASSES + " (default: classnames.txt beside the data, or the folders' names of a folder by class)",
    )
    parser.add_argument("--templates", help=TEMPLATES + " (default: those beside the data, else plain)")
    parser.add_argument(
        "--labels",
        default="label",
        metavar="COLUMN",
        help="metadata column with each image's class, a number or a name; where it holds lists of them, average precision "
        "is measured (default label, which KEY.cls gives)",
    )
    parser.add_argument(
        "--by", nargs="+", default=[], metavar="COLUMN", help="also by the values of these metadata columns"
    )
    bootstrap_option(parser)
    published_option(parser)
    parser.add_argument("--per-class", metavar="FILE", help="write every class's numbers to this .csv or .parquet")


def run(options: argparse.Namespace) -> int:
    from dualenc.evaluate.zeroshot.prompts import read_prompts

    check_draws(options.bootstrap)
    check_published(options, "zeroshot")
    # what is wrong with them is told before the work
    read_prompts(options.data, options.classes, options.templates, options.labels, CURE)
    if options.per_class:
        from dualenc.evaluate.zeroshot.page import check_format

        check_format(options.per_class)
    encoder, embedded = embedded_data(options, options.data)
    more = {"label": options.labels, "by": options.by, "times": options.bootstrap, "per_class": options.per_class}
    parts = [zeroshot_part(options, encoder, embedded, options.data, options.classes, options.templates, **more)]
    add_published(options, parts)
    return finish(options, encoder, parts, "Zero-shot classification")


def zeroshot_part(
    options: argparse.Namespace,
    encoder: Any,
    embedded: Any,
    data: str,
    classes: str | None = None,
    prompts: str | None = None,
    named: str | None = None,
    **more: Any,
) -> Part:
    """`evaluate_zeroshot` of one data set. more: as that takes it.

    named: what the data set is called in keys and title, where the report holds several: no two alike.
    """
    from dualenc.evaluate.zeroshot.prompts import read_prompts
    from dualenc.evaluate.zeroshot.zeroshot import evaluate_zeroshot

    found, templates = read_prompts(data, classes, prompts, more.get("label", "label"))
    name = "zeroshot" if named is None else f"zeroshot/{named}"
    title = "Zero-shot classification" if named is None else f"Zero-shot: {named}"
    return evaluate_zeroshot(encoder, embedded, found, templates, name=name, title=title, **more)
