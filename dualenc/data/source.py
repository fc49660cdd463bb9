"""What every source is: samples by number, wherever their bytes lie."""

from __future__ import annotations

import abc
import hashlib
import json
from collections.abc import Sequence

import numpy as np

from dualenc.data.keys import Keys
from dualenc.data.sample import KINDS, Sample


class Source(abc.ABC):
    """Samples by number.

    keys: a sequence of N names, all different. problems: by reason, the names of what was left out while listing.
    names: the paths the source was opened by, and origin: int64 (N,), which of them each sample comes from.
    problem_counts: how much was left out, by (number in `names`, reason).
    classes: the names of the classes, in the order of their numbers, where the source's own layout tells them.
    """

    problem_counts: dict[tuple[int, str], int]
    classes: list[str] | None = None

    def __init__(self, path: str, keys: Keys, problems: dict[str, list[str]], names: list[str], origin: np.ndarray):
        self.path = path
        self.keys = keys
        self.problems = problems
        self.names = names
        self.origin = origin
        self.problem_counts = {}

    def __len__(self) -> int:
        return len(self.keys)

    @abc.abstractmethod
    def sample(self, i: int, kinds: Sequence[str] = KINDS) -> Sample:
        """The undecoded bytes of sample i, of the wanted kinds that it has. OSError when it cannot be read."""

    @abc.abstractmethod
    def location(self, i: int, kind: str = "image") -> tuple[str, int, int] | None:
        """(path, offset, size) of one member of sample i, or None where it has none."""

    def read(self, i: int, kind: str = "image") -> bytes | None:
        """The raw bytes of one member of sample i, or None where it has none."""
        return self.sample(i, (kind,)).parts.get(kind)

    def prefetch(self, first: int, last: int) -> None:  # noqa: B027  (a hint, which a source may ignore)
        """Ask the system to read samples first .. last - 1 into memory; returns at once."""

    def digest(self) -> str:
        """SHA-256 over the names and sizes of the files: equal wherever they lie, another for other files."""
        return hashlib.sha256(json.dumps(self._files()).encode()).hexdigest()

    @abc.abstractmethod
    def _files(self) -> list[tuple[str, int]]:
        """(name, bytes) of every file that samples come from."""


class Chosen(Source):
    """Some samples of another source, in the order given. kinds: what is read of a sample; the rest is as if absent."""

    def __init__(self, source: Source, positions: Sequence[int] | np.ndarray, kinds: Sequence[str] = KINDS):
        self._source, self._kinds = source, tuple(kinds)
        self._positions = np.asarray(positions, dtype=np.int64)
        keys = Keys.of(source.keys[i] for i in self._positions.tolist())
        super().__init__(source.path, keys, {}, source.names, source.origin[self._positions])

    def sample(self, i: int, kinds: Sequence[str] = KINDS) -> Sample:
        return self._source.sample(int(self._positions[i]), [kind for kind in kinds if kind in self._kinds])

    def location(self, i: int, kind: str = "image") -> tuple[str, int, int] | None:
        return self._source.location(int(self._positions[i]), kind) if kind in self._kinds else None

    def digest(self) -> str:
        """SHA-256 over the whole source's files, the samples chosen and the kinds."""
        parts = [self._source.digest().encode(), self._positions.astype("<i8").tobytes(), repr(self._kinds).encode()]
        return hashlib.sha256(b"\0".join(parts)).hexdigest()

    def _files(self) -> list[tuple[str, int]]:
        return self._source._files()
