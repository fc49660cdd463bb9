"""Fill one kind of index with rows that need not fit in memory; a build that was killed goes on from what is on disk.

What is left in the `work` folder, each file appearing whole, with its size and SHA-256 beside it as NAME.json:

    plan.json                 what is being built, of what: work left by anything else is not taken up
    mean.npy                  (D,) float32, where the kind is centred
    trained.faiss             the kind with centroids and codes but no rows, where the kind trains
    part-00007.faiss          rows 7 x 262,144 and on, for kinds whose parts can be joined
    graph-000000819200.faiss  so many rows, for a graph, which cannot be put together from parts
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import faiss as _faiss
import numpy as np
from tqdm import tqdm

from dualenc.index.kinds import KINDS
from dualenc.index.kinds.base import Kind
from dualenc.index.vectors import BLOCK, Rows, unit_rows
from dualenc.index.work import claim, clear, keep, kept

faiss: Any = _faiss  # its type stubs lack what its Python layer adds

PART = 262_144  # rows a part: 537 MB at D = 512, which is what a killed build loses at most
PATIENCE = 60.0  # seconds between checkpoints of a graph, each of which writes the whole of it
CODE_ROWS = (
    16_384  # what codes are trained on at least: sq8's ranges and pq's 16 centroids need rows, however few the lists
)
GRAPH_BLOCK = 8_192  # rows added to a graph at once: some seconds of work
PROBES = 256  # rows that a source is recognised by


def fill(
    build: dict[str, Any],
    rows: Rows,
    ids: np.ndarray,
    work: str | Path | None = None,
    skip: np.ndarray | None = None,
    progress: bool = True,
    source: str | None = None,
    part: int = PART,
    patience: float = PATIENCE,
) -> Kind:
    """A kind as `build` (a resolved recipe's) says, trained on random rows and filled with all of `rows` but `skip`.

    ids: (N,) int64. skip: sorted row numbers that are left out, of the training too. work: a folder for what a killed
    build leaves; the next call with the same arguments goes on from there, one with others begins anew. None: all in
    memory, as where the rows are one part at most. Memory: the index, one part, one block; while training, the sample.
    source: what tells these rows from others; None: `source_key`. ValueError names a row that is not unit.
    """
    chosen = np.arange(len(rows)) if skip is None else np.delete(np.arange(len(rows)), skip)
    todo = _Todo(build, rows, ids, chosen, progress)
    if work is None or len(chosen) <= part:
        kind = _new(todo, None)
        with todo.bar("rows", len(chosen)) as bar:
            _add(kind, todo, 0, len(chosen), bar)
        return kind
    folder = Path(work)
    claim(folder, _plan(todo, source, part))
    kind = _new(todo, folder)
    return _join(kind, todo, folder, part) if kind.joins else _grow(kind, todo, folder, patience)


class _Todo:
    """What is to be filled in; `chosen`: (n,) the row numbers that go in."""

    def __init__(self, build: dict[str, Any], rows: Rows, ids: np.ndarray, chosen: np.ndarray, progress: bool):
        self.build, self.rows, self.ids, self.chosen, self.progress = build, rows, ids, chosen, progress

    def blocks(self, first: int, last: int, size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(row numbers, unit rows) of chosen[first:last], `size` at a time: the same blocks wherever a build resumes."""
        for start in range(first, last, size):
            numbers = self.chosen[start : min(start + size, last)]
            yield numbers, unit_rows(self.rows.take(numbers), "vectors", numbers=numbers)

    def bar(self, text: str, total: int, done: int = 0) -> tqdm:
        hide = None if self.progress else True  # None: shown on a terminal
        return tqdm(total=total, initial=done, desc=text, unit="row", unit_scale=True, disable=hide)


def _new(todo: _Todo, work: Path | None) -> Kind:
    """The kind, trained and empty; mean and training are taken up from `work` where they are whole."""
    cls, build, dim = KINDS[todo.build["kind"]], todo.build, todo.rows.dim
    mean = None
    if build.get("centred"):
        mean = kept(work, "mean.npy", lambda path: np.load(path, allow_pickle=False))
        if mean is None:
            mean = _mean(todo)
            clear(work, "trained*", "part-*")  # what was made with another mean does not fit this one
            keep(work, "mean.npy", lambda path: _save(path, mean))
    if not cls.trains(build):
        return cls.new(build, dim, mean, None)
    kind = kept(work, "trained.faiss", lambda path: cls.read(path, build, dim, 0, mean, mapped=False))
    if kind is None:
        kind = cls.new(build, dim, mean, _sample(todo))
        clear(work, "part-*")
        keep(work, "trained.faiss", kind.write)
    return kind


def _mean(todo: _Todo) -> np.ndarray:
    """(D,) float32 mean of the rows, summed in float64."""
    total = np.zeros(todo.rows.dim)
    with todo.bar("mean", len(todo.chosen)) as bar:
        for numbers, block in todo.blocks(0, len(todo.chosen), BLOCK):
            total += block.sum(axis=0, dtype=np.float64)
            bar.update(len(numbers))
    return (total / len(todo.chosen)).astype(np.float32)


def _sample(todo: _Todo) -> np.ndarray:
    """Unit rows to train on: random, never the first ones, which may all be of one kind; in order, to be read quickly."""
    build, most = todo.build, len(todo.chosen)
    lists = build.get("nlist", 0)
    fewest = lists if build.get("codes", "float32") == "float32" else max(lists, CODE_ROWS)
    count = min(most, max(lists * build.get("train_rows_per_list", 0), fewest))
    picked = np.sort(np.random.default_rng(build.get("seed", 0)).permutation(most)[:count])
    sample = np.empty((count, todo.rows.dim), np.float32)
    for start in range(0, count, GRAPH_BLOCK):  # in pieces: what a store returns is copied once more to make unit rows
        numbers = todo.chosen[picked[start : start + GRAPH_BLOCK]]
        sample[start : start + GRAPH_BLOCK] = unit_rows(todo.rows.take(numbers), "vectors", numbers=numbers)
    text = f"training {lists:,} centroids on {count:,} rows" if lists > 1 else f"training codes on {count:,} rows"
    tqdm(total=0, desc=text, bar_format="{desc}", disable=None if todo.progress else True).close()
    return sample


def _add(kind: Kind, todo: _Todo, first: int, last: int, bar: tqdm) -> None:
    """Add the rows chosen[first:last]."""
    for numbers, block in todo.blocks(first, last, BLOCK if kind.joins else GRAPH_BLOCK):
        kind.add(block, todo.ids[numbers])
        bar.update(len(numbers))


def _join(kind: Kind, todo: _Todo, work: Path, part: int) -> Kind:
    """Fill `kind` from parts: those that are missing in `work` are made, then all are absorbed in their order."""
    total = len(todo.chosen)
    names = {f"part-{number:05d}.faiss": number * part for number in range(math.ceil(total / part))}
    with todo.bar("rows", total) as bar:
        for name, first in names.items():
            last = min(first + part, total)
            if kept(work, name, Path) is None:
                piece = kind.empty()
                _add(piece, todo, first, last, bar)
                keep(work, name, piece.write)
                del piece  # before the next one is begun
            else:
                bar.update(last - first)
    with todo.bar("merging", total) as bar:
        sizes = {name: min(first + part, total) - first for name, first in names.items()}
        _reserve(kind, total, (_read(kind, work / name, size, mapped=True) for name, size in sizes.items()))
        for name, size in sizes.items():
            kind.absorb(_read(kind, work / name, size, mapped=False))
            bar.update(size)
    return kind


def _read(kind: Kind, path: Path, total: int, mapped: bool) -> Kind:
    return type(kind).read(path, kind.build, kind.dim, total, kind.mean, mapped=mapped)


def _reserve(kind: Kind, total: int, parts: Iterable[Kind] = ()) -> None:
    """Give `kind` the room that `total` rows need: in each list as much as there is in the lists of all parts.

    FAISS's vectors double as they grow, the old one beside the new: without this the peak is up to twice the index.
    Fast-scan blocks (codes: pq) have no such room to keep; they are small.
    """
    if not hasattr(kind.index, "invlists"):
        inner = faiss.downcast_index(kind.index.index)
        stored = faiss.downcast_index(inner.storage) if hasattr(inner, "storage") else inner
        size = stored.codes.size()
        stored.codes.resize(total * stored.code_size)
        stored.codes.resize(size)  # a vector that shrinks keeps its room
        return
    lists = faiss.downcast_InvertedLists(kind.index.invlists)
    if isinstance(lists, faiss.ArrayInvertedLists):
        sizes = np.zeros(lists.nlist, np.int64)
        for one in parts:
            sizes += [one.index.invlists.list_size(number) for number in range(lists.nlist)]
        for number, size in enumerate(sizes.tolist()):
            lists.resize(number, size)
            lists.resize(number, 0)


def _grow(kind: Kind, todo: _Todo, work: Path, patience: float) -> Kind:
    """Add all rows to a graph, from the last checkpoint on."""
    kind, done = _checkpoint(kind, work)
    saved_at, total = time.monotonic(), len(todo.chosen)
    _reserve(kind, total)
    with todo.bar("rows", total, done) as bar:
        for first in range(done, total, GRAPH_BLOCK):
            last = min(first + GRAPH_BLOCK, total)
            _add(kind, todo, first, last, bar)
            if time.monotonic() - saved_at > patience and last < total:
                older = [path.stem for path in work.glob("graph-*.faiss")]
                keep(work, f"graph-{last:012d}.faiss", kind.write)
                clear(work, *(f"{stem}.*" for stem in older))
                saved_at = time.monotonic()
    return kind


def _checkpoint(empty: Kind, work: Path) -> tuple[Kind, int]:
    """The newest graph in `work` that is whole, and its rows; else the empty one and 0."""
    for path in sorted(work.glob("graph-*.faiss"), reverse=True):
        rows = int(path.stem.removeprefix("graph-"))
        if kept(work, path.name, Path) is not None:
            graph = _read(empty, path, rows, mapped=False)
            _same_levels(graph, rows)
            return graph, rows
    return empty, 0


def _same_levels(kind: Kind, rows: int) -> None:
    """Draw the levels of the rows that are in the graph once more: its file does not hold the generator's state."""
    hnsw = faiss.downcast_index(kind.index.index).hnsw
    for _ in range(rows):
        hnsw.random_level()


def _plan(todo: _Todo, source: str | None, part: int) -> dict[str, Any]:
    """What is being built: equal for equal work."""
    return {
        "build": todo.build,
        "shape": [len(todo.rows), todo.rows.dim],
        "ids": _hash(todo.ids),
        "chosen": _hash(todo.chosen),
        "source": source_key(todo.rows) if source is None else source,
        "part": part,
        "faiss": faiss.__version__,
    }


def source_key(rows: Rows) -> str:
    """What tells these rows from others: their number, D, and a hash of 256 spread over all, first and last included."""
    numbers = np.unique(np.linspace(0, len(rows) - 1, PROBES).round().astype(np.int64))
    return f"{len(rows)} x {rows.dim}: {_hash(np.asarray(rows.take(numbers), np.float32))}"


def _hash(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()


def _save(path: Path, array: np.ndarray) -> None:
    with open(path, "wb") as file:  # np.save adds .npy to a name
        np.save(file, array, allow_pickle=False)
