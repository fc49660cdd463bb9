"""`dualenc eval composition`."""

from __future__ import annotations

import argparse
from typing import Any

from dualenc.cli.common import command
from dualenc.cli.evaluation import embedded_data, finish, report_options


def register(evaluations: Any) -> None:
    parser = command(
        evaluations,
        "composition",
        run,
        "true captions against captions with attributes or relation swapped (KEY.json: swap_attribute, swap_relation)",
        "dualenc eval composition --encoder runs/demo/encoder --data runs/demo/store",
    )
    report_options(parser)


def run(options: argparse.Namespace) -> int:
    from dualenc.evaluate.composition import evaluate_composition

    encoder, embedded = embedded_data(options, options.data)
    return finish(options, encoder, [evaluate_composition(encoder, embedded)], "Composition")
