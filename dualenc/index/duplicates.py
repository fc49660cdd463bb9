"""Groups of near-duplicates over all rows of a store, in about N^1.5 comparisons.

Rows are dealt to about 2 √N cells of k-means. Each cell's own rows are compared with all rows that have the cell among
their nearest few: rows that are alike lie near the same centroids. Exact search from a sample of rows then measures how
many pairs that found; where it is too few, rows are dealt to more cells.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from dualenc.files import refuse_existing, whole_file
from dualenc.index.alike import above, count_alike, equal_rows
from dualenc.index.unions import Unions
from dualenc.index.vectors import Rows, unit_blocks, unit_rows

ROUNDS = ((0, 4), (4, 8), (8, 16))  # a row is compared in its nearest 4 cells; in 8, then 16, where that misses pairs
ENOUGH = 0.99  # recall above which no further round is worth its time
SAMPLE = 2_000  # rows whose pairs are found by exact search
ALL_PAIRS = 4_096  # rows up to which there is one cell: every pair is compared
TILE = 4_096  # rows of a block of scores: 64 MiB of float32
GATHERED = 1 << 28  # bytes of rows that are read for a run of cells at once
LOW = 0.5  # below it whole subjects count as near-duplicates


@dataclass(frozen=True)
class Duplicates:
    """Which rows are near-duplicates, and how sure that is."""

    group: np.ndarray  # (N,) int64: the smallest row number of the row's group; -1 for rows without a twin
    pairs: int  # pairs of rows found at or above the threshold, each counted once, equal rows included
    recall: (
        float | None
    )  # of the pairs of unequal rows of a random sample: share that is in one group; None: it has none
    sampled_pairs: int  # how many pairs that is the share of
    queries: int  # rows in that sample
    compared: int  # products of two rows that were computed to find the pairs

    def summary(self) -> dict[str, int | float | None]:
        """The numbers, without the rows: how many rows, groups, rows in groups, pairs, and how sure that is."""
        twins = self.group[self.group >= 0]
        return {
            "rows": len(self.group),
            "groups": len(np.unique(twins)),
            "rows_in_groups": len(twins),
            "pairs": self.pairs,
            "recall": self.recall,
            "sampled_pairs": self.sampled_pairs,
            "queries": self.queries,
            "compared": self.compared,
        }


def near_duplicates(rows: Rows, threshold: float, seed: int = 0, progress: bool = True) -> Duplicates:
    """Groups of rows (N, D) that cosines of at least `threshold` hold together, directly or through other rows.

    Rows must be unit within 5e-3. Cosines within 1e-5 of the threshold are computed again in float64. ValueError: a
    threshold outside 0 .. 1, or rows that are not unit.
    """
    if isinstance(threshold, bool) or not 0 < threshold <= 1:
        raise ValueError(f"threshold={threshold!r}; a cosine above 0 and at most 1, like 0.95")
    if threshold < LOW:
        warnings.warn(
            f"threshold={threshold}: below {LOW} whole subjects chain into one group; 0.9 to 0.98 is usual",
            stacklevel=2,
        )
    leader = equal_rows(rows)
    distinct = np.flatnonzero(leader == np.arange(len(rows)))
    weight = np.bincount(leader, minlength=len(rows))[distinct]
    cells = _nearest_cells(rows, distinct, seed)
    search = _Search(rows, distinct, weight, cells, threshold, Unions(leader))
    search.pairs = sum(int(count) * (int(count) - 1) // 2 for count in weight[weight > 1])
    sample = np.sort(np.random.default_rng(seed).permutation(len(distinct))[:SAMPLE])
    recall, total = None, 0
    for low, high in ROUNDS:
        if low >= cells.shape[1]:
            break
        search.run(low, min(high, cells.shape[1]), progress)
        found, total = count_alike(
            rows, distinct, distinct[sample], threshold, search.unions.leaders(np.arange(len(rows)))
        )
        recall = found / total if total else None
        if recall is None or recall >= ENOUGH:
            break
    return Duplicates(search.unions.groups(), search.pairs, recall, total, len(sample), search.compared)


def write_groups(found: Duplicates, ids: np.ndarray | None, metadata: pa.Table | None, out: str | Path) -> None:
    """Write the rows that have a twin to the parquet file `out`: `id`, `group`, then their metadata, group by group.

    ids: (N,), default the row numbers. `group` is the id of the group's first row. A column of metadata that is called
    id or group is written as metadata_id or metadata_group. FileExistsError: `out` is there already.
    """
    refuse_existing(Path(out))
    ids = np.arange(len(found.group)) if ids is None else ids
    rows = np.flatnonzero(found.group >= 0)
    rows = rows[np.argsort(found.group[rows], kind="stable")]
    table = pa.table({"id": pa.array(ids[rows], pa.int64()), "group": pa.array(ids[found.group[rows]], pa.int64())})
    if metadata is not None:
        for name, column in zip(metadata.column_names, metadata.take(pa.array(rows)).columns, strict=True):
            table = table.append_column(f"metadata_{name}" if name in ("id", "group") else name, column)
    with whole_file(out) as partial:
        pq.write_table(table, partial)


def _nearest_cells(rows: Rows, distinct: np.ndarray, seed: int) -> np.ndarray:
    """(M, p) int32: the nearest cells of each distinct row, nearest first."""
    count = 1 if len(distinct) <= ALL_PAIRS else round(2 * len(distinct) ** 0.5)
    nearest = np.zeros((len(distinct), min(count, ROUNDS[-1][1])), np.int32)
    if count == 1:
        return nearest
    chosen = distinct[np.sort(np.random.default_rng(seed).permutation(len(distinct))[: 32 * count])]
    sample = unit_rows(rows.take(chosen), "vectors", numbers=chosen)
    mean = sample.mean(axis=0)  # taken off, so that rows that differ by little keep their digits in the distances
    clusters = faiss.Kmeans(rows.dim, count, niter=8, seed=seed, min_points_per_centroid=1)
    clusters.train(sample - mean)
    centroids = clusters.centroids
    assert centroids is not None
    for first, block in unit_blocks(rows):
        low, high = np.searchsorted(distinct, [first, first + len(block)])
        here = block[distinct[low:high] - first] - mean
        if len(here):
            nearest[low:high] = faiss.knn(here, centroids, nearest.shape[1])[1]
    return nearest


@dataclass
class _Search:
    """The comparisons within cells, and what they found. Rows are numbered among the distinct ones here: 0 .. M-1."""

    rows: Rows
    distinct: np.ndarray  # (M,) their numbers among all
    weight: np.ndarray  # (M,) how many rows are equal to each, itself included
    cells: np.ndarray  # (M, p)
    threshold: float
    unions: Unions  # over all N
    pairs: int = 0
    compared: int = 0

    def run(self, low: int, high: int, progress: bool) -> None:
        """Compare each cell's own rows with those that have it among their nearest low .. high - 1."""
        cells = int(self.cells.max(initial=0)) + 1
        own, own_from = _by_cell(self.cells[:, :1], cells)
        guests, guests_from = _by_cell(self.cells[:, max(low, 1) : high], cells)
        lists = [
            (own[own_from[cell] : own_from[cell + 1]], guests[guests_from[cell] : guests_from[cell + 1]])
            for cell in range(cells)
        ]
        hidden = None if progress else True
        with tqdm(total=len(own), unit="row", unit_scale=True, desc="duplicates", disable=hidden) as bar:
            for run in _runs(lists, GATHERED // (4 * self.rows.dim)):
                read = self._reader(run)
                for mine, others in run:
                    self._compare(mine, others, read, (low, high))
                    bar.update(len(mine))

    def _reader(self, run: list[tuple[np.ndarray, np.ndarray]]) -> Callable[[np.ndarray], np.ndarray]:
        """What gives the rows of a run of cells by number: out of one reading, or from disk for a cell too large."""
        if len(run) == 1 and len(run[0][0]) + len(run[0][1]) > GATHERED // (4 * self.rows.dim):
            return self._take
        needed = np.unique(np.concatenate([part for pair in run for part in pair]))
        gathered = self._take(needed)
        return lambda numbers: gathered[np.searchsorted(needed, numbers)]

    def _take(self, numbers: np.ndarray) -> np.ndarray:
        chosen = self.distinct[numbers]
        return unit_rows(self.rows.take(chosen), "vectors", numbers=chosen)

    def _compare(self, own: np.ndarray, guests: np.ndarray, read: Callable, ranks: tuple[int, int]) -> None:
        """A cell's own rows among themselves (in the first round), and with its guests, by tiles."""
        for start in range(0, len(own), TILE):
            left = own[start : start + TILE]
            here = read(left)
            if ranks[0] == 0:
                for other in range(start, len(own), TILE):
                    right = own[other : other + TILE]
                    for one, two in above(here, read(right), self.threshold):
                        later = (
                            left[one] < right[two]
                        )  # numbers rise within a cell: each pair is met once, below its twin
                        self._found(left[one[later]], right[two[later]])
                    self.compared += len(left) * len(right)
            for other in range(0, len(guests), TILE):
                right = guests[other : other + TILE]
                for one, two in above(here, read(right), self.threshold):
                    self._found_guests(left[one], right[two], *ranks)
                self.compared += len(left) * len(right)

    def _found_guests(self, own: np.ndarray, guest: np.ndarray, low: int, high: int) -> None:
        """Pairs of which the other half may have met, or be to meet, its twin as a guest: each is counted once."""
        match = self.cells[own, 1:high] == self.cells[guest, :1]
        meets = match.any(axis=1)
        earlier = meets & (match.argmax(axis=1) + 1 < max(low, 1))
        twice = meets & ~earlier & (self.cells[own, 0] > self.cells[guest, 0])
        new = ~(earlier | twice)
        self._found(own[new], guest[new])

    def _found(self, one: np.ndarray, other: np.ndarray) -> None:
        self.pairs += int((self.weight[one] * self.weight[other]).sum())
        self.unions.join(self.distinct[one], self.distinct[other])


def _by_cell(cells: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """(rows ordered by cell and rising within it, where each cell begins among them) of (M, p) cells."""
    flat = cells.ravel()
    order = np.argsort(flat, kind="stable")
    rows = order // max(cells.shape[1], 1)
    return rows, np.searchsorted(flat[order], np.arange(count + 1))


def _runs(lists: list[tuple[np.ndarray, np.ndarray]], most: int) -> Iterator[list[tuple[np.ndarray, np.ndarray]]]:
    """Consecutive cells whose rows together are at most `most`; a larger cell comes alone."""
    run: list[tuple[np.ndarray, np.ndarray]] = []
    size = 0
    for own, guests in lists:
        if not len(own):
            continue
        if run and size + len(own) + len(guests) > most:
            yield run
            run, size = [], 0
        run.append((own, guests))
        size += len(own) + len(guests)
    if run:
        yield run
