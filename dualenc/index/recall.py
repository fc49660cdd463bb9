"""ANN recall: what an index finds of what exact search finds, per query; and how sure the mean over queries is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dualenc.index.exact import exact_search
from dualenc.index.vectors import Rows

LEVEL = 0.95  # of the one-sided bound
TIE = 1e-6


@dataclass(frozen=True)
class Truth:
    """What exact search finds for Q queries, best first."""

    ids: np.ndarray  # (Q, k) int64
    last: np.ndarray  # (Q, 1) float32 score of the last
    above: np.ndarray  # (Q, 1) how many of the k are better than the last by more than rounding

    def part(self, queries: slice) -> Truth:
        """The truth of some of the queries."""
        return Truth(self.ids[queries], self.last[queries], self.above[queries])


def truth(queries: np.ndarray, gallery: Rows, k: int, ids: np.ndarray, skip: np.ndarray | None = None) -> Truth:
    """Exact search by streaming blocks; k becomes the number of rows where that is smaller.

    queries: (Q, D) unit float32; ids: (N,) id of each row of the gallery; skip: sorted rows that are left out.
    """
    k = min(k, len(gallery) - (0 if skip is None else len(skip)))
    if k < 1 or not len(queries):
        nothing = np.zeros((len(queries), 1), np.float32)
        return Truth(np.zeros((len(queries), max(k, 0)), np.int64), nothing, nothing.astype(np.int64))
    rows, scores = exact_search(queries, gallery, k, skip=skip)
    last = scores[:, -1:]
    return Truth(ids[rows], last, (scores > last + TIE).sum(axis=1, keepdims=True))


def recall_per_query(ids: np.ndarray, scores: np.ndarray, truth: Truth, exact_scores: bool) -> np.ndarray:
    """(Q,) ANN recall@k of found ids and scores, (Q, k) each.

    Of rows that tie with the last true one (within 1e-6) either is right, so that as many of them count as the truth
    holds; but only where scores are exact: an estimate proves nothing.

    >>> true = Truth(np.array([[4, 7]]), np.array([[0.5]]), np.array([[1]]))  # 4 scores more than 7, which scores 0.5
    >>> recall_per_query(np.array([[7, 9]]), np.array([[0.5, 0.5]]), true, True)  # 9 ties with 7; 4 is missed
    array([0.5])
    """
    k = truth.ids.shape[1]
    same = ids[:, :, None] == truth.ids[:, None, :]  # (Q, k, k)
    better = (same & (np.arange(k) < truth.above)[:, None, :]).any(axis=2)
    ties = same.any(axis=2) & ~better
    if exact_scores:
        ties |= ~better & (scores >= truth.last - TIE)
    return (better.sum(axis=1) + np.minimum(ties.sum(axis=1), k - truth.above[:, 0])) / k


def lower_bound(per_query: np.ndarray, level: float = LEVEL, draws: int = 2000, seed: int = 0) -> float:
    """One-sided lower bound of the mean over queries: percentile bootstrap (Efron 1979).

    per_query: (n,). A draw of n queries with replacement is a multinomial draw of how often each value occurs, and
    ANN recall@k has k + 1 values: draws × (k + 1) counts are all the memory it takes. It speaks of queries like those
    measured: where all are perfect, or there is but one, it is their mean, however few they are.
    """
    values, counts = np.unique(per_query, return_counts=True)
    drawn = np.random.default_rng(seed).multinomial(len(per_query), counts / len(per_query), size=draws)
    return float(np.quantile(drawn @ values / len(per_query), 1 - level, method="lower"))
