"""`dualenc eval zeroshot`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from dualenc.cli.common import command, is_store
from dualenc.cli.evaluation import (
    CLASSES,
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
    check_draws(options.bootstrap)
    check_published(options, "zeroshot")
    read_prompts(
        options.data, options.classes, options.templates, options.labels
    )  # what is wrong with them is told before the work
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
    from dualenc.evaluate.zeroshot.zeroshot import evaluate_zeroshot

    found, templates = read_prompts(data, classes, prompts, more.get("label", "label"))
    name = "zeroshot" if named is None else f"zeroshot/{named}"
    title = "Zero-shot classification" if named is None else f"Zero-shot: {named}"
    return evaluate_zeroshot(encoder, embedded, found, templates, name=name, title=title, **more)


def read_prompts(
    data: str, classes: str | None = None, prompts: str | None = None, label: str = "label"
) -> tuple[Any, list[str] | None]:
    """(Classes, templates) by the options of those names, in the order of the data's labels; else what lies beside the
    data, or is its folders' names.

    Templates are None where classes have prompts of their own. FileNotFoundError where nothing names the classes.
    """
    from dualenc.evaluate.zeroshot.own_names import chosen_classes
    from dualenc.model.names import Classes, templates

    if classes is not None:
        chosen = chosen_classes(classes, data, label)
        return chosen, None if prompts is None and chosen.prompts else templates(prompts)
    for place in (data, *_made_from(data)):
        found = _named_by(place)
        if found is not None:
            return Classes(found[0]), templates(prompts) if prompts else found[1]
    raise FileNotFoundError(
        f"{data}: no classnames.txt in it or one folder up, and no folders by class, so classes have no names; "
        "give --classes, or write that file, a name a line in the order of the labels"
    )


def _named_by(data: str) -> tuple[list[str], list[str]] | None:
    """Class names and templates that lie beside the data; or its folders' names, and the plain template."""
    from dualenc.data.classes import folder_classes
    from dualenc.model.names import check_class_names, class_files, templates

    try:
        return class_files(data)
    except FileNotFoundError:
        folders = folder_classes(data)
        return None if folders is None else (check_class_names(folders, data), templates())


def _made_from(data: str) -> list[str]:
    """What a store was embedded from, where it says so and that is there still."""
    if not is_store(data):
        return []
    from dualenc.embed.store import open_store

    source = (open_store(data).manifest.get("plan") or {}).get("source")
    return [source] if source and Path(source).exists() else []
