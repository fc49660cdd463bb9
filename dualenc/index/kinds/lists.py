"""IVF: rows in lists by nearest centroid; a search reads the `nprobe` lists nearest to the query."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from dualenc.index.kinds import codes
from dualenc.index.kinds.base import MOSTLY, Allowed, Kind, bitmap, faiss, parameters
from dualenc.index.kinds.probes import lists_with_rows


class Places:
    """Where each row is in the lists of an index: read out of them once, asked by id."""

    def __init__(self, index: Any):
        self.index = index
        sizes = [index.invlists.list_size(number) for number in range(index.nlist)]
        self.starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)  # of each list, had they one order
        ids = np.empty(self.starts[-1], np.int64)
        for number in np.flatnonzero(sizes):
            start, end = self.starts[number], self.starts[number + 1]
            ids[start:end] = faiss.rev_swig_ptr(index.invlists.get_ids(int(number)), int(end - start))
        self.order = np.argsort(ids)
        self.ids = ids[self.order]  # (N,) int64, sorted

    def lists(self, ids: np.ndarray) -> np.ndarray:
        """(n,) the list of each id (n,). ValueError: an id that the lists do not hold."""
        return np.searchsorted(self.starts, self._found(ids), side="right") - 1

    def _found(self, ids: np.ndarray) -> np.ndarray:
        at = np.minimum(np.searchsorted(self.ids, ids), max(len(self.ids) - 1, 0))
        if len(ids) and (not len(self.ids) or (self.ids[at] != ids).any()):
            raise ValueError("the FAISS file does not hold the ids that the index lists; restore it or build again")
        return self.order[at]

    def take(self, ids: np.ndarray) -> np.ndarray:
        """(n, D) float32: the rows that the lists of an IndexIVFFlat hold under these ids (n,)."""
        places = self._found(ids)
        rows = np.empty((len(ids), self.index.d), np.float32)
        owner = self.lists(ids)
        by_list = np.argsort(owner, kind="stable")
        numbers, firsts = np.unique(owner[by_list], return_index=True)
        for number, wanted in zip(numbers, np.split(by_list, firsts[1:]), strict=False):  # one list at a time
            start, end = self.starts[number], self.starts[number + 1]
            codes_of_list = faiss.rev_swig_ptr(
                self.index.invlists.get_codes(int(number)), int((end - start) * self.index.code_size)
            )
            rows[wanted] = codes_of_list.view(np.float32).reshape(-1, self.index.d)[places[wanted] - start]
        return rows


class Lists(Kind):
    """Rows less their mean, or codes of them, in lists by nearest centroid. The lists hold the ids themselves."""

    name = "ivf"
    settings = (
        *("nlist", "codes", "dims_per_code", "bits"),
        *("train_rows_per_list", "iterations", "seed", "centred"),
    )
    knobs = ("nprobe",)

    def __init__(self, index: Any, build: dict[str, Any], mean: np.ndarray | None = None, mapped: bool = False):
        super().__init__(index, build, mean, mapped)
        self._places: Places | None = None

    @classmethod
    def trains(cls, build: dict[str, Any]) -> bool:
        return True

    @classmethod
    def new(cls, build: dict[str, Any], dim: int, mean: np.ndarray | None, sample: np.ndarray | None) -> Kind:
        assert sample is not None
        index = codes.blank(build, dim)
        codes.train(index, build, sample if mean is None else sample - mean)
        return cls(index, build, mean)

    @classmethod
    def bytes_needed(cls, build: dict[str, Any], rows: int, dim: int) -> int:
        return codes.file_bytes(build, rows, dim)

    @classmethod
    def letters(cls, build: dict[str, Any]) -> tuple[bytes, bytes]:
        return codes.letters(build), b""

    @classmethod
    def read(
        cls, path: Path, build: dict[str, Any], dim: int, total: int, mean: np.ndarray | None, mapped: bool = True
    ) -> Kind:
        kind = super().read(path, build, dim, total, mean, mapped)
        nlist, size = kind.index.nlist, kind.index.code_size
        if nlist != build["nlist"]:
            raise ValueError(f"{path} has {nlist} lists, the manifest says {build['nlist']}; restore it or build again")
        if size != codes.blank(build, dim, min(nlist, 2)).code_size:
            raise ValueError(f"{path} has codes of {size} bytes, the manifest's are others; restore it or build again")
        return kind

    def empty(self) -> Kind:
        return type(self)(codes.trained_as(codes.blank(self.build, self.dim), self.index), self.build, self.mean)

    def absorb(self, other: Kind, offset: int = 0) -> None:
        self._changed()
        theirs, ours = (faiss.downcast_InvertedLists(kind.index.invlists) for kind in (other, self))
        for number in range(self.index.nlist):  # merge_from would empty the other's lists, which may be mapped
            if count := theirs.list_size(number):
                ids = faiss.rev_swig_ptr(theirs.get_ids(number), count) + offset
                if isinstance(ours, faiss.BlockInvertedLists) and ours.list_size(number) % ours.n_per_block == 0:
                    append_blocks(ours, theirs, number, ids)
                else:
                    ours.add_entries(number, count, faiss.swig_ptr(ids), theirs.get_codes(number))
        self.index.ntotal += other.total

    def fits(self, other: Kind) -> bool:
        if not super().fits(other):
            return False
        pairs = zip(codes.training(self.index), codes.training(other.index), strict=True)
        return all(np.array_equal(mine, theirs) for mine, theirs in pairs)

    def keep_setting(self, setting: dict[str, int]) -> None:
        self.index.nprobe = setting["nprobe"]

    def scanned(self, setting: dict[str, int], rows: int) -> float:
        nlist = self.index.nlist
        return nlist + rows * min(setting["nprobe"], nlist) / nlist

    def take(self, rows: np.ndarray, ids: np.ndarray) -> np.ndarray:
        if not self.exact:
            return super().take(rows, ids)
        found = self._where().take(ids[rows])
        return found if self.mean is None else found + self.mean

    def _where(self) -> Places:
        if self._places is None:
            self._places = Places(self.index)  # two threads may both make it: the same
        return self._places

    def drift(self, rows: np.ndarray) -> float | None:
        rows = rows if self.mean is None else rows - self.mean
        nearest = self.index.quantizer.search(rows, 1)[1][:, 0]
        away = rows - codes.training(self.index)[0][nearest]
        return float(np.einsum("nd,nd->n", away, away).mean(dtype=np.float64))

    def _changed(self) -> None:
        super()._changed()
        self._places = None

    def _selector(self, ids: np.ndarray, allowed: Allowed) -> tuple[Any, ...]:
        return id_selector(ids, allowed.rows)

    def _approximate(
        self,
        queries: np.ndarray,
        k: int,
        setting: dict[str, int],
        selector: Any,
        allowed: Allowed | None,
        ids: np.ndarray,
    ) -> Any:
        nprobe = min(setting["nprobe"], self.index.nlist)
        if allowed is None:
            return self._probe(queries, k, nprobe, None)
        if allowed.count >= MOSTLY * self.total or self.index.nlist == 1:
            return self._probe(
                queries, k, min(math.ceil(nprobe * self.total / allowed.count), self.index.nlist), selector
            )
        wanted = max(k, nprobe * self.total / self.index.nlist)
        top = max(1, k // setting.get("rerank", 1))
        return self._until_nothing_new(queries, k, wanted, selector, self._counts(ids, allowed), top)

    def _until_nothing_new(
        self, queries: np.ndarray, k: int, wanted: float, selector: Any, counts: np.ndarray, top: int
    ) -> Any:
        """As many distances as without a filter; then, since what is left may lie farther from a query than it is used
        to, as many again and twice as many, for each query until that changes none of its `top` best."""
        scores, labels = np.full((len(queries), k), -np.inf, np.float32), np.full((len(queries), k), -1, np.int64)
        pending, done, centroids = np.arange(len(queries)), 0.0, codes.training(self.index)[0]
        while len(pending):
            lists = lists_with_rows(queries[pending], centroids, counts, done, wanted)
            found = self._read(queries[pending], k, *lists, selector)
            both = np.concatenate([scores[pending], found[0]], axis=1)
            best = np.argsort(-both, axis=1, kind="stable")[:, :k]
            merged = np.take_along_axis(np.concatenate([labels[pending], found[1]], axis=1), best, 1)
            new = (merged[:, :top] != labels[pending, :top]).any(axis=1)
            scores[pending], labels[pending] = np.take_along_axis(both, best, 1), merged
            if wanted >= counts.sum():
                break
            pending, done, wanted = pending[new], wanted, 2 * wanted
        return scores, labels

    def _counts(self, ids: np.ndarray, allowed: Allowed) -> np.ndarray:
        """(nlist,) allowed rows in each list."""
        if "rows per list" not in allowed.cache:
            numbers = self._where().lists(ids[allowed.rows])
            allowed.cache["rows per list"] = np.bincount(numbers, minlength=self.index.nlist)
        return allowed.cache["rows per list"]

    def _read(self, queries: np.ndarray, k: int, lists: np.ndarray, products: np.ndarray, selector: Any) -> Any:
        """FAISS's (scores, labels) of reading these lists (Q, P); its Python layer takes no selector there."""
        scores, labels = np.empty((len(queries), k), np.float32), np.empty((len(queries), k), np.int64)
        arrays = [np.ascontiguousarray(array) for array in (queries, lists, products, scores, labels)]
        x, assigned, distances, *out = [faiss.swig_ptr(array) for array in arrays]
        params = parameters("IVF", selector, nprobe=lists.shape[1])
        self.index.search_preassigned_c(len(queries), x, k, assigned, distances, *out, False, params)
        return scores, labels

    def _exhaustive(self, queries: np.ndarray, k: int, selector: Any) -> Any:
        return self._probe(queries, k, self.index.nlist, selector)

    def _probe(self, queries: np.ndarray, k: int, nprobe: int, selector: Any) -> Any:
        return self.index.search(queries, k, params=parameters("IVF", selector, nprobe=nprobe))

    def _ids(self, labels: np.ndarray, ids: np.ndarray) -> np.ndarray:
        return labels


def append_blocks(ours: Any, theirs: Any, number: int, ids: np.ndarray) -> None:
    """Append a list of block-wise codes to one that ends with a whole block. ids: (n,) those of the appended rows.

    FAISS's `add_entries` writes past the end of the list where its length is a multiple of `block_size`, in bytes.
    """
    size, block, per = ours.list_size(number), ours.block_size, ours.n_per_block
    blocks = -(-len(ids) // per)
    ours.resize(number, size + len(ids))
    faiss.rev_swig_ptr(ours.get_ids(number), size + len(ids))[size:] = ids
    codes_of_list = faiss.rev_swig_ptr(ours.get_codes(number), (size // per + blocks) * block)
    codes_of_list[size // per * block :] = faiss.rev_swig_ptr(theirs.get_codes(number), blocks * block)


def id_selector(ids: np.ndarray, rows: np.ndarray) -> tuple[Any, ...]:
    """A selector of those ids (N,) whose row is true in `rows` (N,), and what it points at."""
    highest = int(ids.max()) if len(ids) else 0
    if highest < 64 * len(ids) + 4096:  # dense ids: a bitmap over them stays small
        bits = np.zeros(highest + 1, bool)
        bits[ids[rows]] = True
        return bitmap(bits)
    if 2 * np.count_nonzero(rows) <= len(rows):
        selector = faiss.IDSelectorBatch(np.ascontiguousarray(ids[rows]))
        return selector, None
    left_out = faiss.IDSelectorBatch(np.ascontiguousarray(ids[~rows]))  # the smaller set
    return faiss.IDSelectorNot(left_out), left_out
