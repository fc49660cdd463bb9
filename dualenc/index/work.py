"""The folder in which a build keeps what it has made so far: each file whole, with a record of size and SHA-256 beside it."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dualenc.files import read_json, sha256, whole_file, write_json

OURS = ("plan.json", "mean*", "trained*", "part-*", "graph-*")


def claim(work: Path, plan: dict[str, Any]) -> None:
    """Make `work` ours: what another plan left is removed, and what a killed writer left half."""
    work.mkdir(parents=True, exist_ok=True)
    clear(work, *(f".{name}.*.tmp" for name in OURS))
    found = None
    if (work / "plan.json").exists():
        with contextlib.suppress(ValueError):
            found = read_json(work / "plan.json")
        if found == plan:
            return
        print(f"{work} holds the beginning of another build; beginning anew", file=sys.stderr)
    clear(work, *OURS)
    write_json(work / "plan.json", plan)


def keep(work: Path | None, name: str, write: Callable[[Path], Any]) -> None:
    """Write a file whole, then the record that says so."""
    if work is None:
        return
    with whole_file(work / name) as partial:
        write(partial)
        record = {"bytes": partial.stat().st_size, "sha256": sha256(partial)}
    write_json(work / f"{name}.json", record)


def kept(work: Path | None, name: str, read: Callable[[Path], Any]) -> Any:
    """What `read` makes of a file that is whole as its record says; None where it is not there, or damaged."""
    if work is None or not (work / f"{name}.json").exists():
        return None
    path = work / name
    try:
        record = read_json(work / f"{name}.json")
        if path.stat().st_size == record["bytes"] and sha256(path) == record["sha256"]:
            return read(path)
    except (OSError, ValueError, KeyError, TypeError):
        pass  # said below, and made again
    print(f"{path} is damaged; making it again", file=sys.stderr)
    return None


def clear(work: Path | None, *patterns: str) -> None:
    """Remove the files that fit any of the patterns, and nothing else: the folder may be a user's."""
    if work is None:
        return
    for pattern in patterns:
        for path in work.glob(pattern):
            path.unlink(missing_ok=True)
