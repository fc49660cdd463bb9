"""`dualenc index …` and `dualenc search`."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from dualenc.cli.common import command, group, print_json


def register(commands: Any) -> None:
    verbs = group(commands, "index", "build and inspect an index")
    parser = command(
        verbs,
        "build",
        run_build,
        "build an index from a store; its recall is measured and kept with it",
        "dualenc index build runs/demo/store runs/demo/index --recipe auto --recall 0.95",
    )
    parser.add_argument("store", help="what `dualenc embed` made (or clip-retrieval)")
    parser.add_argument("out", help="the index folder")
    parser.add_argument("--recipe", default="auto", help="flat, hnsw, ivf, auto, or a YAML file (default auto)")
    parser.add_argument("--side", choices=("image", "text"), default="image", help="what is searched (default image)")
    parser.add_argument(
        "--recall", type=float, default=0.95, help="ANN recall@10 that the search setting must reach (default 0.95)"
    )
    parser.add_argument("--memory", help="refuse an index larger than this, such as 2GB")
    parser.add_argument("--latency", help="refuse an index slower than this for one query, such as 5ms")
    parser.add_argument(
        "--queries", metavar="STORE", help="measure recall on this store's texts instead of the gallery's own"
    )
    parser = command(
        verbs, "info", run_info, "what an index is, and whether it is whole", "dualenc index info runs/demo/index"
    )
    parser.add_argument("index")
    parser.add_argument("--verify", action="store_true", help="hash every file")
    parser.add_argument("--json", action="store_true", help="print the manifest as JSON")
    parser = command(
        commands,
        "search",
        run_search,
        "search an index by text, by image, or by both",
        'dualenc search runs/demo/index "a small red circle" -k 5 --grid hits.png',
    )
    parser.add_argument("index")
    parser.add_argument("text", nargs="?", help="what to look for")
    parser.add_argument("--image", help="an image to look for; with a text, both count equally")
    parser.add_argument("-k", type=int, default=10, help="how many hits (default 10)")
    parser.add_argument("--where", help='an SQL condition on the metadata, such as "objects = 2"')
    parser.add_argument("--encoder", help="the encoder, where it is not where the index says")
    parser.add_argument("--grid", metavar="PNG", help="also write a picture of the hits")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run_build(options: argparse.Namespace) -> int:
    from dualenc.embed.store import open_store
    from dualenc.index.index import Index

    names = ("recipe", "side", "recall", "memory", "latency")
    queries = open_store(options.queries) if options.queries else None
    index = Index.build(
        open_store(options.store), options.out, queries=queries, **{name: getattr(options, name) for name in names}
    )
    _print_info(index.manifest)
    sys.stdout.write(f"written to {options.out}\n")
    return 0


def run_info(options: argparse.Namespace) -> int:
    from dualenc.index.index import info

    manifest = info(options.index, verify=options.verify)
    if options.json:
        print_json(manifest)
    else:
        _print_info(manifest)
    return 0


def _print_info(manifest: dict[str, Any], prefix: str = "") -> None:
    for key, value in manifest.items():
        if key in ("files", "versions"):  # for machines: --json has them
            continue
        if isinstance(value, dict):
            _print_info(value, f"{prefix}{key}.")
        elif not isinstance(value, list) and value is not None:
            sys.stdout.write(f"  {prefix + key:24} {value}\n")


def run_search(options: argparse.Namespace) -> int:
    from dualenc.index.index import Index

    if options.text is None and options.image is None:
        raise ValueError("nothing to search for: give a text, --image FILE, or both")
    if options.k < 1:
        raise ValueError(f"-k {options.k} asks for no hits; use 1 or more")
    index = Index.open(options.index)
    from dualenc.model.encoder import DualEncoder

    name = options.encoder or index.encoder
    if name is None:
        raise ValueError(f"{options.index} does not say which encoder made it; name it with --encoder")
    try:
        encoder = DualEncoder.load(name, fingerprint=index.manifest.get("fingerprint"))
    except (ValueError, OSError) as error:
        if options.encoder:
            raise
        raise ValueError(f"{options.index}: its encoder cannot be loaded ({error}); name it with --encoder") from error
    query = _query(encoder, options)
    ids, scores = index.search(query, k=options.k, where=options.where, encoder=encoder)
    found = [int(i) for i in ids[0] if i >= 0]
    rows = index.rows(found).to_pylist() if found else []
    hits = [{**row, "id": i, "score": float(s)} for i, s, row in zip(found, scores[0], rows, strict=False)]
    if options.json:
        print_json(hits)
    else:
        for place, hit in enumerate(hits, 1):
            sys.stdout.write(
                f"{place:3}  {hit['score']:.3f}  {hit.get('caption') or ''}  [{hit.get('key')}]  {hit.get('image_path') or ''}\n"
            )
        if not hits:
            sys.stdout.write("nothing found\n")
    if options.grid and hits:
        _write_grid(options, hits)
    return 0


def _query(encoder: Any, options: argparse.Namespace) -> Any:
    import numpy as np

    parts = []
    if options.text is not None:
        parts.append(encoder.embed_texts([options.text]))
    if options.image is not None:
        parts.append(encoder.embed_images([options.image]))
    total = np.sum(parts, axis=0)
    return total / np.linalg.norm(total, axis=1, keepdims=True)


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
    grid(pictures, titles, options.grid, heading=options.text or "")
    sys.stderr.write(f"grid: {options.grid}\n")
