"""Every row is compared: exact."""

from __future__ import annotations

from typing import Any

import numpy as np

from dualenc.index.kinds.base import Kind, faiss, parameters

HEADER = 128  # bytes of a FAISS file that are neither rows nor ids, about


def stored_rows(index: Any, positions: np.ndarray) -> np.ndarray:
    """(n, D) float32: rows of FAISS's flat index, by position; only these are copied."""
    if not index.ntotal:
        return np.zeros((0, index.d), np.float32)
    return faiss.rev_swig_ptr(index.get_xb(), index.ntotal * index.d).reshape(index.ntotal, index.d)[positions]


class Flat(Kind):
    """A flat index. Row r of the segment's ids is FAISS's position r."""

    name = "flat"

    # IDMap, not IDMap2: its map from ids to positions makes opening slow, and the segment's ids say the same

    @classmethod
    def new(cls, build: dict[str, Any], dim: int, mean: np.ndarray | None, sample: np.ndarray | None) -> Kind:
        return cls(faiss.index_factory(dim, "IDMap,Flat", faiss.METRIC_INNER_PRODUCT), build)

    @classmethod
    def bytes_needed(cls, build: dict[str, Any], rows: int, dim: int) -> int:
        return rows * (4 * dim + 8) + HEADER

    @classmethod
    def letters(cls, build: dict[str, Any]) -> tuple[bytes, bytes]:
        return b"IxMp", b"IxFI"

    @property
    def code_bytes(self) -> int:
        return self.total * 4 * self.dim

    def empty(self) -> Kind:
        return self.new(self.build, self.dim, None, None)

    def absorb(self, other: Kind, offset: int = 0) -> None:
        assert self.fits(other)
        rows = stored_rows(faiss.downcast_index(other.index.index), slice(None))  # type: ignore[arg-type]
        self.add(rows, faiss.vector_to_array(other.index.id_map) + offset)

    def take(self, rows: np.ndarray, ids: np.ndarray) -> np.ndarray:
        return stored_rows(faiss.downcast_index(self.index.index), rows)

    def _exhaustive(self, queries: np.ndarray, k: int, selector: Any) -> Any:
        # the inner index, where labels are positions: a bitmap over positions is the cheapest selector FAISS has
        return self.index.index.search(queries, k, params=parameters("", selector) if selector else None)
