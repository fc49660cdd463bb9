"""Hard negatives: which samples `dualenc data mine` found to be like each one, and an epoch's order that puts them together."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dualenc.data.keys import Keys
from dualenc.files import sha256

log = logging.getLogger("dualenc")

KEY, NEIGHBOURS = "key", "neighbours"  # columns of a mined file
ROWS = 65_536  # of it that are handled at once


@dataclasses.dataclass(frozen=True)
class Neighbours:
    """For sample i of N, the positions of its hard negatives: found[starts[i] : starts[i + 1]].

    starts: int64 (N + 1,). found: int32, each 0 .. N - 1. digest: of the file that they come from.
    """

    starts: np.ndarray
    found: np.ndarray
    digest: str = ""


def hard_order(order: np.ndarray, mined: Neighbours, batch_size: int, share: float) -> np.ndarray:
    """A permutation of `order` (n,), itself one of range(n), whose batches hold mined neighbours of their own samples.

    Batch by batch: the first sample of `order` that is not placed yet comes next, an anchor; right after it come mined
    neighbours of it that are not placed yet, those first that are first in `order`, as many as there are while at most
    `share` of the batch's rows so far are such neighbours. An anchor that has too few leaves its part to the next ones.
    So `share` is reached as long as anchors have neighbours left, which towards the end of an epoch they have less and
    less; at 0.5 each anchor brings one neighbour, at 1 all of them. A function of its arguments alone.
    """
    n = len(order)
    place = np.empty(n, dtype=np.int64)
    place[order] = np.arange(n)
    in_order, placed = order.tolist(), np.zeros(n, dtype=bool)
    starts, found = mined.starts.tolist(), mined.found
    chosen: list[int] = []
    anchors = iter(in_order)
    for first in range(0, n, batch_size):
        end, hard = min(first + batch_size, n), 0
        while len(chosen) < end:
            anchor = next(i for i in anchors if not placed[i])
            placed[anchor] = True
            chosen.append(anchor)
            spare = share * (len(chosen) - first) - hard  # a neighbour that is added takes 1 - share of it
            most = min(end - len(chosen), int(spare / (1 - share) + 1e-9) if share < 1 else n)
            if most and starts[anchor + 1] > starts[anchor]:
                near = found[starts[anchor] : starts[anchor + 1]]
                added = [in_order[i] for i in _first(place[near[~placed[near]]], most)]
                placed[added] = True
                chosen += added
                hard += len(added)
    return np.array(chosen, dtype=np.int64)


def _first(places: np.ndarray, most: int) -> list[int]:
    """The `most` smallest, each once."""
    if most == 1:
        return [int(places.min())] if len(places) else []
    return np.unique(places)[:most].tolist()


def read_neighbours(path: str | Path, keys: Keys) -> Neighbours:
    """The mined file `path` (parquet: `key`, and `neighbours`, a list of keys) in positions of the data's `keys`.

    Keys that the data lacks are left out, and counted in the log. ValueError: not such a file, a key twice, or no sample
    with a neighbour; FileNotFoundError: no file.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(
            f"data.hard_negatives {path}: no such file; make it with `dualenc data mine STORE {path}`"
        )
    counts = np.zeros(len(keys) + 1, dtype=np.int64)
    rows, owners, parts = 0, [np.zeros(0, np.int64)], [np.zeros(0, np.int32)]
    known = _as_array(keys)
    for batch in _batches(path):
        anchors = _positions(batch.column(KEY), known)
        listed = batch.column(NEIGHBOURS)
        owner = anchors[pc.list_parent_indices(listed).to_numpy()]
        near = _positions(pc.list_flatten(listed), known)
        both = (owner >= 0) & (near >= 0) & (owner != near)
        owners.append(owner[both])
        parts.append(near[both].astype(np.int32))
        np.add.at(counts, anchors[anchors >= 0], 1)
        rows += len(anchors)
    if counts.max() > 1:
        raise ValueError(
            f"{path}: key {keys[int(counts.argmax())]!r} has several rows, so which are its neighbours is unclear"
        )
    owner = np.concatenate(owners)
    by_owner = np.argsort(owner, kind="stable")
    starts = np.concatenate([[0], np.bincount(owner, minlength=len(keys)).cumsum()]).astype(np.int64)
    mined = Neighbours(starts, np.concatenate(parts)[by_owner], sha256(path))
    _report(path, mined, rows, int(counts.sum()))
    return mined


def _report(path: str | Path, mined: Neighbours, rows: int, known: int) -> None:
    samples = len(mined.starts) - 1
    having = int((np.diff(mined.starts) > 0).sum())
    if not having:
        raise ValueError(
            f"data.hard_negatives {path}: none of its {rows:,} keys is a training sample with a neighbour among them; mine the "
            "store of this training data"
        )
    level = logging.INFO if having == samples and known == rows else logging.WARNING
    log.log(
        level,
        "%s: %s of %s training samples have hard negatives; %s of its %s keys are not in the training data",
        path,
        *(f"{number:,}" for number in (having, samples, rows - known, rows)),
    )


def _batches(path: str | Path) -> Iterator[pa.RecordBatch]:
    try:
        with pq.ParquetFile(path) as file:
            schema = file.schema_arrow
            kind = schema.field(NEIGHBOURS).type if NEIGHBOURS in schema.names else pa.null()
            if KEY not in schema.names or not (pa.types.is_list(kind) or pa.types.is_large_list(kind)):
                raise ValueError(
                    f"{path} is no file of hard negatives (columns key and neighbours); make it with `dualenc data mine`"
                )
            yield from file.iter_batches(ROWS, columns=[KEY, NEIGHBOURS])
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path} does not open as parquet ({str(error).splitlines()[0]}); mine it again") from error


def _positions(names: pa.Array, known: pa.Array) -> np.ndarray:
    """int64: where each name stands among `known`; -1 for none."""
    if not (pa.types.is_string(names.type) or pa.types.is_large_string(names.type)):
        raise ValueError(f"its keys are {names.type}, and keys are text; mine again")
    found = pc.index_in(names.cast(pa.large_binary()), value_set=known)
    return found.fill_null(-1).to_numpy().astype(np.int64)


def _as_array(keys: Keys) -> pa.Array:
    """The keys as Arrow's bytes, none of them copied."""
    offsets = np.concatenate([[0], keys.ends]).astype(np.int64)
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(np.ascontiguousarray(keys.data))]
    return pa.Array.from_buffers(pa.large_binary(), len(keys), buffers)
