"""An index that another program built, such as autofaiss: searched as it is, never changed."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from dualenc.index import faiss_file
from dualenc.index.kinds.base import Allowed, Kind, bitmap, faiss, parameters
from dualenc.index.kinds.flat import stored_rows
from dualenc.index.kinds.lists import Places, id_selector

_CORES = (
    *("IndexFlat", "IndexFlatIP", "IndexFlatL2", "IndexScalarQuantizer", "IndexPQ", "IndexPQFastScan"),
    *("IndexHNSWFlat", "IndexHNSWSQ", "IndexHNSWPQ"),
    *("IndexIVFFlat", "IndexIVFScalarQuantizer", "IndexIVFPQ", "IndexIVFPQFastScan"),
    *("IndexIVFRaBitQ", "IndexIVFRaBitQFastScan"),
)
_UNFILTERED = ("IndexPQ", "IndexPQFastScan")  # FAISS takes no selector there
_REFUSED = (
    "an adopted index is searched as it is, its codes are another program's; build one of your own from the embeddings"
)


class Adopted(Kind):
    """FAISS's index inside whatever transforms rows or renames them. Unit rows under L2: cosine = 1 - d²/2."""

    name = "adopted"
    settings = ("faiss", "knob")
    joins = False

    def __init__(self, index: Any, build: dict[str, Any], mean: np.ndarray | None = None, mapped: bool = False):
        super().__init__(index, build, None, mapped)
        self._transforms, self._labels, self._core = _peel(index)
        knob = _knob(self._core)
        self.knobs = (knob,) if knob else ()
        self._rows = faiss.downcast_index(self._core.storage) if knob == "efSearch" else self._core
        self._places: Any = None

    @classmethod
    def adopt(cls, path: Path, mapped: bool = True) -> Adopted:
        """Open any FAISS file that can be searched for cosines; ValueError says why one cannot."""
        size = (
            path.stat().st_size
        )  # no loop is longer; 256 words for each number of a centroid, up to FAISS's own bound
        index = faiss_file.read(path, mapped, size, min(256 * size, 2 << 30))
        problem = _problem(index)
        if problem:
            raise ValueError(f"{path} cannot be adopted: {problem}; build an index of your own from the embeddings")
        names, core = _describe(index)
        return cls(index, {"kind": cls.name, "faiss": names, "knob": _knob(core)}, None, mapped)

    @classmethod
    def read(
        cls, path: Path, build: dict[str, Any], dim: int, total: int, mean: np.ndarray | None, mapped: bool = True
    ) -> Kind:
        kind = cls.adopt(path, mapped)
        if (kind.build, kind.dim, kind.total) != (build, dim, total):
            raise ValueError(
                f"{path} is not the {build['faiss']} of {total} x {dim} that the manifest names; adopt it again"
            )
        return kind

    @classmethod
    def new(cls, build: dict[str, Any], dim: int, mean: np.ndarray | None, sample: np.ndarray | None) -> Kind:
        """Adopted indexes are read, not made."""
        raise NotImplementedError(_REFUSED)

    @property
    def exact(self) -> bool:
        """Whether the file holds the rows themselves."""
        flat = isinstance(self._rows, (faiss.IndexFlat, faiss.IndexIVFFlat))
        return flat and not self._transforms

    @property
    def setting(self) -> dict[str, int]:
        """The search setting that the file itself carries."""
        if self.knobs == ("nprobe",):
            return {"nprobe": int(self._core.nprobe)}
        return {"efSearch": int(self._core.hnsw.efSearch)} if self.knobs else {}

    @property
    def nlist(self) -> int | None:
        """Number of inverted lists, where it has any: the highest nprobe."""
        return self._core.nlist if self.knobs == ("nprobe",) else None

    @property
    def code_bytes(self) -> int:
        return self.total * (self._core.code_size if self.nlist else self._rows.sa_code_size())

    def own_ids(self) -> np.ndarray | None:
        """(N,) int64: the ids in the file, in its order or, out of lists, sorted; None where they are 0 to N - 1."""
        found = self._labels if self._labels is not None else Places(self._core).ids if self.nlist else None
        return None if found is None or np.array_equal(found, np.arange(len(found))) else found

    def empty(self) -> Kind:
        """Not there: nothing is added to an adopted index."""
        raise NotImplementedError(_REFUSED)

    def add(self, rows: np.ndarray, ids: np.ndarray) -> None:
        """Not there."""
        raise NotImplementedError(_REFUSED)

    def remove(self, ids: np.ndarray) -> None:
        """Not there; leave rows out by `allowed`."""
        raise NotImplementedError(_REFUSED)

    def absorb(self, other: Kind, offset: int = 0) -> None:
        """Not there."""
        raise NotImplementedError(_REFUSED)

    def keep_setting(self, setting: dict[str, int]) -> None:
        if self.knobs == ("nprobe",):
            self._core.nprobe = setting["nprobe"]
        elif self.knobs:
            self._core.hnsw.efSearch = setting["efSearch"]

    def scanned(self, setting: dict[str, int], rows: int) -> float:
        if self.nlist:
            return self.nlist + rows * min(setting["nprobe"], self.nlist) / self.nlist
        return min(rows, setting["efSearch"] * self._core.hnsw.nb_neighbors(0)) if self.knobs else rows

    def take(self, rows: np.ndarray, ids: np.ndarray) -> np.ndarray:
        if not self.exact:
            raise ValueError(f"an adopted {self.build['faiss']} does not hold its rows")
        wanted = np.asarray(ids[rows], np.int64)
        if self._labels is not None:
            if self._places is None:
                self._places = _positions(self._labels), Places(self._core) if self.nlist else None
            wanted = self._places[0](wanted)
        elif self.nlist and self._places is None:
            self._places = None, Places(self._core)
        return self._places[1].take(wanted) if self.nlist else stored_rows(self._rows, wanted)

    def _selector(self, ids: np.ndarray, allowed: Allowed) -> tuple[Any, ...]:
        if type(self._core).__name__ in _UNFILTERED:
            raise ValueError(
                f"FAISS searches no {type(self._core).__name__} through a filter, nor around removed rows; "
                "build an index of your own from the embeddings"
            )
        if self._labels is not None:  # inside, labels are positions
            return bitmap(np.isin(self._labels, ids[allowed.rows]))
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
        live = self.total if allowed is None else allowed.count
        more = 1 if selector is None else self.total / live
        if self.nlist:
            return self._run(queries, k, "IVF", selector, nprobe=min(math.ceil(setting["nprobe"] * more), self.nlist))
        if self.knobs:
            wide = math.ceil(max(setting["efSearch"], k) * more)
            if selector is None or wide * self._core.hnsw.nb_neighbors(1) < live:
                return self._run(queries, k, "HNSW", selector, efSearch=wide)
        return self._exhaustive(queries, k, selector)

    def _exhaustive(self, queries: np.ndarray, k: int, selector: Any) -> Any:
        if self.nlist:
            return self._run(queries, k, "IVF", selector, nprobe=self.nlist)
        return self._run(queries, k, "", selector)

    def _run(self, queries: np.ndarray, k: int, kind: str, selector: Any, **settings: int) -> Any:
        for transform in self._transforms:
            queries = transform.apply(queries)
        params = parameters(kind, selector, **settings) if kind or selector else None
        core = self._core if kind else self._rows
        scores, labels = core.search(queries, k, params=params)
        return (1 - scores / 2 if core.metric_type == faiss.METRIC_L2 else scores), labels

    def _ids(self, labels: np.ndarray, ids: np.ndarray) -> np.ndarray:
        return labels if self._labels is None else self._labels[labels]


def _peel(index: Any) -> tuple[list[Any], np.ndarray | None, Any]:
    """(transforms of rows, id of each position or None, the index inside) of FAISS's index."""
    transforms: list[Any] = []
    labels = None
    while True:
        index = faiss.downcast_index(index)
        if isinstance(index, faiss.IndexPreTransform):
            transforms += [faiss.downcast_VectorTransform(index.chain.at(place)) for place in range(index.chain.size())]
        elif isinstance(index, (faiss.IndexIDMap, faiss.IndexIDMap2)):
            inner = faiss.vector_to_array(index.id_map)
            labels = inner if labels is None else labels[inner]
        else:
            return transforms, labels, index
        index = index.index


def _describe(index: Any) -> tuple[str, Any]:
    """("OPQMatrix + ids + IndexIVFPQ of 100 lists", the index inside) of FAISS's index."""
    transforms, labels, core = _peel(index)
    names = [type(transform).__name__ for transform in transforms] + (["ids"] if labels is not None else [])
    return " + ".join([*names, type(core).__name__]) + (
        f" of {core.nlist} lists" if hasattr(core, "nlist") else ""
    ), core


def _knob(core: Any) -> str | None:
    return "nprobe" if isinstance(core, faiss.IndexIVF) else "efSearch" if isinstance(core, faiss.IndexHNSW) else None


def _problem(index: Any) -> str | None:
    """Why this index of FAISS's cannot be searched for cosines; None where it can."""
    _, labels, core = _peel(index)
    if type(core).__name__ not in _CORES:
        return f"{type(core).__name__} is not among the kinds known here ({', '.join(_CORES)})"
    if core.metric_type not in (faiss.METRIC_INNER_PRODUCT, faiss.METRIC_L2):
        return f"its metric is FAISS's number {core.metric_type}, neither inner product nor L2"
    lists = faiss.downcast_InvertedLists(core.invlists) if isinstance(core, faiss.IndexIVF) else None
    if lists is not None and not isinstance(lists, (faiss.ArrayInvertedLists, faiss.BlockInvertedLists)):
        return "its lists are in another file"
    if labels is not None and len(labels) != core.ntotal:
        return f"it has {len(labels)} ids for {core.ntotal} rows"
    ids = labels if labels is not None else Places(core).ids if lists is not None else np.zeros(0, np.int64)
    if len(ids) and (ids.min() < 0 or len(np.unique(ids)) < len(ids)):
        return "its ids are not unique whole numbers of 0 or more"
    return None


def _positions(labels: np.ndarray) -> Any:
    """A function from ids (n,) to their positions in `labels` (N,)."""
    order = np.argsort(labels)
    ordered = labels[order]
    return lambda ids: order[np.searchsorted(ordered, ids)]
