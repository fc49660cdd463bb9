"""Pages of hits: an offset, a threshold, one hit per group; over any search, exact or approximate."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa

Search = Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray]]
Groups = Callable[[np.ndarray], np.ndarray]
ENTRIES = 1 << 22  # most ids that one call of the search is asked for at once: about 50 MB


def page(
    search: Search,
    queries: np.ndarray,
    k: int,
    total: int,
    offset: int = 0,
    threshold: float | None = None,
    groups: Groups | None = None,
    without: int = -1,
) -> tuple[np.ndarray, np.ndarray]:
    """Hits offset .. offset + k of each query (Q, D): ids (Q, k) int64 and scores (Q, k) float32, -1 and -inf at the end.

    search(queries, count): ids and scores (Q, count) best first, -1 where there are no more; equal scores keep its
    order. total: rows it may find. threshold: only scores of at least this. groups(ids (n,)): an int64 group number per
    id; of a group only the best hit counts, -1 is a group of its own. without: an id that is no hit. A page holds no id and no
    group twice; where the search is approximate, another page of the same query may hold one of them again. ValueError: k,
    offset, threshold.
    """
    _check(k, offset, threshold)
    # in the scores' own precision: a score that was given back is not below itself
    least = np.float32(-np.inf if threshold is None else np.clip(threshold, -3e38, 3e38))
    need, ids = offset + k, np.full((len(queries), k), -1, np.int64)
    scores = np.full((len(queries), k), -np.inf, np.float32)
    pending = np.arange(len(queries)) if offset < total else np.arange(0)
    count = min(need + (without >= 0), total)
    while len(pending):
        step, short = max(1, ENTRIES // count), []
        for block in (pending[start : start + step] for start in range(0, len(pending), step)):
            found, close = search(queries[block], count)
            for query, row, score in zip(block, found, close, strict=True):
                kept = _kept(np.where(row == without, -1, row), score, least, groups)
                if len(kept) < need and count < total and row[-1] >= 0 and score[-1] >= least:
                    short.append(query)
                    continue
                shown = kept[offset:need]
                ids[query, : len(shown)], scores[query, : len(shown)] = row[shown], score[shown]
        pending, count = np.array(short, np.int64), min(2 * count, total)
    return ids, scores


def _check(k: int, offset: int, threshold: float | None) -> None:
    for name, value, least in (("k", k, 1), ("offset", offset, 0)):
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
            raise ValueError(f"{name}={value!r}; give a whole number, {least} or more")
    if threshold is None:
        return
    if isinstance(threshold, bool) or not isinstance(threshold, (int, float, np.number)) or math.isnan(threshold):
        raise ValueError(f"threshold={threshold!r} is no number to compare scores with; give a cosine such as 0.25")


def _kept(ids: np.ndarray, scores: np.ndarray, least: np.float32, groups: Groups | None) -> np.ndarray:
    """Positions, in order, of the hits of one query that count."""
    places = np.flatnonzero((ids >= 0) & (scores >= least))
    keys = ids[places]
    if groups is not None and len(keys):
        numbers = groups(keys)
        keys = np.where(numbers >= 0, numbers, -1 - keys)  # without a group: a key that no other id and no group has
    return places[np.sort(np.unique(keys, return_index=True)[1])]


def group_numbers(column: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """(N,) int64: one number for each value of a column of any type, equal values alike; null is -1."""
    if pa.types.is_dictionary(column.type):  # chunks may have dictionaries of their own, with a value twice or null
        column = column.cast(column.type.value_type)
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    chunked = pa.chunked_array(chunks, type=column.type)
    try:
        encoded = chunked.dictionary_encode()
    except pa.ArrowNotImplementedError:  # lists, structs
        return _numbered(chunked.to_pylist())
    parts = [chunk.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64) for chunk in encoded.chunks]
    return np.concatenate([np.empty(0, np.int64), *parts])


def _numbered(values: list[Any]) -> np.ndarray:
    numbers: dict[str, int] = {}
    every = (-1 if value is None else numbers.setdefault(repr(value), len(numbers)) for value in values)
    return np.fromiter(every, np.int64, len(values))
