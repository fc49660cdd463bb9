"""The order of samples: each once, fixed by (seed, epoch), cut into equal slices for ranks."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dualenc.data.order import PADDING, BatchOrder, epoch_order

SIZES = st.integers(0, 60)
RANKS = st.integers(1, 4)
SEEDS = st.integers(0, 2**40)


def positions(order):
    return [[place for place, _ in batch] for batch in order]


@given(n=SIZES, per_rank=st.integers(1, 6), ranks=RANKS, seed=SEEDS, epoch=st.integers(0, 5))
def test_training_shows_each_sample_at_most_once(n, per_rank, ranks, seed, epoch):
    size = per_rank * ranks
    if n < size:
        with pytest.raises(ValueError, match="larger than the data set"):
            BatchOrder(n, size, shuffle=True, ranks=ranks, seed=seed)
        return
    whole = BatchOrder(n, size, shuffle=True, seed=seed, epoch=epoch)
    batches = positions(whole)
    seen = [i for batch in batches for i in batch]
    assert len(batches) == len(whole) == n // size and all(len(batch) == size for batch in batches)
    assert len(set(seen)) == len(seen) and set(seen) <= set(range(n))
    assert whole.incomplete == n - len(seen)
    slices = [
        positions(BatchOrder(n, size, shuffle=True, rank=r, ranks=ranks, seed=seed, epoch=epoch)) for r in range(ranks)
    ]
    assert [[i for part in parts for i in part] for parts in zip(*slices, strict=True)] == batches
    assert all(len(batch) == per_rank for part in slices for batch in part)
    assert all(e == epoch for batch in whole for _, e in batch)


@given(n=SIZES, per_rank=st.integers(1, 6), ranks=RANKS, first=st.integers(0, 9))
def test_evaluation_shows_each_sample_once_and_pads_equally(n, per_rank, ranks, first):
    size = per_rank * ranks
    slices = [positions(BatchOrder(n, size, shuffle=False, rank=r, ranks=ranks, first=first)) for r in range(ranks)]
    batches = [[i for part in parts for i in part] for parts in zip(*slices, strict=True)]
    seen = [i for batch in batches for i in batch if i != PADDING]
    assert seen == list(range(first, first + n))
    assert len(batches) == len(BatchOrder(n, size, shuffle=False, ranks=ranks)) == -(-n // size)
    assert sum(batch.count(PADDING) for batch in batches) < ranks
    assert all(len({len(part[b]) for part in slices}) == 1 for b in range(len(batches)))
    assert BatchOrder(n, size, shuffle=False, ranks=ranks).incomplete == 0


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
    whole = BatchOrder(23, 4, shuffle=True, seed=3, epoch=2)
    rest = BatchOrder(23, 4, shuffle=True, seed=3, epoch=2, start=start)
    assert list(rest) == list(whole)[start:]
    rest.set_epoch(2)
    assert list(rest) == list(whole)[start:]
    rest.set_epoch(3)
    assert list(rest) == list(BatchOrder(23, 4, shuffle=True, seed=3, epoch=3))


def test_a_batch_that_does_not_divide_is_refused():
    with pytest.raises(ValueError, match=r"batch_size 10 does not divide by 4 ranks.*use 8"):
        BatchOrder(100, 10, shuffle=True, ranks=4)
    with pytest.raises(ValueError, match="use 4"):
        BatchOrder(100, 3, shuffle=False, ranks=4)
