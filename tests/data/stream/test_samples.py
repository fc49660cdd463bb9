"""Which shards a worker reads, how members become samples, and in what order these come."""

from __future__ import annotations

import collections
import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dualenc.data.sample import Sample
from dualenc.data.shards import open_source
from dualenc.data.stream import samples as stream_samples
from dualenc.data.stream import transport
from dualenc.data.stream.samples import (
    Dropped,
    mixed,
    peek,
    shard_plan,
    shuffled,
    usable_workers,
    watched,
    worker_samples,
)
from tests.data.stream.server import in_use, serving
from tests.small import write_shards, write_tar


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(transport, "DELAY", 0.001)


def numbers(n: int) -> list[tuple[int, Sample]]:
    return [(0, Sample(f"{i}", {})) for i in range(n)]


# Which shards


@given(st.integers(1, 40), st.integers(0, 99), st.integers(0, 9), st.integers(1, 4), st.integers(1, 4))
def test_each_shard_goes_to_one_worker_of_one_rank(shards, seed, epoch, ranks, workers):
    parts = [
        shard_plan(shards, seed, epoch, rank, ranks, worker, workers)
        for rank in range(ranks)
        for worker in range(workers)
    ]
    assert sorted(itertools.chain(*parts)) == list(range(shards))
    assert max(map(len, parts)) - min(map(len, parts)) <= 2


def test_another_epoch_deals_the_shards_out_anew():
    plans = [shard_plan(40, 0, epoch, 0, 2, 0, 2) for epoch in range(6)]
    assert len({tuple(sorted(plan)) for plan in plans}) == 6  # other shards, not the same ones in another order
    assert set(itertools.chain(*plans)) > set(plans[0])
    assert shard_plan(40, 0, 0, 0, 1, 0, 1) != shard_plan(40, 1, 0, 0, 1, 0, 1)
    assert shard_plan(40, 0, 0, 0, 1, 0, 1) != shard_plan(40, 0, 0, 0, 1, 0, 1, source=1)


def test_fewer_shards_than_workers_or_ranks():
    assert [usable_workers(n, 2, 4) for n in (2, 3, 4, 8, 9)] == [1, 1, 2, 4, 4]
    assert usable_workers(5, 2, 0) == 0
    with pytest.raises(
        ValueError, match=r"3 shards for 4 ranks: .* into 4 shards or more \(better 8\), or use 3 ranks"
    ):
        usable_workers(3, 4, 2)


# Members to samples

NAMES = st.sampled_from(
    ["a.png", "a.txt", "a.JPG", "a.jpeg", "b.txt", "b.seg.png", "x/a.png", "x/.png", "a", "b.cls", "c.json"]
)


@given(st.lists(NAMES, max_size=12))
def test_samples_are_those_of_indexed_shards(tmp_path_factory, names):
    folder = tmp_path_factory.mktemp("s")
    path = write_tar(folder / "a.tar", [(name, f"{i}".encode()) for i, name in enumerate(names)])
    source = open_source(path, strict=False)
    dropped = Dropped()
    read = [sample for _, sample in stream_samples._samples([(0, str(path))], dropped, 0, None)]
    seen: dict[str, Sample] = {}
    for sample in read:  # an index leaves the second of two equal keys out, a stream cannot know
        seen.setdefault(sample.key, sample)
    assert list(seen.values()) == [source.sample(i) for i in range(len(source))]
    assert dropped[0, "missing image"] == len(source.problems.get("missing image", []))


# Order


@given(st.integers(0, 60), st.integers(1, 30), st.integers(0, 99))
def test_a_shuffle_loses_and_doubles_nothing(n, buffer, seed):
    out = list(shuffled(numbers(n), buffer, np.random.default_rng(seed)))
    assert sorted(int(s.key) for _, s in out) == list(range(n))
    assert out == list(shuffled(iter(numbers(n)), buffer, np.random.default_rng(seed)))
    for place, (_, sample) in enumerate(out):
        assert place >= int(sample.key) - buffer  # none comes before the buffer has seen it
    if buffer == 1:
        assert out == numbers(n)


def test_a_shuffle_mixes():
    out = [int(s.key) for _, s in shuffled(numbers(1000), 100, np.random.default_rng(0))]
    moved = np.abs(np.array(out) - np.arange(1000))
    assert 50 < moved.mean() < 200


def test_weights_are_the_proportions_and_the_first_to_run_dry_ends_it():
    streams = [iter([(source, sample) for _, sample in numbers(4000)]) for source in range(3)]
    out = list(mixed(streams, [5, 3, 2], np.random.default_rng(0)))
    counts = collections.Counter(source for source, _ in out)
    assert counts[0] == 4000
    assert [counts[i] / len(out) for i in range(3)] == pytest.approx([0.5, 0.3, 0.2], abs=0.02)
    for source in range(3):
        assert [int(s.key) for number, s in out if number == source] == list(range(counts[source]))


def test_a_stream_that_gives_nothing_is_left_out_of_the_mixture(caplog):
    streams = [iter([]), *(iter([(source, sample) for _, sample in numbers(3000)]) for source in (1, 2))]
    out = list(mixed(streams, [5, 3, 2], np.random.default_rng(0)))
    counts = collections.Counter(source for source, _ in out)
    assert counts[1] == 3000 and counts[2] / len(out) == pytest.approx(0.4, abs=0.02)
    assert len(caplog.records) == 1 and "source 1 of 3: this worker's shards of it give no sample" in caplog.text
    assert list(mixed([iter([]), iter([])], [1, 1], np.random.default_rng(0))) == []


def test_a_source_whose_shards_are_gone_does_not_end_the_epoch(tmp_path):
    write_shards(tmp_path, 12, shards=3)
    there = [str(path) for path in sorted(tmp_path.glob("*.tar"))]
    write_tar(tmp_path / "none.tar", [("x.txt", b"a word")])
    gone, dropped = [str(tmp_path / "no.tar"), str(tmp_path / "none.tar")], Dropped()
    out = list(worker_samples([gone, there], [9, 1], (0, 0, 0, 1, 0, 1), 4, dropped))
    assert sorted(sample.key for _, sample in out) == [f"s{i:03d}" for i in range(12)]
    assert dropped == {(0, "missing shard"): 1, (0, "missing image"): 1}


@given(
    st.lists(st.integers(1, 5), min_size=2, max_size=3), st.integers(1, 3), st.integers(0, 9), st.sampled_from([1, 3])
)
def test_what_a_mixture_leaves_is_counted(tmp_path_factory, shards, samples, seed, factor):
    folder, sources = tmp_path_factory.mktemp("s"), []
    for source, count in enumerate(shards):
        named = [[(f"{source}-{n}-{i}.png", b"x") for i in range(samples)] for n in range(count)]
        sources.append([str(write_tar(folder / f"{source}-{n}.tar", held)) for n, held in enumerate(named)])
    dropped, place = Dropped(), (seed, 0, 0, 1, 0, 1)
    out = list(worker_samples(sources, [factor, 1, 1][: len(shards)], place, 2, dropped))
    shown = collections.Counter(source for source, _ in out)
    wanted = Dropped()
    for source, count in enumerate(shards):  # shards are read one after the other
        opened, rest = -(-shown[source] // samples), shown[source] % samples
        wanted[source, "shard left for other epochs"] = count - opened
        wanted[source, "rest of a shard left for other epochs"] = int(rest > 0)
    assert dropped == +wanted


def test_a_mixture_that_is_over_opens_no_more_shards_and_closes_its_own(tmp_path):
    for name in "ab":
        write_shards(tmp_path / name, 6 if name == "a" else 24, shards=1 if name == "a" else 4)
    with serving(tmp_path / "b") as server:
        sources = [[str(tmp_path / "a" / "shard-000.tar")], [server.url(f"shard-{i:03d}.tar") for i in range(4)]]
        before, dropped = in_use(), Dropped()
        samples = worker_samples(sources, [3, 1], (0, 0, 0, 1, 0, 1), 20, dropped)
        next(samples)  # the buffer holds the whole mixture by now
        assert len(server.requests) == 1 and in_use() == before
        assert dropped == {(1, "shard left for other epochs"): 3, (1, "rest of a shard left for other epochs"): 1}


def test_the_first_key_that_comes_again_is_said_once(caplog):
    keys = [*"abcdcbae"]
    given = [(0, Sample(key, {})) for key in keys]
    assert list(watched(iter(given), 100)) == given
    assert len(caplog.records) == 1 and "key 'c' came before in this epoch" in caplog.text
    caplog.clear()
    assert list(watched(iter(given), 2)) == given  # no more than two are remembered
    assert len(caplog.records) == 1 and "key 'b'" in caplog.text
    caplog.clear()
    assert list(watched(iter(given[:4]), 100)) == given[:4] and not caplog.records


def test_equal_keys_of_two_sources_are_said(tmp_path, caplog):
    for name in "ab":
        write_shards(tmp_path / name, 3, shards=1)
    sources = [[str(tmp_path / name / "shard-000.tar")] for name in "ab"]
    for weights in (None, [1, 1]):
        caplog.clear()
        assert len(list(worker_samples(sources, weights, (0, 0, 0, 1, 0, 1), 3, Dropped()))) > 3
        assert [" came before in this epoch" in record.getMessage() for record in caplog.records] == [True]


def test_sources_without_weights_are_one_list_and_the_numbers_stay(tmp_path):
    for name, n in (("a", 6), ("b", 4)):
        write_shards(tmp_path / name, n, shards=2, prefix=name)
    sources = [[str(p) for p in sorted((tmp_path / name).glob("*.tar"))] for name in "ab"]
    place = (0, 0, 0, 1, 0, 1)
    out = list(worker_samples(sources, None, place, 3, Dropped()))
    assert sorted(sample.key for _, sample in out) == [f"a{i:03d}" for i in range(6)] + [f"b{i:03d}" for i in range(4)]
    assert all(sample.key.startswith("ab"[source]) for source, sample in out)
    weighted = list(worker_samples(sources, [1, 1], place, 3, Dropped()))
    assert len({sample.key for _, sample in weighted}) == len(weighted)
    counts = collections.Counter(source for source, _ in weighted)
    assert 6 in counts.values() or counts[1] == 4


def test_what_is_lost_is_counted_with_its_source_and_said_once(tmp_path, caplog):
    write_shards(tmp_path, 12, shards=3)
    write_tar(tmp_path / "none.tar", [("x.txt", b"a word"), ("y.gif", b"GIF89a")])
    with serving(tmp_path) as server:
        server.faults["shard-001.tar"] += [3000, 0]
        urls = [server.url(name) for name in ("shard-000.tar", "shard-001.tar", "gone.tar")]
        dropped = Dropped()
        out = list(worker_samples([urls, [server.url("none.tar")]], None, (0, 0, 0, 1, 0, 1), 5, dropped, retries=1))
    assert {sample.key for _, sample in out} > {"s000", "s001", "s002", "s003"} and len(out) < 8
    assert dropped == {(0, "broken stream"): 1, (0, "missing shard"): 1, (1, "missing image"): 2}
    told = [record.getMessage() for record in caplog.records]
    retried = [line for line in told if "trying again" in line]
    assert len(retried) == 1 and "shard-001.tar broke at byte 3000" in retried[0]
    assert len(told) == 3 and "shard-001.tar: broken stream" in caplog.text


# Before training


def test_peek_finds_an_image(tmp_path):
    write_shards(tmp_path, 4, shards=1)
    peek([str(tmp_path / "gone.tar"), str(tmp_path / "shard-000.tar")])


def test_peek_names_the_extensions_that_are_there(tmp_path):
    path = write_tar(
        tmp_path / "a.tar", [(f"{i}.{kind}", b"x") for i in range(300) for kind in ("tiff", "txt")] + [("r", b"")]
    )
    with pytest.raises(
        ValueError, match=r"a.tar: no image \(jpg, jpeg, png, webp\) .* but \.tiff \(100\), \.txt \(100\);"
    ):
        peek([str(path)])


def test_peek_says_why_nothing_opens(tmp_path):
    with serving(tmp_path) as server:
        with pytest.raises(
            OSError, match=r"a.tar: missing shard: HTTP 404; nothing of the first 4 of 9 shards"
        ) as caught:
            peek([server.url(f"{name}.tar") for name in "abcdefghi"])
        assert len(server.requests) == 4 and "\n" not in str(caught.value)
    with pytest.raises(FileNotFoundError, match="does not find a program"):
        peek(["pipe:no_such_program_anywhere"])
