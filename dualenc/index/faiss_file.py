"""FAISS's files: opened within limits, since a file is untrusted input, and written with errors that say what failed."""

from __future__ import annotations

import struct
import threading
from pathlib import Path
from typing import Any, BinaryIO

import faiss as _faiss

faiss: Any = _faiss  # its type stubs lack what its Python layer adds: downcasts, keyword arguments, arrays for pointers
_LIMITS = threading.Lock()  # FAISS keeps its deserialisation limits in globals
_LOOPS = 4096  # what small structures of a file may count up to
_OUTER, _WRAPPED = 41, (b"IxMp", b"IxM2")


def read(path: Path, mapped: bool = True, lists: int = 0, tables: int = 0) -> Any:
    """Open a FAISS file, downcast; mapped: rows stay on disk until they are read. lists: the most lists it may have.
    tables: bytes that FAISS makes room for beside what the file holds.

    ValueError where FAISS refuses it, as it does where a length in the file is more than the file itself.
    """
    # plain IO_FLAG_MMAP starts threads for each search of lists, which takes longer than the search
    flags = faiss.IO_FLAG_MMAP_IFC if mapped else 0
    with _LIMITS:
        limits = faiss.get_deserialization_vector_byte_limit(), faiss.get_deserialization_loop_limit()
        # no array can be longer than its file
        faiss.set_deserialization_vector_byte_limit(path.stat().st_size + tables)
        faiss.set_deserialization_loop_limit(max(lists, _LOOPS))
        try:
            return faiss.read_index(str(path), flags)
        except (RuntimeError, MemoryError) as error:
            raise ValueError(f"{path} does not open in FAISS ({_brief(error)}); restore it or build again") from error
        finally:
            faiss.set_deserialization_vector_byte_limit(limits[0])
            faiss.set_deserialization_loop_limit(limits[1])


def write(index: Any, path: Path) -> None:
    """Write a FAISS file; OSError where the disk does not take it.

    FAISS's own writer closes the file where an error of the last bytes is printed and forgotten, so Python writes it.
    """
    try:
        with open(path, "wb") as file:
            _write_to(index, file)
    except OSError as error:
        error.filename = str(path)
        raise


def _write_to(index: Any, file: BinaryIO) -> None:
    failed: list[OSError] = []

    def take(data: bytes) -> int:
        try:
            if not failed:
                file.write(data)
        except OSError as error:  # not through FAISS, which would make another error of it
            failed.append(error)
        return len(data)

    try:
        faiss.write_index(index, faiss.PyCallbackIOWriter(take, 1 << 22))
    except RuntimeError as error:
        raise OSError(f"FAISS cannot write it: {_brief(error)}") from error
    if failed:
        raise failed[0]


def check_header(path: Path, letters: tuple[bytes, bytes], total: int, dim: int) -> None:
    """ValueError unless the file begins as the index of `total` rows of `dim` numbers that `letters` stand for.

    A FAISS file begins: 4 letters for the type, int32 D, int64 rows; the 4 letters of an index inside it are at byte 37.
    letters: the two, the second b"" where there is none inside.
    """
    with open(path, "rb") as file:
        head = file.read(_OUTER)
    fits = len(head) == _OUTER and head[:4] == letters[0] and head[37:].startswith(letters[1])
    if not fits or struct.unpack_from("<iq", head, 4) != (dim, total):
        raise ValueError(f"{path} is not the FAISS index of {total} x {dim} that the manifest names; build again")


def _brief(error: Exception) -> str:
    lines = str(error).split("Error:")[-1].strip().splitlines()
    return lines[0][:160] if lines else type(error).__name__
