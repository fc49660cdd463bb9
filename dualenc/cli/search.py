"""`dualenc search`"""

from __future__ import annotations

import argparse
import sys
from typing import Any

from dualenc.cli.common import command, print_json, used_for


def register(commands: Any) -> None:
    parser = command(
        commands,
        "search",
        run_search,
        "search an index by texts, images and rows of it, weighted, added and subtracted",
        'dualenc search runs/demo/index "a small red circle" -k 5 --grid hits.png',
    )
    parser.add_argument("index", help="the index folder")
    parser.add_argument(
        "query",
        nargs="?",
        help="""what to look for; several: '2*"red car" + photo.jpg - "night" + #17' (#17: row 17)""",
    )
    parser.add_argument("--image", help="an image to look for; with a query, both count equally")
    parser.add_argument("-k", type=int, default=10, help="how many hits (default 10)")
    parser.add_argument("--offset", type=int, default=0, help="leave out that many of the best: the next page")
    parser.add_argument("--threshold", type=float, help="only hits with at least this cosine")
    parser.add_argument("--group-by", metavar="COLUMN", help="one hit for each value of a metadata column, such as key")
    parser.add_argument("--where", help='an SQL condition on the metadata, such as "objects = 2"')
    parser.add_argument("--encoder", help="the encoder, where it is not where the index says")
    parser.add_argument("--grid", metavar="PNG", help="also write a picture of the hits")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run_search(options: argparse.Namespace) -> int:
    from dualenc.index.compose import Term, combine, parse
    from dualenc.index.index import Index

    if options.query is None and options.image is None:
        raise ValueError("nothing to search for: give a text, --image FILE, or both")
    if options.k < 1:
        raise ValueError(f"-k {options.k} asks for no hits; use 1 or more")
    terms = [] if options.query is None else parse(options.query)
    if options.image is not None:
        terms = [*terms, Term(1.0, "image", options.image)]
    index = Index.open(options.index)
    rows, encoder = _embedded(index, terms, options)
    query = combine(rows, [term.weight for term in terms])
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
    hits = [{**row, "id": i, "score": float(s)} for i, s, row in zip(found, scores[0], described, strict=False)]
    _show(hits, options)
    if options.grid and hits:
        _write_grid(options, hits)
    return 0


def _embedded(index: Any, terms: list[Any], options: argparse.Namespace) -> tuple[Any, Any]:
    """(T, D) rows of the terms, and the encoder if any of them needed one: rows of the index do not."""
    import numpy as np

    encoder: Any = _encoder(index, options) if any(term.kind != "id" for term in terms) else None
    embed = {
        "text": lambda value: encoder.embed_texts([value])[0],
        "image": lambda value: encoder.embed_images([value])[0],
        "id": lambda value: index.vectors([value])[0],
    }
    return np.stack([embed[term.kind](term.value) for term in terms]), encoder


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


def _show(hits: list[dict[str, Any]], options: argparse.Namespace) -> None:
    if options.json:
        print_json(hits)
        return
    for place, hit in enumerate(hits, 1 + options.offset):
        sys.stdout.write(
            f"{place:3}  {hit['score']:.3f}  {hit.get('caption') or ''}  [{hit.get('key')}]  {hit.get('image_path') or ''}\n"
        )
    if not hits:
        sys.stdout.write("nothing found\n")


def _write_grid(options: argparse.Namespace, hits: list[dict[str, Any]]) -> None:
    from dualenc.data.shards import read_at
    from dualenc.evaluate.grid import grid
    from dualenc.images import decode

    pictures: list[Any] = []
    for hit in hits:
        try:
            pictures.append(decode(read_at(hit["image_path"], hit["image_offset"], hit["image_size"])))
        except (OSError, ValueError, KeyError, TypeError):  # moved or damaged since it was embedded: an empty frame
            pictures.append(None)
    titles = [f"{hit['score']:.3f}  {hit.get('caption') or hit.get('key')}" for hit in hits]
    grid(pictures, titles, options.grid, heading=options.query or "")
    sys.stderr.write(f"grid: {options.grid}\n")
