"""Which samples a shard holds and where they lie in it, read from its headers once and kept in a small file beside it.

The file is `.NAME.tar.dualenc-index`; where that folder takes no files it lies under $XDG_CACHE_HOME/dualenc/index
(~/.cache/dualenc/index), and where neither does, headers are read each time. It holds no code, is believed only while the
shard's size and modification time are those it names and its checksum is right, and can be deleted at any time.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
from tqdm import tqdm

from dualenc.data.keys import Keys
from dualenc.data.sample import IMAGE_EXTENSIONS, KINDS
from dualenc.data.tar import DAMAGED, NOT_A_TAR, TRUNCATED, members
from dualenc.files import whole_file

MISSING_IMAGE = "missing image"  # why a sample without one is left out
SUFFIX = ".dualenc-index"
BARREN = 8  # shards with members, none of them an image, after which the rest is not looked at
_FORMAT = b"dualenc shard index 1\n"  # another number for another layout, or other rules of grouping
_DIGEST = 32
_COLUMNS = 2 * len(KINDS)

Part = TypeVar("Part")


@dataclasses.dataclass
class ShardIndex:
    """The samples of one shard that have an image, and what else is in it."""

    size: int  # of the tar, in bytes; with its time of change, what the index is of
    mtime_ns: int
    keys: Keys
    places: np.ndarray  # int64 (N, 2 * len(KINDS)): offset and size of each kind, -1 and -1 where absent
    extensions: dict[str, int]  # how many members end so
    imageless: list[str]  # keys of samples without an image
    damage: str | None


def read_indexes(paths: Sequence[str], strict: bool) -> list[ShardIndex]:
    """What each shard holds. strict: ValueError as soon as it is plain that none of them holds an image."""
    found = [cached_index(path) for path in paths]
    missing = [number for number, index in enumerate(found) if index is None]
    for number in tqdm(missing, desc="indexing shards", unit="shard", disable=None if missing else True):
        found[number] = make_index(paths[number])
        known = [index for index in found if index is not None]
        if strict and not any(len(index.keys) for index in known):
            barren = [index for index in known if index.extensions]
            if len(barren) >= BARREN:
                raise nothing_found(paths, known)
    return [index for index in found if index is not None]


def nothing_found(paths: Sequence[str], indexes: Sequence[ShardIndex]) -> ValueError:
    """The error for shards without an image, which says what they hold."""
    extensions: collections.Counter[str] = collections.Counter()
    for index in indexes:
        extensions.update(index.extensions)
    damaged = collections.Counter(index.damage for index in indexes if index.damage)
    seen = ", ".join(f".{e} ({n})" for e, n in extensions.most_common(8)) or "no member at all"
    part = "" if len(indexes) == len(paths) else f" in {len(indexes)} of its {len(paths)} shards"
    return ValueError(
        f"{where(paths)}: no sample with an image ({', '.join(IMAGE_EXTENSIONS)}) was found{part}, but {seen}"
        f"{''.join(f'; {reason}: {count}' for reason, count in damaged.items())}; `dualenc data pack` makes shards"
    )


def cached_index(path: str) -> ShardIndex | None:
    """The index that was kept of a shard; None where there is none, or none that can be believed."""
    stat = os.stat(path)
    for place in _places(path):
        with contextlib.suppress(OSError):
            index = _decoded(place.read_bytes(), stat.st_size, stat.st_mtime_ns)
            if index is not None:
                return index
    return None


def make_index(path: str) -> ShardIndex:
    """Read a shard's headers, and keep what they say where that is possible. OSError when the shard cannot be read."""
    stat = os.stat(path)
    found, damage = members(path)
    keys, imageless, rows = [], [], []
    extensions: collections.Counter[str] = collections.Counter()
    for key, parts in group((name, (offset, size)) for name, offset, size in found):
        extensions.update(parts.keys())
        image = next((parts[e] for e in IMAGE_EXTENSIONS if e in parts), None)
        if image is None:
            imageless.append(key)
        else:
            keys.append(key)
            rows.append([x for place in (image, *map(parts.get, KINDS[1:])) for x in (place or (-1, -1))])
    places = np.array(rows, dtype=np.int64).reshape(-1, _COLUMNS)
    index = ShardIndex(stat.st_size, stat.st_mtime_ns, Keys.of(keys), places, dict(extensions), imageless, damage)
    now = os.stat(path)
    if (now.st_size, now.st_mtime_ns) == (stat.st_size, stat.st_mtime_ns):
        _keep(path, _encoded(index))
    return index


def group(found: Iterable[tuple[str, Part]]) -> Iterator[tuple[str, dict[str, Part]]]:
    """Samples of tar members as webdataset groups them: neighbours whose name is equal up to the first dot of its last part.

    found: (name, what is known of the member). Yields each sample's key, and that by extension in lower case.
    """
    current: str | None = None
    parts: dict[str, Part] = {}
    for name, part in found:
        folder, slash, base = name.rpartition("/")
        stem, dot, extension = base.partition(".")
        if not dot or not stem:
            continue
        key, extension = folder + slash + stem, extension.lower()
        if key != current or extension in parts:
            if current is not None:
                yield current, parts
            current, parts = key, {}
        parts[extension] = part
    if current is not None:
        yield current, parts


def _places(path: str) -> list[Path]:
    """Where the index of a shard may lie, the best place first."""
    places = [Path(path).with_name(f".{Path(path).name}{SUFFIX}")]
    cache = os.environ.get("XDG_CACHE_HOME", "")
    home = cache if os.path.isabs(cache) else os.path.expanduser("~/.cache")
    if os.path.isabs(home):
        name = hashlib.sha256(os.fsencode(os.path.realpath(path))).hexdigest()[:32]
        places.append(Path(home) / "dualenc" / "index" / f"{name}{SUFFIX}")
    return places


def _keep(path: str, data: bytes) -> None:
    for place in _places(path):
        with contextlib.suppress(OSError), whole_file(place) as partial:
            partial.write_bytes(data)
            return


def _encoded(index: ShardIndex) -> bytes:
    facts = {
        "size": index.size,
        "mtime_ns": index.mtime_ns,
        "samples": len(index.keys),
        "extensions": index.extensions,
        "imageless": index.imageless,
        "damage": index.damage,
    }
    tables = [index.keys.ends.astype("<i8"), index.places.astype("<i8"), index.keys.data]
    body = b"".join([json.dumps(facts).encode(), b"\n", *(table.tobytes() for table in tables)])
    return _FORMAT + hashlib.blake2b(body, digest_size=_DIGEST).digest() + body


def _decoded(data: bytes, size: int, mtime_ns: int) -> ShardIndex | None:
    """An index out of a file's bytes, or None where they are not one of a shard of this size and time."""
    start = len(_FORMAT) + _DIGEST
    body = memoryview(data)[start:]
    digest = hashlib.blake2b(body, digest_size=_DIGEST).digest()
    if data[: len(_FORMAT)] != _FORMAT or data[len(_FORMAT) : start] != digest:
        return None
    line = data.find(b"\n", start) + 1
    try:  # whole, but not necessarily ours
        facts = json.loads(data[start:line])
        keys, places = _tables(data, line, facts["samples"])
        extensions = {str(name): int(count) for name, count in facts["extensions"].items()}
        imageless = [str(name) for name in facts["imageless"]]
        index = ShardIndex(facts["size"], facts["mtime_ns"], keys, places, extensions, imageless, facts["damage"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError):
        return None
    known = index.damage in (None, TRUNCATED, DAMAGED, NOT_A_TAR)
    return index if known and (index.size, index.mtime_ns) == (size, mtime_ns) and _inside(places, size) else None


def _tables(data: bytes, at: int, n: int) -> tuple[Keys, np.ndarray]:
    numbers = np.frombuffer(data, "<i8", n * (1 + _COLUMNS), at).astype(np.int64, copy=False)
    ends, places = numbers[:n], numbers[n:].reshape(n, _COLUMNS)
    names = np.frombuffer(data, np.uint8, offset=at + numbers.nbytes)
    if (np.diff(ends, prepend=0) < 0).any() or (ends[-1] if n else 0) != len(names):
        raise ValueError("names do not end where they should")
    return Keys(names, ends), places


def _inside(places: np.ndarray, size: int) -> bool:
    """Whether all members lie within a tar of `size` bytes, and every sample has an image."""
    offset, length = places[:, 0::2], places[:, 1::2]
    absent = (offset == -1) & (length == -1)
    inside = (offset >= 0) & (length >= 0) & (length <= size - offset)
    return bool((absent | inside).all() and not absent[:, 0].any())


def where(paths: Sequence[str]) -> str:
    """A short name for one or several paths."""
    return paths[0] if len(paths) == 1 else f"{paths[0]} (and {len(paths) - 1} more)"
