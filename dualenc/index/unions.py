"""Groups that pairs make: a union-find over row numbers, many pairs at once, in which the smallest number leads."""

from __future__ import annotations

import numpy as np


class Unions:
    """N rows in groups; at first each is alone, or with the row that `leader` (N,) names (no larger than itself)."""

    def __init__(self, leader: np.ndarray):
        self._parent = np.array(leader, np.int64)

    def leaders(self, rows: np.ndarray) -> np.ndarray:
        """The smallest row of the group of each of these rows."""
        found = self._parent[rows]
        while True:
            above = self._parent[found]
            if np.array_equal(above, found):
                break
            self._parent[found] = self._parent[above]  # halves every path that is walked, so that none stays long
            found = above
        self._parent[rows] = found
        return found

    def join(self, one: np.ndarray, other: np.ndarray) -> None:
        """Make one group of each pair (one[i], other[i])."""
        while True:
            first, second = self.leaders(one), self.leaders(other)
            apart = first != second
            if not apart.any():
                return
            one, other = first[apart], second[apart]
            # a leader hangs below a smaller one, so that no circle comes about; what is left over joins next time round
            self._parent[np.maximum(one, other)] = np.minimum(one, other)

    def groups(self) -> np.ndarray:
        """(N,) int64: the leader of each row's group; -1 for rows that are alone."""
        leader = self.leaders(np.arange(len(self._parent)))
        return np.where(np.bincount(leader, minlength=len(leader))[leader] > 1, leader, -1)
