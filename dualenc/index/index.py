"""`Index`: the one object that searches and changes an index folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from dualenc.index.build import build, fingerprint_of
from dualenc.index.change import add_rows, remove_rows
from dualenc.index.generation import Generation, open_generation
from dualenc.index.manifest import check_files, read_manifest
from dualenc.index.vectors import as_queries


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
        a dict (`load_recipe`). recall: the ANN recall@10 to reach, at the least cost, on `queries` (array or store),
        else on the store's other side, else on rows of the index itself; the manifest says which.
        memory: most bytes of the FAISS file (2_000_000_000 or "2GB"). latency: most seconds for one query (0.005 or
        "5ms"). encoder: fingerprint, or what has .fingerprint, for vectors that come without a store.
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
        ValueError: another encoder's, another D, not unit, or an expression that DuckDB refuses.
        """
        now = self._now
        if encoder is not None:
            self._refuse_foreign(fingerprint_of(encoder))
        if isinstance(k, bool) or not isinstance(k, (int, np.integer)) or k < 1:
            raise ValueError(f"k={k!r}; ask for a whole number of rows, 1 or more")
        rows = as_queries(queries, now.manifest["dim"])
        mask = None if where is None else now.catalog.where.mask(where)
        return now.kind.search(rows, int(k), now.setting, np.asarray(now.catalog.ids), mask)

    def rows(self, ids: Any) -> pa.Table:
        """Metadata of these ids, in their order; a table of `id` alone where the index has no metadata.

        ValueError: an id that is not in the index; -1, which stands for 'nothing found'.
        """
        return self._now.catalog.of(ids)

    def add(self, vectors: Any, ids: Any = None, metadata: Any = None) -> None:
        """Add unit rows (array or store), all or none; default ids follow the highest ever used.

        Columns that the index has and `metadata` lacks, or the other way round, are null. The setting and the recall
        in the manifest stay those of the build. ValueError: unfit input or an id that is there already;
        BlockingIOError: another writer is at work.
        """
        add_rows(self.folder, vectors, ids, metadata)
        self._now = open_generation(self.folder)

    def remove(self, ids: Any) -> None:
        """Take the rows with these ids out, all or none. ValueError: an id that is not there."""
        remove_rows(self.folder, ids)
        self._now = open_generation(self.folder)

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

    def _refuse_foreign(self, fingerprint: str) -> None:
        if self.fingerprint is not None and fingerprint != self.fingerprint:
            raise ValueError(
                f"{self.folder} holds vectors of encoder {self.encoder or 'unknown'} ({self.fingerprint[:12]}…), the "
                f"queries are from {fingerprint[:12]}…; search with that encoder, or embed and build with this one"
            )


def info(folder: str | Path, verify: bool = False) -> dict[str, Any]:
    """What an index is, from its manifest (without the mean's numbers); verify: hash every file first."""
    folder = Path(folder)
    manifest = read_manifest(folder)
    check_files(folder, manifest, verify)
    size = sum(entry["bytes"] for entry in manifest["files"].values())
    centred = manifest["mean"] is not None
    return {
        "folder": str(folder),
        **manifest,
        "mean": "taken from the vectors" if centred else None,
        "bytes_on_disk": size,
    }
