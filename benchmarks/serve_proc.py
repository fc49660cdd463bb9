"""Processes as Linux's /proc shows them: who started whom, what they hold in memory, who is connected to them."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def family(pid: int) -> list[int]:
    """A process and all that it started, by /proc."""
    found = [pid]
    for each in found:
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{each}/task").iterdir():
                found += map(int, (task / "children").read_text().split())
    return found


def resident(pid: int) -> float:
    """MiB that a process and those it started have in memory; pages of mapped files count as well."""
    return sum(_status(each, "VmRSS:") for each in family(pid))


def anonymous(pid: int) -> float:
    """MiB of that which belong to no file: what the processes hold themselves."""
    return sum(_status(each, "RssAnon:") for each in family(pid))


def _status(pid: int, field: str) -> float:
    with contextlib.suppress(OSError):  # it has ended
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith(field):
                return int(line.split()[1]) / 1024
    return 0.0


def connections_of(pid: int, port: int) -> set[int]:
    """The ports at the other end of the connections that a process holds at its `port`, by /proc."""
    inodes = set()
    with contextlib.suppress(OSError):
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                target = os.readlink(entry)
                if target.startswith("socket:["):
                    inodes.add(target[8:-1])
    found = set()
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        words = line.split()
        if words[9] in inodes and int(words[1].split(":")[1], 16) == port and words[3] == "01":
            found.add(int(words[2].split(":")[1], 16))
    return found
