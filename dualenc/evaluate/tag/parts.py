"""A large table of labels, written part by part beside its place: a killed run goes on where it stood.

`OUT.parts/` holds plan.json and a file for each stretch of rows, 000000000000-000000008192.parquet, which appears when it
is whole; what comes first is written first. When the rows are complete, they become OUT, and the folder goes.
"""

from __future__ import annotations

import collections
import contextlib
import glob
import itertools
import json
import logging
import os
import re
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dualenc.evaluate.tag.tagging import SCHEMA
from dualenc.files import read_json, whole_file, write_json

log = logging.getLogger("dualenc")

PART_ROWS, PART_SECONDS = (
    8192,
    30.0,
)  # a part is written when it has that many rows, or after that time: what a kill loses
GROUP_ROWS = 65_536  # rows of OUT that are in memory at once
_PLAN = b"dualenc_labels"  # OUT's own metadata: the plan that it was made by
_DIGESTS = ("encoder", "prompts", "files")  # settings that a plan names by numbers which would tell nobody anything
_STEPS = 2000  # of the histogram of scores, from -1 to 1
Tables = Iterable[pa.Table]


class Summary(NamedTuple):
    """What a finished table of labels holds."""

    images: int
    labels: dict[str, int]  # images of each label, most first
    reasons: dict[str, int]  # images without a label
    quantiles: dict[int, float]  # percent -> the best class's cosine that so many images lie below


def write_labels(out: Path, plan: dict[str, Any], rows: int, tables: Callable[[int], Tables]) -> Summary:
    """Write `out` from tables(first), which yields rows first, first + 1, …, rows - 1 of SCHEMA in blocks of any size.

    plan: JSON values that fix what the rows are; run again with the same plan, it goes on after what is there, and a
    finished `out` is left as it is. ValueError: `out` was begun or made with another plan, or is something else.
    BlockingIOError: another run is writing it.
    """
    plan = json.loads(json.dumps(plan | {"rows": rows}))
    folder = parts_folder(out)
    theirs = made_by(out)
    if theirs is not None and theirs != plan:
        raise ValueError(
            f"{out} was made with other settings ({_difference(theirs, plan)}); name another file, or remove it"
        )
    if theirs is not None:
        if _plan(folder) == plan:  # what a run left that was killed at its very end
            _remove(folder)
        return summary(out)
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder):
        _begin(folder, plan)
        first = _done(folder)
        if first < rows:
            for part in _grouped(tables(first)):
                _write(part, folder / f"{first:012d}-{first + part.num_rows:012d}.parquet")
                first += part.num_rows
        if first != rows:
            raise ValueError(
                f"{folder} holds {first:,} rows, and there are {rows:,} images: they changed meanwhile; remove it to begin anew"
            )
        _merge(folder, out, plan)
        _remove(folder)
    return summary(out)


def parts_folder(out: Path) -> Path:
    return out.with_name(out.name + ".parts")


def made_by(out: Path) -> dict[str, Any] | None:
    """The plan of a finished table of labels; None where there is none. ValueError: `out` is something else."""
    if not out.exists():
        return None
    try:
        found = (pq.read_schema(out).metadata or {}).get(_PLAN)
    except (pa.ArrowException, OSError):
        found = None
    if found is None:
        raise ValueError(
            f"{out} exists and is no table of labels, which would be lost; name another file, or remove it"
        )
    return json.loads(found)


def summary(out: Path) -> Summary:
    """What the table holds; read in stretches."""
    labels: collections.Counter[str] = collections.Counter()
    reasons: collections.Counter[str] = collections.Counter()
    histogram = np.zeros(_STEPS, np.int64)
    with pq.ParquetFile(out) as file:
        for batch in file.iter_batches(GROUP_ROWS, columns=["label", "reason", "score"]):
            for counter, name in ((labels, "label"), (reasons, "reason")):
                for found in batch.column(name).value_counts().to_pylist():
                    counter.update({} if found["values"] is None else {found["values"]: found["counts"]})
            scores = batch.column("score").drop_null().to_numpy(zero_copy_only=False)
            histogram += np.histogram(scores.clip(-1, 1), _STEPS, (-1, 1))[0]
        rows = file.metadata.num_rows
    below = np.cumsum(histogram)
    quantiles = (
        {}
        if not below[-1]
        else {
            percent: float(np.searchsorted(below, below[-1] * percent / 100) * 2 / _STEPS - 1)
            for percent in (1, 5, 25, 50, 75, 95)
        }
    )
    return Summary(rows, dict(labels.most_common()), dict(reasons.most_common()), quantiles)


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Be the only process that writes into the folder. BlockingIOError: another one does.

    The lock is this process's alone: one that forked loader workers inherit, as flock's is, would outlive a killed run by
    the seconds that they take to notice.
    """
    import fcntl

    with open(folder / ".lock", "a") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            raise BlockingIOError(f"{folder} is being written by another run; wait until it is done") from None
        if not (folder / ".lock").exists() or not os.path.samestat(os.fstat(file.fileno()), os.stat(folder / ".lock")):
            raise BlockingIOError(f"{folder} was finished by another run just now; run the same again")
        yield


def _begin(folder: Path, plan: dict[str, Any]) -> None:
    """Note the plan, or refuse to go on with another one, or with parts that nobody knows the plan of."""
    path, theirs = folder / "plan.json", _plan(folder)
    if theirs is None and not any(folder.glob("*.parquet")):
        write_json(path, plan)
    elif theirs is None:
        raise ValueError(
            f"{path} is missing or damaged, so nobody can tell which labels the parts beside it hold; restore it, or remove "
            f"{folder} to begin anew"
        )
    elif theirs != plan:
        raise ValueError(
            f"{folder} was begun with other settings ({_difference(theirs, plan)}); run with those to go on, or remove it "
            "to begin anew"
        )


def _plan(folder: Path) -> dict[str, Any] | None:
    """The plan that the parts are made by; None where there is none, or a damaged one."""
    try:
        found = read_json(folder / "plan.json")
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _difference(theirs: dict[str, Any], plan: dict[str, Any]) -> str:
    name = next(n for n in {**theirs, **plan} if n not in theirs or n not in plan or theirs[n] != plan[n])
    there, now = (json.dumps(some.get(name, "nothing"), ensure_ascii=False)[:60] for some in (theirs, plan))
    return f"{name}: other ones" if name in _DIGESTS else f"{name}: {there} there, {now} now"


def _done(folder: Path) -> int:
    """Rows that are there without a gap; parts that are damaged, or behind a gap, are removed, which is told."""
    sound = list(itertools.takewhile(_sound, _parts(folder)))
    first = _bounds(sound[-1])[1] if sound else 0
    lost = set(folder.glob("*.parquet")).difference(sound)
    for path in lost:
        path.unlink()
    if lost:
        log.warning(
            "%s: %d finished %s made again, from row %s on: one is damaged or gone",
            folder,
            len(lost),
            "part is" if len(lost) == 1 else "parts are",
            f"{first:,}",
        )
    return first


def _remove(folder: Path) -> None:
    """Remove the parts, the last one first and their plan after them: what a killed run leaves of them has no gap."""
    with contextlib.suppress(OSError):
        for path in sorted(folder.glob("*.parquet"), reverse=True):
            path.unlink()
    shutil.rmtree(folder, ignore_errors=True)


def _sound(path: Path) -> bool:
    """Whether a part can be read and has its rows. OSError: the system refuses to read it, which is no damage."""
    start, end = _bounds(path)
    try:
        return pq.read_metadata(path).num_rows == end - start
    except (pa.ArrowException, OSError) as error:
        if getattr(error, "errno", None):
            raise
        return False


def _parts(folder: Path) -> list[Path]:
    """The parts in order, up to the first gap."""
    following = {_bounds(path)[0]: path for path in sorted(folder.glob("*.parquet"))}
    first, found = 0, []
    while path := following.get(first):
        found.append(path)
        first = _bounds(path)[1]
    return found


def _bounds(path: Path) -> tuple[int, int]:
    """The rows of a part: the first, and the one after the last. ValueError: it is no part."""
    name = re.fullmatch(r"(\d{12,})-(\d{12,})\.parquet", path.name)
    start, end = (int(name[1]), int(name[2])) if name else (0, 0)
    if start >= end or not path.is_file():
        raise ValueError(f"{path} is no part of these labels, and only those may lie there; move it elsewhere")
    return start, end


def _grouped(tables: Tables) -> Iterator[pa.Table]:
    """The same rows in pieces that are worth a file."""
    held: list[pa.Table] = []
    since = time.monotonic()
    for table in tables:
        held.append(table)
        if sum(t.num_rows for t in held) >= PART_ROWS or time.monotonic() - since > PART_SECONDS:
            yield pa.concat_tables(held)
            held, since = [], time.monotonic()
    if held:
        yield pa.concat_tables(held)


def _write(part: pa.Table, path: Path) -> None:
    with whole_file(path) as partial:
        pq.write_table(part, partial, write_page_checksum=True)


def _merge(folder: Path, out: Path, plan: dict[str, Any]) -> None:
    schema = SCHEMA.with_metadata({_PLAN: json.dumps(plan)})
    held: list[pa.Table] = []
    for left in out.parent.glob(f".{glob.escape(out.name)}.*.tmp"):  # of runs that were killed here
        left.unlink(missing_ok=True)
    parts = _parts(folder)
    assert (_bounds(parts[-1])[1] if parts else 0) == plan["rows"], "parts overlap"
    with whole_file(out) as partial, pq.ParquetWriter(partial, schema) as file:
        for path in parts:
            try:
                held.append(pq.read_table(path, page_checksum_verification=True))
            except (pa.ArrowException, OSError) as error:
                if getattr(error, "errno", None):  # the system's, which says nothing against the file
                    raise
                path.unlink(missing_ok=True)
                raise ValueError(f"{path} is damaged ({error}), and was removed; run the same again") from error
            if sum(t.num_rows for t in held) >= GROUP_ROWS:
                file.write_table(pa.concat_tables(held))
                held = []
        if held:
            file.write_table(pa.concat_tables(held))
