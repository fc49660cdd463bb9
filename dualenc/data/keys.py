"""The names of a source's samples, in one buffer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import overload

import numpy as np


class Keys(Sequence[str]):
    """Names in one buffer: a list would cost 60 bytes more each, and forked workers would copy it by counting references.

    data: uint8, the names one after another (UTF-8, surrogates escaped); ends: int64 (N,), where each of them ends.
    """

    def __init__(self, data: np.ndarray, ends: np.ndarray):
        self.data, self.ends = data, ends

    @classmethod
    def of(cls, names: Iterable[str]) -> Keys:
        raw = [name.encode("utf-8", "surrogateescape") for name in names]
        ends = np.cumsum(np.fromiter(map(len, raw), np.int64, len(raw)), dtype=np.int64)
        return cls(np.frombuffer(b"".join(raw), np.uint8), ends)

    @classmethod
    def joined(cls, parts: Sequence[Keys]) -> Keys:
        """Those of all parts, in their order."""
        before = np.cumsum([0, *(len(part.data) for part in parts)])
        ends = [part.ends + start for part, start in zip(parts, before, strict=False)]
        empty = cls.of([])
        return cls(np.concatenate([empty.data, *(part.data for part in parts)]), np.concatenate([empty.ends, *ends]))

    def again(self) -> np.ndarray:
        """Positions of keys that stand earlier too, by 64-bit hashes first, so that millions of strings are never held."""
        hashes = self._hashes()
        ordered = np.sort(hashes)
        same = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
        if not len(same):
            return np.empty(0, dtype=np.int64)
        seen: set[str] = set()
        found = []
        for i in np.flatnonzero(np.isin(hashes, same)).tolist():
            if self[i] in seen:
                found.append(i)
            seen.add(self[i])
        return np.array(found, dtype=np.int64)

    def _hashes(self) -> np.ndarray:
        """int64 (N,): equal for equal names, within this process."""
        raw, start, found = self.data.tobytes(), 0, np.empty(len(self), np.int64)
        for i, end in enumerate(self.ends.tolist()):
            found[i] = hash(raw[start:end])
            start = end
        return found

    def __len__(self) -> int:
        return len(self.ends)

    @overload
    def __getitem__(self, i: int) -> str: ...
    @overload
    def __getitem__(self, i: slice) -> list[str]: ...
    def __getitem__(self, i: int | slice) -> str | list[str]:
        if isinstance(i, slice):
            return [self[k] for k in range(*i.indices(len(self)))]
        end = self.ends[i]  # IndexError beyond the last, as a list's
        start = self.ends[i - 1] if i % len(self) else 0
        return self.data[start:end].tobytes().decode("utf-8", "surrogateescape")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or isinstance(other, str | bytes):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]
