"""The order of samples: each once, fixed by (seed, epoch), cut into equal slices for ranks."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dualenc.data.order import PADDING, WINDOW, BatchOrder, epoch_order, weighted_counts, weighted_order

SIZES = st.integers(0, 60)
RANKS = st.integers(1, 4)
SEEDS = st.integers(0, 2**40)


def shuffled(n, seed=0):
    return lambda epoch: epoch_order(n, seed, epoch)


def positions(order):
    return [[place for place, _ in batch] for batch in order]


@given(n=SIZES, per_rank=st.integers(1, 6), ranks=RANKS, seed=SEEDS, epoch=st.integers(0, 5))
def test_training_shows_each_sample_at_most_once(n, per_rank, ranks, seed, epoch):
    size = per_rank * ranks
    if n < size:
        with pytest.raises(ValueError, match="larger than the data set"):
            BatchOrder(n, size, shuffled(n, seed), ranks=ranks)
        return
    whole = BatchOrder(n, size, shuffled(n, seed), epoch=epoch)
    batches = positions(whole)
    seen = [i for batch in batches for i in batch]
    assert len(batches) == len(whole) == n // size and all(len(batch) == size for batch in batches)
    assert len(set(seen)) == len(seen) and set(seen) <= set(range(n))
    assert whole.incomplete == n - len(seen)
    slices = [positions(BatchOrder(n, size, shuffled(n, seed), rank=r, ranks=ranks, epoch=epoch)) for r in range(ranks)]
    assert [[i for part in parts for i in part] for parts in zip(*slices, strict=True)] == batches
    assert all(len(batch) == per_rank for part in slices for batch in part)
    assert all(e == epoch for batch in whole for _, e in batch)


@given(n=SIZES, per_rank=st.integers(1, 6), ranks=RANKS, first=st.integers(0, 9))
def test_evaluation_shows_each_sample_once_and_pads_equally(n, per_rank, ranks, first):
    size = per_rank * ranks
    slices = [positions(BatchOrder(n, size, rank=r, ranks=ranks, first=first)) for r in range(ranks)]
    batches = [[i for part in parts for i in part] for parts in zip(*slices, strict=True)]
    seen = [i for batch in batches for i in batch if i != PADDING]
    assert seen == list(range(first, first + n))
    assert len(batches) == len(BatchOrder(n, size, ranks=ranks)) == -(-n // size)
    assert sum(batch.count(PADDING) for batch in batches) < ranks
    assert all(len({len(part[b]) for part in slices}) == 1 for b in range(len(batches)))
    assert BatchOrder(n, size, ranks=ranks).incomplete == 0


@given(n=st.integers(8, 60), seed=SEEDS, epoch=st.integers(0, 9))
def test_an_order_is_fixed_by_seed_and_epoch(n, seed, epoch):
    order = epoch_order(n, seed, epoch)
    assert sorted(order) == list(range(n)) and np.array_equal(order, epoch_order(n, seed, epoch))
    others = [(seed + 1, epoch), (seed, epoch + 1), (seed, epoch + 2)]
    assert any(not np.array_equal(order, epoch_order(n, *other)) for other in others)


def test_epochs_differ():
    orders = {tuple(epoch_order(50, 0, epoch)) for epoch in range(20)}
    assert len(orders) == 20


@given(start=st.integers(0, 5))
def test_start_skips_the_first_batches_of_its_epoch_alone(start):
    whole = BatchOrder(23, 4, shuffled(23, 3), epoch=2)
    rest = BatchOrder(23, 4, shuffled(23, 3), epoch=2, start=start)
    assert list(rest) == list(whole)[start:]
    rest.set_epoch(2)
    assert list(rest) == list(whole)[start:]
    rest.set_epoch(3)
    assert list(rest) == list(BatchOrder(23, 4, shuffled(23, 3), epoch=3))


def test_a_batch_that_does_not_divide_is_refused():
    with pytest.raises(ValueError, match=r"batch_size 10 does not divide by 4 ranks.*use 8"):
        BatchOrder(100, 10, ranks=4)
    with pytest.raises(ValueError, match="use 4"):
        BatchOrder(100, 3, ranks=4)


@given(n=st.integers(1, 400), block=st.integers(1, 50), seed=SEEDS, epoch=st.integers(0, 5))
def test_a_block_shuffle_shows_each_sample_once_in_stretches(n, block, seed, epoch):
    order = epoch_order(n, seed, epoch, block)
    assert sorted(order) == list(range(n)) and np.array_equal(order, epoch_order(n, seed, epoch, block))
    place = np.argsort(order)  # where each sample comes
    for first in range(0, n, block):  # the blocks that the data set asks to be read ahead
        span = place[first : first + block]
        assert span.max() - span.min() < WINDOW * block


def test_a_block_shuffle_mixes_within_and_between_blocks():
    orders = [epoch_order(1000, 3, epoch, 10) for epoch in range(4)]
    assert len({tuple(order) for order in orders}) == 4
    neighbours = np.abs(np.diff(orders[0]))
    assert np.median(neighbours) > 20  # not block after block
    assert max(order[:80].max() - order[:80].min() for order in orders) > 500  # a window's blocks come from anywhere


SOURCES = st.lists(st.tuples(st.integers(1, 40), st.floats(0.1, 4)), min_size=1, max_size=4)


@given(sources=SOURCES, seed=SEEDS, mixed=st.randoms(use_true_random=False), block=st.sampled_from([None, 3]))
def test_a_weighted_mixture_keeps_its_proportions_and_repeats_nothing(sources, seed, mixed, block):
    sizes, weights = zip(*sources, strict=True)
    origin = np.repeat(np.arange(len(sizes)), sizes)
    mixed.shuffle(origin)
    try:
        counts = weighted_counts(sizes, weights)
    except ValueError as error:
        assert "leave one of them out" in str(error)
        return
    assert any(count == size for count, size in zip(counts, sizes, strict=True))  # as many as the scarcest allows
    unit = min(s / w for s, w in zip(sizes, weights, strict=True))
    assert all(abs(count - unit * w) <= 1 for count, w in zip(counts, weights, strict=True))
    parts = [size // count for size, count in zip(sizes, counts, strict=True)]
    shown = [[] for _ in sizes]
    for epoch in range(max(parts)):
        order = weighted_order(origin, weights, seed, epoch, block)
        assert np.array_equal(order, weighted_order(origin, weights, seed, epoch, block))
        assert len(set(order)) == len(order) and np.bincount(origin[order], minlength=len(sizes)).tolist() == counts
        for number in range(len(sizes)):
            shown[number] += order[origin[order] == number].tolist()
    for number, (part, count) in enumerate(zip(parts, counts, strict=True)):
        first = shown[number][: part * count]
        assert len(set(first)) == len(first)  # nothing comes again before all that an epoch can show was shown


def test_weights_that_make_no_mixture_are_refused():
    for weights in ([1.0], [1.0, 0.0], [1.0, -1.0], [1.0, float("nan")]):
        with pytest.raises(ValueError, match="one positive number for each"):
            weighted_counts([10, 10], weights)
    with pytest.raises(ValueError, match="leave one of them out"):
        weighted_counts([10, 10], [1.0, 0.01])


def test_parts_of_a_mixture_cover_a_large_source_over_time():
    origin = np.repeat([0, 1], [100, 7])
    seen = {int(i) for epoch in range(60) for i in weighted_order(origin, [1.0, 1.0], 0, epoch)}
    assert len(seen) == 107
