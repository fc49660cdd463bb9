"""How rows are written in inverted lists: as they are, or as short codes. Names, sizes and training of each.

float32 the row itself · sq8 one byte a dimension · pq four bits for each `dims_per_code` dimensions, scanned by tables in
registers (fast-scan) · rabitq `bits` bits a dimension and a few floats, no training beyond the centroids.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from dualenc.index.kinds.base import faiss

CODES = ("float32", "sq8", "pq", "rabitq")
PQ_WORDS = 16  # centroids that four bits tell apart
MARGIN = 0.1  # of the sample's range, left free at both ends of a byte: other rows reach further
QUERY_BITS = 8  # rabitq rounds a query to so many bits: as good as none rounded, and several times as fast


def blank(build: dict[str, Any], dim: int, nlist: int | None = None) -> Any:
    """An index of FAISS's as `build` says, untrained. ValueError where the codes do not fit D."""
    nlist = build["nlist"] if nlist is None else nlist
    index = faiss.index_factory(dim, f"IVF{nlist},{_factory(build, dim, nlist)}", faiss.METRIC_INNER_PRODUCT)
    if build["codes"] == "rabitq":
        index.qb = QUERY_BITS
    if build["codes"] == "sq8":
        index.sq.rangestat_arg = MARGIN
    return index


def letters(build: dict[str, Any]) -> bytes:
    """The four letters that a FAISS file of these codes begins with."""
    if build["codes"] == "rabitq":
        return b"Iwrn" if _fast_scan(build, build["nlist"]) else b"Iwrq" if build["bits"] == 1 else b"Iwrr"
    return {"float32": b"IwFl", "sq8": b"IwSq", "pq": b"IwPf"}[build["codes"]]


def _factory(build: dict[str, Any], dim: int, nlist: int) -> str:
    if build["codes"] == "pq":
        return f"PQ{dim // _dims_per_code(build['dims_per_code'], dim)}x4fs"
    if build["codes"] == "rabitq":
        return f"RaBitQ{'fs' if _fast_scan(build, nlist) else ''}{build['bits'] if build['bits'] > 1 else ''}"
    return {"float32": "Flat", "sq8": "SQ8"}[build["codes"]]


def _fast_scan(build: dict[str, Any], nlist: int) -> bool:
    # tables in registers make a scan of everything faster, but each list more costly to begin; more bits gain nothing
    return build["bits"] == 1 and nlist == 1


def _dims_per_code(dims: int, dim: int) -> int:
    if dim % dims:
        near = min((part for part in range(1, dim + 1) if dim % part == 0), key=lambda part: abs(part - dims))
        raise ValueError(f"dims_per_code={dims} does not divide D={dim}, so pq cannot cut rows; take {near}")
    return dims


def file_bytes(build: dict[str, Any], rows: int, dim: int) -> int:
    """About how many bytes the FAISS file of so many rows takes."""
    nlist = build["nlist"]
    index = blank(build, dim, min(nlist, 2))  # its codes are those of more lists
    lists = faiss.downcast_InvertedLists(index.invlists)
    if isinstance(lists, faiss.BlockInvertedLists):
        codes = lists.block_size / lists.n_per_block * _places(rows, nlist, lists.n_per_block)
    else:
        codes = index.code_size * rows
    trained = {"pq": 4 * PQ_WORDS * dim, "sq8": 8 * dim}.get(build["codes"], 0)
    return round(codes) + 8 * rows + nlist * (4 * dim + 8) + trained + 128


def _places(rows: int, nlist: int, block: int) -> float:
    """About how many rows there is room for where lists hold whole blocks of `block` rows."""
    lists = max(1, min(rows, nlist))
    each = rows / lists
    if lists == 1:
        return -(-rows // block) * block
    return lists * max(block, each + (block - 1) / 2)  # the last of a list's blocks is half full on average


def train(index: Any, build: dict[str, Any], sample: np.ndarray) -> None:
    """Centroids and codes from a sample of rows (n, D), all of which k-means uses."""
    sample = np.ascontiguousarray(sample, np.float32)
    index.cp.niter, index.cp.seed = build["iterations"], build["seed"]
    index.cp.min_points_per_centroid, index.cp.max_points_per_centroid = 1, len(sample)  # the sample is chosen above
    index.train_q1(len(sample), faiss.swig_ptr(sample), False, index.metric_type)
    _scale_centroids(index.quantizer, sample)
    if build["codes"] == "pq":
        index.pq.cp.seed, index.pq.cp.min_points_per_centroid = build["seed"], 1
        if len(sample) < PQ_WORDS or np.ptp(sample, axis=0).max() < 1e-6:
            # k-means wants a row for each word, and FAISS's tables words that differ: the same rows again, spread a little
            spread = np.random.default_rng(build["seed"]).normal(0, 1e-3, (max(PQ_WORDS, len(sample)), index.d))
            sample = (np.resize(sample, spread.shape) + spread).astype(np.float32)
    index.train(sample)  # the codes alone: the centroids are there


def _scale_centroids(quantizer: Any, sample: np.ndarray) -> None:
    """Shrink FAISS's centroids, which have norm 1, by the one factor that brings them nearest to the rows.

    By inner product the same lists are nearest, but what codes must hold, a row less its centroid, gets much smaller.
    """
    closeness = quantizer.search(sample, 1)[0]
    factor = float(closeness.mean(dtype=np.float64))
    centroids = quantizer.reconstruct_n(0, quantizer.ntotal)
    quantizer.reset()
    quantizer.add(centroids * np.float32(factor if factor > 0 else 1))


def training(index: Any) -> list[np.ndarray]:
    """What training found: the centroids (nlist, D), and what the codes need."""
    quantizer = faiss.downcast_index(index.quantizer)
    found = [faiss.rev_swig_ptr(quantizer.get_xb(), index.nlist * index.d).reshape(index.nlist, index.d)]
    return [*found, *(faiss.vector_to_array(vector) for vector in _vectors(index))]


def trained_as(index: Any, other: Any) -> Any:
    """Give a blank index the training of another; both can then hold each other's codes."""
    centroids, *words = training(other)
    index.quantizer.add(centroids)
    index.quantizer.is_trained = index.is_trained = True
    for values, vector in zip(words, _vectors(index), strict=True):
        faiss.copy_array_to_vector(values, vector)
    return index


def _vectors(index: Any) -> list[Any]:
    """FAISS's vectors of numbers that training fills."""
    if isinstance(index, faiss.IndexIVFPQFastScan):
        return [index.pq.centroids]
    return [index.sq.trained] if isinstance(index, faiss.IndexIVFScalarQuantizer) else []
