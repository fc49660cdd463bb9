"""Hits that look alike, of which only the best is shown."""

from __future__ import annotations

import numpy as np

from dualenc.index.unions import Unions

BLOCK = 1024  # rows compared at once: their cosines with 10,000 others are 40 MB


def first_of_alike(rows: np.ndarray, threshold: float) -> np.ndarray:
    """(n,) bool: which of the unit rows (n, D) stays where, of all that hang together, only the first does.

    Two hang together whose cosine is above `threshold`, and two that both hang together with a third.
    """
    alike = Unions(np.arange(len(rows)))
    for start in range(0, len(rows), BLOCK):
        one, other = np.nonzero(rows[start : start + BLOCK] @ rows[start:].T > threshold)  # earlier ones were compared
        apart = one < other
        alike.join(one[apart] + start, other[apart] + start)
    leader = alike.leaders(np.arange(len(rows)))
    return leader == np.arange(len(rows))
