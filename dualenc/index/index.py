"""`Index`: the one object that searches and changes an index folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from dualenc.index.build import build
from dualenc.index.change import add_rows, compact, remove_rows
from dualenc.index.generation import Generation, open_generation
from dualenc.index.hits import page
from dualenc.index.neighbours import write_graph
from dualenc.index.retune import Gallery, tune_index
from dualenc.index.segment import search_segments
from dualenc.index.vectors import Rows, as_queries
from dualenc.index.whose import fingerprint_of

MOST = 1_000_000  # results that may be asked for even where there are fewer rows: what is missing is filled up


class Index:
    """An index that is open for searching: the generation that was current then, whatever writers do since.

    Made by `Index.build` and `Index.open`. Searches may run in several threads at once.
    """

    def __init__(self, folder: Path, now: Generation):
        self.folder, self._now = folder, now

    @classmethod
    def build(
        cls,
        vectors_or_store: Any,
        out: str | Path,
        ids: Any = None,
        metadata: Any = None,
        recipe: str | Path | dict[str, Any] = "auto",
        recall: float = 0.95,
        memory: int | str | None = None,
        latency: float | str | None = None,
        queries: Any = None,
        encoder: Any = None,
        side: str = "image",
    ) -> Index:
        """Build an index of unit rows (N, D) in the folder `out`, which appears whole or not at all, and open it.

        vectors_or_store: array, memory map or open store. ids: int64 of at least 0, each once; default 0 .. N-1.
        metadata: pyarrow.Table or list of dicts, one row each; default the store's. recipe: a shipped name, a path or
        a dict (`load_recipe`); "auto" takes the cheapest kind that trial builds show to reach the rest. recall: the
        ANN recall@10 that the index must reach on `queries` (array or store), else on the store's other side, else on
        rows that are held out of the index until it is measured: the lower 95 % bootstrap bound of its mean.
        memory: most bytes of the FAISS file (2_000_000_000 or "2GB"). latency: most seconds for one query (0.005 or
        "5ms"). encoder: fingerprint, or what has .fingerprint, for vectors that come without a store. FAISS's threads are
        as they are; `with pools(n):` around it sets them.
        A build that was killed goes on where it was when it is called again.
        ValueError: unfit input, or recall, memory or latency out of reach, with the best that can be had.
        FileExistsError: `out` holds something.
        """
        build(vectors_or_store, out, ids, metadata, recipe, recall, memory, latency, queries, encoder, side)
        return cls.open(out)

    @classmethod
    def open(cls, folder: str | Path, verify: bool = False) -> Index:
        """Open an index; rows stay on disk until a search reads them. verify: hash every file first.

        FileNotFoundError or ValueError: no index there, or a file missing, cut off or altered.
        """
        return cls(Path(folder), open_generation(Path(folder), verify))

    def search(
        self, queries: Any, k: int = 10, where: str | None = None, encoder: Any = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The k best rows for unit queries (Q, D): ids (Q, k) int64 and cosines (Q, k) float32, best first.

        where: an SQL expression over metadata; only rows for which it is true are found. Fewer than k such rows: id -1
        and score -inf at the end. encoder: whose queries these are (fingerprint, or what has .fingerprint).
        ValueError: another encoder's, another D, not unit, or an expression that is refused.
        """
        return self._searcher(where, encoder)(self._queries(queries), self._count(k))

    def page(
        self,
        queries: Any,
        k: int = 10,
        where: str | None = None,
        encoder: Any = None,
        offset: int = 0,
        threshold: float | None = None,
        group_by: str | None = None,
        without: int = -1,
    ) -> tuple[np.ndarray, np.ndarray]:
        """`search`, from the hit with number `offset` on, above a threshold, one for each group.

        offset: how many of the best to leave out (the next page). threshold: only cosines of at least this. group_by: a
        column of the metadata of which each value is found once, with its best row (rows without a value: all). without:
        an id that is no hit: the row that others are compared with.
        ValueError: as `search`, or an unknown column.
        """
        catalog = self._now.catalog
        numbers = None if group_by is None else catalog.column_groups(group_by)
        groups = None if numbers is None else lambda ids: numbers[catalog.find(ids)]
        search = self._searcher(where, encoder)
        return page(search, self._queries(queries), self._count(k), len(self), offset, threshold, groups, without)

    def rows(self, ids: Any) -> pa.Table:
        """Metadata of these ids, in their order; a table of `id` alone where the index has no metadata.

        ValueError: an id that is not in the index; -1, which stands for 'nothing found'.
        """
        return self._now.catalog.of(ids)

    def vectors(self, ids: Any) -> np.ndarray:
        """(n, D) float32: the unit rows with these ids, as they were given.

        ValueError: an id that is not in the index, or an index that holds codes and no original rows.
        """
        return self._now.catalog.vectors(self._now.catalog.known(ids)[1])

    def add(self, vectors: Any, ids: Any = None, metadata: Any = None) -> None:
        """Add unit rows (array or store), all or none; default ids follow the highest ever used.

        Columns that the index has and `metadata` lacks, or the other way round, are null. The setting and the recall in
        the manifest stay those of the build (`tune` measures again). ValueError: unfit input or an id that is there
        already; BlockingIOError: another writer is at work.
        """
        add_rows(self.folder, vectors, ids, metadata)
        self._now = open_generation(self.folder)

    def upsert(self, vectors: Any, metadata: Any = None) -> None:
        """Add unit rows as `add` does; a row whose `key` is in the index replaces that one and keeps its id."""
        add_rows(self.folder, vectors, None, metadata, upsert=True)
        self._now = open_generation(self.folder)

    def remove(self, ids: Any) -> None:
        """Take the rows with these ids out, all or none. ValueError: an id that is not there."""
        remove_rows(self.folder, ids)
        self._now = open_generation(self.folder)

    def compact(self) -> None:
        """Write one segment of all, without what was removed: the smallest and quickest form of the same rows."""
        compact(self.folder)
        self._now = open_generation(self.folder)

    def tune(
        self, queries: Any = None, recall: float | None = None, latency: float | str | None = None
    ) -> dict[str, Any]:
        """Choose the search setting again, by measuring, without building again; what the manifest then says of it.

        queries, recall, latency: as in `build`; recall: default the build's. Without queries, rows of the index are left
        out while it is measured (not of a graph, which leads to each of its own rows).
        ValueError: out of reach, with the best that can be had, or original rows that nobody has.
        """
        record = tune_index(self.folder, queries, recall, latency)
        self._now = open_generation(self.folder)
        return record

    def ids_where(self, where: str) -> np.ndarray:
        """(n,) int64: the ids of the rows for which an SQL expression over metadata is true, in row order."""
        return self._now.catalog.ids[self._now.catalog.where.mask(where)]

    def prepare(self, where: str) -> None:
        """Have the rows of a filter ready for searches with that very text; ValueError: it is refused."""
        self._now.catalog.allowed(where)

    def prepared(self, where: str) -> bool:
        """Whether a search with this filter finds its rows ready: the last few are kept."""
        return self._now.catalog.ready(where)

    def neighbours(self, out: str | Path, k: int = 10) -> None:
        """Write the graph of each row's k nearest other rows (`write_graph`) as a parquet file."""
        write_graph(self.search, Gallery(self._now.catalog), self._now.catalog.ids, k, Path(out))

    def gallery(self) -> Rows:
        """The original rows, in row order, by the block or by number."""
        return Gallery(self._now.catalog)

    @property
    def metadata(self) -> pa.Table | None:
        """All metadata, in row order; None where the index has none."""
        return self._now.catalog.metadata

    def __len__(self) -> int:
        return self._now.manifest["rows"]

    @property
    def ids(self) -> np.ndarray:
        """(N,) int64: the ids in row order."""
        return np.array(self._now.catalog.ids)

    @property
    def manifest(self) -> dict[str, Any]:
        """What manifest.json says of the generation that is open."""
        return self._now.manifest

    @property
    def dim(self) -> int:
        """D."""
        return self.manifest["dim"]

    @property
    def fingerprint(self) -> str | None:
        """The fingerprint of the encoder whose vectors these are; None where nobody said."""
        return self.manifest["fingerprint"]

    @property
    def encoder(self) -> str | None:
        """That encoder's name or path; None where nobody said."""
        return self.manifest["encoder"]

    def _count(self, k: Any) -> int:
        if isinstance(k, bool) or not isinstance(k, (int, np.integer)) or k < 1:
            raise ValueError(f"k={k!r}; ask for a whole number of rows, 1 or more")
        if k > max(len(self), MOST):
            raise ValueError(f"k={k} is more than the {len(self):,} rows of the index; ask for no more than it has")
        return int(k)

    def _queries(self, queries: Any) -> np.ndarray:
        return as_queries(queries, self.dim)

    def _searcher(self, where: str | None, encoder: Any) -> Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray]]:
        now = self._now
        if encoder is not None:
            self._refuse_foreign(fingerprint_of(encoder))
        allowed = None if where is None else now.catalog.allowed(where)
        return lambda queries, k: search_segments(now.segments, queries, k, now.setting, allowed)

    def _refuse_foreign(self, fingerprint: str) -> None:
        if self.fingerprint is not None and fingerprint != self.fingerprint:
            raise ValueError(
                f"{self.folder} holds vectors of encoder {self.encoder or 'unknown'} ({self.fingerprint[:12]}…), the "
                f"queries are from {fingerprint[:12]}…; search with that encoder, or embed and build with this one"
            )
