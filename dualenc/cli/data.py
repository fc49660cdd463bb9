"""`dualenc data …`: making and checking shards."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from dualenc.cli.common import command, group


def register(commands: Any) -> None:
    verbs = group(commands, "data", "make and check shards")
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


def run_scenes(options: argparse.Namespace) -> int:
    from dualenc.data.scenes import write_scenes

    names = ("train", "val", "test", "size", "seed")
    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    counts = write_scenes(options.out, **given)
    sys.stdout.write(f"{options.out}: " + ", ".join(f"{name} {count}" for name, count in counts.items()) + "\n")
    return 0
