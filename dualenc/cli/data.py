"""`dualenc data …`: making and checking shards, and what reading them costs."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from dualenc.cli import data_quality
from dualenc.cli.common import command, group, print_json


def register(commands: Any) -> None:
    verbs = group(commands, "data", "make, check and measure shards")
    for add in (_add_scenes, _add_pack, _add_check, _add_bench, _add_mine):
        add(verbs)
    data_quality.add(verbs)


def _add_scenes(verbs: Any) -> None:
    parser = command(
        verbs,
        "scenes",
        run_scenes,
        "write the built-in data set: rendered scenes with captions",
        "dualenc data scenes runs/demo/shards",
    )
    parser.add_argument("out", help="folder for train, val, test, colour and shape")
    parser.add_argument("--train", type=int, help="training scenes (default 12000)")
    parser.add_argument("--val", type=int, help="validation scenes (default 500)")
    parser.add_argument("--test", type=int, help="test scenes (default 1000)")
    parser.add_argument("--size", type=int, help="pixels, square (default 64)")
    parser.add_argument("--seed", type=int, help="another seed, other scenes (default 0)")


def _add_pack(verbs: Any) -> None:
    parser = command(
        verbs,
        "pack",
        run_pack,
        "pack images with captions into shards",
        "dualenc data pack captions.csv runs/photos/shards --image-column file --caption-column title",
    )
    parser.add_argument(
        "source", help="a folder of images with NAME.txt beside them, or a CSV, TSV, JSONL or parquet table"
    )
    parser.add_argument("out", help="folder for the shards")
    parser.add_argument(
        "--format", choices=("folder", "csv", "tsv", "jsonl", "parquet"), help="where the suffix does not tell"
    )
    parser.add_argument(
        "--image-column", help="column of image paths (default: image, path, file, … whichever is there)"
    )
    parser.add_argument(
        "--caption-column",
        action="append",
        help="column of a caption or a list of them; give it again for several (default: caption, …)",
    )
    parser.add_argument("--key-column", help="column of keys (default: the image's path)")
    parser.add_argument("--class-column", help="column of class numbers or names")
    parser.add_argument(
        "--images", metavar="FOLDER", help="what image paths are relative to (default: the table's folder)"
    )
    parser.add_argument(
        "--where",
        action="append",
        default=[],
        metavar="COLUMN=VALUE",
        help="take only such rows; give it again for several",
    )
    parser.add_argument("--shard-size", type=int, help="samples a shard (default 10000)")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")


def _add_check(verbs: Any) -> None:
    parser = command(
        verbs,
        "check",
        run_check,
        "read every sample and say what is there and what is broken; exit code 1 if anything is",
        "dualenc data check runs/demo/shards/train",
    )
    parser.add_argument("data", nargs="+", help="shards, or a folder of images")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")


def _add_bench(verbs: Any) -> None:
    parser = command(
        verbs,
        "bench",
        run_bench,
        "measure a training run in its parts: is data or compute the bottleneck",
        "dualenc data bench --config scenes --data.workers 2",
    )
    parser.add_argument("--config", required=True, help="as of fit, whose other options may follow: --data.workers 4")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    _leave_to_fit(parser)


def _add_mine(verbs: Any) -> None:
    parser = command(
        verbs,
        "mine",
        run_mine,
        "find each sample's hard negatives in a store of the training data, for data.hard_negatives of fit",
        "dualenc data mine runs/photos/store runs/photos/hard.parquet --side text --neighbours 20",
    )
    parser.add_argument("store", help="embeddings of the training data, as `dualenc embed` writes them")
    parser.add_argument("out", help="the file of hard negatives (parquet)")
    parser.add_argument(
        "--side",
        choices=("image", "text", "cross"),
        help="image: samples whose images are alike; text: whose captions are alike; cross: whose captions are like the image "
        "(default image)",
    )
    parser.add_argument("--neighbours", type=int, metavar="N", help="hard negatives of each sample (default 50)")
    parser.add_argument("--skip", type=int, metavar="N", help="leave the nearest so many out (default 0)")
    parser.add_argument(
        "--threshold",
        type=float,
        help="leave samples with a cosine of at least this out: near-duplicates are no negatives (default 0.98)",
    )
    parser.add_argument("--json", action="store_true", help="print what was done as JSON")


def _leave_to_fit(parser: argparse.ArgumentParser) -> None:
    """Options that the parser does not know go into `settings`, for LightningCLI to read."""
    parse = parser.parse_known_args

    def parse_known_args(*args: Any, **kwargs: Any) -> Any:
        options, rest = parse(*args, **kwargs)
        options.settings = rest
        return options, []

    parser.parse_known_args = parse_known_args  # type: ignore[method-assign]


def run_scenes(options: argparse.Namespace) -> int:
    from dualenc.data.scenes import write_scenes

    names = ("train", "val", "test", "size", "seed")
    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    counts = write_scenes(options.out, **given)
    sys.stdout.write(f"{options.out}: " + ", ".join(f"{name} {count}" for name, count in counts.items()) + "\n")
    return 0


def run_pack(options: argparse.Namespace) -> int:
    from dualenc.data.pack import pack

    given = {"shard_size": options.shard_size} if options.shard_size is not None else {}
    report = pack(
        options.source,
        options.out,
        format=options.format,
        image_column=options.image_column,
        caption_columns=options.caption_column,
        key_column=options.key_column,
        class_column=options.class_column,
        images=options.images,
        where=options.where,
        **given,
    )
    if options.json:
        print_json(report.to_json())
    else:
        sys.stdout.write(f"{options.out}: {report}\n")
    return 0


def run_check(options: argparse.Namespace) -> int:
    from dualenc.data.check import check

    report = check(options.data)
    if options.json:
        print_json(report.to_json())
    else:
        sys.stdout.write(f"{report}\n")
    return int(report.broken)


def run_bench(options: argparse.Namespace) -> int:
    from dualenc.cli import quiet
    from dualenc.train.bench import bench

    quiet()  # again: Lightning sets its loggers' levels when it is imported
    report = bench(["--config", options.config, *options.settings])
    if options.json:
        print_json(report.to_json())
    else:
        sys.stdout.write(f"{report}\n")
    return 0


def run_mine(options: argparse.Namespace) -> int:
    from dualenc.embed.store import open_store
    from dualenc.train.mine import mine

    names = ("neighbours", "side", "skip", "threshold")
    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    report = mine(open_store(options.store), options.out, **given)
    if options.json:
        print_json(report)
    else:
        found = f"{report['pairs']:,} hard negatives of {report['rows']:,} images"
        sys.stdout.write(f"{options.out}: {found} ({report['side']} side)\n")
    return 0
