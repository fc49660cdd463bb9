"""What each `dualenc index` verb does once its command line is parsed."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from dualenc.cli.common import print_json
from dualenc.files import refuse_existing


def open_source(path: str, normalise: bool = False) -> Any:
    """A store, or plain embeddings from anywhere."""
    from dualenc.embed.store import is_store, open_store

    if is_store(path):
        return open_store(path)
    from dualenc.index.folder import open_vectors

    return open_vectors(path, normalise=normalise)


def run_build(options: argparse.Namespace) -> int:
    from dualenc.index.index import Index
    from dualenc.index.threads import pools

    names = ("recipe", "side", "recall", "memory", "latency")
    queries = open_source(options.queries) if options.queries else None
    source = open_source(options.store, options.normalise)
    with pools(options.threads):
        index = Index.build(source, options.out, queries=queries, **{name: getattr(options, name) for name in names})
    _print_info(index.manifest)
    sys.stdout.write(f"written to {options.out}\n")
    return 0


def run_tune(options: argparse.Namespace) -> int:
    from dualenc.embed.store import is_store
    from dualenc.index.index import Index

    index = Index.open(options.index)
    source = index.manifest["source"]
    if options.queries is None and source and is_store(source):  # the texts of the store that it was built from
        store = open_source(source)
        queries = store if len(store.side("text" if index.manifest["side"] == "image" else "image")) else None
    else:
        queries = open_source(options.queries) if options.queries else None
    _print_info(index.tune(queries, options.recall, options.latency))
    return 0


def run_info(options: argparse.Namespace) -> int:
    from dualenc.index.about import info
    from dualenc.index.candidate import table
    from dualenc.index.plot import plot_curve

    about = info(options.index, verify=options.verify)
    if options.json:
        print_json(about)
    else:
        _print_info(about)
        if about["choice"]:
            sys.stdout.write(f"{table(about['choice'])}\n")
    if options.plot:
        plot_curve(about, options.plot)
        sys.stderr.write(f"curve: {options.plot}\n")
    return 0


def _print_info(about: dict[str, Any], prefix: str = "") -> None:
    for key, value in about.items():
        if key in ("files", "versions", "segments", "choice"):  # for machines: --json has them
            continue
        if isinstance(value, dict):
            _print_info(value, f"{prefix}{key}.")
        elif not isinstance(value, list) and value is not None:
            sys.stdout.write(f"  {prefix + key:24} {value}\n")


def run_add(options: argparse.Namespace) -> int:
    from dualenc.index.index import Index

    index = Index.open(options.index)
    before = len(index)
    (index.upsert if options.upsert else index.add)(open_source(options.store, options.normalise))
    sys.stdout.write(f"{options.index}: {before:,} rows, now {len(index):,}\n")
    return 0


def run_remove(options: argparse.Namespace) -> int:
    from dualenc.index.index import Index

    if bool(options.ids) == (options.where is not None):
        raise ValueError("say what to remove: ids, or --where with a condition")
    index = Index.open(options.index)
    before = len(index)
    index.remove(options.ids if options.where is None else index.ids_where(options.where))
    sys.stdout.write(f"{options.index}: {before:,} rows, now {len(index):,}\n")
    return 0


def run_merge(options: argparse.Namespace) -> int:
    from dualenc.index.merging import merge

    merge(options.index, options.other, options.out, options.renumber)
    sys.stdout.write(f"written to {options.out}\n")
    return 0


def run_compact(options: argparse.Namespace) -> int:
    from dualenc.index.index import Index

    index = Index.open(options.index)
    before = index.manifest["bytes"]["index"]
    index.compact()
    sys.stdout.write(f"{options.index}: {before:,} bytes, now {index.manifest['bytes']['index']:,}\n")
    return 0


def run_duplicates(options: argparse.Namespace) -> int:
    from dualenc.embed.store import is_store
    from dualenc.index.duplicates import near_duplicates, write_groups
    from dualenc.index.index import Index

    if (Path(options.index) / "manifest.json").exists() and not is_store(options.index):
        index = Index.open(options.index)
        rows, ids, table = index.gallery(), index.ids, index.metadata
    else:
        source = open_source(options.index)
        rows, ids = source.side(options.side), None
        table = source.metadata() if options.side == "image" else source.text_metadata()
    if options.out:
        refuse_existing(Path(options.out))  # before the work
    found = near_duplicates(rows, options.threshold)
    if options.out:
        write_groups(found, ids, table, options.out)
    about = found.summary()
    if options.json:
        print_json(about)
    else:
        _print_info(about)
    return 0


def run_neighbours(options: argparse.Namespace) -> int:
    from dualenc.index.index import Index

    index = Index.open(options.index)
    index.neighbours(options.out, options.k)
    sys.stdout.write(f"written to {options.out}\n")
    return 0


def run_adopt(options: argparse.Namespace) -> int:
    from dualenc.index.adoption import adopt

    encoder = None
    if options.encoder:
        from dualenc.model.encoder import DualEncoder

        encoder = DualEncoder.load(options.encoder)
    store = open_source(options.store) if options.store else None
    queries = open_source(options.queries) if options.queries else None
    index = adopt(options.file, options.out, options.metadata, encoder, store, options.side, options.recall, queries)
    _print_info(index.manifest)
    sys.stdout.write(f"written to {options.out}\n")
    return 0
