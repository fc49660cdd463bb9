"""Batches out of streams: every sample once, whatever breaks, over workers and ranks; resumed exactly."""

from __future__ import annotations

import collections
import itertools
import multiprocessing
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dualenc.data.collate import Collate
from dualenc.data.order import sample_rng
from dualenc.data.prepare import Prepare
from dualenc.data.stream import transport
from dualenc.data.stream.batches import StreamBatches
from dualenc.data.stream.loader import StreamLoader, StreamOptions, make_stream_loader
from dualenc.data.stream.samples import usable_workers
from dualenc.data.transforms import Augment
from tests.data.stream.server import in_use, serving
from tests.small import write_shards, write_tar


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(transport, "DELAY", 0.001)


class Rows:
    """Stands for Prepare: a row says where it came from, and a number that only (epoch, key) fix."""

    def __call__(self, sample, epoch, position, origin):
        drawn = int(sample_rng(0, epoch, sample.key).integers(1000))
        return {"key": sample.key, "reason": None, "origin": origin, "drawn": drawn, "position": position}

    def unusable(self, position, key, reason):
        return {"key": key, "reason": reason, "origin": 0, "drawn": -1, "position": position}


def columns(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Stands for Collate."""
    return {name: [row[name] for row in rows] for name in rows[0]}


class RoundRobin:
    """Stands for DataLoader: the turns of workers in the order in which it gives them."""

    def __init__(self, batches: StreamBatches, workers: int):
        self.batches, self.num_workers = batches, workers

    def __iter__(self) -> Iterator[Any]:
        workers = max(self.num_workers, 1)
        turns = [self.batches.turns(worker, workers) for worker in range(workers)]
        for turn in itertools.count():
            yield next(turns[turn % workers])


def simulated(
    sources, share, *, weights=None, seed=0, workers=1, rank=0, ranks=1, buffer=5, retries=1, any_rank=bool, **place
) -> StreamLoader:
    options = StreamOptions(buffer=buffer, retries=retries)
    where = {"share": share, "seed": seed, "rank": rank, "ranks": ranks, "place": torch.zeros(2, dtype=torch.int64)}
    batches = StreamBatches(sources, weights, Rows(), columns, options, **where)
    return StreamLoader(batches, RoundRobin(batches, workers), any_rank, **place)


class Agreement:
    """Stands for the all-reduce: each rank in its own thread."""

    def __init__(self, ranks: int):
        self.flags = [False] * ranks
        self.barrier = threading.Barrier(ranks, timeout=60)

    def of(self, rank: int) -> Callable[[bool], bool]:
        def any_rank(flag: bool) -> bool:
            self.flags[rank] = flag
            self.barrier.wait()
            agreed = any(self.flags)
            self.barrier.wait()
            return agreed

        return any_rank


def on_ranks(ranks: int, run: Callable[[int, Callable[[bool], bool]], Any]) -> list[Any]:
    agreement, results = Agreement(ranks), [None] * ranks

    def one(rank: int) -> None:
        try:
            results[rank] = run(rank, agreement.of(rank))
        except BaseException as error:
            results[rank] = error
            agreement.barrier.abort()

    threads = [threading.Thread(target=one, args=(rank,)) for rank in range(ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    errors = [result for result in results if isinstance(result, BaseException)]
    for error in sorted(errors, key=lambda e: isinstance(e, threading.BrokenBarrierError)):
        raise error
    return results


def keys(batches: list[dict[str, Any]]) -> list[str]:
    return [
        key for batch in batches for key, why in zip(batch["key"], batch["reason"], strict=True) if why != "padding"
    ]


def tiny(folder, samples: list[int]) -> list[str]:
    """Shards of so many samples each, of bytes that nobody decodes."""
    names = itertools.count()
    paths = []
    for number, count in enumerate(samples):
        found = [next(names) for _ in range(count)]
        members = [(f"k{i}.{kind}", b"x" * (i % 50)) for i in found for kind in ("png", "txt")]
        paths.append(str(write_tar(folder / f"{number}.tar", members)))
    return paths


# Exactly once

SHARDS = st.lists(st.integers(0, 9), min_size=1, max_size=8)


def whole_epoch(urls: list[str], ranks: int, workers: int, share: int, **more) -> list[tuple[list[dict], int]]:
    def run(rank: int, any_rank: Callable[[bool], bool]) -> tuple[list[dict], int]:
        at = {"workers": usable_workers(len(urls), ranks, workers), "rank": rank, "ranks": ranks, "any_rank": any_rank}
        loader = simulated([urls], share, **at, **more)
        return list(loader), loader.incomplete

    return on_ranks(ranks, run)


def check_once(results: list[tuple[list[dict], int]], total: int, share: int) -> None:
    assert len({len(batches) for batches, _ in results}) == 1  # all ranks make the same steps
    assert all(len(batch["key"]) == share for batches, _ in results for batch in batches)
    shown = [key for batches, _ in results for key in keys(batches)]
    left = sum(incomplete for _, incomplete in results)
    assert len(set(shown)) == len(shown) and len(shown) + left == total
    assert all(incomplete < share for _, incomplete in results)
    full = [[None not in [b["reason"][0]] and "padding" in b["reason"] for b in batches] for batches, _ in results]
    for step in zip(*full, strict=True):
        assert not all(step)  # a step is made only where some rank has a whole share


@given(SHARDS, st.integers(0, 3), st.integers(1, 3), st.integers(1, 6), st.integers(0, 9), st.integers(0, 3))
def test_every_sample_comes_once(tmp_path_factory, samples, workers, ranks, share, seed, epoch):
    urls = tiny(tmp_path_factory.mktemp("s"), samples)
    ranks = min(ranks, len(urls))
    more = {"seed": seed, "epoch": epoch, "buffer": 1 + seed}
    try:
        results = whole_epoch(urls, ranks, workers, share, **more)
    except ValueError as error:
        assert "no batch can be formed" in str(error) or "no sample could be read" in str(error)
        return
    check_once(results, sum(samples), share)
    again = whole_epoch(urls, ranks, workers, share, **more)
    assert again == results  # the order is a function of (seed, epoch, ranks, workers) alone


@settings(max_examples=12)
@given(st.data())
def test_every_sample_comes_once_over_a_connection_that_drops(tmp_path_factory, data):
    samples = data.draw(st.lists(st.integers(1, 8), min_size=2, max_size=4))
    folder = tmp_path_factory.mktemp("s")
    urls = tiny(folder, samples)
    ranks, workers = data.draw(st.integers(1, 2)), data.draw(st.integers(1, 2))
    want = whole_epoch(urls, ranks, workers, 2)
    with serving(folder, data.draw(st.booleans())) as server:
        for number in range(len(urls)):
            server.faults[f"{number}.tar"] += data.draw(
                st.lists(st.one_of(st.integers(0, 12_000), st.just("503")), max_size=3)
            )
        got = whole_epoch([server.url(f"{number}.tar") for number in range(len(urls))], ranks, workers, 2, retries=4)
    check_once(got, sum(samples), 2)
    assert got == want  # nobody sees that it dropped


def test_epochs_differ_and_each_shows_all(tmp_path):
    urls = tiny(tmp_path, [5] * 6)
    loader = simulated([urls], 3, workers=2)
    orders = []
    for epoch in range(4):
        loader.set_epoch(epoch)
        orders.append(keys(list(loader)))
    assert len({tuple(order) for order in orders}) == 4
    assert all(sorted(order) == sorted(orders[0]) and len(order) == 30 for order in orders)
    firsts = {frozenset(order[:10]) for order in orders}
    assert len(firsts) == 4
    assert keys(list(simulated([urls], 3, workers=2, seed=1))) != orders[0]
    assert keys(list(simulated([urls], 3, workers=3))) != orders[0]  # the order belongs to the number of workers


def test_within_a_shard_epochs_differ_too(tmp_path):
    urls = tiny(tmp_path, [20])
    assert len({tuple(keys(list(simulated([urls], 4, epoch=epoch)))) for epoch in range(4)}) == 4


def test_ranks_that_run_dry_pad_and_lose_nothing(tmp_path):
    urls = tiny(tmp_path, [2, 11])
    (first, left), (second, left_too) = sorted(whole_epoch(urls, 2, 1, 3), key=lambda r: len(keys(r[0])))
    assert len(keys(first)) == 2 and left == 0 and len(keys(second)) == 9 and left_too == 2
    assert [batch["reason"].count("padding") for batch in first] == [1, 3, 3]
    assert first[0]["reason"] == [None, None, "padding"] and first[0]["position"][2] == -1
    assert {place for batch in second for place in batch["position"]} == {-2}


# Resume


@given(SHARDS, st.integers(0, 3), st.integers(1, 2), st.integers(1, 4), st.integers(0, 5))
@settings(max_examples=40)
def test_a_resumed_epoch_goes_on_with_the_same_batches(tmp_path_factory, samples, workers, ranks, share, seed):
    urls = tiny(tmp_path_factory.mktemp("s"), samples)
    ranks = min(ranks, len(urls))
    more = {"seed": seed, "epoch": 2}
    try:
        results = whole_epoch(urls, ranks, workers, share, **more)
    except ValueError:
        return
    for start in range(1, len(results[0][0])):
        resumed = whole_epoch(urls, ranks, workers, share, start=start, **more)
        assert resumed == [(batches[start:], left) for batches, left in results]


def test_what_was_dropped_before_the_start_is_not_counted_again(tmp_path):
    urls = tiny(tmp_path, [6, 6, 6, 6])
    urls += [str(write_tar(tmp_path / f"bad{i}.tar", [(f"t{i}.txt", b"x"), (f"u{i}.txt", b"x")])) for i in range(4)]
    whole = list(simulated([urls], 2, workers=2, buffer=2))
    assert sum(n for batch in whole for _, _, n in batch["dropped"]) == 8
    assert {reason for batch in whole for _, reason, _ in batch["dropped"]} == {"missing image"}
    for start in range(1, len(whole)):
        assert list(simulated([urls], 2, workers=2, buffer=2, start=start)) == whole[start:]


def test_skipping_decodes_nothing(tmp_path, monkeypatch):
    urls = tiny(tmp_path, [10] * 4)
    prepared = []
    call = Rows.__call__
    monkeypatch.setattr(Rows, "__call__", lambda self, *a: prepared.append(a[0].key) or call(self, *a))
    batches = list(simulated([urls], 2, workers=2, start=15))
    assert len(batches) == 5 and sorted(prepared) == sorted(keys(batches))


def test_the_start_holds_for_its_epoch_only(tmp_path):
    loader = simulated([tiny(tmp_path, [4] * 4)], 2, epoch=3, start=5)
    assert len(list(loader)) == 3
    loader.set_epoch(3)
    assert len(list(loader)) == 3
    loader.set_epoch(4)
    assert len(list(loader)) == 8 and loader.sampler is loader


# Counts, weights, errors


def test_everything_that_is_lost_arrives_with_some_batch(tmp_path):
    urls = tiny(tmp_path, [4, 4, 4])
    (tmp_path / "0.tar").write_bytes((tmp_path / "0.tar").read_bytes()[: 512 * 6])
    with serving(tmp_path) as server:
        server.faults["1.tar"] += [3000, 0]
        served = [server.url(f"{i}.tar") for i in range(3)] + [server.url("gone.tar")]
        loader = simulated([urls[:1], served[1:]], 3, workers=2)
        batches = list(loader)
    lost = collections.Counter()
    for batch in batches:
        for source, reason, count in batch["dropped"]:
            lost[source, reason] += count
    assert lost == {(0, "truncated shard"): 1, (1, "broken stream"): 1, (1, "missing shard"): 1}
    assert len(keys(batches)) + loader.incomplete < 12


def test_what_is_lost_after_the_last_batch_arrives_with_it(tmp_path):
    names = [f"k{i}.png" for i in range(4)] + ["z.txt"]
    loader = simulated([[str(write_tar(tmp_path / "a.tar", [(name, b"x") for name in names]))]], 3, buffer=1)
    (batch,) = loader
    assert batch["dropped"] == [(0, "missing image", 1)] and loader.incomplete == 1


@given(st.integers(0, 9), st.integers(1, 2), st.integers(1, 3))
def test_what_a_mixture_leaves_arrives_with_some_batch(tmp_path_factory, seed, workers, share):
    folder = tmp_path_factory.mktemp("s")
    sources = [tiny(folder / "a", [1] * 12), tiny(folder / "b", [1] * 20)]  # of one sample each
    loader = simulated(sources, share, weights=[1, 1], workers=workers, seed=seed, buffer=1)
    batches = list(loader)
    left = sum(n for batch in batches for _, reason, n in batch["dropped"] if reason == "shard left for other epochs")
    assert sum(len(batch["dropped"]) for batch in batches) <= 2 * workers
    assert len(keys(batches)) + loader.incomplete + left == 32


def test_weights_hold_over_workers_and_origin_says_the_source(tmp_path):
    sources = [tiny(tmp_path / name, [n] * 4) for name, n in (("a", 100), ("b", 100))]
    loader = simulated(sources, 10, weights=[3, 1], workers=2)
    batches = list(loader)
    counts = collections.Counter(origin for batch in batches for origin in batch["origin"])
    assert counts[0] / sum(counts.values()) == pytest.approx(0.75, abs=0.05) and counts[0] > 350
    shown = [pair for batch in batches for pair in zip(batch["origin"], batch["key"], strict=True)]
    assert len(set(shown)) == len(shown)
    first = collections.Counter(origin for batch in batches[: len(batches) // 2] for origin in batch["origin"])
    assert first[0] / sum(first.values()) == pytest.approx(0.75, abs=0.1)


def test_an_epoch_without_a_batch_is_an_error(tmp_path):
    with pytest.raises(
        ValueError, match=r"batch_size 9 is larger than .*\(5 samples .* set data.batch_size to 5 or less"
    ):
        list(simulated([tiny(tmp_path, [5])], 9))
    with serving(tmp_path / "none") as server:
        urls = [server.url(f"{i}.tar") for i in range(3)]
        with pytest.raises(ValueError, match=r"no sample could be read from any of 3 shards \(missing shard: 3\)"):
            list(simulated([urls], 2, workers=2))
    with pytest.raises(ValueError, match=r"from any of 1 shards \(missing image: 1\)"):
        list(simulated([[str(write_tar(tmp_path / "t.tar", [("a.gif", b"x")]))]], 2))


def test_options_that_mean_nothing_are_refused():
    for wrong, line in (
        ({"buffer": 0}, "buffer is 0"),
        ({"retries": -1}, "retries is -1"),
        ({"cache_size": "x"}, "cache_size"),
    ):
        with pytest.raises(ValueError, match=f"data.stream.{line}"):
            StreamOptions(**wrong)


# The real thing: DataLoader's processes, real decoding


@pytest.fixture
def spec(encoder):
    return encoder.spec


def real(urls: list[str], spec, workers: int, **more) -> StreamLoader:
    prepare = Prepare(spec, Augment(), seed=0)
    given = {"options": StreamOptions(buffer=6, retries=1), "batch_size": 4, "seed": 0, "workers": workers} | more
    return make_stream_loader([urls], None, prepare, Collate(spec, all_captions=False), **given)


def test_loader_processes_give_what_is_simulated_and_stay_for_the_next_epoch(tmp_path, spec):
    write_shards(tmp_path, 30, shards=5, broken=(4,))
    with serving(tmp_path) as server:
        server.faults["shard-002.tar"] += [4000]
        urls = [server.url(f"shard-{i:03d}.tar") for i in range(5)] + [server.url("gone.tar")]
        loader = real(urls, spec, workers=2)
        epochs = []
        for epoch in range(3):
            loader.set_epoch(epoch)
            batches = list(loader)
            want = simulated([urls], 4, workers=2, buffer=6, epoch=epoch)
            assert [b["key"] for b in batches] == [b["key"] for b in want]
            assert (len(batches), loader.incomplete) == (7, 2)
            assert [n for b in batches for n in b["dropped"]] == [(0, "missing shard", 1)]
            assert sum(not v for b in batches for v in b["valid"].tolist()) <= 1
            epochs.append(batches)
        assert epochs[0][0]["image"].shape == (4, 3, 32, 32) and len({b[0]["key"][0] for b in epochs}) > 1
        broken = iter(loader)
        next(broken)  # training that stops in the middle of an epoch
        del broken
        loader.set_epoch(0)
        assert [b["key"] for b in loader] == [b["key"] for b in epochs[0]]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_run_sees_the_same_pixels_and_captions(tmp_path, spec, workers):
    write_shards(tmp_path, 22, shards=4)
    urls = [str(path) for path in sorted(tmp_path.glob("*.tar"))]
    whole = list(real(urls, spec, workers, epoch=1))
    for start in (1, 3, 4) if workers else range(1, len(whole)):
        resumed = list(real(urls, spec, workers, epoch=1, start=start))
        assert [b["key"] for b in resumed] == [b["key"] for b in whole[start:]]
        for got, want in zip(resumed, whole[start:], strict=True):
            assert torch.equal(got["image"], want["image"]) and torch.equal(got["text"], want["text"])


def test_fewer_shards_than_workers_are_read_with_fewer(tmp_path, spec, caplog):
    write_shards(tmp_path, 8, shards=1)
    loader = real([str(tmp_path / "shard-000.tar")], spec, workers=3)
    assert loader.loader.num_workers == 1 and "1 instead of 3 workers" in caplog.text
    assert len(keys(list(loader))) == 8
    with pytest.raises(ValueError, match="split the data into 2 shards"):
        real([str(tmp_path / "shard-000.tar")], spec, workers=3, rank=0, ranks=2)
    with pytest.raises(ValueError, match="does not divide by 3 ranks"):
        real([str(tmp_path / "shard-000.tar")] * 3, spec, workers=1, rank=0, ranks=3)


def test_the_cache_serves_the_next_epoch(tmp_path, spec):
    write_shards(tmp_path / "s", 12, shards=3)
    with serving(tmp_path / "s") as server:
        urls = [server.url(f"shard-{i:03d}.tar") for i in range(3)]
        options = StreamOptions(buffer=3, cache=str(tmp_path / "cache"))
        loader = real(urls, spec, workers=0, options=options)
        first = list(loader)
        loader.set_epoch(1)
        assert sorted(keys(list(loader))) == sorted(keys(first)) and len(server.requests) == 3


def test_epochs_leave_nothing_open(tmp_path):
    tiny(tmp_path, [3] * 4)
    with serving(tmp_path) as server:
        loader = simulated([[server.url(f"{i}.tar") for i in range(4)]], 2, workers=2)
        list(loader)
        before = in_use()
        for epoch in range(5):
            loader.set_epoch(epoch)
            list(loader)
        assert in_use() == before


def rank_of_two(rank: int, folder: str, urls: list[str], results) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    options = {"options": StreamOptions(buffer=3), "batch_size": 4, "seed": 0, "workers": 0, "rank": rank, "ranks": 2}
    loader = make_stream_loader([urls], None, Rows(), columns, **options)
    first = list(loader), loader.incomplete
    groups = torch.distributed.get_pg_count()
    again = make_stream_loader([urls], None, Rows(), columns, **options)  # as after a reload
    assert (list(again), again.incomplete) == first and torch.distributed.get_pg_count() == groups
    torch.distributed.destroy_process_group()
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/again", rank=rank, world_size=2)
    assert list(make_stream_loader([urls], None, Rows(), columns, **options)) == first[0]
    assert torch.distributed.get_pg_count() == groups  # one of the new world
    results.put((rank, *first))
    torch.distributed.destroy_process_group()


def test_ranks_agree_over_gloo(tmp_path):
    urls = tiny(tmp_path / "s", [3, 9, 2, 4])
    fork = multiprocessing.get_context("fork")
    results = fork.Queue()
    processes = [fork.Process(target=rank_of_two, args=(rank, str(tmp_path), urls, results)) for rank in range(2)]
    for process in processes:
        process.start()
    got = {rank: (batches, left) for rank, batches, left in (results.get(timeout=60) for _ in processes)}
    for process in processes:
        process.join()
    assert [got[0], got[1]] == whole_epoch(urls, 2, 0, 2, buffer=3)
