"""Undecoded samples out of streams: which shards a worker reads in an epoch, in what order their samples come."""

from __future__ import annotations

import collections
import logging
from collections.abc import Generator, Iterable, Iterator, Sequence

import numpy as np

from dualenc.data.sample import IMAGE_EXTENSIONS, KINDS, Sample
from dualenc.data.shard_index import MISSING_IMAGE, group
from dualenc.data.stream.cache import Cache
from dualenc.data.stream.remote import members
from dualenc.data.stream.transport import RETRIES, ShardError, check_tools, shown

log = logging.getLogger("dualenc")

SHARD_LEFT, REST_LEFT = "shard left for other epochs", "rest of a shard left for other epochs"
Dropped = collections.Counter[tuple[int, str]]  # (number of the source, reason) -> how many
Drawn = tuple[int, Sample]  # a sample with the number of its source

_SHARDS, _BUFFER, _MIX = range(3)  # what a random number is drawn for
_MOST_KEYS = 1_000_000  # that a worker remembers, in at most 100 MB
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

    weights: where the next sample comes from is drawn with these, and when the source drawn has no more, the epoch ends;
    shards that were not opened then, or not read to their end, are counted. Without weights, all sources' shards are one
    list, and all samples come.
    """
    seed, epoch, rank, _, worker, _ = place
    if weights is None:
        named = [(number, url) for number, urls in enumerate(sources) for url in urls]
        read: Iterator[Drawn] = _samples([named[i] for i in shard_plan(len(named), *place)], dropped, retries, cache)
    else:
        plans = []
        for number, urls in enumerate(sources):
            plan = shard_plan(len(urls), *place, source=number)
            plans.append(iter([(number, urls[i]) for i in plan]))
        rng = np.random.default_rng([seed, epoch, _MIX, rank, worker])
        read = _mixture(plans, weights, rng, dropped, retries, cache)
    read = watched(read, _MOST_KEYS)
    return shuffled(read, buffer, np.random.default_rng([seed, epoch, _BUFFER, rank, worker]))


def _mixture(
    plans: Sequence[Iterator[tuple[int, str]]],
    weights: Sequence[float],
    rng: np.random.Generator,
    dropped: Dropped,
    retries: int,
    cache: Cache | None,
) -> Iterator[Drawn]:
    """The samples of each source's shards, mixed; what is left of them when the mixture ends is counted."""
    streams = [_samples(plan, dropped, retries, cache) for plan in plans]
    yield from mixed(streams, weights, rng)
    for number, (stream, plan) in enumerate(zip(streams, plans, strict=True)):
        if unopened := sum(1 for _ in plan):
            dropped[number, SHARD_LEFT] += unopened
        if next(stream, None) is not None:  # out of the shard it was in: no other is opened now
            dropped[number, REST_LEFT] += 1
        stream.close()


def mixed(streams: Sequence[Iterator[Drawn]], weights: Sequence[float], rng: np.random.Generator) -> Iterator[Drawn]:
    """Samples of several streams, each drawn with its weight, until the one drawn is over.

    A stream that never gave a sample is left out, with a warning, and the others are drawn by their weights.
    """
    left, share = list(range(len(streams))), np.array(weights, dtype=np.float64)
    given: set[int] = set()
    while left:
        bounds = np.cumsum(share[left]) / np.sum(share[left])
        while True:
            drawn = left[min(int(np.searchsorted(bounds, rng.random(), side="right")), len(left) - 1)]
            sample = next(streams[drawn], None)
            if sample is None:
                break
            given.add(drawn)
            yield sample
        if drawn in given:
            return
        left.remove(drawn)
        log.warning(
            "source %d of %d: this worker's shards of it give no sample, so this epoch is mixed from the others by "
            "their weights; see the lines above for why",
            drawn + 1,
            len(streams),
        )


def watched(samples: Iterator[Drawn], most: int) -> Iterator[Drawn]:
    """The same samples, with a warning at the first whose key came before, as far as the first `most` keys tell."""
    seen: set[int] = set()
    for source, sample in samples:
        known = hash(sample.key)  # 64 bits: a million of them are equal by chance once in 10^7 epochs
        if known in seen:
            log.warning(
                "key %r came before in this epoch: another sample has it, or a shard is there twice; such samples are "
                "all shown, with the same random draws; give each a key of its own",
                sample.key,
            )
            seen.clear()
            yield source, sample
            yield from samples
            return
        if len(seen) < most:
            seen.add(known)
        yield source, sample


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


def _samples(
    shards: Iterable[tuple[int, str]], dropped: Dropped, retries: int, cache: Cache | None
) -> Generator[Drawn, None, None]:
    """The samples of shards, one after the other. What cannot be used is counted; a shard that is lost is also logged."""
    for source, url in shards:
        for key, parts in group(_readable(source, url, dropped, retries, cache)):
            image = next((parts[e] for e in IMAGE_EXTENSIONS if e in parts), None)
            if image is None:
                dropped[source, MISSING_IMAGE] += 1
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
