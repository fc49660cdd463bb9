"""`dualenc embed`: an encoder over a source, into a store."""

from __future__ import annotations

import argparse
import re
import sys
from typing import Any

from dualenc.cli.common import command, compute, compute_options


def register(commands: Any) -> None:
    parser = command(
        commands,
        "embed",
        run,
        "embed images and captions into a store",
        "dualenc embed --encoder runs/demo/encoder --data runs/demo/shards/test --out runs/demo/store",
    )
    parser.add_argument(
        "--encoder", required=True, help="encoder folder, .ckpt, open_clip NAME:TAG, or hf-hub:org/repo"
    )
    parser.add_argument(
        "--data", required=True, nargs="+", help="shards, a folder of images, or a CSV/TSV/JSONL/parquet table"
    )
    parser.add_argument("--out", required=True, help="the store; run again to go on after an interruption")
    parser.add_argument(
        "--part", type=_part, default=(1, 1), metavar="i/n", help="this is job i of n, which together make one store"
    )
    parser.add_argument(
        "--dtype", choices=("float16", "float32"), default="float16", help="of the stored embeddings (default float16)"
    )
    parser.add_argument(
        "--dim",
        type=int,
        metavar="N",
        help="keep the first N dimensions alone (for an encoder trained with matryoshka)",
    )
    compute_options(parser, several=True)


def _part(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise argparse.ArgumentTypeError(f"{text!r} is not i/n with 1 <= i <= n, such as 2/8")
    return int(found[1]), int(found[2])


def run(options: argparse.Namespace) -> int:
    from dualenc.data.shards import open_source
    from dualenc.embed.run import rank, write_store
    from dualenc.model.encoder import DualEncoder

    source = open_source(options.data)  # before the encoder: a wrong path is told at once
    encoder = DualEncoder.load(options.encoder, decode=options.decode or "exact", dim=options.dim)
    store = write_store(encoder, source, options.out, part=options.part, dtype=options.dtype, **compute(options))
    if rank() != 0:
        return 0
    if store is None:
        sys.stdout.write(
            f"{options.out}: this job's parts are written; the store is complete when the other jobs are done\n"
        )
        return 0
    dropped = "".join(f", dropped {count} ({reason})" for reason, count in store.manifest.get("dropped", {}).items())
    sys.stdout.write(
        f"{options.out}: {store.rows} images and {store.text_rows} texts of {store.dim} dimensions{dropped}\n"
    )
    return 0
