"""Rates against a clock that the test turns by hand, and the parts against the loader that they are taken from."""

import itertools

import numpy as np
import pytest
import torch

from dualenc.data import speed
from dualenc.data.dataset import Batches
from dualenc.data.order import BatchOrder, epoch_order
from dualenc.data.prepare import Prepare
from dualenc.data.shards import open_source
from dualenc.data.speed import Parts, batches_rate, rate, with_small_cache
from dualenc.data.transforms import Augment
from tests.small import write_shards


class Clock:
    """Stands in for the module `time`."""

    now = 0.0

    def perf_counter(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    monkeypatch.setattr(speed, "time", made)
    return made


def test_the_first_call_does_not_count(clock):
    calls = []

    def part():
        clock.now += 100.0 if not calls else 0.5
        calls.append(1)
        return 3

    assert rate(part, 2.0) == pytest.approx(6.0) and len(calls) == 5
    assert rate(lambda: part(), 0.0) == pytest.approx(6.0)  # at least one call


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_a_loader_is_timed_in_whole_rounds(clock, workers):
    """Each worker takes 6 s for a batch of 4, and they give theirs one right after the other."""
    taken = []

    def batches():
        for number in range(10):  # an epoch; then again
            clock.now += 6.0 if len(taken) % workers == 0 else 0.0
            taken.append(number)
            yield {"key": ["k"] * 4}

    rate, batch = batches_rate(batches_again := Again(batches), workers, 20.0)
    assert rate == pytest.approx(workers * 4 / 6) and len(batch["key"]) == 4
    assert len(taken) % workers == 0 and (batches_again.epochs > 1) == (workers == 3)


class Again:
    """Something that can be iterated more than once."""

    def __init__(self, make):
        self.make, self.epochs = make, 0

    def __iter__(self):
        self.epochs += 1
        return self.make()


def test_no_batch_is_an_error():
    with pytest.raises(ValueError, match=r"gave no batch.*data\.batch_size"):
        batches_rate([], 0, 0.0)


@pytest.fixture
def made(encoder, shards):
    """Parts over 24 samples in batches of 10, of which 4 are left out of every epoch."""

    def make(source=None, captions=1, size=10):
        source = open_source(shards) if source is None else source
        prepare = Prepare(encoder.spec, Augment(), captions=captions)
        order = BatchOrder(len(source), size, lambda epoch: epoch_order(len(source), seed=0, epoch=epoch))
        return Batches(source, prepare, all_captions=False), order

    return make


def test_samples_are_those_of_the_epochs_in_their_order(made):
    places = speed._places(made()[1])
    got = [place for take in (7, 32, 1, 32) for place in itertools.islice(places, take)]
    wanted = [(int(i), epoch) for epoch in range(4) for i in epoch_order(24, seed=0, epoch=epoch)[:20]]
    assert got == wanted[:72]


@pytest.mark.parametrize("captions", [1, 2])
def test_the_parts_do_what_the_loader_does(made, captions):
    """The rows that `read` and `decode` leave, collated, are the batch that the data set gives."""
    dataset, order = made(captions=captions)
    parts = Parts(dataset, order)
    assert parts.read() == speed.TAKE and parts.decode() == speed.TAKE
    ours = dataset.collate(parts.rows[:10])
    theirs = dataset[next(iter(made()[1]))]
    assert ours.keys() == theirs.keys() and ours["key"] == theirs["key"]
    for name in ("image", "text", "position", "valid"):
        assert torch.equal(ours[name], theirs[name]), name
    assert parts.tokenize() == speed.TAKE == parts.collate()
    assert parts.together(7) == 7
    dataset.collate.tokenizer = None
    assert parts.collate() == speed.TAKE  # without any tokens
    with pytest.raises((AttributeError, TypeError)):
        parts.together(7)  # the stand-in was a copy's


def test_rates_of_all_parts(made, monkeypatch):
    done, loaders, make = [], [], speed.make_loader
    monkeypatch.setattr(speed, "make_loader", lambda *a, **k: loaders.append(make(*a, **k)) or loaders[-1])
    dataset, order = made()
    rates = Parts(dataset, order).rates(2, 3, 0.01, lambda: done.append(1))
    assert [(loader.num_workers, loader.prefetch_factor) for loader in loaders] == [(2, 3)]
    assert list(rates) == ["read", "decode", "tokenize", "collate", "together", "loader"] and len(done) == 6
    assert all(each > 0 for each in rates.values())
    alone = Parts(*made()).rates(0, 2, 0.01, lambda: None)
    assert alone["loader"] == alone["together"] and len(loaders) == 1  # there is no other process


def test_broken_and_missing_samples_are_passed_over(made, tmp_path):
    write_shards(tmp_path / "s", 12, broken=(0, 3, 7))
    source = open_source(tmp_path / "s")
    parts = Parts(*made(source, size=12))
    (tmp_path / "s" / "shard-001.tar").unlink()  # after it was listed
    assert parts.read() == parts.decode() == speed.TAKE
    assert {row["key"] for row in parts.rows} <= {"s001", "s002", "s004", "s005"}
    assert len(parts.some(50)) == 50 and all(row["reason"] is None for row in parts.some(50))


def test_what_is_kept_is_bounded(made, monkeypatch):
    monkeypatch.setattr(speed, "KEPT", 40)
    parts = Parts(*made())
    for _ in range(3):
        parts.read()
        parts.decode()
    assert len(parts.samples) == len(parts.rows) == 40


def test_nothing_usable_is_an_error(made, tmp_path):
    write_shards(tmp_path / "s", 12, broken=tuple(range(12)))
    parts = Parts(*made(open_source(tmp_path / "s")))
    with pytest.raises(ValueError, match=r"none of the samples tried can be used.*data check"):
        parts.rates(0, 2, 0.0, lambda: None)


def test_a_small_cache_stands_for_the_whole(made, monkeypatch):
    monkeypatch.setattr(speed, "KEPT", 15)
    dataset, order = made()
    few, few_order = with_small_cache(dataset, order, side=32, decode="exact")
    assert len(few.source) == 15 == len(few.cache.sizes) and few_order.batch_size == 10
    parts = Parts(few, few_order)
    parts.read()
    assert {tuple(sample.parts) for _, _, sample in parts.samples} == {("txt",)}  # images come from the cache
    parts.decode()
    keys = list(dataset.source.keys)
    for row in parts.rows:
        epochs = {epoch for _, epoch, sample in parts.samples if sample.key == row["key"]}
        whole = [dataset.row(keys.index(row["key"]), epoch) for epoch in epochs]
        assert any(np.array_equal(row["image"], w["image"]) and row["captions"] == w["captions"] for w in whole)
    assert parts.together(5) == 5
