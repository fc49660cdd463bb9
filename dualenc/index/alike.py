"""Which pairs of unit rows have a cosine of at least a threshold: float32 products, float64 where those cannot tell."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np

from dualenc.index.vectors import Rows, unit_blocks, unit_rows

NEAR = 1e-5  # float32 products of unit rows are further off than this never, whatever the blocks
ROUNDING = 1e-12  # of a cosine in float64; rows that differ by their length alone have a cosine of 1
STRIP = 1 << 20  # scores looked through at once: at most so many pairs are listed, however alike rows are


def above(left: np.ndarray, right: np.ndarray, threshold: float) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs (i, j) with cosine(left[i], right[j]) >= threshold, in arrays of at most 2^20; left (a, D), right (b, D) unit."""
    scores = left @ right.T
    step = max(1, STRIP // max(1, len(right)))
    for start in range(0, len(left), step):
        strip = scores[start : start + step]
        one, other = np.nonzero(strip >= threshold - NEAR)
        near = np.flatnonzero(strip[one, other] <= threshold + NEAR)
        keep = np.ones(len(one), bool)
        one += start
        keep[near] = cosines(left, right, one[near], other[near]) >= threshold - ROUNDING
        if keep.any():
            yield one[keep], other[keep]


def cosines(left: np.ndarray, right: np.ndarray, one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """(n,) float64 cosines of left[one[i]] and right[other[i]]; each depends on its two rows alone."""
    found = np.empty(len(one))
    for start in range(0, len(one), 4096):
        here = slice(start, start + 4096)
        a, b = left[one[here]].astype(np.float64), right[other[here]].astype(np.float64)
        found[here] = (a * b).sum(1) / np.sqrt((a * a).sum(1) * (b * b).sum(1))
    return found


def equal_rows(rows: Rows) -> np.ndarray:
    """(N,) int64: the first row that equals each row; itself where none before it does."""
    digests = np.empty((len(rows), 2), np.uint64)
    for start, block in unit_blocks(rows):
        for number, row in enumerate(block + np.float32(0), start):  # -0.0 becomes 0.0, which it equals
            digests[number] = np.frombuffer(hashlib.blake2b(row.data, digest_size=16).digest(), np.uint64)
    order = np.lexsort(digests.T)  # equal ones stay in the order of their rows
    begins = np.ones(len(order), bool)
    begins[1:] = (digests[order[1:]] != digests[order[:-1]]).any(axis=1)
    leader = np.empty(len(order), np.int64)
    leader[order] = order[begins][np.cumsum(begins) - 1]
    return leader


def count_alike(
    rows: Rows, among: np.ndarray, sample: np.ndarray, threshold: float, group: np.ndarray
) -> tuple[int, int]:
    """(how many pairs are in one group, how many pairs there are) between the rows `sample` and all rows `among`.

    By exact search in blocks; both hold sorted row numbers, `group` (N,) a group of each row. A row is no pair with itself.
    """
    queries = unit_rows(rows.take(sample), "vectors", numbers=sample)
    found = total = 0
    for first, block in unit_blocks(rows):
        low, high = np.searchsorted(among, [first, first + len(block)])
        for start in range(low, high, 4096):
            numbers = among[start : min(start + 4096, high)]
            for one, other in above(block[numbers - first], queries, threshold):
                here, there = numbers[one], sample[other]
                pair = here != there
                total += int(pair.sum())
                found += int((group[here[pair]] == group[there[pair]]).sum())
    return found, total
