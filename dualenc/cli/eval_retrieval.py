"""`dualenc eval retrieval`."""

from __future__ import annotations

import argparse
from typing import Any

from dualenc.cli.common import command
from dualenc.cli.eval_zeroshot import zeroshot_part
from dualenc.cli.evaluation import embedded_data, finish, report_options


def register(evaluations: Any) -> None:
    parser = command(
        evaluations,
        "retrieval",
        run,
        "recall@K from text to image and from image to text, exactly",
        "dualenc eval retrieval --encoder runs/demo/encoder --data runs/demo/store --out runs/demo",
    )
    report_options(parser)
    parser.add_argument("--ks", default="1,5,10", help="values of K (default 1,5,10)")
    parser.add_argument(
        "--zeroshot", nargs="+", default=[], metavar="DATA", help="also classify these shards with classnames.txt"
    )
    parser.add_argument("--composition", action="store_true", help="also compare true captions with swapped ones")


def run(options: argparse.Namespace) -> int:
    from dualenc.evaluate.composition import evaluate_composition
    from dualenc.evaluate.retrieval import evaluate_retrieval

    try:
        ks = tuple(int(k) for k in options.ks.split(","))
    except ValueError:
        raise ValueError(f"--ks {options.ks!r} is not a list of whole numbers; write 1,5,10") from None
    encoder, embedded = embedded_data(options, options.data)
    if not len(embedded.texts):
        raise ValueError(f"{options.data}: no captions, so there is nothing to look for; retrieval needs pairs")
    parts = [evaluate_retrieval(encoder, embedded, ks)]
    several = len(options.zeroshot) > 1
    for data in options.zeroshot:
        parts.append(zeroshot_part(options, encoder, embedded_data(options, data, encoder)[1], data, named=several))
    if options.composition:
        parts.append(evaluate_composition(encoder, embedded))
    return finish(options, encoder, parts, "Retrieval")
