"""`dualenc search --server URL`: the same questions and answers as of an index folder, by way of a running server."""

from __future__ import annotations

import argparse
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin

from dualenc.cli.search import Terms, asked, show, write_grid

if TYPE_CHECKING:
    from dualenc.serve.client import Client

PATIENCE = 120.0  # seconds: a server that was just started loads its encoder first
MOST = 1000  # hits of one request
GRID = 480  # pixels: twice a tile of the grid, so that it is sharp


def ask(options: argparse.Namespace) -> None:
    """Ask the server and show what it answers. ValueError or ServerError: what it cannot be asked, or refuses."""
    from dualenc.cli.serve import token
    from dualenc.serve.client import Client, ServerError

    if options.encoder is not None:
        raise ValueError("--encoder has no effect with --server, which has its own; leave it out")
    with Client(options.server, token=token(options.token_file), timeout=PATIENCE) as client:
        try:
            name = _index(client, options)
            hits = _found(client, options, asked(options), name)
        except ServerError as error:
            if error.status == 401:
                raise ServerError(f"{error}; give it with --token-file FILE or in DUALENC_TOKEN", 401) from error
            raise
        show(hits, options)
        if options.grid and hits:
            with ThreadPoolExecutor(4) as pool:
                images = list(pool.map(lambda hit: _image(client, hit, name), hits))
            write_grid(options, hits, images)


def _index(client: Client, options: argparse.Namespace) -> str | None:
    """The name of the index that is meant, None for the server's first. A single word is the query, where there is none."""
    if options.query is None and options.index is not None:
        other = options.image is not None or options.embedding is not None
        if not (other and _is_index(client, options.index)):
            options.query, options.index = options.index, None
    return None if options.index is None else _named(client, options.index)


def _is_index(client: Client, word: str) -> bool:
    return (Path(word) / "manifest.json").is_file() or any(word == index["name"] for index in client.indexes())


def _named(client: Client, word: str) -> str:
    """The served index that a word means: its name, or a folder: of that name, or the only one alike."""
    from dualenc.files import read_json

    served = {index["name"]: index for index in client.indexes()}
    if word in served:
        return word
    name, manifest = Path(word).resolve().name, Path(word) / "manifest.json"
    here = read_json(manifest) if manifest.is_file() else None
    if name not in served:
        same = [] if here is None else [other for other, index in served.items() if _alike(here, index, "rows")]
        if len(same) == 1:  # it is served under another name
            return same[0]
        raise ValueError(f"{client.url} serves no index {word!r}; it serves {', '.join(served)}")
    if here is not None and not _alike(here, served[name]):
        raise ValueError(
            f"{client.url} has another index as {name!r} than {word}: the encoder differs; say which you mean"
        )
    return name


def _alike(manifest: dict[str, Any], served: dict[str, Any], *more: str) -> bool:
    """Whether a folder and a served index have the same encoder and D, and whatever `more` names."""
    return all(manifest.get(name) == served.get(name) for name in ("fingerprint", "dim", *more))


def _found(client: Client, options: argparse.Namespace, terms: Terms, name: str | None) -> list[dict[str, Any]]:
    hits: list[dict[str, Any]] = []
    while len(hits) < options.k:
        page = client.search(
            terms=[tuple(term) for term in terms],
            index=name,
            k=min(MOST, options.k - len(hits)),
            offset=options.offset + len(hits),
            where=options.where,
            threshold=options.threshold,
            group_by=options.group_by,
        )
        hits += [_row(hit, client.url) for hit in page]
        if page.next_offset is None:
            break
    return hits


def _row(hit: Any, url: str) -> dict[str, Any]:
    """A hit as the search of a folder has it; where its image is, is a URL."""
    image = {} if hit.image is None else {"image_url": urljoin(f"{url}/", hit.image.lstrip("/"))}
    return {**image, **hit.metadata, "id": hit.id, "score": hit.score}


def _image(client: Client, hit: dict[str, Any], name: str | None) -> bytes | None:
    from dualenc.serve.client import ServerError

    try:
        return client.image(hit["id"], size=GRID, index=name)
    except ServerError:  # moved or damaged since it was embedded: an empty frame
        return None
