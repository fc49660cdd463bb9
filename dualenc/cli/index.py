"""`dualenc index …`"""

from __future__ import annotations

import argparse
from typing import Any

from dualenc.cli.common import command, group
from dualenc.cli.index_verbs import (
    run_add,
    run_adopt,
    run_build,
    run_compact,
    run_duplicates,
    run_info,
    run_merge,
    run_neighbours,
    run_remove,
    run_tune,
)


def register(commands: Any) -> None:
    verbs = group(commands, "index", "build, change and inspect an index")
    for add in (_build, _tune, _info, _add, _remove, _merge, _compact, _duplicates, _neighbours, _adopt):
        add(verbs)


def _build(verbs: Any) -> None:
    parser = command(
        verbs,
        "build",
        run_build,
        "build the cheapest index that reaches the recall you ask for, within memory and latency",
        "dualenc index build runs/demo/store runs/demo/index --recall 0.95 --memory 2GB",
    )
    parser.add_argument("store", help="what `dualenc embed` made (or clip-retrieval), or a folder of .npy or parquet")
    parser.add_argument("out", help="the index folder")
    parser.add_argument(
        "--recipe", default="auto", help="a recipe's name (index/README.md lists them) or a YAML file (default auto)"
    )
    parser.add_argument("--side", choices=("image", "text"), default="image", help="what is searched (default image)")
    parser.add_argument(
        "--recall", type=float, default=0.95, help="ANN recall@10 that the search setting must reach (default 0.95)"
    )
    parser.add_argument("--memory", help="most bytes of the index in memory, such as 2GB")
    parser.add_argument("--latency", help="most time for one query, such as 5ms")
    _queries_option(parser)
    parser.add_argument(
        "--threads", type=int, help="of FAISS, to build and measure with (default: as many as it takes)"
    )
    parser.add_argument("--normalise", action="store_true", help="divide each row of a plain folder by its length")


def _tune(verbs: Any) -> None:
    parser = command(
        verbs,
        "tune",
        run_tune,
        "choose an index's search setting again, by measuring, without building it again",
        "dualenc index tune runs/demo/index --recall 0.99 --queries runs/demo/store",
    )
    parser.add_argument("index", help="the index folder")
    parser.add_argument("--recall", type=float, help="ANN recall@10 to reach (default: what the build was asked for)")
    parser.add_argument("--latency", help="most time for one query, such as 5ms")
    _queries_option(parser)


def _queries_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--queries",
        metavar="STORE",
        help="measure on this store's texts (default: the texts of the store itself, else images that are held out)",
    )


def _info(verbs: Any) -> None:
    parser = command(
        verbs, "info", run_info, "what an index is, and whether it is whole", "dualenc index info runs/demo/index"
    )
    parser.add_argument("index", help="the index folder")
    parser.add_argument("--verify", action="store_true", help="hash every file")
    parser.add_argument("--json", action="store_true", help="print the manifest as JSON")
    parser.add_argument("--plot", metavar="PNG", help="draw ANN recall against time per query")


def _add(verbs: Any) -> None:
    parser = command(
        verbs,
        "add",
        run_add,
        "add a store's rows to an index; searches that are open keep what they see",
        "dualenc index add runs/demo/index runs/new/store --upsert",
    )
    parser.add_argument("index", help="the index folder")
    parser.add_argument("store", help="embeddings by the same encoder")
    parser.add_argument("--upsert", action="store_true", help="replace rows whose key is there; they keep their ids")
    parser.add_argument("--normalise", action="store_true", help="divide each row of a plain folder by its length")


def _remove(verbs: Any) -> None:
    parser = command(
        verbs,
        "remove",
        run_remove,
        "remove rows by id or by condition",
        'dualenc index remove INDEX --where "width < 64"',
    )
    parser.add_argument("index", help="the index folder")
    parser.add_argument("ids", nargs="*", type=int, help="ids, as `dualenc search --json` shows them")
    parser.add_argument("--where", help="an SQL condition on the metadata; every row for which it is true goes")


def _merge(verbs: Any) -> None:
    parser = command(
        verbs, "merge", run_merge, "make one index of two", "dualenc index merge INDEX OTHER OUT --renumber"
    )
    parser.add_argument("index", help="the index folder")
    parser.add_argument("other", help="the index whose rows come after the first's")
    parser.add_argument("out", help="the folder of the new index")
    parser.add_argument("--renumber", action="store_true", help="raise the other's ids, where both number from 0")


def _compact(verbs: Any) -> None:
    parser = command(
        verbs,
        "compact",
        run_compact,
        "join what was added and drop what was removed, in one file",
        "dualenc index compact INDEX",
    )
    parser.add_argument("index", help="the index folder")


def _duplicates(verbs: Any) -> None:
    parser = command(
        verbs,
        "duplicates",
        run_duplicates,
        "find groups of near-duplicates over a whole index or store",
        "dualenc index duplicates runs/demo/store --threshold 0.95 --out groups.parquet",
    )
    parser.add_argument("index", help="an index, or a store")
    parser.add_argument("--threshold", type=float, required=True, help="cosine from which two rows are duplicates")
    parser.add_argument("--side", choices=("image", "text"), default="image", help="of a store (default image)")
    parser.add_argument(
        "--out", metavar="PARQUET", help="write id, group and the metadata of every row that has a twin"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def _neighbours(verbs: Any) -> None:
    parser = command(
        verbs,
        "neighbours",
        run_neighbours,
        "write the graph of each row's k nearest rows",
        "dualenc index neighbours runs/demo/index -k 10 --out neighbours.parquet",
    )
    parser.add_argument("index", help="the index folder")
    parser.add_argument("-k", type=int, default=10, help="neighbours of a row (default 10)")
    parser.add_argument("--out", metavar="PARQUET", required=True, help="lines of id, neighbour, rank and score")


def _adopt(verbs: Any) -> None:
    parser = command(
        verbs,
        "adopt",
        run_adopt,
        "take over an index that autofaiss or FAISS wrote",
        "dualenc index adopt image.index OUT --metadata metadata --encoder ViT-B-32:openai",
    )
    parser.add_argument("file", help="the FAISS file")
    parser.add_argument("out", help="the folder of the new index")
    parser.add_argument("--metadata", metavar="FOLDER", help="parquet files, one row for each vector, in their order")
    parser.add_argument("--encoder", help="whose embeddings these are; its fingerprint is recorded")
    parser.add_argument("--store", help="the embeddings that were indexed: recall is then measured on their texts")
    parser.add_argument("--queries", metavar="STORE", help="measure recall on this store's texts instead")
    parser.add_argument(
        "--recall", type=float, help="choose a setting with this ANN recall@10 (default: the file's own)"
    )
    parser.add_argument("--side", choices=("image", "text"), default="image", help="what is searched (default image)")
