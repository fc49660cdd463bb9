"""How many threads each part of a worker computes on, planned together so that they do not fight for the same cores.

FAISS and torch both compute on OpenMP threads, by default as many as cores for each of them, which meet at a barrier after
each step and go on spinning for a while in case that more comes. Where a core is taken by something else, every barrier
waits for it, and two threads take longer than one. So a search is one thread's work, and several searches go on side by
side; torch gets a number for each tower, and none spins.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass

TURN = 0.0005  # seconds after which a thread that holds Python's lock is asked to let another one run (Python: 0.005)


@dataclass(frozen=True)
class Plan:
    """Threads of one worker process."""

    search: int  # of an index's lane, each of which searches alone
    text: int  # torch's, for the text tower
    image: int  # torch's, for the image tower
    pool: int  # for all else, each of which computes alone


def plan(threads: int | None, workers: int = 1) -> Plan:
    """What `threads` are spent on (None: the cores that this process may use over the workers, at least 1)."""
    count = threads or max(1, cores() // workers)
    # a text is a small matrix: more threads would save little, and other requests need cores too.
    # the pool mostly waits for files, or decodes pictures: one more than cores keeps it busy
    return Plan(search=count, text=max(1, count // 2), image=count, pool=count + 1)


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def no_spinning() -> None:
    """Have OpenMP's threads sleep when they are done. It holds for libraries that are loaded after this."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def short_turns() -> None:
    """Have threads pass Python's lock on sooner: the event loop's work is short, and waits for it several times a request."""
    sys.setswitchinterval(min(TURN, sys.getswitchinterval()))


def search_alone() -> None:
    """Have FAISS use no other threads in the calling thread, from now on: OpenMP keeps a number for each thread."""
    from dualenc.index.threads import faiss

    faiss.omp_set_num_threads(1)
