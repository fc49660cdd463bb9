"""How many threads FAISS uses, for as long as a block of code runs; torch's pool is left as it was found."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

import faiss as _faiss

faiss: Any = _faiss  # its type stubs lack what its Python layer adds


@contextlib.contextmanager
def pools(threads: int | None) -> Iterator[None]:
    """Run FAISS on `threads` threads within the `with` (None: as many as before); afterwards both pools are as before.

    Where torch was imported before FAISS, both share one OpenMP setting, and what is set for the one changes the other:
    so both are read first and both are set again at the end. OpenMP keeps its setting per thread: this one holds for
    the calling thread alone. ValueError: fewer than 1 thread.
    """
    if threads is not None and threads < 1:
        raise ValueError(f"threads={threads}; FAISS needs 1 at least (None leaves the number as it is)")
    torch = sys.modules.get("torch")  # never imported here: only what is loaded already can have a pool
    in_faiss = faiss.omp_get_max_threads()  # first: torch's first answer sets the number that it gives
    in_torch = torch.get_num_threads() if torch else None
    try:
        if threads is not None:
            faiss.omp_set_num_threads(threads)
        yield
    finally:
        if torch and in_torch is not None:
            torch.set_num_threads(in_torch)
        faiss.omp_set_num_threads(in_faiss)
