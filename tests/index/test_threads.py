"""The number of threads: as asked within, as before afterwards, for FAISS and for torch."""

from __future__ import annotations

import subprocess
import sys
import threading

import faiss
import pytest

from dualenc.index.threads import pools


@pytest.fixture(autouse=True)
def three():
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(3)
    yield
    faiss.omp_set_num_threads(before)


def test_within_as_asked_and_afterwards_as_before():
    with pools(2):
        assert faiss.omp_get_max_threads() == 2
        with pools(1):
            assert faiss.omp_get_max_threads() == 1
        assert faiss.omp_get_max_threads() == 2
    assert faiss.omp_get_max_threads() == 3


def test_none_leaves_the_number_and_still_restores_it():
    with pools(None):
        assert faiss.omp_get_max_threads() == 3
        faiss.omp_set_num_threads(1)
    assert faiss.omp_get_max_threads() == 3


def test_an_error_within_is_raised_and_the_number_restored():
    with pytest.raises(KeyError, match="mine"), pools(1):
        raise KeyError("mine")
    assert faiss.omp_get_max_threads() == 3


@pytest.mark.parametrize("threads", [0, -2])
def test_fewer_than_one_thread_is_refused(threads):
    with pytest.raises(ValueError, match=f"threads={threads}; FAISS needs 1"), pools(threads):
        pass
    assert faiss.omp_get_max_threads() == 3


def test_it_holds_for_the_calling_thread_alone():
    seen = {}

    def work():
        with pools(2):
            inside.set()
            outside.wait(10)
            seen["there"] = faiss.omp_get_max_threads()

    inside, outside = threading.Event(), threading.Event()
    thread = threading.Thread(target=work)
    thread.start()
    inside.wait(10)
    seen["here"] = faiss.omp_get_max_threads()
    outside.set()
    thread.join()
    assert seen == {"here": 3, "there": 2}


TORCH = """
import sys
{first}
from dualenc.index.threads import pools
{then}
import faiss
assert ("torch" in sys.modules) == {loaded}
if {loaded}:
    import torch
    torch.set_num_threads(2)
faiss.omp_set_num_threads({faiss_threads})
before = faiss.omp_get_max_threads(), torch.get_num_threads() if {loaded} else None
try:
    with pools(1):
        assert faiss.omp_get_max_threads() == 1
        if {loaded}:
            torch.set_num_threads(1)
        1 / 0
except ZeroDivisionError:
    pass
assert (faiss.omp_get_max_threads(), torch.get_num_threads() if {loaded} else None) == before, before
assert ("torch" in sys.modules) == {loaded}
"""


@pytest.mark.parametrize(
    ("first", "then", "loaded"), [("import torch", "", True), ("", "import torch", True), ("", "", False)]
)
def test_torch_is_left_as_it_was_whichever_was_imported_first_and_never_imported(first, then, loaded):
    if loaded:
        pytest.importorskip("torch")
    script = TORCH.format(first=first, then=then, loaded=loaded, faiss_threads=2)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
