"""What every kind of index can do. Scores are cosines: the mean is taken from rows and given back to scores here only.

`faiss.read_index` on the file that `Kind.write` leaves gives the same ids: ids are stored in it, and the search setting
too. An inverted-file index holds vectors less their mean m, so scores read that way are less ⟨q, m⟩.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import faiss as _faiss
import numpy as np

from dualenc.index import faiss_file

faiss: Any = _faiss  # its type stubs lack what its Python layer adds: downcasts, keyword arguments, arrays for pointers


MOSTLY = 0.9  # share of rows from which on a filter is but a few holes: a little more width makes up for them


class Allowed:
    """Which rows of a segment may be found, with what was derived from them for searching."""

    def __init__(self, rows: np.ndarray):
        self.rows = rows  # (N,) bool over the segment's rows
        self.count = int(np.count_nonzero(rows))
        self.cache: dict[str, Any] = {}  # selectors and gathered rows, made once per filter and segment


class Kind:
    """FAISS's part of one segment of an index."""

    name: str
    settings: tuple[str, ...] = ()  # a recipe's, under `build:`
    knobs: tuple[str, ...] = ()  # and under `search:`: what trades time for recall
    joins = True  # whether rows can be removed and other indexes absorbed

    def __init__(self, index: Any, build: dict[str, Any], mean: np.ndarray | None = None, mapped: bool = False):
        self.index, self.build, self.mean, self.mapped = index, build, mean, mapped

    @classmethod
    def trains(cls, build: dict[str, Any]) -> bool:
        """Whether `new` needs a sample of rows."""
        return False

    @classmethod
    def new(cls, build: dict[str, Any], dim: int, mean: np.ndarray | None, sample: np.ndarray | None) -> Kind:
        """A trained and empty index as `build` (a resolved recipe's) says. sample: unit float32 rows (n, D) to train on."""
        raise NotImplementedError

    @classmethod
    def bytes_needed(cls, build: dict[str, Any], rows: int, dim: int) -> int:
        """About how many bytes the FAISS file of so many rows takes, and the index in memory."""
        raise NotImplementedError

    @classmethod
    def letters(cls, build: dict[str, Any]) -> tuple[bytes, bytes]:
        """FAISS's letters for the file and for the index inside it (b"": none is inside)."""
        raise NotImplementedError

    @classmethod
    def read(
        cls, path: Path, build: dict[str, Any], dim: int, total: int, mean: np.ndarray | None, mapped: bool = True
    ) -> Kind:
        """Open the FAISS file of `total` rows; mapped: rows stay on disk until they are read. ValueError if it is not that."""
        faiss_file.check_header(path, cls.letters(build), total, dim)
        nlist = build.get("nlist", 0)
        tables = (
            64 * nlist * dim if build.get("codes") == "pq" else 0
        )  # a float32 for each list, sub-quantiser and word
        return cls(faiss_file.read(path, mapped, nlist, tables), build, mean, mapped)

    def write(self, path: Path) -> None:
        """Write the FAISS file; OSError where the disk does not take it."""
        faiss_file.write(self.index, path)

    @property
    def dim(self) -> int:
        """D, of the rows."""
        return self.index.d

    @property
    def total(self) -> int:
        """Rows in the FAISS index."""
        return self.index.ntotal

    @property
    def exact(self) -> bool:
        """Whether the codes are the rows themselves, so that scores are true cosines."""
        return self.build.get("codes", "float32") == "float32"

    @property
    def code_bytes(self) -> int:
        """Bytes of the rows or codes alone."""
        return self.total * self.index.code_size

    def empty(self) -> Kind:
        """An index of the same training without rows; what is added to the one fits the other."""
        raise NotImplementedError

    def add(self, rows: np.ndarray, ids: np.ndarray) -> None:
        """Add unit float32 rows (n, D) with their ids (n,)."""
        self._changed()
        self.index.add_with_ids(rows if self.mean is None else rows - self.mean, ids)

    def remove(self, ids: np.ndarray) -> None:
        """Take the rows with these ids (n,) out of the FAISS index."""
        self._changed()
        ids = np.ascontiguousarray(ids, np.int64)
        self.index.remove_ids(faiss.IDSelectorBatch(ids))

    def absorb(self, other: Kind, offset: int = 0) -> None:
        """Add the rows of another index that `fits`, under the ids they have there, raised by `offset`."""
        raise NotImplementedError

    def fits(self, other: Kind) -> bool:
        """Whether the rows of another index can be absorbed as they are: same kind, build, mean and training."""
        means = (self.mean is None) == (other.mean is None)
        if means and self.mean is not None:
            means = np.array_equal(self.mean, np.asarray(other.mean))
        return type(self) is type(other) and self.build == other.build and self.dim == other.dim and bool(means)

    def keep_setting(self, setting: dict[str, int]) -> None:
        """Store the search setting in the file, for readers that know FAISS only."""

    def scanned(self, setting: dict[str, int], rows: int) -> float:
        """About how many of `rows` rows a search compares one query with."""
        return rows

    def take(self, rows: np.ndarray, ids: np.ndarray) -> np.ndarray:
        """(n, D) float32: the rows with these row numbers (n,). ids: (N,) the id of each row of the segment."""
        raise ValueError(f"an index of kind {self.name} with {self.build.get('codes')} codes does not hold its rows")

    def drift(self, rows: np.ndarray) -> float | None:
        """Mean squared distance of unit rows (n, D) to their centroids; None for a kind without. To watch it grow."""
        return None

    def search(
        self,
        queries: np.ndarray,
        k: int,
        setting: dict[str, int],
        ids: np.ndarray,
        allowed: Allowed | None = None,
        least: int | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """The k best rows for unit float32 queries (Q, D): ids (Q, k) int64 and cosines (Q, k) float32.

        ids: (N,) the id of each row of the segment. allowed: the rows that may be found; None: all. Fewer than
        `least` (default k) are found only where fewer exist: id -1 and score -inf fill up. Cosines are estimates unless
        `exact`.
        """
        found_ids = np.full((len(queries), k), -1, np.int64)
        scores = np.full((len(queries), k), -np.inf, np.float32)
        live = len(ids) if allowed is None else allowed.count
        reach = min(k, live)
        if not reach or not len(queries):
            return found_ids, scores
        selector = None if allowed is None or live == len(ids) else self._cached_selector(ids, allowed)
        found = self._approximate(queries, reach, setting, selector, allowed if selector else None, ids)
        last = min(reach, reach if least is None else least) - 1
        short = np.flatnonzero(found[1][:, last] < 0)  # the lists or the part of the graph visited held too few rows
        if len(short):
            for whole, part in zip(found, self._exhaustive(queries[short], reach, selector), strict=True):
                whole[short] = part
        there = found[1] >= 0
        found_ids[:, :reach] = np.where(there, self._ids(found[1], ids), -1)
        cosines = found[0]
        if self.mean is not None:  # not by `@`, whose last bits for a query depend on how many go with it
            cosines = cosines + np.einsum("qd,d->q", queries, self.mean)[:, None]
        scores[:, :reach] = np.where(there, cosines, -np.inf)
        return found_ids, scores

    def _cached_selector(self, ids: np.ndarray, allowed: Allowed) -> Any:
        """FAISS's selector for the rows allowed. What it points at is kept with it: FAISS's selectors own nothing."""
        key = f"{self.name} selector"
        if key not in allowed.cache:
            allowed.cache[key] = self._selector(ids, allowed)
        return allowed.cache[key][0]

    def _selector(self, ids: np.ndarray, allowed: Allowed) -> tuple[Any, ...]:
        return bitmap(allowed.rows)  # labels inside FAISS are positions, position r is row r

    def _approximate(
        self,
        queries: np.ndarray,
        k: int,
        setting: dict[str, int],
        selector: Any,
        allowed: Allowed | None,
        ids: np.ndarray,
    ) -> Any:
        """FAISS's (scores, labels) of a search at this setting. selector, allowed: None where all rows may be found."""
        return self._exhaustive(queries, k, selector)

    def _exhaustive(self, queries: np.ndarray, k: int, selector: Any) -> Any:
        raise NotImplementedError

    def _ids(self, labels: np.ndarray, ids: np.ndarray) -> np.ndarray:
        return ids[labels]

    def _changed(self) -> None:
        assert not self.mapped, "an index that is mapped from its file is not changed: FAISS would write into the map"


def bitmap(mask: np.ndarray) -> tuple[Any, ...]:
    """A selector of the labels where `mask` (n,) is true, and what it points at."""
    bits = np.packbits(mask, bitorder="little")
    return faiss.IDSelectorBitmap(bits), bits


def parameters(kind: str, selector: Any, **settings: Any) -> Any:
    """FAISS's search parameters of a class ("", "HNSW", "IVF"), with a selector where there is one."""
    if selector is not None:
        settings["sel"] = selector
    return getattr(faiss, f"SearchParameters{kind}")(**settings)
