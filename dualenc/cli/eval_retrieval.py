"""`dualenc eval retrieval`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from dualenc.cli.common import command, ks_of
from dualenc.cli.eval_zeroshot import zeroshot_part
from dualenc.cli.evaluation import (
    Part,
    add_published,
    bootstrap_option,
    check_draws,
    check_published,
    classed_sets,
    embedded_data,
    finish,
    published_option,
    report_options,
)


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
    bootstrap_option(parser)
    parser.add_argument(
        "--by", nargs="+", default=[], metavar="COLUMN", help="also by group: the values of these metadata columns"
    )
    parser.add_argument(
        "--same", metavar="COLUMN", help="images that share a value of this metadata column share their captions"
    )
    parser.add_argument(
        "--per-query", metavar="FILE", help="write each query's rank, best hits and scores to this parquet file"
    )
    published_option(parser)
    parser.add_argument("--index", help="also search through this index, beside the exact numbers")
    parser.add_argument(
        "--zeroshot", nargs="+", default=[], metavar="DATA", help="also classify these shards with classnames.txt"
    )
    parser.add_argument("--composition", action="store_true", help="also compare true captions with swapped ones")


def run(options: argparse.Namespace) -> int:
    from dualenc.evaluate.per_query import refuse_other
    from dualenc.index.index import Index

    check_draws(options.bootstrap)
    ks = ks_of(options.ks)
    if options.per_query and not options.per_query.endswith(".parquet"):
        raise ValueError(f"--per-query {options.per_query}: it is written as parquet; name it so, queries.parquet")
    if options.per_query:
        refuse_other(options.per_query)
    check_published(options, "retrieval")
    index = Index.open(options.index) if options.index else None  # before the work: a wrong path is told at once
    names = classed_sets(options.zeroshot)
    encoder, embedded = embedded_data(options, options.data)
    if not len(embedded.texts):
        raise ValueError(f"{options.data}: no captions, so there is nothing to look for; retrieval needs pairs")
    swapped = []
    if options.composition:  # the shorter work: that nothing was swapped is told before the ranks
        from dualenc.evaluate.composition.swaps import evaluate_composition

        swapped.append(evaluate_composition(encoder, embedded, bootstrap=options.bootstrap, by=options.by))
    parts = _retrieval_parts(options, encoder, embedded, ks, index)
    add_published(options, parts)
    for name, data in zip(names, options.zeroshot, strict=True):
        other = embedded_data(options, data, encoder)[1]
        more = {"named": name if len(names) > 1 else None, "times": options.bootstrap}
        parts.append(zeroshot_part(options, encoder, other, data, by=_columns(options.by, other, data), **more))
    return finish(options, encoder, [*parts, *swapped], "Retrieval")


def _retrieval_parts(
    options: argparse.Namespace, encoder: Any, embedded: Any, ks: Sequence[int], index: Any
) -> list[Part]:
    """Exact retrieval; then what else was asked of the same ranks, which are counted once."""
    from dualenc.evaluate.groups.split import check_groups
    from dualenc.evaluate.metrics import retrieval_ranks, sides
    from dualenc.evaluate.per_query import per_query, write_per_query
    from dualenc.evaluate.retrieval import evaluate_retrieval, image_clusters, same_images
    from dualenc.evaluate.sections import check_dim
    from dualenc.evaluate.through_index import check_index, evaluate_through_index

    check_dim(encoder, embedded)
    check_groups(embedded.metadata, options.by)  # all that may be wrong, before the ranks
    same = same_images(embedded, options.same)
    if index is not None:
        check_index(index, embedded, encoder)
    rows = embedded.images, embedded.texts, embedded.image_row
    ranks = retrieval_ranks(*rows, ks, same=same)
    chosen: dict[str, Any] = {"bootstrap": options.bootstrap, "by": options.by, "same": options.same}
    parts: list[Part] = [evaluate_retrieval(encoder, embedded, ks, ranks=ranks, **chosen)]
    # Lists of right rows, which may be long, only where a query has others than its own.
    relevant = {way: side[2] for way, side in sides(*rows, ks, same=same).items()} if options.same else None
    if index is not None:
        drawn = {"times": options.bootstrap, "cluster": image_clusters(same, len(embedded.images))}
        parts.append(evaluate_through_index(index, embedded, parts[0][0], ks, ranks=ranks, relevant=relevant, **drawn))
    if options.per_query:
        write_per_query(options.per_query, per_query(embedded, ranks, relevant=relevant))
        sys.stderr.write(f"per query: {options.per_query}\n")
    return parts


def _columns(columns: Sequence[str], embedded: Any, data: str) -> list[str]:
    """Those that a further data set can be grouped by; the others are told, and do not end what was begun."""
    from dualenc.evaluate.groups.split import check_groups

    kept = []
    for column in columns:
        try:
            check_groups(embedded.metadata, [column])
        except ValueError as error:
            sys.stderr.write(f"{data}: not by {column}: {error}\n")
        else:
            kept.append(column)
    return kept
