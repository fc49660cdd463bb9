"""A segment: one FAISS file with the ids of its rows, those that were removed since, and the rows as they were given.

A search asks FAISS for candidates and, where its codes are lossy, scores them again from the original rows. A filter
that leaves few rows needs no FAISS at all: those rows are compared exactly.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

import faiss
import numpy as np

from dualenc.index.kinds import Allowed, Kind
from dualenc.index.kinds.base import MOSTLY
from dualenc.index.vectors import BLOCK, Rows, unit_rows

LEAST = 10  # results that recall was measured on: fewer are the first of as many, or they would be worse
GATHERED = 32 << 20  # bytes of a filter's rows that are compared exactly, and kept for its next search
LARGEST = 128 << 20  # bytes of a filter's rows that are read for one search at most
BUFFER = 16 << 20  # bytes of candidates that are scored again at once


@dataclass(frozen=True)
class Segment:
    """Rows of an index that were written together. Row r of it has id ids[r]."""

    number: int
    kind: Kind
    ids: np.ndarray  # (N,) int64
    removed: np.ndarray  # (R,) int64, sorted row numbers
    vectors: Rows | None  # the rows as they were given; None: the FAISS file has them, or nobody

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def live(self) -> int:
        """Rows that were not removed."""
        return len(self.ids) - len(self.removed)

    @property
    def lossless(self) -> bool:
        """Whether the original rows can be had."""
        return self.kind.exact or self.vectors is not None

    @cached_property
    def alive(self) -> np.ndarray:
        """(live,) int64: numbers of the rows that were not removed."""
        kept = np.ones(len(self), bool)
        kept[self.removed] = False
        return np.flatnonzero(kept)

    @cached_property
    def _standing(self) -> Allowed | None:
        return Allowed(self._mask(None)) if len(self.removed) else None

    def allow(self, mask: np.ndarray) -> Allowed:
        """What a filter leaves here. mask: (live,) bool, over the rows that were not removed."""
        return Allowed(self._mask(mask))

    def _mask(self, mask: np.ndarray | None) -> np.ndarray:
        rows = np.zeros(len(self), bool)
        rows[self.alive if mask is None else self.alive[mask]] = True
        return rows

    def find(self, ids: np.ndarray) -> np.ndarray:
        """Row number of each id (…,), -1 where the segment never had it; removed rows are still found."""
        order, ordered = self._order
        if not len(ordered):
            return np.full(ids.shape, -1, np.int64)
        if order is None and ordered[-1] - ordered[0] == len(ordered) - 1:  # the usual case: consecutive ids
            inside = (ids >= ordered[0]) & (ids <= ordered[-1])
            return np.where(inside, ids - ordered[0], -1)
        place = np.minimum(np.searchsorted(ordered, ids), len(ordered) - 1)
        return np.where(ordered[place] == ids, place if order is None else order[place], -1)

    @cached_property
    def _order(self) -> tuple[np.ndarray | None, np.ndarray]:
        """(argsort, sorted ids); the argsort is None where ids rise as they are."""
        ids = np.asarray(self.ids)
        if (ids[1:] > ids[:-1]).all():
            return None, ids
        order = np.argsort(ids)
        ordered = ids[order]
        if (ordered[1:] == ordered[:-1]).any():
            raise ValueError("the index lists an id twice; restore it or build it again")
        return order, ordered

    def take(self, rows: np.ndarray) -> np.ndarray:
        """(n, D) unit float32: the original rows with these numbers. ValueError where nobody has them any more."""
        if self.vectors is not None:
            return unit_rows(self.vectors.take(rows), "the original rows", numbers=rows)
        if self.kind.exact:
            return self.kind.take(rows, self.ids)
        raise ValueError(
            f"the index holds {self.kind.build.get('codes') or 'codes'} without their original rows, so rows cannot be read "
            "back; build it with a recipe that re-ranks, which keeps them"
        )

    def originals(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(ids, rows as they were given) of all that was not removed, in order, by the block."""
        read = self.take if self.vectors is None else self.vectors.take
        for start in range(0, self.live, BLOCK):
            rows = self.alive[start : start + BLOCK]
            yield np.asarray(self.ids)[rows], read(rows)

    def search(
        self, queries: np.ndarray, k: int, setting: dict[str, int], allowed: Allowed | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The k best rows for unit queries (Q, D): ids (Q, k) and cosines (Q, k), -1 and -inf where there are fewer.

        allowed: the rows that may be found, made by `allow`; None: all that were not removed.
        """
        if allowed is not None and self.lossless and allowed.count <= self._few(setting):
            return self._exact(queries, k, allowed)
        allowed = self._standing if allowed is None else allowed
        if "rerank" not in setting or self.vectors is None:
            return self.kind.search(queries, k, setting, self.ids, allowed)
        ids, scores = self._reranked(queries, k, setting, allowed)
        if allowed is None or allowed.count >= MOSTLY * len(self):
            return ids, scores
        # what a filter leaves may lie farther from a query than codes are good for: more candidates, until they change nothing
        pending, wide = np.arange(len(queries)), setting["rerank"]
        while len(pending) and max(k, LEAST) * wide < allowed.count:
            wide *= 2
            found = self._reranked(queries[pending], k, {**setting, "rerank": wide}, allowed)
            new = (found[0] != ids[pending]).any(axis=1)
            ids[pending], scores[pending] = found
            pending = pending[new]
        return ids, scores

    def _reranked(
        self, queries: np.ndarray, k: int, setting: dict[str, int], allowed: Allowed | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The k best of k × rerank candidates, by their original rows."""
        count = min(max(k, LEAST) * setting["rerank"], len(self))
        candidates = self.kind.search(queries, count, setting, self.ids, allowed, least=k)[0]
        ids, scores = self._rerank(queries, candidates, k)
        return _padded(ids, -1, k), _padded(scores, -np.inf, k)

    def _few(self, setting: dict[str, int]) -> float:
        # twice what an unfiltered search looks at: an exact scan is a matrix product, FAISS's is row by row
        row = 4 * self.kind.dim
        return min(max(GATHERED // row, 2 * self.kind.scanned(setting, len(self))), LARGEST // row)

    def _exact(self, queries: np.ndarray, k: int, allowed: Allowed) -> tuple[np.ndarray, np.ndarray]:
        if not allowed.count or not len(queries):
            return np.full((len(queries), k), -1, np.int64), np.full((len(queries), k), -np.inf, np.float32)
        rows = allowed.cache.get("numbers")
        if rows is None:
            rows = allowed.cache["numbers"] = np.flatnonzero(allowed.rows)
        vectors = allowed.cache.get("vectors")
        if vectors is None:
            vectors = self.take(rows)
            if vectors.nbytes <= GATHERED:
                allowed.cache["vectors"] = vectors
        scores, found = faiss.knn(queries, vectors, min(k, len(rows)), metric=faiss.METRIC_INNER_PRODUCT)
        return _padded(np.asarray(self.ids[rows])[found], -1, k), _padded(scores, -np.inf, k)

    def _rerank(self, queries: np.ndarray, ids: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k best of each query's candidates (Q, C), by the cosine with their original rows."""
        step = max(1, BUFFER // (4 * queries.shape[1] * max(1, ids.shape[1])))
        pieces = [slice(start, start + step) for start in range(0, len(queries), step)]
        if not pieces:
            return ids[:, :k], np.zeros((0, min(k, ids.shape[1])), np.float32)
        workers = min(len(pieces), faiss.omp_get_max_threads())
        if workers == 1:
            parts = [self._rescore(queries[piece], ids[piece], k) for piece in pieces]
        else:
            # one thread each: theirs would otherwise be as many again
            with ThreadPoolExecutor(workers, initializer=faiss.omp_set_num_threads, initargs=(1,)) as pool:
                parts = list(pool.map(lambda piece: self._rescore(queries[piece], ids[piece], k), pieces))
        return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])

    def _rescore(self, queries: np.ndarray, ids: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        there = ids >= 0
        rows = self.find(ids[there])
        if len(rows) and rows.min() < 0:
            raise ValueError("the FAISS file holds ids that the index does not list; restore it or build again")
        if len(rows) and there.all():
            candidates = self.take(rows).reshape(*ids.shape, -1)
        else:  # one way for all queries: another one's sums would differ in the last bits
            candidates = np.zeros((*ids.shape, queries.shape[1]), np.float32)
            candidates[there] = self.take(rows)
        scores = np.where(there, np.matmul(candidates, queries[:, :, None])[:, :, 0], -np.inf)
        best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        return np.take_along_axis(ids, best, 1), np.take_along_axis(scores, best, 1)


def _padded(values: np.ndarray, fill: float, k: int) -> np.ndarray:
    """`values` (Q, n) widened to (Q, k) with `fill`."""
    if values.shape[1] == k:
        return values
    wide = np.full((len(values), k), fill, values.dtype)
    wide[:, : values.shape[1]] = values
    return wide


def search_segments(
    segments: list[Segment],
    queries: np.ndarray,
    k: int,
    setting: dict[str, int],
    allowed: list[Allowed] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The k best rows over all segments, ids (Q, k) and cosines (Q, k), best first; of equals, the earlier segment's."""
    found = [
        segment.search(queries, k, setting, None if allowed is None else allowed[place])
        for place, segment in enumerate(segments)
    ]
    if len(found) == 1:
        return found[0]
    ids, scores = (np.concatenate([part[side] for part in found], axis=1) for side in (0, 1))
    best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(ids, best, 1), np.take_along_axis(scores, best, 1)
