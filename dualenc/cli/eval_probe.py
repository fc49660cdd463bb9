"""`dualenc eval probe`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from dualenc.cli.common import command
from dualenc.cli.evaluation import (
    CLASSES,
    CURE,
    TEMPLATES,
    bootstrap_option,
    check_draws,
    embedded_data,
    finish,
    report_options,
)


def register(evaluations: Any) -> None:
    parser = command(
        evaluations,
        "probe",
        run,
        "what a linear classifier on frozen embeddings learns from all images of a training set, and from a few",
        "dualenc eval probe --encoder runs/demo/encoder --train pets/train --val pets/val --data pets/test --out runs/pets",
    )
    report_options(parser)
    parser.add_argument("--train", required=True, help="what the probe learns from: shards, a folder or a store")
    parser.add_argument("--val", help="what its strength is chosen on (default: a fifth of each class of --train)")
    parser.add_argument(
        "--shots",
        help="images a class for few-shot probes, or none (default those of 1,2,4,8,16 that every class of --train has, less a "
        "fifth without --val)",
    )
    parser.add_argument("--seeds", type=int, default=3, help="draws of the shots (default 3)")
    parser.add_argument(
        "--seed", type=int, default=0, help="of the first draw, and of all else that is random (default 0)"
    )
    parser.add_argument(
        "--labels",
        default="label",
        metavar="COLUMN",
        help="metadata column with each image's class, a number or a name (default label, which KEY.cls gives)",
    )
    parser.add_argument(
        "--classes",
        help=CLASSES
        + " (default: classnames.txt beside the data, or the folders' names); they also make the zero-shot "
        "classifier beside the probe, which is left out where classes have no names",
    )
    parser.add_argument("--templates", help=TEMPLATES + " (default: those beside the data, else plain)")
    parser.add_argument(
        "--by", nargs="+", default=[], metavar="COLUMN", help="also by the values of these metadata columns of --data"
    )
    bootstrap_option(parser)


def run(options: argparse.Namespace) -> int:
    from dualenc.evaluate.probe.probe import evaluate_probe
    from dualenc.evaluate.zeroshot.prompts import own_names

    check_draws(options.bootstrap)
    shots = _shots(options.shots)
    for name in ("train", "val"):
        if getattr(options, name) and Path(getattr(options, name)).resolve() == Path(options.data).resolve():
            raise ValueError(
                f"--data {options.data} is --{name} too, so the probe would be asked what it learnt; give a test set"
            )
    classes, templates = _zero_shot(options)
    places = {"train": options.train, "val": options.val, "test": options.data}
    own = options.labels == "label" or not options.classes  # a layout's names number the classes of no other column
    names = {name: own_names(place) if own else None for name, place in places.items() if place is not None}
    if options.classes:
        names = {name: own or classes.names for name, own in names.items()}
    encoder: Any = None
    embedded: dict[str, Any] = {}
    for name in names:
        encoder, embedded[name] = embedded_data(options, places[name], encoder)
    part = evaluate_probe(
        encoder,
        embedded["train"],
        embedded["test"],
        embedded.get("val"),
        names,
        classes,
        templates,
        shots=shots,
        seeds=options.seeds,
        label=options.labels,
        by=options.by,
        seed=options.seed,
        times=options.bootstrap,
        device="cpu" if options.accelerator == "cpu" else encoder.device,
    )
    return finish(options, encoder, [part], "Linear probe")


def _shots(text: str | None) -> list[int] | None:
    if text is None:
        return None
    try:
        return [] if text == "none" else [int(count) for count in text.split(",")]
    except ValueError:
        raise ValueError(f"--shots {text!r} is not a list of whole numbers; write 1,2,4, or none") from None


def _zero_shot(options: argparse.Namespace) -> tuple[Any, list[str] | None]:
    """Classes and templates of the zero-shot classifier; (None, None) where nothing names the classes."""
    from dualenc.evaluate.zeroshot.prompts import read_prompts

    try:
        return read_prompts(options.data, options.classes, options.templates, options.labels, CURE)
    except FileNotFoundError:
        if options.classes or options.templates:
            raise
        return None, None
