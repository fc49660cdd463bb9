"""A cache of arrays that stays within its bytes: what was not asked for the longest goes first."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable

import numpy as np

from dualenc.serve.observe import hit, miss

OVERHEAD = 400  # bytes of an entry beside its array's values and its key, about


class Cache:
    """(key -> array) for one event loop; counted as `name` in the metrics. Arrays are shared: nobody writes into them."""

    def __init__(self, name: str, most: int):
        self.name, self.most, self.bytes = name, most, 0
        self._arrays: OrderedDict[Hashable, tuple[np.ndarray, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._arrays)

    def get(self, key: Hashable) -> np.ndarray | None:
        """The array under a key; None where there is none (any more)."""
        found = self._arrays.get(key)
        if found is None:
            miss(self.name)
            return None
        self._arrays.move_to_end(key)
        hit(self.name)
        return found[0]

    def put(self, key: Hashable, array: np.ndarray, key_bytes: int = 0) -> None:
        """Keep a copy of an array, unless it alone takes more than all may. key_bytes: about what its key takes."""
        size = array.nbytes + key_bytes + OVERHEAD
        if size > self.most:
            return
        if key in self._arrays:
            self.bytes -= self._arrays.pop(key)[1]
        kept = array.copy()  # a row of a batch would hold the whole batch
        kept.flags.writeable = False
        self._arrays[key], self.bytes = (kept, size), self.bytes + size
        while self.bytes > self.most:
            self.bytes -= self._arrays.popitem(last=False)[1][1]
