"""Shards that are not local: what their addresses stand for, their members in order, and whole copies of them."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO
from urllib.parse import urlparse
from urllib.request import url2pathname

import braceexpand
from tqdm import tqdm

from dualenc.data.stream.cache import Cache, Copy, NoRoom, size_in_bytes
from dualenc.data.stream.tar import TarStream
from dualenc.data.stream.transport import BROKEN, MISSING, RETRIES, Reader, ShardError, check_tools, scheme, shown

DEFAULT_SIZE = "20GB"


def is_remote(path: str | Path) -> bool:
    """Whether something is read as a stream: https://, s3://, gs://, hf://, pipe:, file: and the like."""
    return scheme(str(path)) != ""


def expand(patterns: Sequence[str]) -> list[str]:
    """Brace patterns to addresses, in order; local folders to their tars and local patterns to the files they match.

    FileNotFoundError and ValueError where a local one stands for nothing; ValueError where an address comes twice.
    """
    found: list[str] = []
    for pattern in patterns:
        for name in braceexpand.braceexpand(str(pattern)):
            if is_remote(name):
                found.append(name)
            elif os.path.isdir(name):
                found += sorted(glob.glob(os.path.join(glob.escape(name), "*.tar"))) or _nothing(name)
            elif not (local := sorted(glob.glob(name)) or [name]) or not os.path.exists(local[0]):
                raise FileNotFoundError(f"{name}: no such file or folder, so there is no data to read; check the path")
            else:
                found += local
    twice = {name for name in found if found.count(name) > 1} if len(set(found)) < len(found) else set()
    if twice:
        raise ValueError(
            f"{shown(min(twice))} is named twice, so its samples would be shown twice an epoch; name it once"
        )
    return found


def _nothing(folder: str) -> list[str]:
    raise ValueError(f"{folder}: no shards (.tar) were found; `dualenc data pack` makes shards")


def members(url: str, retries: int = RETRIES, cache: Cache | None = None) -> Iterator[tuple[str, bytes]]:
    """(name, bytes) of each regular file of a shard, read once from start to end; cache: kept there, or taken from there.

    ShardError after the last member that could be read, with the reason: the shard is missing, its stream broke once more
    than `retries`, or it is truncated or damaged.
    """
    source = _open(url, retries, cache)
    try:
        stream = TarStream(source)
        yield from stream
        if stream.damage:
            raise ShardError(stream.damage, url, "its sound members were read")
    finally:
        source.close()


class _File:
    """A local file, read as a remote one is."""

    def __init__(self, file: IO[bytes], name: str):
        self.file, self.name = file, name

    def read(self, size: int) -> bytes:
        try:
            return self.file.read(size)
        except OSError as error:
            raise ShardError(BROKEN, self.name, error.strerror or str(error)) from None

    tail = read

    def close(self) -> None:
        self.file.close()


def _open(url: str, retries: int, cache: Cache | None) -> Reader | Copy | _File:
    if not is_remote(url):
        try:
            return _File(open(url, "rb"), url)
        except OSError as error:
            raise ShardError(MISSING, url, error.strerror or str(error)) from None
    if cache is None or scheme(url) == "file":
        return Reader(url, retries)
    copy = cache.open(url)
    return _File(copy, url) if copy is not None else Copy(cache, url, Reader(url, retries))


def fetch_all(urls: Sequence[str], cache: Cache | None = None) -> list[Path]:
    """Local copies of shards, for random access: the paths, in the order of the addresses.

    cache: where they are kept; by default $XDG_CACHE_HOME/dualenc/shards, at most $DUALENC_CACHE_SIZE (20GB).
    FileNotFoundError or another OSError where one cannot be read to its end, or all together do not fit.
    """
    cache = default_cache() if cache is None else cache
    check_tools(urls)
    paths: list[Path] = []
    for url in tqdm(urls, desc="fetching shards", unit="shard", disable=None):
        try:
            paths.append(_path(url) or cache.fetch(url))
        except NoRoom as error:
            size = sum(path.stat().st_size for path in paths)
            about = f"about {size / len(paths) * len(urls) / 1e9:.3g} GB" if paths else "more"
            raise NoRoom(
                f"{shown(url)}: {error}; {len(urls)} shards need {about}: set DUALENC_CACHE_SIZE to that, "
                "or copy them to a local folder"
            ) from None
        except ShardError as error:
            raise OSError(f"{error}; all shards are needed here: restore it, or leave it out") from None
    return paths


def _path(url: str) -> Path | None:
    """The path of what is local already."""
    if scheme(url) == "file":
        return Path(url2pathname(urlparse(url).path))
    return None if is_remote(url) else Path(url)


def default_cache() -> Cache:
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    size = os.environ.get("DUALENC_CACHE_SIZE") or DEFAULT_SIZE
    return Cache(Path(home) / "dualenc" / "shards", size_in_bytes(size, "DUALENC_CACHE_SIZE"))
