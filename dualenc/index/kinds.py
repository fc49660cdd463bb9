"""The kinds of index: how each is made by FAISS, added to, removed from and searched. Scores are true cosines.

`faiss.read_index` on the file that `Kind.write` leaves gives the same ids: ids are stored in it, and the search setting
too. An inverted-file index holds vectors less their mean m, so scores read that way are less ⟨q, m⟩.
"""

from __future__ import annotations

import math
import struct
import threading
from pathlib import Path
from typing import Any

import faiss as _faiss
import numpy as np

faiss: Any = _faiss  # its type stubs lack what its Python layer adds: downcasts, keyword arguments, arrays for pointers
_LIMITS = threading.Lock()  # FAISS keeps its deserialisation limits in globals


class Kind:
    """A flat index: every row is compared. Row r of the index's ids and metadata is FAISS's position r."""

    name = "flat"
    settings: tuple[str, ...] = ()  # a recipe's, under `build:`
    knob: str | None = None  # and under `search:`: what trades time for recall
    headers = (b"IxM2", b"IxFI")  # FAISS's letters for the file and for the index inside it

    def __init__(self, index: Any, mean: np.ndarray | None = None):
        self.index, self.mean = index, mean

    @classmethod
    def new(cls, build: dict[str, Any], dim: int, mean: np.ndarray | None, sample: np.ndarray | None) -> Kind:
        """An empty index as `build` (a resolved recipe's) says. sample: rows to train on, where the kind trains."""
        return cls(faiss.index_factory(dim, "IDMap2,Flat", faiss.METRIC_INNER_PRODUCT))

    @property
    def total(self) -> int:
        """Vectors in the FAISS index, tombstones included."""
        return self.index.ntotal

    def add(self, rows: np.ndarray, ids: np.ndarray) -> None:
        """Add unit float32 rows (n, D) with their ids (n,)."""
        self.index.add_with_ids(rows if self.mean is None else rows - self.mean, ids)

    def remove(self, ids: np.ndarray) -> None:
        """Take the rows with these ids out; every id must be there."""
        self.index.remove_ids(faiss.IDSelectorBatch(ids))

    def keep_setting(self, setting: int | None) -> None:
        """Store the search setting in the file, for readers that know FAISS only."""

    def search(
        self, queries: np.ndarray, k: int, setting: int | None, ids: np.ndarray, mask: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The k best rows for unit float32 queries (Q, D): ids (Q, k) int64 and cosines (Q, k) float32.

        ids: (N,) the id of each row. mask: (N,) bool, the rows that may be found; None: all. Fewer than k are found
        only where fewer than k exist: id -1 and score -inf fill up.
        """
        found_ids = np.full((len(queries), k), -1, np.int64)
        scores = np.full((len(queries), k), -np.inf, np.float32)
        live = len(ids) if mask is None else int(mask.sum())
        reach = min(k, live)
        if not reach or not len(queries):
            return found_ids, scores
        allowed = self._selector(ids, mask)
        found = self._approximate(queries, reach, setting, allowed, live)
        short = np.flatnonzero(found[1][:, -1] < 0)  # the lists or the part of the graph visited held too few rows
        if len(short):
            for whole, part in zip(found, self._exhaustive(queries[short], reach, allowed), strict=True):
                whole[short] = part
        found_ids[:, :reach] = self._ids(found[1], ids)
        scores[:, :reach] = found[0] if self.mean is None else found[0] + (queries @ self.mean)[:, None]
        return found_ids, scores

    def _selector(self, ids: np.ndarray, mask: np.ndarray | None) -> Any:
        return None if mask is None else _bitmap(mask)

    def _approximate(self, queries: np.ndarray, k: int, setting: int | None, allowed: Any, live: int) -> Any:
        return self._exhaustive(queries, k, allowed)

    def _exhaustive(self, queries: np.ndarray, k: int, allowed: Any) -> Any:
        # the inner index, where labels are positions: a bitmap over positions is the cheapest selector FAISS has
        return self.index.index.search(queries, k, params=faiss.SearchParameters(sel=allowed) if allowed else None)

    def _ids(self, labels: np.ndarray, ids: np.ndarray) -> np.ndarray:
        return ids[labels]  # positions are rows, and no search of a flat index comes up short

    def code_bytes(self, dim: int) -> int:
        """Bytes of the stored rows alone."""
        return self.total * 4 * dim

    def write(self, path: Path) -> None:
        """Write the FAISS file; OSError where the disk does not take it."""
        try:
            faiss.write_index(self.index, str(path))
        except RuntimeError as error:
            raise OSError(f"{path} could not be written: {_brief(error)}") from error

    @classmethod
    def read(cls, path: Path, total: int, dim: int, nlist: int, mean: np.ndarray | None, mapped: bool) -> Kind:
        """Open a FAISS file of `total` vectors; mapped: rows stay on disk until they are read. ValueError if unfit."""
        _check_header(path, cls.headers, total, dim)
        # plain IO_FLAG_MMAP starts threads for each search of lists: 4 ms a query instead of 0.14 (400,000 x 128)
        flags = faiss.IO_FLAG_MMAP_IFC if mapped else 0
        with _LIMITS:
            limits = faiss.get_deserialization_vector_byte_limit(), faiss.get_deserialization_loop_limit()
            faiss.set_deserialization_vector_byte_limit(path.stat().st_size)  # no array can be longer than its file
            faiss.set_deserialization_loop_limit(max(nlist, 4096))
            try:
                index = faiss.read_index(str(path), flags)
            except RuntimeError as error:
                raise ValueError(
                    f"{path} does not open in FAISS ({_brief(error)}); restore it or build again"
                ) from error
            finally:
                faiss.set_deserialization_vector_byte_limit(limits[0])
                faiss.set_deserialization_loop_limit(limits[1])
        if getattr(index, "nlist", nlist) != nlist:
            raise ValueError(f"{path} has {index.nlist} lists, the manifest says {nlist}; restore it or build again")
        return cls(index, mean)


class Graph(Kind):
    """HNSW. FAISS cannot take a node out of the graph: a removed row stays as a way through, its id set to -1."""

    name, settings, knob = "hnsw", ("M", "efConstruction"), "efSearch"
    headers = (b"IxM2", b"IHNf")

    def __init__(self, index: Any, mean: np.ndarray | None = None):
        super().__init__(index, mean)
        self._graph = faiss.downcast_index(index.index)
        self._mark()

    @classmethod
    def new(cls, build: dict[str, Any], dim: int, mean: np.ndarray | None, sample: np.ndarray | None) -> Kind:
        index = faiss.index_factory(dim, f"IDMap2,HNSW{build['M']},Flat", faiss.METRIC_INNER_PRODUCT)
        faiss.downcast_index(index.index).hnsw.efConstruction = build["efConstruction"]
        return cls(index)

    def add(self, rows: np.ndarray, ids: np.ndarray) -> None:
        super().add(rows, ids)
        self._mark()

    def remove(self, ids: np.ndarray) -> None:
        labels = faiss.vector_to_array(self.index.id_map)
        labels[np.isin(labels, ids)] = -1
        faiss.copy_array_to_vector(labels, self.index.id_map)
        self._mark()

    def _mark(self) -> None:
        """Positions of the rows that are there, in the order of ids and metadata; None when there is no tombstone."""
        self._labels = faiss.vector_to_array(self.index.id_map)
        live = self._labels >= 0
        self._live = None if live.all() else np.flatnonzero(live)

    def keep_setting(self, setting: int | None) -> None:
        self._graph.hnsw.efSearch = setting

    def _ids(self, labels: np.ndarray, ids: np.ndarray) -> np.ndarray:
        return self._labels[labels]

    def _selector(self, ids: np.ndarray, mask: np.ndarray | None) -> Any:
        if self._live is None:
            return super()._selector(ids, mask)
        positions = np.zeros(self.total, bool)
        positions[self._live if mask is None else self._live[mask]] = True
        return _bitmap(positions)

    def _approximate(self, queries: np.ndarray, k: int, setting: int | None, allowed: Any, live: int) -> Any:
        assert setting is not None
        if allowed is None:
            return self._graph.search(queries, k, params=faiss.SearchParametersHNSW(efSearch=max(setting, k)))
        # the fewer nodes count, the more must be visited for as many that do
        wide = math.ceil(max(setting, k) * self.total / live)
        if wide * self._graph.hnsw.nb_neighbors(1) >= live:  # as many distances as all the rows that count
            return self._exhaustive(queries, k, allowed)
        return self._graph.search(queries, k, params=faiss.SearchParametersHNSW(efSearch=wide, sel=allowed))

    def _exhaustive(self, queries: np.ndarray, k: int, allowed: Any) -> Any:
        params = faiss.SearchParameters(sel=allowed) if allowed else None
        return faiss.downcast_index(self._graph.storage).search(queries, k, params=params)


class Lists(Kind):
    """IVF-Flat: rows in lists by nearest centroid; a search reads the `nprobe` lists nearest to the query."""

    name, knob = "ivf", "nprobe"
    settings = ("nlist", "train_rows_per_list", "iterations", "seed", "centred")
    headers = (b"IwFl", b"")

    @classmethod
    def new(cls, build: dict[str, Any], dim: int, mean: np.ndarray | None, sample: np.ndarray | None) -> Kind:
        assert sample is not None
        index = faiss.index_factory(dim, f"IVF{build['nlist']},Flat", faiss.METRIC_INNER_PRODUCT)
        index.cp.niter, index.cp.seed = build["iterations"], build["seed"]
        index.cp.min_points_per_centroid, index.cp.max_points_per_centroid = 1, len(sample)  # the sample is chosen here
        index.train(sample if mean is None else sample - mean)
        return cls(index, mean)

    def keep_setting(self, setting: int | None) -> None:
        self.index.nprobe = setting

    def _selector(self, ids: np.ndarray, mask: np.ndarray | None) -> Any:
        if mask is None:
            return None
        chosen = np.ascontiguousarray(ids[mask])
        if len(ids) and int(ids.max()) < 64 * len(ids) + 4096:  # dense ids: a bitmap over them stays small
            bits = np.zeros(int(ids.max()) + 1, bool)
            bits[chosen] = True
            return _bitmap(bits)
        return faiss.IDSelectorBatch(chosen)

    def _approximate(self, queries: np.ndarray, k: int, setting: int | None, allowed: Any, live: int) -> Any:
        assert setting is not None
        # through a filter, as many more lists: as many distances as without it, since the others are skipped by id
        wide = setting if allowed is None else math.ceil(setting * self.total / live)
        return self._probe(queries, k, min(wide, self.index.nlist), allowed)

    def _exhaustive(self, queries: np.ndarray, k: int, allowed: Any) -> Any:
        return self._probe(queries, k, self.index.nlist, allowed)

    def _probe(self, queries: np.ndarray, k: int, nprobe: int, allowed: Any) -> Any:
        params = {"nprobe": nprobe, **({"sel": allowed} if allowed else {})}
        return self.index.search(queries, k, params=faiss.SearchParametersIVF(**params))

    def _ids(self, labels: np.ndarray, ids: np.ndarray) -> np.ndarray:
        return labels  # the lists hold the ids themselves


KINDS: dict[str, type[Kind]] = {kind.name: kind for kind in (Kind, Graph, Lists)}


def _bitmap(mask: np.ndarray) -> Any:
    return faiss.IDSelectorBitmap(np.packbits(mask, bitorder="little"))


def _check_header(path: Path, names: tuple[bytes, bytes], total: int, dim: int) -> None:
    """FAISS's file begins: 4 letters for the type, int32 D, int64 rows; an inner index's 4 letters are at byte 37."""
    with open(path, "rb") as file:
        head = file.read(41)
    fits = len(head) == 41 and head[:4] == names[0] and head[37:].startswith(names[1])
    if not fits or struct.unpack_from("<iq", head, 4) != (dim, total):
        raise ValueError(f"{path} is not the FAISS index of {total} x {dim} that the manifest names; build again")


def _brief(error: Exception) -> str:
    return str(error).split("Error:")[-1].strip().splitlines()[0][:160]
