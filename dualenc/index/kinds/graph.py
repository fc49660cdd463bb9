"""HNSW: a graph of neighbours. FAISS cannot take a node out of it: removed rows stay as ways through it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from dualenc.index.kinds.base import MOSTLY, Allowed, Kind, bitmap, faiss, parameters
from dualenc.index.kinds.codes import MARGIN
from dualenc.index.kinds.flat import HEADER, stored_rows

_STORED = {"float32": "Flat", "float16": "SQfp16", "sq8": "SQ8"}
_BYTES = {"float32": 4, "float16": 2, "sq8": 1}  # a dimension


class Graph(Kind):
    """HNSW over rows or scalar codes of them. Never centred. Positions are in the order in which rows were added, which
    need not be that of the segment's ids: rows that were held out to measure with are added last."""

    name = "hnsw"
    settings, knobs = ("M", "efConstruction", "codes"), ("efSearch",)
    joins = False

    def __init__(self, index: Any, build: dict[str, Any], mean: np.ndarray | None = None, mapped: bool = False):
        super().__init__(index, build, None, mapped)
        self._graph = faiss.downcast_index(index.index)
        self._rows = faiss.downcast_index(self._graph.storage)
        self._placed: tuple[np.ndarray | None, np.ndarray | None] | None = None

    def _order(self, ids: np.ndarray) -> tuple[np.ndarray | None, np.ndarray | None]:
        """(row of each position, position of each row); None, None where they are the same."""
        if self._placed is None:  # two threads may both make it: the same
            labels = faiss.vector_to_array(self.index.id_map)
            if np.array_equal(labels, ids):
                self._placed = None, None
            else:
                by_id, positions = np.argsort(ids), np.empty(len(ids), np.int64)
                rows = by_id[np.minimum(np.searchsorted(ids, labels, sorter=by_id), len(ids) - 1)]
                if not np.array_equal(np.asarray(ids)[rows], labels):
                    raise ValueError(
                        "the FAISS file does not hold the ids that the index lists; restore it or build again"
                    )
                positions[rows] = np.arange(len(ids))
                self._placed = rows, positions
        return self._placed

    def _changed(self) -> None:
        super()._changed()
        self._placed = None

    def _selector(self, ids: np.ndarray, allowed: Allowed) -> tuple[Any, ...]:
        rows = self._order(ids)[0]
        return bitmap(allowed.rows if rows is None else allowed.rows[rows])

    def _ids(self, labels: np.ndarray, ids: np.ndarray) -> np.ndarray:
        rows = self._order(ids)[0]
        return ids[labels] if rows is None else ids[rows[labels]]

    @classmethod
    def trains(cls, build: dict[str, Any]) -> bool:
        return build["codes"] == "sq8"

    @classmethod
    def _blank(cls, build: dict[str, Any], dim: int) -> Graph:
        factory = f"IDMap,HNSW{build['M']},{_STORED[build['codes']]}"
        kind = cls(faiss.index_factory(dim, factory, faiss.METRIC_INNER_PRODUCT), build)
        kind._graph.hnsw.efConstruction = build["efConstruction"]
        return kind

    @classmethod
    def new(cls, build: dict[str, Any], dim: int, mean: np.ndarray | None, sample: np.ndarray | None) -> Kind:
        kind = cls._blank(build, dim)
        if cls.trains(build):
            kind._rows.sq.rangestat_arg = MARGIN
            kind.index.train(sample)
        return kind

    def empty(self) -> Kind:
        fresh = self._blank(self.build, self.dim)
        if self.trains(self.build):
            faiss.copy_array_to_vector(faiss.vector_to_array(self._rows.sq.trained), fresh._rows.sq.trained)
            fresh._rows.is_trained = fresh._graph.is_trained = fresh.index.is_trained = True
        return fresh

    @classmethod
    def read(
        cls, path: Path, build: dict[str, Any], dim: int, total: int, mean: np.ndarray | None, mapped: bool = True
    ) -> Kind:
        kind = super().read(path, build, dim, total, mean, mapped)
        there = (kind._graph.hnsw.nb_neighbors(0), kind._rows.sa_code_size())  # type: ignore[attr-defined]
        if there != (2 * build["M"], _BYTES[build["codes"]] * dim):
            raise ValueError(f"{path} has other links or codes than the manifest says; restore it or build again")
        return kind

    @classmethod
    def bytes_needed(cls, build: dict[str, Any], rows: int, dim: int) -> int:
        M = build["M"]
        links = 2 * M + M / (M - 1) if M > 1 else 2  # on the lowest level, and on the levels above it on average
        return round(rows * (_BYTES[build["codes"]] * dim + 4 * links + 20)) + HEADER  # 20: id, level, offset

    @classmethod
    def letters(cls, build: dict[str, Any]) -> tuple[bytes, bytes]:
        return b"IxMp", b"IHNf" if build["codes"] == "float32" else b"IHNs"

    @property
    def code_bytes(self) -> int:
        return self.total * self._rows.sa_code_size()

    def remove(self, ids: np.ndarray) -> None:
        """FAISS has no way to; leave rows out by `allowed`."""
        raise NotImplementedError("rows cannot be removed from a graph")

    def absorb(self, other: Kind, offset: int = 0) -> None:
        """FAISS has no way to; add the rows."""
        raise NotImplementedError("graphs cannot be joined")

    def keep_setting(self, setting: dict[str, int]) -> None:
        self._graph.hnsw.efSearch = setting["efSearch"]

    def scanned(self, setting: dict[str, int], rows: int) -> float:
        return min(rows, setting["efSearch"] * self._graph.hnsw.nb_neighbors(0))

    def take(self, rows: np.ndarray, ids: np.ndarray) -> np.ndarray:
        if not self.exact:
            return super().take(rows, ids)
        positions = self._order(ids)[1]
        return stored_rows(self._rows, rows if positions is None else positions[rows])

    def _approximate(
        self,
        queries: np.ndarray,
        k: int,
        setting: dict[str, int],
        selector: Any,
        allowed: Allowed | None,
        ids: np.ndarray,
    ) -> Any:
        wide = max(setting["efSearch"], k)
        if allowed is None:
            return self._walk(queries, k, wide, None)
        if allowed.count >= MOSTLY * self.total:
            return self._walk(queries, k, math.ceil(wide * self.total / allowed.count), selector)
        return self._widened(queries, k, wide, selector, allowed.count)

    def _widened(self, queries: np.ndarray, k: int, wide: int, selector: Any, live: int) -> Any:
        """Through a filter: the fewer nodes count, the more must be visited for as many that do; and where those around a
        query do not, more than that. So each query's walk is doubled until it finds nothing new."""
        wide = math.ceil(2 * wide * self.total / live)
        scores, labels = np.full((len(queries), k), -np.inf, np.float32), np.full((len(queries), k), -1, np.int64)
        pending = np.arange(len(queries))
        while len(pending):
            if wide * self._graph.hnsw.nb_neighbors(1) >= live:  # as many distances as all the rows that count
                scores[pending], labels[pending] = self._exhaustive(queries[pending], k, selector)
                break
            found = self._walk(queries[pending], k, wide, selector)
            new = (found[1] != labels[pending]).any(axis=1)
            scores[pending], labels[pending] = found
            pending, wide = pending[new], 2 * wide
        return scores, labels

    def _walk(self, queries: np.ndarray, k: int, wide: int, selector: Any) -> Any:
        return self._graph.search(queries, k, params=parameters("HNSW", selector, efSearch=wide))

    def _exhaustive(self, queries: np.ndarray, k: int, selector: Any) -> Any:
        return self._rows.search(queries, k, params=parameters("", selector) if selector else None)
