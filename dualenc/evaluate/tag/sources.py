"""What is to be tagged, as blocks of embeddings: images in files, folders, shards or tables, or the rows of a store."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch

from dualenc.data.items import IMAGE_SUFFIXES
from dualenc.data.keys import Keys
from dualenc.data.loader import make_loader
from dualenc.data.order import BatchOrder
from dualenc.data.prepare import Prepare
from dualenc.data.rows import FORMATS
from dualenc.data.sample import KINDS, Sample
from dualenc.data.shards import Shards, open_source
from dualenc.data.source import Source
from dualenc.embed.store import Store, check_unit
from dualenc.evaluate.tag.tagging import Block
from dualenc.model.encoder import DualEncoder

STORE_ROWS = 4096  # rows of a store in a block


class Files(Source):
    """Image files, each under the path that it was given by."""

    def __init__(self, files: Sequence[str]):
        super().__init__(
            ", ".join(files[:3]), Keys.of(files), {}, list(files[:1]), np.zeros(len(files), dtype=np.int64)
        )

    def sample(self, i: int, kinds: Sequence[str] = KINDS) -> Sample:
        with open(self.keys[i], "rb", buffering=0) as file:
            return Sample(self.keys[i], {"image": file.readall()} if "image" in kinds else {})

    def location(self, i: int, kind: str = "image") -> tuple[str, int, int] | None:
        path = os.path.abspath(self.keys[i])
        return (path, 0, os.path.getsize(path)) if kind == "image" and os.path.isfile(path) else None

    def _files(self) -> list[tuple[str, int]]:
        return [(key, os.path.getsize(key) if os.path.isfile(key) else -1) for key in self.keys]


class Pictures(Source):
    """The images of another source and nothing else of it: what its captions and metadata hold does not matter."""

    def __init__(self, source: Source):
        super().__init__(source.path, source.keys, source.problems, source.names, source.origin)  # type: ignore[arg-type]
        self._source = source

    def sample(self, i: int, kinds: Sequence[str] = KINDS) -> Sample:
        return self._source.sample(i, [kind for kind in kinds if kind == "image"])

    def location(self, i: int, kind: str = "image") -> tuple[str, int, int] | None:
        return self._source.location(i, kind)

    def prefetch(self, first: int, last: int) -> None:
        self._source.prefetch(first, last)

    def _files(self) -> list[tuple[str, int]]:
        return self._source._files()


def open_pictures(names: Sequence[str]) -> Source:
    """Image files and folders of images, mixed, or else whatever `open_source` takes.

    FileNotFoundError: nothing at a path. ValueError: no image, or images beside shards.
    """
    others = [name for name in names if not _holds_images_alone(Path(name))]
    single = [name for name in names if Path(name).is_file() and name not in others]
    if not single and (others or len(names) == 1):
        return open_source(list(names) if len(names) > 1 else names[0])
    if others:
        raise ValueError(
            f"{others[0]} is not an image or a folder of images, and {(single or list(names))[0]} is; tag shards and tables "
            "in a run of their own"
        )
    found = [path for name in names for path in ([name] if name in single else _inside(Path(name)))]
    if not found:
        raise ValueError(f"{', '.join(names)}: no images ({', '.join(IMAGE_SUFFIXES)}) in it; name another folder")
    return Files(list(dict.fromkeys(found)))


def _holds_images_alone(path: Path) -> bool:
    """Whether it is an image file, or a folder without shards."""
    if path.is_dir():
        return not any(path.glob("*.tar")) and not any(path.glob("test/*.tar"))
    return path.is_file() and path.suffix.lower() not in (".tar", *FORMATS)


def _inside(folder: Path) -> list[str]:
    shown = (p for p in folder.rglob("*") if not any(x.startswith(".") for x in p.relative_to(folder).parts))
    return sorted(str(p) for p in shown if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())


def picture_blocks(
    encoder: DualEncoder, source: Source, first: int = 0, batch_size: int = 64, workers: int = 2
) -> Iterator[Block]:
    """Images first, first + 1, … of a source, embedded `batch_size` at a time; one that fails has its reason."""
    for name, value, least in (("batch_size", batch_size, 1), ("workers", workers, 0)):
        if value < least:
            raise ValueError(f"{name} is {value}, so no image could be read; use {least} or more")
    order = BatchOrder(len(source) - first, batch_size, first=first)
    prepare = Prepare(encoder.spec, decode=encoder.decode)
    for batch in make_loader(Pictures(source), prepare, order, workers, all_captions=False):
        with torch.inference_mode():
            rows = encoder.image_features(batch["image"].to(encoder.device, non_blocking=True)).float().cpu().numpy()
        yield Block(batch["key"], [_path(source, i) for i in batch["position"].tolist()], batch["reason"], rows)


def _path(source: Source, i: int) -> str | None:
    try:
        place = source.location(i)
    except OSError:  # gone this moment
        return None
    return None if place is None else place[0]


def store_blocks(store: Store, first: int = 0) -> Iterator[Block]:
    """Images first, first + 1, … of a store, whose embeddings are there already. ValueError: a row that is not unit."""
    tables = sorted((store.folder / "metadata").glob("metadata_*.parquet"), key=_number)
    for rows, table in zip(store.image_parts, tables, strict=True):
        if first >= len(rows):
            first -= len(rows)
            continue
        start = 0
        for facts in _facts(table):
            end = start + len(facts["key"])
            if end > first:
                here = slice(max(first, start), end)
                block = np.asarray(rows[here], dtype=np.float32)
                check_unit(block, f"{table.name.replace('metadata', 'img_emb')} from row {here.start:,} on")
                keys, paths = (facts[name][here.start - start :] for name in ("key", "path"))
                yield Block(keys, paths, [None] * len(keys), block)
            start = end
        first = 0


def _number(path: Path) -> int:
    return int(path.stem.rpartition("_")[2])


def _facts(table: Path) -> Iterator[dict[str, list[Any]]]:
    """Key and path of a store's images, STORE_ROWS at a time; where a store has no keys, "" in their place."""
    with pq.ParquetFile(table) as file:
        columns = [name for name in ("key", "image_path") if name in file.schema_arrow.names]
        for batch in file.iter_batches(STORE_ROWS, columns=columns or file.schema_arrow.names[:1]):
            found = {name: batch.column(name).to_pylist() for name in columns}
            none = [None] * batch.num_rows
            keys = ["" if key is None else str(key) for key in found.get("key", none)]
            yield {"key": keys, "path": found.get("image_path", none)}


def store_digest(store: Store) -> Any:
    """What a store's images are known by: their files' checksums, or sizes and times where nobody recorded those."""
    listed = {name: there for part in store.manifest.get("parts", []) for name, there in part["files"].items()}
    if listed:
        return sorted((name, there["sha256"]) for name, there in listed.items() if name.startswith("img_emb"))
    files = sorted((store.folder / "img_emb").glob("*.npy"))
    return [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in files]


def source_digest(source: Source) -> str:
    """`Source.digest`, and when each file was written: pictures that others of their size replaced are other ones."""
    files = source.paths if isinstance(source, Shards) else (_path(source, i) for i in range(len(source)))
    times = [os.stat(path).st_mtime_ns if path is not None and os.path.exists(path) else None for path in files]
    return hashlib.sha256(json.dumps([source.digest(), times]).encode()).hexdigest()
