"""Undecoded samples out of streams: which shards a worker reads in an epoch, in what order their samples come."""

from __future__ import annotations

import collections
import logging
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from dualenc.data.sample import IMAGE_EXTENSIONS, KINDS, Sample
from dualenc.data.stream.cache import Cache
from dualenc.data.stream.remote import members
from dualenc.data.stream.transport import RETRIES, ShardError, check_tools, shown

log = logging.getLogger("dualenc")

NO_IMAGE = "missing image"
Dropped = collections.Counter[tuple[int, str]]  # (number of the source, reason) -> how many
Drawn = tuple[int, Sample]  # a sample with the number of its source

_SHARDS, _BUFFER, _MIX = range(3)  # what a random number is drawn for
_PEEKED_MEMBERS, _PEEKED_SHARDS, _PEEK_RETRIES = 200, 4, 2


def usable_workers(shards: int, ranks: int, workers: int) -> int:
    """How many of `workers` get a shard to read, the same on all ranks; ValueError where a rank would get none."""
    if shards < ranks:
        raise ValueError(
            f"{shards} shards for {ranks} ranks: a stream is split by shards, so some ranks would get nothing; "
            f"split the data into {ranks} shards or more (better {ranks * max(workers, 1)}), or use {shards} ranks"
        )
    return min(workers, shards // ranks)


def shard_plan(
    shards: int, seed: int, epoch: int, rank: int, ranks: int, worker: int, workers: int, source: int = 0
) -> list[int]:
    """Numbers of the shards of `source` that a worker reads in an epoch, in order.

    All shards are permuted anew each epoch and then dealt out: each goes to one worker of one rank.
    """
    order = np.random.default_rng([seed, epoch, _SHARDS, source]).permutation(shards)
    return order[rank::ranks][worker::workers].tolist()


def worker_samples(
    sources: Sequence[Sequence[str]],
    weights: Sequence[float] | None,
    place: tuple[int, int, int, int, int, int],
    buffer: int,
    dropped: Dropped,
    retries: int = RETRIES,
    cache: Cache | None = None,
) -> Iterator[Drawn]:
    """The samples of one worker's epoch, shuffled; place: seed, epoch, rank, ranks, worker, workers. `dropped` counts up.

    weights: where the next sample comes from is drawn with these, and when the source drawn has no more, the epoch ends.
    Without them, all sources' shards are one list, and all samples come.
    """
    seed, epoch, rank, _, worker, _ = place
    if weights is None:
        named = [(number, url) for number, urls in enumerate(sources) for url in urls]
        read = _samples([named[i] for i in shard_plan(len(named), *place)], dropped, retries, cache)
    else:
        streams = []
        for number, urls in enumerate(sources):
            plan = shard_plan(len(urls), *place, source=number)
            streams.append(_samples([(number, urls[i]) for i in plan], dropped, retries, cache))
        read = mixed(streams, weights, np.random.default_rng([seed, epoch, _MIX, rank, worker]))
    return shuffled(read, buffer, np.random.default_rng([seed, epoch, _BUFFER, rank, worker]))


def mixed(streams: Sequence[Iterator[Drawn]], weights: Sequence[float], rng: np.random.Generator) -> Iterator[Drawn]:
    """Samples of several streams, each drawn with its weight, until the one drawn is over."""
    bounds = np.cumsum(weights) / np.sum(weights)
    while True:
        drawn = min(int(np.searchsorted(bounds, rng.random(), side="right")), len(streams) - 1)
        sample = next(streams[drawn], None)
        if sample is None:
            return
        yield sample


def shuffled(samples: Iterable[Drawn], buffer: int, rng: np.random.Generator) -> Iterator[Drawn]:
    """The same samples, each changed for one of the `buffer` that came before it and wait."""
    waiting: list[Drawn] = []
    for sample in samples:
        if len(waiting) < buffer:
            waiting.append(sample)
            continue
        place = int(rng.integers(buffer))
        waiting[place], sample = sample, waiting[place]
        yield sample
    for place in rng.permutation(len(waiting)):
        yield waiting[place]


def _samples(shards: Iterable[tuple[int, str]], dropped: Dropped, retries: int, cache: Cache | None) -> Iterator[Drawn]:
    """The samples of shards, one after the other. What cannot be used is counted; a shard that is lost is also logged."""
    for source, url in shards:
        for key, parts in grouped(_readable(source, url, dropped, retries, cache)):
            image = next((parts[e] for e in IMAGE_EXTENSIONS if e in parts), None)
            if image is None:
                dropped[source, NO_IMAGE] += 1
            else:
                others = {kind: parts[kind] for kind in KINDS[1:] if kind in parts}
                yield source, Sample(key, {"image": image, **others})


def _readable(
    source: int, url: str, dropped: Dropped, retries: int, cache: Cache | None
) -> Iterator[tuple[str, bytes]]:
    try:
        yield from members(url, retries, cache)
    except ShardError as error:
        dropped[source, error.reason] += 1
        log.warning("%s", error)


def grouped(found: Iterable[tuple[str, bytes]]) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Samples as webdataset groups them: neighbours whose name is equal up to the first dot of its last part.

    Yields each one's key and its bytes by extension in lower case.
    """
    current: str | None = None
    parts: dict[str, bytes] = {}
    for name, data in found:
        folder, slash, base = name.rpartition("/")
        stem, dot, extension = base.partition(".")
        if not dot or not stem:
            continue
        key, extension = folder + slash + stem, extension.lower()
        if key != current or extension in parts:
            if current is not None:
                yield current, parts
            current, parts = key, {}
        parts[extension] = data
    if current is not None:
        yield current, parts


def peek(urls: Sequence[str]) -> None:
    """Look into the first shard that opens, before any training: a wrong path or extension is found out in seconds.

    ValueError when none of its first members is an image, with the extensions that were found; FileNotFoundError when the
    program that would read it is missing; OSError when none of the first shards opens.
    """
    check_tools(urls)
    why = ""
    for url in urls[:_PEEKED_SHARDS]:
        extensions: collections.Counter[str] = collections.Counter()
        try:
            for number, (name, _) in enumerate(members(url, _PEEK_RETRIES)):
                extension = name.rpartition("/")[2].partition(".")[2].lower()
                if extension in IMAGE_EXTENSIONS:
                    return
                extensions[extension] += 1
                if number + 1 >= _PEEKED_MEMBERS:
                    break
        except ShardError as error:
            why = why or str(error)
        if extensions:
            seen = ", ".join(f".{e} ({n})" if e else f"no extension ({n})" for e, n in extensions.most_common(8))
            raise ValueError(
                f"{shown(url)}: no image ({', '.join(IMAGE_EXTENSIONS)}) among its first members, but {seen}; "
                "`dualenc data pack` makes shards"
            )
    raise OSError(
        f"{why or 'the first shards hold no member'}; nothing of the first {len(urls[:_PEEKED_SHARDS])} of "
        f"{len(urls)} shards can be read, so there is nothing to train on; check the address"
    )
