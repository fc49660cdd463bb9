"""Synthetic embeddings for the index benchmarks, and how many of the true neighbours a search finds.

Rows lie in clusters whose sizes fall off (the c-th holds a share ~ c^-sizes), whose widths differ, and whose variance
falls off over the dimensions (the j-th scale ~ j^-decay), as trained embeddings' does: with all of these at 0 and 256
dimensions, a row's neighbours are its whole cluster and any index finds them. An offset common to a side makes the gap
between modalities: texts lie near the images' clusters, behind another offset.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import numpy as np

K = 10
BLOCK = 50_000


@dataclass(frozen=True)
class Clusters:
    """Where clusters lie and what they look like; a side (`Side`) draws its rows from them."""

    count: int
    dim: int
    decay: float = 0.0
    sizes: float = 0.0
    seed: int = 0

    def scale(self) -> np.ndarray:
        """(D,) the standard deviation along each dimension, 1 in quadratic mean."""
        scale = np.arange(1, self.dim + 1) ** -self.decay
        return (scale / np.sqrt((scale**2).mean())).astype(np.float32)

    def centres(self) -> np.ndarray:
        """(count, D)."""
        rng = np.random.default_rng([self.seed, 0])
        return rng.standard_normal((self.count, self.dim), np.float32) * self.scale()

    def shares(self) -> np.ndarray:
        """(count,) of the rows that each cluster holds."""
        share = np.arange(1, self.count + 1) ** -self.sizes
        return share / share.sum()


@dataclass(frozen=True)
class Side:
    """How one modality's rows lie about the clusters: `pull` times the centre, noise of `spread`, one common offset."""

    spread: float
    pull: float = 1.0
    vary: float = 0.0  # of log spread, from cluster to cluster
    offset: float = 0.0
    number: int = 1  # tells the sides' random draws apart

    def draw(self, clusters: Clusters, rows: int, stream: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """((rows, D) float32 unit rows, (rows,) each one's cluster); another `stream`, other rows of the same kind."""
        shape = np.random.default_rng([clusters.seed, self.number])
        scale, centres = clusters.scale(), clusters.centres()
        spreads = self.spread * np.exp(self.vary * shape.standard_normal(clusters.count)).astype(np.float32)
        offset = self.offset * shape.standard_normal(clusters.dim).astype(np.float32) * scale
        rng = np.random.default_rng([clusters.seed, self.number, stream])
        owner = rng.choice(clusters.count, size=rows, p=clusters.shares())
        drawn = np.empty((rows, clusters.dim), np.float32)
        for first in range(0, rows, BLOCK):
            mine = owner[first : first + BLOCK]
            noise = rng.standard_normal((len(mine), clusters.dim), np.float32) * scale
            x = self.pull * centres[mine] + spreads[mine, None] * noise + offset
            drawn[first : first + BLOCK] = x / np.linalg.norm(x, axis=1, keepdims=True)
        return drawn, owner


ROWS, DIM, CLUSTERS = 200_000, 256, 2000
SETS = {  # one modality, queries held out: (clusters, rows in them)
    "plain": (Clusters(CLUSTERS, DIM), Side(1.0)),
    "graded": (Clusters(CLUSTERS, DIM, decay=0.5, sizes=0.5), Side(0.6, vary=0.3)),
}
GAP_ROWS, GAP_DIM, GAP_CLUSTERS = 100_000, 128, 1500


@dataclass(frozen=True)
class Gap:
    """A set with a modality gap: images, and texts that search them."""

    clusters: Clusters
    images: Side
    texts: Side


def _gap(spread: float, pull: float, noise: float, ours: float, theirs: float, seed: int, **shape: float) -> Gap:
    clusters = Clusters(GAP_CLUSTERS, GAP_DIM, seed=seed, **shape)
    return Gap(clusters, Side(spread, offset=ours), Side(noise, pull=pull, offset=theirs, number=2))


GAPS = {  # images' spread; texts' pull and spread; the two offsets; seed. In the last, lists are no faster than all rows
    "gap 1": _gap(0.5, 0.25, 0.6, 1.0, 1.0, 1, decay=0.5),
    "gap 2": _gap(0.5, 0.5, 0.6, 1.0, 1.5, 2),
    "gap 3": _gap(0.7, 0.5, 0.6, 1.0, 1.5, 3, decay=0.3, sizes=0.5),
    "gap 4": _gap(1.0, 0.5, 0.6, 1.0, 1.5, 4),
    "gap 5": _gap(1.0, 0.3, 0.8, 1.5, 1.5, 5),
    "gap 6": _gap(1.1, 0.15, 1.0, 0.3, 0.3, 6),
}


def held_out(name: str, rows: int, queries: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(gallery (rows, D), queries (queries, D)) of one of SETS."""
    clusters, side = SETS[name]
    clusters = reseeded(clusters, rows / ROWS, seed)
    return side.draw(clusters, rows)[0], side.draw(clusters, queries, stream=1)[0]


def reseeded(clusters: Clusters, share: float, seed: int) -> Clusters:
    """The same kind of clusters for a share of the rows: as many rows in each. `seed` is added to theirs."""
    count = max(8, round(clusters.count * min(share, 1)))
    return Clusters(count, clusters.dim, clusters.decay, clusters.sizes, clusters.seed + seed)


def recall(found: np.ndarray, best: np.ndarray) -> float:
    """ANN recall: the share of `best` (Q, K), exact search's ids, that is in `found` (Q, K)."""
    shared = [len(set(mine) & set(theirs)) for mine, theirs in zip(found.tolist(), best.tolist(), strict=True)]
    return round(sum(shared) / best.size, 4)


def described(thing: Any) -> Any:
    """Parameters as plain values, for the record."""
    if is_dataclass(thing):
        return {field.name: described(getattr(thing, field.name)) for field in fields(thing)}
    if isinstance(thing, dict):
        return {name: described(value) for name, value in thing.items()}
    return [described(value) for value in thing] if isinstance(thing, tuple) else thing
