"""The queries that an index is measured with: those that users send, never rows that the index itself holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from dualenc.index.vectors import Rows, as_rows, is_store, unit_rows

MOST = 2000  # half choose, half report: at recall 0.95 the standard error of either is well below 0.005
COMPARED = 100  # of them, with the gallery's rows of the same numbers
OWN = (
    "queries are rows of the vectors to index, and a row finds itself whatever the setting; "
    "leave queries out (some rows are then held out), or give queries that the index will not hold"
)
SHARE = 10  # at most one row in ten is held out: the index without them must still be much like the whole


@dataclass(frozen=True)
class Queries:
    """Queries to measure with, no two equal, in random order.

    held: sorted numbers of the gallery's rows that the queries are; they are left out of the index while it is
    measured, and added afterwards. None where the queries are from elsewhere.
    """

    rows: np.ndarray  # (Q, D) unit float32
    origin: str
    held: np.ndarray | None = None  # (Q,) int64


def pick_queries(source: Any, gallery: Rows, side: str, given: Any, seed: int = 0) -> Queries:
    """At most 2,000 queries: the given ones; else the store's other side; else rows held out of the gallery.

    source: what the index is built of (array or open store), gallery: its `side` as rows. given: (Q, D) array or open
    store (its other side; its `side` when that is empty). Queries of the other modality lie elsewhere than the
    gallery, and its own rows say little about them. Of 4,000 drawn at random those that differ are taken: were equal
    ones in both halves, the reporting half would hold what the setting was chosen on.

    ValueError: other D than the gallery, no rows, or rows of the gallery itself.
    """
    rng = np.random.default_rng(seed)
    other = "text" if side == "image" else "image"
    if given is not None:
        taken = other if is_store(given) and len(given.side(other)) else side
        if taken == side:
            _refuse_own(source, given)
        return _draw(as_rows(given, taken, "queries"), gallery, "the queries given", rng)
    if is_store(source) and len(source.side(other)):
        return _draw(source.side(other), gallery, f"the store's {other}s", rng)
    return _hold_out(gallery, side, rng)


def _draw(rows: Rows, gallery: Rows, origin: str, rng: np.random.Generator) -> Queries:
    if rows.dim != gallery.dim:
        raise ValueError(f"queries have D = {rows.dim}, the vectors {gallery.dim}; they come from different encoders")
    if not len(rows):
        raise ValueError("queries are empty; give some, or leave queries out")
    chosen = rng.permutation(len(rows))[: 2 * MOST]
    drawn = unit_rows(rows.take(chosen), "queries", numbers=chosen)
    some = chosen[:COMPARED]
    if len(rows) == len(gallery) > 1 and np.allclose(gallery.take(some), drawn[:COMPARED], atol=1e-3):
        raise ValueError(OWN)
    return Queries(drawn[_different(drawn)[:MOST]], origin)


def _hold_out(gallery: Rows, side: str, rng: np.random.Generator) -> Queries:
    count = min(MOST, len(gallery) // SHARE)
    if len(gallery) < 2 * SHARE:
        reason = f"none were given, and {len(gallery)} rows are too few to hold some out"
        return Queries(np.zeros((0, gallery.dim), np.float32), reason, np.zeros(0, np.int64))
    chosen = rng.permutation(len(gallery))[:count]
    drawn = unit_rows(gallery.take(chosen), "vectors", numbers=chosen)
    kept = _different(drawn)
    return Queries(drawn[kept], f"{side} rows held out of the index (no queries were given)", np.sort(chosen[kept]))


def _different(rows: np.ndarray) -> np.ndarray:
    """Positions of the rows that equal none before them, bit by bit, in order."""
    whole = np.ascontiguousarray(rows).view(np.dtype((np.void, rows.shape[1] * rows.itemsize)))
    return np.sort(np.unique(whole.ravel(), return_index=True)[1])


def _refuse_own(source: Any, given: Any) -> None:
    """ValueError when the queries are seen to be rows of the gallery: a row finds itself whatever the setting."""
    if is_store(given) and is_store(source):
        own = given is source or getattr(given, "folder", given) == getattr(source, "folder", source)
    elif isinstance(given, np.ndarray) and isinstance(source, np.ndarray):
        own = np.shares_memory(given, source)
    else:
        own = given is source
    if own:
        raise ValueError(OWN)
