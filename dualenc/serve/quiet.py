"""Loading torch while requests are answered: without long stops of all other threads.

Three things stop them: libraries are opened under Python's lock, the garbage collector walks over the million objects that
the imports make, again and again, and a thread that computes in Python keeps the lock for a while at a time (for that see
`threads.short_turns`).
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import gc
import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """What is imported within makes no garbage collection; nor does it afterwards, as nobody lets go of it any more."""
    running = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()  # the collector does not look at what is there now: a full collection would stop all
        atexit.register(gc.unfreeze)  # at the end it does, or libraries that count their objects call them leaked
        if running:
            gc.enable()


def open_libraries() -> None:
    """Open torch's large libraries before the import does: called like this, the lock is not held.

    Where it does not work nothing is lost: the import opens them itself.
    """
    spec = importlib.util.find_spec("torch")
    if sys.platform != "linux" or "torch" in sys.modules or spec is None or not spec.submodule_search_locations:
        return
    folder = Path(spec.submodule_search_locations[0], "lib")
    dlopen = ctypes.CDLL(None).dlopen
    dlopen.restype, dlopen.argtypes = ctypes.c_void_p, [ctypes.c_char_p, ctypes.c_int]
    # in torch's order and way: what the first one brings is for all
    for name, mode in (("libtorch_global_deps.so", os.RTLD_GLOBAL), ("libtorch_cpu.so", os.RTLD_LOCAL)):
        dlopen(os.fsencode(folder / name), os.RTLD_NOW | mode)
