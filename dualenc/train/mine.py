"""`dualenc data mine`: for each image of a store the samples that it, or its caption, is most easily taken for."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from dualenc.data.hard import KEY, NEIGHBOURS
from dualenc.files import refuse_existing, whole_file
from dualenc.index.exact import exact_search
from dualenc.index.index import Index
from dualenc.index.vectors import Rows

SIDES = {"image": ("image", "image"), "text": ("text", "text"), "cross": ("image", "text")}  # query, gallery
EXACT = 100_000  # rows up to which every pair is compared; above, an index finds them
BLOCK = 1_024  # images handled at once
DEEPER = 16  # times: of an image with so many near-duplicates fewer neighbours are found
SCHEMA = pa.schema([(KEY, pa.string()), (NEIGHBOURS, pa.list_(pa.string())), ("similarities", pa.list_(pa.float32()))])

Search = Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray]]


def mine(
    store: Any,
    out: str | Path,
    neighbours: int = 50,
    side: str = "image",
    skip: int = 0,
    threshold: float = 0.98,
    exact: int = EXACT,
    progress: bool = True,
) -> dict[str, Any]:
    """Write the hard negatives of each image of an open store to the parquet file `out`, whole or not at all.

    side: "image", the samples whose images are most like its own; "text", whose captions are most like its own captions;
    "cross", whose captions are most like its image: those that it is confused with. A sample counts with its best pair.
    threshold: samples with a cosine of at least this are near-duplicates, no negatives, and left out. skip: so many of the
    nearest that are left are left out too. neighbours: how many of the next ones are taken, fewer where there are fewer.
    exact: rows up to which every pair is compared; above, an index of recipe auto is searched, made for the purpose.

    A row is `key`, `neighbours` (keys, nearest first) and `similarities` (cosines), in the store's order. The file's
    metadata hold fingerprint, encoder and settings; returned with `rows` and `pairs`.
    ValueError: settings out of range, no rows on a side, keys missing or twice. FileExistsError: `out` is there.
    """
    _check(neighbours, side, skip, threshold)
    out = Path(out)
    refuse_existing(out)
    keys = _keys(store)
    asking, searched = (_Side(store, name) for name in SIDES[side])
    about = {"fingerprint": store.fingerprint, "encoder": store.encoder, "store": str(store.folder), "side": side}
    about |= {"neighbours": neighbours, "skip": skip, "threshold": threshold, "exact": len(searched.rows) <= exact}
    schema = SCHEMA.with_metadata({"dualenc": json.dumps(about)})
    pairs = 0
    out.parent.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as folder,
        whole_file(out) as partial,
        pq.ParquetWriter(partial, schema, compression="zstd") as writer,
        tqdm(total=len(keys), unit="img", unit_scale=True, desc="mining", disable=None if progress else True) as bar,
    ):
        search = _search(store, asking.side, searched, Path(folder) / "index", about["exact"])
        for first in range(0, len(keys), BLOCK):
            images = np.arange(first, min(first + BLOCK, len(keys)))
            found = _hardest(asking, searched, search, images, (neighbours, skip, threshold))
            writer.write_table(_table(keys, images, found, schema))
            pairs += sum(len(others) for others, _ in found)
            bar.update(len(images))
        if not pairs:
            raise ValueError(
                f"none of {len(keys)} images has a neighbour left with skip {skip} and threshold {threshold}, so there is "
                "nothing to write; lower skip or raise threshold"
            )
    return about | {"rows": len(keys), "pairs": pairs}


def _check(neighbours: int, side: str, skip: int, threshold: float) -> None:
    for name, value, least in (("neighbours", neighbours, 1), ("skip", skip, 0)):
        if value < least:
            raise ValueError(f"{name} is {value}, so nothing could be mined; use {least} or more")
    if side not in SIDES:
        raise ValueError(f"side {side!r} is unknown; use {', '.join(SIDES)}")
    if not threshold > -1:
        raise ValueError(
            f"threshold {threshold} is a cosine that all pairs reach, so none would be left; use one up to 1"
        )


class _Side:
    """The rows of one side of a store, with the image that each belongs to, and those of each image."""

    def __init__(self, store: Any, side: str):
        self.side, self.rows = side, store.side(side)
        if not len(self.rows):
            raise ValueError(
                f"{store.folder} holds no {side}s, so there is nothing to mine; embed them, or use another side"
            )
        owner = np.arange(len(self.rows)) if side == "image" else store.image_row
        self.image = np.asarray(owner, dtype=np.int64)  # (rows,)
        self._by_image = np.argsort(self.image, kind="stable")
        self._starts = np.searchsorted(self.image[self._by_image], np.arange(len(store.side("image")) + 1))

    def of(self, images: np.ndarray) -> np.ndarray:
        """The rows of these images, which follow one another."""
        return self._by_image[self._starts[images[0]] : self._starts[images[-1] + 1]]


def _keys(store: Any) -> pa.Array:
    table = store.metadata()
    keys = table.column(KEY).combine_chunks() if KEY in table.column_names else pa.array([], pa.string())
    if len(keys) != store.rows or keys.null_count or not len(keys):
        raise ValueError(f"{store.folder} has no key for each image, so neighbours could not be named; embed again")
    if len(keys.unique()) < len(keys):
        raise ValueError(
            f"{store.folder} has a key twice, so neighbours could not be told apart; give samples keys of their own"
        )
    return keys.cast(pa.string())


def _search(store: Any, asked: str, searched: _Side, folder: Path, exact: bool) -> Search:
    rows: Rows = searched.rows
    if exact:
        return lambda queries, k: exact_search(queries, rows, k)
    # its recall is measured on such queries as are asked: a store's other side, or rows that are held out
    index = Index.build(store if asked != searched.side else rows, folder, recipe="auto", side=searched.side)
    return lambda queries, k: index.search(queries, k)


def _hardest(
    asking: _Side, searched: _Side, search: Search, images: np.ndarray, wanted: tuple[int, int, float]
) -> list[tuple[np.ndarray, np.ndarray]]:
    """(other images, cosines), hardest first, for each of `images`, which follow one another.

    Near-duplicates and further rows of one sample take places among what is found, and of several captions one may
    have found only those: images that have too few others that are sure are searched for again, twice as deep, up to
    DEEPER times the first depth.
    """
    neighbours, skip, threshold = wanted
    done: list[tuple[np.ndarray, np.ndarray]] = [(np.zeros(0, np.int64), np.zeros(0, np.float32))] * len(images)
    rows = asking.of(images)
    depth = min(2 * (neighbours + skip + 1), len(searched.rows))
    deepest = min(DEEPER * depth, len(searched.rows))
    while len(rows):  # an image may have no text
        found, scores = search(asking.rows.take(rows), depth)
        deeper = []
        for part, image in _parts(asking.image[rows]):
            others, cosines = _others(searched, found[part], scores[part], image, threshold)
            done[image - images[0]] = others[skip : skip + neighbours], cosines[skip : skip + neighbours]
            surest = scores[part, -1].max()  # pairs that were not found lie below
            if np.count_nonzero(cosines >= surest) < skip + neighbours:
                deeper.append(rows[part])
        if depth == deepest or not deeper:
            break
        rows, depth = np.concatenate(deeper), min(2 * depth, deepest)
    return done


def _parts(images: np.ndarray) -> Iterator[tuple[slice, int]]:
    """The stretches of equal numbers."""
    starts = np.flatnonzero(np.diff(images, prepend=-1))
    for start, end in zip(starts.tolist(), [*starts[1:].tolist(), len(images)], strict=True):
        yield slice(start, end), int(images[start])


def _others(
    searched: _Side, found: np.ndarray, scores: np.ndarray, image: int, threshold: float
) -> tuple[np.ndarray, np.ndarray]:
    """The other images among the rows `found` (q, k), each once with its best cosine, best first, without near-duplicates."""
    kept = found >= 0
    others, cosines = searched.image[found[kept]], scores[kept]
    order = np.lexsort((others, -cosines))
    others, cosines = others[order], cosines[order]
    _, first = np.unique(others, return_index=True)
    first.sort()
    others, cosines = others[first], cosines[first]
    keep = (others != image) & (cosines < threshold)
    return others[keep], cosines[keep]


def _table(
    keys: pa.Array, images: np.ndarray, found: list[tuple[np.ndarray, np.ndarray]], schema: pa.Schema
) -> pa.Table:
    ends = np.cumsum([0, *(len(others) for others, _ in found)]).astype(np.int32)
    others = keys.take(pa.array(np.concatenate([others for others, _ in found])))
    cosines = pa.array(np.concatenate([cosines for _, cosines in found]).astype(np.float32))
    lists = [pa.ListArray.from_arrays(pa.array(ends), values) for values in (others, cosines)]
    return pa.table([keys.take(pa.array(images)), *lists], schema=schema)
