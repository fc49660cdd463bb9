"""`dualenc search`: an index folder, or one that a running server holds."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from dualenc.cli.common import command, print_json, printable, used_for

Terms = list[tuple[float, str, Any]]  # (weight, "text" | "image" | "id" | "embedding", value)


def register(commands: Any) -> None:
    parser = command(
        commands,
        "search",
        run_search,
        "search an index by texts, images and rows of it, weighted, added and subtracted",
        'dualenc search runs/demo/index "a small red circle" -k 5 --grid hits.png',
    )
    parser.add_argument(
        "index", nargs="?", help="the index folder (with --server: the index's name, which may be left out)"
    )
    parser.add_argument(
        "query",
        nargs="?",
        help="""what to look for; several: '2*"red car" + photo.jpg - "night" + #17' (#17: row 17)""",
    )
    parser.add_argument("--image", help="an image to look for; with a query, both count equally")
    parser.add_argument(
        "--embedding", metavar="NPY", help="a unit row to look for, (D,) or (1, D), of the same encoder"
    )
    parser.add_argument("-k", type=int, default=10, help="how many hits (default 10)")
    parser.add_argument("--offset", type=int, default=0, help="leave out that many of the best: the next page")
    parser.add_argument("--threshold", type=float, help="only hits with at least this cosine")
    parser.add_argument("--group-by", metavar="COLUMN", help="one hit for each value of a metadata column, such as key")
    parser.add_argument("--where", help='an SQL condition on the metadata, such as "objects = 2"')
    parser.add_argument("--encoder", help="the encoder, where it is not where the index says")
    parser.add_argument("--server", metavar="URL", help="ask a running `dualenc serve`, such as http://127.0.0.1:8000")
    parser.add_argument("--token-file", metavar="FILE", help="what that server asks for (or set DUALENC_TOKEN)")
    parser.add_argument("--grid", metavar="PNG", help="also write a picture of the hits")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run_search(options: argparse.Namespace) -> int:
    if options.k < 1:
        raise ValueError(f"-k {options.k} asks for no hits; use 1 or more")
    if options.server is not None:
        from dualenc.cli.search_server import ask

        ask(options)
        return 0
    if options.token_file is not None:
        raise ValueError("--token-file is for a server; name it with --server URL, or leave the token out")
    if options.index is None:
        options.usage.error("the following arguments are required: index")
    terms = asked(options)
    hits = _found(options, terms)
    show(hits, options)
    if options.grid and hits:
        write_grid(options, hits, [_read(hit) for hit in hits])
    return 0


def asked(options: argparse.Namespace) -> Terms:
    """The query's parts. ValueError: nothing to look for, or an expression or file that does not read."""
    if options.query is None and options.image is None and options.embedding is None:
        raise ValueError("nothing to search for: give a text, --image FILE, or both (or --embedding FILE)")
    terms: Terms = []
    if options.query is not None:
        from dualenc.index.compose import parse

        terms += parse(options.query)
    if options.image is not None:
        terms.append((1.0, "image", options.image))
    if options.embedding is not None:
        terms.append((1.0, "embedding", _embedding(options.embedding)))
    return terms


def _embedding(path: str) -> Any:
    """(D,) of a file that holds one row. ValueError: something else."""
    import numpy as np

    try:
        row = np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path} is no .npy file of numbers; write one with numpy.save(path, row)") from error
    if not isinstance(row, np.ndarray) or row.dtype.kind not in "fiu":
        raise ValueError(f"{path} holds no array of numbers; write one with numpy.save(path, row)")
    if row.ndim != 1 and not (row.ndim == 2 and len(row) == 1):
        raise ValueError(f"{path} has the shape {row.shape}; a query is one row, (D,) or (1, D): save one of them")
    row = row.reshape(-1).astype(np.float32)
    length = float(np.linalg.norm(row))
    if not abs(length - 1) <= 5e-3:  # of what is not finite, too
        raise ValueError(f"{path} is of length {length:.4g}, not 1; divide it by numpy.linalg.norm(row)")
    return row


def _found(options: argparse.Namespace, terms: Terms) -> list[dict[str, Any]]:
    from dualenc.index.compose import combine
    from dualenc.index.index import Index

    index = Index.open(options.index)
    rows, encoder = _embedded(index, terms, options)
    query = combine(rows, [weight for weight, _, _ in terms])
    ids, scores = index.page(
        query[None],
        k=options.k,
        where=options.where,
        encoder=encoder,
        offset=options.offset,
        threshold=options.threshold,
        group_by=options.group_by,
    )
    found = [int(i) for i in ids[0] if i >= 0]
    described = index.rows(found).to_pylist() if found else []
    return [{**row, "id": i, "score": float(s)} for i, s, row in zip(found, scores[0], described, strict=False)]


def _embedded(index: Any, terms: Terms, options: argparse.Namespace) -> tuple[Any, Any]:
    """(T, D) rows of the terms, and the encoder if any of them needed one: rows of the index and given ones do not."""
    import numpy as np

    encoder: Any = _encoder(index, options) if any(kind in ("text", "image") for _, kind, _ in terms) else None
    embed = {
        "text": lambda value: encoder.embed_texts([value])[0],
        "image": lambda value: encoder.embed_images([value])[0],
        "id": lambda value: index.vectors([value])[0],
        "embedding": lambda value: _fitting(value, index, options),
    }
    return np.stack([embed[kind](value) for _, kind, value in terms]), encoder


def _fitting(row: Any, index: Any, options: argparse.Namespace) -> Any:
    if len(row) != index.dim:
        raise ValueError(
            f"{options.embedding} has {len(row)} numbers, the rows of {options.index} have {index.dim}; embed the query "
            "with the index's own encoder"
        )
    return row


def _encoder(index: Any, options: argparse.Namespace) -> Any:
    from dualenc.model.encoder import DualEncoder

    name = options.encoder or index.encoder
    if name is None:
        raise ValueError(f"{options.index} does not say which encoder made it; name it with --encoder")
    try:
        return DualEncoder.load(name, **used_for(index))
    except (ValueError, OSError) as error:
        if options.encoder:
            raise
        raise ValueError(f"{options.index}: its encoder cannot be loaded ({error}); name it with --encoder") from error


def show(hits: list[dict[str, Any]], options: argparse.Namespace) -> None:
    """Print the hits: JSON, or a line each with place, score, caption, key and where the image is."""
    if options.json:
        print_json(hits)
        return
    for place, hit in enumerate(hits, 1 + options.offset):
        where = hit.get("image_path") or hit.get("image_url") or ""
        line = f"{place:3}  {hit['score']:.3f}  {hit.get('caption') or ''}  [{hit.get('key')}]  {where}"
        sys.stdout.write(printable(line) + "\n")
    if not hits:
        sys.stdout.write("nothing found\n")


def _read(hit: dict[str, Any]) -> bytes | None:
    """A hit's encoded image; None where it is not where it was."""
    from dualenc.data.shards import read_at

    try:
        return read_at(hit["image_path"], hit["image_offset"], hit["image_size"])
    except (OSError, KeyError, TypeError):
        return None


def write_grid(options: argparse.Namespace, hits: list[dict[str, Any]], images: list[bytes | None]) -> None:
    """Write the contact sheet of the hits; what does not decode is an empty frame."""
    from dualenc.evaluate.page.grid import grid
    from dualenc.images import decode

    pictures: list[Any] = []
    for data in images:
        try:
            pictures.append(None if data is None else decode(data))
        except ValueError:  # damaged since it was embedded
            pictures.append(None)
    titles = [f"{hit['score']:.3f}  {hit.get('caption') or hit.get('key')}" for hit in hits]
    grid(pictures, titles, options.grid, heading=options.query or Path(options.image or options.embedding).name)
    sys.stderr.write(f"grid: {options.grid}\n")
