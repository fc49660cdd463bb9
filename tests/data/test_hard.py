"""Hard negatives: the order that brings them together, and the file that they are read from."""

import json
import logging
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dualenc.data.hard import Neighbours, hard_order, read_neighbours
from dualenc.data.keys import Keys
from dualenc.data.module import PairData
from dualenc.data.order import BatchOrder, epoch_order
from tests.data.test_module import BATCH, SAMPLES, every_step, fit

SHARES = st.sampled_from([0.1, 0.25, 0.3, 0.5, 0.6, 0.75, 0.9, 1.0])


def neighbours(lists, digest=""):
    starts = np.cumsum([0, *map(len, lists)])
    return Neighbours(starts, np.array([j for one in lists for j in one], dtype=np.int32), digest)


def everybody(n):
    return neighbours([[j for j in range(n) if j != i] for i in range(n)])


def slow_order(order, lists, size, share):
    """What `hard_order` says it does, with sets."""
    left, chosen = list(order), []
    while left:
        batch, hard = [], 0
        while left and len(batch) < size:
            anchor = left.pop(0)
            batch.append(anchor)
            for other in [i for i in left if i in set(lists[anchor])]:
                if len(batch) < size and hard + 1 <= share * (len(batch) + 1) + 1e-9:
                    left.remove(other)
                    batch.append(other)
                    hard += 1
        chosen += batch
    return chosen


@st.composite
def cases(draw):
    n = draw(st.integers(1, 40))
    lists = draw(st.lists(st.lists(st.integers(0, n - 1), max_size=8), min_size=n, max_size=n))
    return n, lists, draw(st.integers(1, 12)), draw(SHARES), draw(st.integers(0, 2**40)), draw(st.integers(0, 5))


@given(case=cases())
def test_an_order_is_a_permutation_as_the_slow_one_makes_it(case):
    n, lists, size, share, seed, epoch = case
    base = epoch_order(n, seed, epoch)
    order = hard_order(base, neighbours(lists), size, share)
    assert sorted(order) == list(range(n))
    assert order.tolist() == slow_order(base.tolist(), lists, size, share)
    assert np.array_equal(order, hard_order(base, neighbours(lists), size, share))


@given(n=st.integers(1, 40), size=st.integers(1, 12), share=SHARES, seed=st.integers(0, 2**40))
def test_without_neighbours_the_order_is_the_plain_one(n, size, share, seed):
    base = epoch_order(n, seed, 0)
    assert np.array_equal(hard_order(base, neighbours([[] for _ in range(n)]), size, share), base)


@given(groups=st.integers(1, 12), size=st.sampled_from([2, 4, 6, 8]), seed=st.integers(0, 2**40))
def test_twins_stand_in_one_batch(groups, size, seed):
    """Samples 2i and 2i + 1 are each other's only neighbour: at a share of one half every batch is made of twins."""
    n = 2 * groups
    order = hard_order(epoch_order(n, seed, 0), neighbours([[i ^ 1] for i in range(n)]), size, 0.5)
    assert all(a ^ 1 == b for a, b in order.reshape(-1, 2))


@given(size=st.integers(1, 30), share=SHARES, seed=st.integers(0, 2**40), batches=st.integers(1, 3))
def test_batches_reach_their_share_and_do_not_exceed_it(size, share, seed, batches):
    """Odd samples are neighbours of all even ones, which come first in the plain order: hard negatives are the odd rows."""
    n = 200
    odd = list(range(1, n, 2))
    plain = epoch_order(n, seed, 0)
    base = np.concatenate([plain[plain % 2 == 0], plain[plain % 2 == 1]])
    order = hard_order(base, neighbours([[] if i % 2 else odd for i in range(n)]), size, share)
    for b in range(batches):
        hard = int((order[b * size : (b + 1) * size] % 2).sum())
        assert hard == (size - 1 if share == 1 else int(share * size + 1e-9))


@given(share=SHARES, ranks=st.integers(1, 4), per_rank=st.integers(1, 5), epoch=st.integers(0, 3))
def test_ranks_take_slices_of_the_same_batches(share, ranks, per_rank, epoch):
    n, size = 50, ranks * per_rank
    lists = [[(i + d) % n for d in (1, 5, 7)] for i in range(n)]

    def order(number):
        return hard_order(epoch_order(n, 3, number), neighbours(lists), size, share)

    whole = [[i for i, _ in batch] for batch in BatchOrder(n, size, order, epoch=epoch)]
    parts = [list(BatchOrder(n, size, order, epoch=epoch, rank=r, ranks=ranks)) for r in range(ranks)]
    assert [[i for part in batch for i, _ in part] for batch in zip(*parts, strict=True)] == whole
    assert [i for batch in whole for i in batch] == order(epoch)[: n // size * size].tolist()
    assert [[i for i, _ in b] for b in BatchOrder(n, size, order, epoch=epoch, start=2)] == whole[2:]


def test_epochs_pair_samples_anew():
    n = 60
    mined = everybody(n)
    orders = [hard_order(epoch_order(n, 0, epoch), mined, 6, 0.5).tolist() for epoch in range(5)]
    assert len({tuple(order) for order in orders}) == 5
    pairs = [{frozenset(p) for p in pairwise(order)} for order in orders]
    assert len(pairs[0] & pairs[1]) < 10


# --- the file


def write_mined(path, rows, kind=None):
    """rows: key -> keys."""
    lists = pa.array(list(rows.values()), kind or pa.list_(pa.string()))
    pq.write_table(pa.table({"key": pa.array(list(rows), pa.string()), "neighbours": lists}), path)
    return path


def test_a_file_in_positions_of_the_data(tmp_path, caplog):
    caplog.set_level(logging.INFO, "dualenc")
    keys = Keys.of(["a", "bé", "c", "d"])
    rows = {"c": ["a", "bé"], "gone": ["a"], "a": ["gone", "d", "a", "c"], "d": [], "bé": ["also gone"]}
    path = write_mined(tmp_path / "m.parquet", rows)
    mined = read_neighbours(path, keys)
    assert [mined.found[a:b].tolist() for a, b in pairwise(mined.starts)] == [[3, 2], [], [0, 1], []]
    assert caplog.messages == [
        f"{path}: 2 of 4 training samples have hard negatives; 1 of its 5 keys are not in the training data"
    ]
    large = write_mined(tmp_path / "l.parquet", rows, pa.large_list(pa.large_string()))
    assert np.array_equal(read_neighbours(large, keys).found, mined.found)
    assert read_neighbours(large, keys).digest != mined.digest == read_neighbours(path, keys).digest


def test_many_rows_in_several_groups(tmp_path):
    rng = np.random.default_rng(0)
    names = [f"k{i}" for i in range(500)]
    rows = {name: [names[j] for j in rng.choice(500, 3, replace=False)] for name in rng.permutation(names)}
    table = pa.table({"key": list(rows), "neighbours": list(rows.values())})
    pq.write_table(table, tmp_path / "m.parquet", row_group_size=64)
    mined = read_neighbours(tmp_path / "m.parquet", Keys.of(names))
    for i, name in enumerate(names):
        found = [names[j] for j in mined.found[mined.starts[i] : mined.starts[i + 1]]]
        assert found == [other for other in rows[name] if other != name]


def test_files_that_name_no_neighbours_are_refused(tmp_path):
    keys = Keys.of("abc")
    cases = {
        "nothing.parquet": (
            {"x": ["a"], "y": ["b"], "a": ["x"]},
            "none of its 3 keys is a training sample with a neighbour",
        ),
        "self.parquet": ({"a": ["a"]}, "none of its 1 keys"),
    }
    for name, (rows, message) in cases.items():
        with pytest.raises(ValueError, match=message):
            read_neighbours(write_mined(tmp_path / name, rows), keys)
    twice = pa.table({"key": ["a", "b", "a"], "neighbours": [["b"], ["c"], ["c"]]})
    pq.write_table(twice, tmp_path / "twice.parquet")
    with pytest.raises(ValueError, match="key 'a' has several rows"):
        read_neighbours(tmp_path / "twice.parquet", keys)
    pq.write_table(pa.table({"key": ["a"], "other": [1]}), tmp_path / "other.parquet")
    with pytest.raises(ValueError, match="is no file of hard negatives"):
        read_neighbours(tmp_path / "other.parquet", keys)
    (tmp_path / "text.parquet").write_text("text")
    with pytest.raises(ValueError, match="does not open as parquet"):
        read_neighbours(tmp_path / "text.parquet", keys)
    with pytest.raises(FileNotFoundError, match="dualenc data mine"):
        read_neighbours(tmp_path / "no.parquet", keys)


# --- in runs


@pytest.fixture(scope="module")
def mined(tmp_path_factory):
    """s000 … s023: each one's twin (next to it, counting pairs)."""
    names = [f"s{i:03d}" for i in range(SAMPLES)]
    return write_mined(tmp_path_factory.mktemp("mined") / "m.parquet", {n: [names[i ^ 1]] for i, n in enumerate(names)})


@pytest.fixture(scope="module")
def data(shards, encoder, mined):
    def make(workers=0, **settings):
        settings = {"train": str(shards), "batch_size": 4, "spec": encoder.spec, "seed": 7} | settings
        return PairData(workers=workers, **{"hard_negatives": str(mined)} | settings)

    return make


def test_runs_show_twins_together_and_resume_within_an_epoch(data, tmp_path):
    whole = fit(tmp_path, data(), callbacks=[every_step(tmp_path / "c")], epochs=2)
    for epoch in range(2):
        shown = [[int(key[1:]) for key in keys] for e, keys, *_ in whole if e == epoch]
        assert all(batch[i] ^ 1 == batch[i + 1] for batch in shown for i in (0, 2))
        assert sorted(i for batch in shown for i in batch) == list(range(SAMPLES))
    assert whole[0][1] != whole[6][1]
    assert fit(tmp_path, data(2), epochs=2) == whole
    assert fit(tmp_path, data(2), tmp_path / "c" / "4.ckpt", epochs=2) == whole[4:]


@pytest.mark.parametrize("changed", ["hard_negatives", "hard_share", "none"])
def test_another_order_in_the_middle_of_an_epoch_is_refused(data, mined, tmp_path, changed):
    fit(tmp_path, data(), callbacks=[every_step(tmp_path / "c")], epochs=1)
    names = [f"s{i:03d}" for i in range(SAMPLES)]
    other = write_mined(tmp_path / "o.parquet", {name: [names[i - 1]] for i, name in enumerate(names)})
    settings = {"hard_negatives": {"hard_negatives": str(other)}, "hard_share": {"hard_share": 0.25}}
    settings["none"] = {"hard_negatives": None}
    name = "hard_negatives" if changed == "none" else changed
    with pytest.raises(ValueError, match=f"in the middle of an epoch with {name}") as error:
        fit(tmp_path, data(**settings[changed]), tmp_path / "c" / "2.ckpt", epochs=1)
    assert "\n" not in str(error.value) and data().state_dict()["seed"] == 7
    assert data().state_dict()["hard_negatives"] is None  # known after setup
    moved = tmp_path / "moved.parquet"
    moved.write_bytes(mined.read_bytes())
    fit(tmp_path, data(hard_negatives=str(moved)), tmp_path / "c" / "2.ckpt", epochs=1)


def test_what_a_checkpoint_knows_of_the_order_is_plain(data):
    made = data()
    made.setup("fit")
    state = made.state_dict()
    assert json.loads(json.dumps(state)) == state and len(state["hard_negatives"]) == 64 and state["hard_share"] == 0.5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hard_share": 0.0}, r"data.hard_share is 0.0"),
        ({"hard_share": 1.5}, r"data.hard_share is 1.5"),
        ({"hard_share": float("nan")}, r"data.hard_share is nan"),
        ({"hard_share": 0.5, "hard_negatives": None}, r"data.hard_share 0.5 has no effect without data.hard_negatives"),
        ({"weights": [1.0]}, r"data.weights \[1.0\] orders samples in its own way"),
        ({"shuffle_block": 4}, r"data.shuffle_block 4 orders samples in its own way"),
    ],
)
def test_settings_that_clash_are_refused(data, settings, message):
    with pytest.raises(ValueError, match=message):
        data(**settings)


def test_streams_have_no_such_order(data):
    with pytest.raises(ValueError, match=r"data.hard_negatives .* needs local shards"):
        data(train="pipe:cat x.tar").setup("fit")


def test_a_missing_file_is_told_before_any_work(data):
    with pytest.raises(FileNotFoundError, match="no such file; make it with `dualenc data mine"):
        data(hard_negatives="no/such.parquet").setup("fit")


def test_batches_are_of_the_global_size_and_the_rest_is_left_out(data, tmp_path):
    shown = fit(tmp_path, data(batch_size=BATCH), epochs=1)
    assert [len(keys) for _, keys, *_ in shown] == [BATCH] * (SAMPLES // BATCH)
