"""What several commands share."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any


def command(
    commands: Any, name: str, run: Callable[[argparse.Namespace], int | None], text: str, example: str
) -> argparse.ArgumentParser:
    """Add a subcommand whose help ends with an example."""
    parser = commands.add_parser(
        name,
        help=text,
        description=text[0].upper() + text[1:] + ".",
        epilog=f"example: {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.set_defaults(run=run, usage=parser)
    return parser


def group(commands: Any, name: str, text: str) -> Any:
    """Add a noun with commands of its own."""
    parser = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".", allow_abbrev=False)
    parser.set_defaults(usage=parser)
    return parser.add_subparsers(title="commands", metavar="COMMAND")


def compute_options(parser: argparse.ArgumentParser, several: bool = False) -> None:
    """Options of every command that runs an encoder over a source. several: also on several devices."""
    parser.add_argument("--batch-size", type=int, default=64, help="images at a time (default 64)")
    parser.add_argument("--workers", type=int, default=2, help="loader processes (default 2)")
    parser.add_argument("--accelerator", default="auto", help="auto, cpu, gpu, … (Lightning's; default auto)")
    parser.add_argument(
        "--decode",
        choices=("exact", "fast"),
        help="fast reads large JPEGs at a part of their size, within 1/255 of open_clip's pixels, and makes another fingerprint "
        "(default exact, or what a given store was made with)",
    )
    if several:
        parser.add_argument("--devices", default="1", help="how many, or auto (default 1)")


def compute(options: argparse.Namespace) -> dict[str, Any]:
    """The keyword arguments of `compute_options` for `dualenc.embed.run`."""
    chosen = {name: getattr(options, name) for name in ("batch_size", "workers", "accelerator")}
    devices = getattr(options, "devices", "1")
    return chosen | {"devices": int(devices) if devices.isdigit() else devices}


def used_for(rows: Any) -> dict[str, Any]:
    """What `DualEncoder.load` needs to know of the store or index that an encoder is used with: nothing where that does
    not say whose it is."""
    return {"fingerprint": rows.fingerprint, "dim": rows.dim} if rows is not None and rows.fingerprint else {}


def ks_of(text: str) -> tuple[int, ...]:
    """The numbers of `--ks 1,5,10`, each once. ValueError: one that is no whole number from 1."""
    try:
        ks = tuple(dict.fromkeys(int(k) for k in text.split(",")))
    except ValueError:
        raise ValueError(f"--ks {text!r} is not a list of whole numbers; write 1,5,10") from None
    if min(ks) < 1:
        raise ValueError(f"--ks {text!r}: k is {min(ks)}, and among no hits none is right; write 1 or more: 1,5,10")
    return ks


def data_names(paths: Sequence[str]) -> list[str]:
    """A name for each data set: the shortest ends of their paths that differ. ValueError where two are the same.

    >>> data_names(["a/cifar10/test", "a/cars/test"]), data_names(["a/cars"])
    (['cifar10/test', 'cars/test'], ['cars'])
    """
    parts = [Path(path).parts for path in paths]
    if twice := sorted({str(Path(*part)) for part in parts if parts.count(part) > 1}):
        raise ValueError(f"{twice[0]} is given twice; give each data set once")
    for length in range(1, max(map(len, parts), default=0) + 1):
        names = [str(Path(*part[-length:])) for part in parts]
        if len(set(names)) == len(names):
            return names
    return []


def printable(text: str) -> str:
    """One line that does nothing to a terminal, whatever captions and servers put into it."""
    return "".join(
        c if c.isprintable() or c in "\u200c\u200d" else "\ufffd" for c in text
    )  # joiners of emoji and scripts


def print_json(value: Any) -> None:
    """Standard JSON to stdout, whole or not at all; numbers that JSON has no place for become null."""
    sys.stdout.write(json.dumps(_finite(value), indent=2, ensure_ascii=False, allow_nan=False, default=str) + "\n")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
