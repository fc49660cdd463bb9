"""`dualenc eval compare`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any, NamedTuple

from dualenc.cli.common import command, compute_options, ks_of
from dualenc.cli.evaluation import ENCODER, classed_sets, embedded_data, embedded_rows, finish, load_encoder, opened


class Measured(NamedTuple):
    """What one encoder made of the data."""

    path: str
    fingerprint: str
    embedded: Any
    classed: list[Any]  # for each --zeroshot: (keys of the labelled images, ranks of their right classes, classes)


def register(evaluations: Any) -> None:
    parser = command(
        evaluations,
        "compare",
        run,
        "two encoders on the same queries: differences with intervals, and whether they are more than chance",
        "dualenc eval compare --encoder runs/a/encoder --encoder runs/b/encoder --data shards/test --out runs/compare",
    )
    parser.add_argument(
        "--encoder",
        action="append",
        required=True,
        help=f"given twice, A and then B; differences are B less A; {ENCODER}",
    )
    parser.add_argument("--data", required=True, help="shards or a folder of images with captions; or a store of A's")
    parser.add_argument("--data-b", metavar="STORE", help="a store of B's, where --data is one of A's")
    parser.add_argument(
        "--zeroshot",
        nargs="+",
        default=[],
        metavar="DATA",
        help="also compare accuracy on these shards with classnames.txt",
    )
    parser.add_argument("--ks", default="1,5,10", help="values of K (default 1,5,10)")
    parser.add_argument(
        "--same", metavar="COLUMN", help="images that share a value of this metadata column share their captions"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the draws behind intervals and p values (default 0)")
    parser.add_argument(
        "--out", help="write report.json, report.html and queries.parquet (each query's two ranks) into this folder"
    )
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    compute_options(parser)


def run(options: argparse.Namespace) -> int:
    from dualenc.evaluate.compare.page import evaluate_compare
    from dualenc.evaluate.per_query import write_per_query
    from dualenc.model.encoder import DualEncoder

    ks = ks_of(options.ks)
    _check(options)
    names = classed_sets(options.zeroshot)
    # let go at once: what is wrong with B is told before A's work
    mark = DualEncoder.load(options.encoder[1], device="cpu", decode=options.decode or "exact").fingerprint
    options.dropped = {}  # of both: the copies that `_measured` makes hold the same one
    a = _measured(options, 0, None if options.data_b else mark)
    b = _measured(options, 1)
    options.dropped.pop(options.data_b, None)  # the same queries as A's, whose --data is counted
    more = [outcome for i in range(len(names)) for outcome in _class_outcomes(names, i, a, b)]
    compared = evaluate_compare(
        a.embedded, b.embedded, (a.path, b.path), ks, more, seed=options.seed, same=options.same
    )
    if options.out:
        write_per_query(Path(options.out) / "queries.parquet", compared.queries)
        sys.stderr.write(f"queries: {Path(options.out) / 'queries.parquet'}\n")
    options.curve = None  # two encoders have two
    return finish(options, [a, b], [(compared.report, compared.section)], "Two encoders compared")


def _check(options: argparse.Namespace) -> None:
    """What is wrong with the options alone: told before any work."""
    from dualenc.embed.store import is_store

    if len(options.encoder) != 2:
        raise ValueError(
            f"--encoder is given {len(options.encoder)} time(s), and a comparison takes two: --encoder A --encoder B"
        )
    if is_store(options.data) and options.data_b is None:
        raise ValueError(
            f"{options.data} is a store, which holds one encoder's embeddings; give the other's with --data-b, or shards "
            "that both can embed"
        )
    if options.data_b is not None and not (is_store(options.data_b) and is_store(options.data)):
        raise ValueError("--data-b takes B's store beside A's in --data; for shards, --data alone is enough")


def _measured(options: argparse.Namespace, i: int, other: str | None = None) -> Measured:
    """Encoder i's embeddings and classes; the encoder itself is let go before the next one is loaded. ValueError before
    anything is embedded: its fingerprint is the other's."""
    data = options.data_b if i and options.data_b else options.data
    own = argparse.Namespace(**{**vars(options), "encoder": options.encoder[i], "curve": None})
    source, encoder = opened(own, data), load_encoder(own, data)
    if encoder.fingerprint == other:
        raise ValueError(
            f"{encoder.path} and {options.encoder[1]} are one encoder ({encoder.fingerprint[:12]}…): there is nothing to compare"
        )
    embedded = embedded_rows(own, data, source, encoder)
    if not len(embedded.texts):
        raise ValueError(f"{data}: no captions, so there is nothing to look for; retrieval needs pairs")
    classed = [_classed(own, encoder, data) for data in options.zeroshot]
    return Measured(encoder.path, encoder.fingerprint, embedded, classed)


def _classed(options: argparse.Namespace, encoder: Any, data: str) -> tuple[list[str], Any, int]:
    from dualenc.evaluate.compare.same_rows import image_keys
    from dualenc.evaluate.zeroshot.classifier import classifier
    from dualenc.evaluate.zeroshot.labels import labels
    from dualenc.evaluate.zeroshot.prompts import read_prompts
    from dualenc.evaluate.zeroshot.zeroshot import class_places
    from dualenc.model.names import class_prompts

    classes, templates = read_prompts(data)
    embedded = embedded_data(options, data, encoder)[1]
    row, target = labels(embedded, classes.names)
    weights = classifier(encoder, classes, templates)
    rank = class_places(embedded.images[row], weights, target, class_prompts(classes, templates))
    keys = image_keys(embedded)
    return [keys[r] for r in row], rank, len(classes.names)


def _class_outcomes(names: list[str], i: int, a: Measured, b: Measured) -> list[Any]:
    from dualenc.evaluate.compare.compare import class_outcomes, matched

    (keys, rank, classes), (other_keys, other_rank, _) = a.classed[i], b.classed[i]
    rank_b = other_rank[matched(keys, other_keys, "labelled images")]
    return class_outcomes(
        rank,
        rank_b,
        classes,
        f"zeroshot/{names[i]}" if len(names) > 1 else "zeroshot",
        f"Zero-shot {names[i]}" if len(names) > 1 else "Zero-shot",
    )
