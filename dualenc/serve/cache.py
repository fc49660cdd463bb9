"""A cache that stays within its bytes: what was not asked for the longest goes first."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

from dualenc.serve.observe import hit, miss

Value = TypeVar("Value")


class Cache(Generic[Value]):
    """(key -> value) for one event loop; counted as `name` in the metrics. Values are shared: nobody changes them."""

    def __init__(self, name: str, most: int):
        self.name, self.most, self.bytes = name, most, 0
        self._kept: OrderedDict[Hashable, tuple[Value, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: Hashable) -> Value | None:
        """The value under a key; None where there is none (any more)."""
        found = self._kept.get(key)
        if found is None:
            miss(self.name)
            return None
        self._kept.move_to_end(key)
        hit(self.name)
        return found[0]

    def put(self, key: Hashable, value: Value, size: int) -> None:
        """Keep a value of so many bytes, unless it alone takes more than all may."""
        if size > self.most:
            return
        if key in self._kept:
            self.bytes -= self._kept.pop(key)[1]
        self._kept[key], self.bytes = (value, size), self.bytes + size
        while self.bytes > self.most:
            self.bytes -= self._kept.popitem(last=False)[1][1]
