"""`dualenc serve`"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from dualenc.cli.common import command
from dualenc.serve.settings import LOGS, PRECISIONS


def register(commands: Any) -> None:
    parser = command(
        commands,
        "serve",
        run_serve,
        "answer searches over HTTP, and serve the page to search on",
        "dualenc serve photos=runs/demo/index --port 8000",
    )
    parser.add_argument(
        "indexes",
        nargs="+",
        metavar="[NAME=]INDEX",
        help="index folders, and what to call each (default: the folder's name); the first answers where none is named",
    )
    parser.add_argument("--encoder", help="the encoder of all of them, where it is not where the indexes say")
    parser.add_argument(
        "--host", default="127.0.0.1", help="the address to listen at (default 127.0.0.1: this machine alone)"
    )
    parser.add_argument("--port", type=int, default=8000, help="the port (default 8000; 0: any free one)")
    parser.add_argument(
        "--workers", type=int, default=1, metavar="N", help="processes, each with its encoder (default 1)"
    )
    parser.add_argument("--threads", type=int, metavar="N", help="of each process (default: the cores, shared evenly)")
    parser.add_argument(
        "--token-file",
        metavar="FILE",
        help="a file whose first line every request must show as its bearer token (or set DUALENC_TOKEN)",
    )
    parser.add_argument(
        "--cors",
        action="append",
        default=[],
        metavar="ORIGIN",
        help="a site whose pages may call, such as https://example.org, or *; may be given several times",
    )
    parser.add_argument(
        "--rate", type=float, metavar="R", help="most requests a second of one address (default: no limit)"
    )
    parser.add_argument(
        "--proxy",
        action="store_true",
        help="believe a proxy on this machine who calls (X-Forwarded-For and -Proto, which it must set itself)",
    )
    parser.add_argument(
        "--fetch-urls", action="store_true", help="let queries name images on the web (public addresses only)"
    )
    parser.add_argument("--max-body", default="20MiB", metavar="SIZE", help="most bytes of a request (default 20MiB)")
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        default=PRECISIONS[0],
        help="of the encoder (default auto: what is fast here and gives the same hits)",
    )
    parser.add_argument("--log", choices=LOGS, default=LOGS[0], help="form of the log's lines (default text)")


def run_serve(options: argparse.Namespace) -> int:
    from dualenc.serve.run import leave, serve

    code = serve(_settings(options))
    leave(code)  # without waiting for threads: an encoder may still be loading, and nobody waits for it any more
    return code


def _settings(options: argparse.Namespace) -> Any:
    from dualenc.serve.settings import Settings

    same = ("encoder", "host", "port", "workers", "threads", "rate", "proxy", "fetch_urls", "precision", "log")
    return Settings(
        indexes=named(options.indexes),
        token=token(options.token_file),
        cors=tuple(options.cors),
        max_body=_bytes(options.max_body),
        **{name: getattr(options, name) for name in same},
    )


def named(words: list[str]) -> dict[str, Path]:
    """`NAME=FOLDER` or `FOLDER` as name -> folder, in order. ValueError: one name for two."""
    found: dict[str, Path] = {}
    for word in words:
        name, sign, folder = word.partition("=")
        if not sign or Path(word).is_dir():  # a folder whose own name has a sign in it
            name, folder = Path(word).resolve().name, word
        if not name or not folder:
            raise ValueError(f"{word!r} is neither INDEX nor NAME=INDEX; write such as photos=runs/demo/index")
        if name in found:
            raise ValueError(
                f"two indexes are called {name!r} ({found[name]} and {folder}); call one otherwise: NAME={folder}"
            )
        found[name] = Path(folder)
    return found


def token(file: str | None) -> str | None:
    """The token of a file's first line, else of the environment's DUALENC_TOKEN, else None. ValueError: an empty one."""
    if file is None:
        return os.environ.get("DUALENC_TOKEN") or None
    with open(file, encoding="utf-8") as lines:
        found = lines.readline().strip()
    if not found:
        raise ValueError(f"{file} has no token in its first line, so anybody could call; write one into it")
    return found


def _bytes(text: str) -> int:
    """ "20MB" in bytes. ValueError: no amount."""
    from dualenc.index.budget import parse_bytes

    try:
        return parse_bytes(text) or 0  # which it refuses
    except ValueError as error:
        raise ValueError(f"--max-body {text!r} is no amount of bytes; write one like 20MB") from error
