"""Gradients of several ranks, pieces and tiles are those of one process on the whole batch, for every option of the loss."""

import itertools
import multiprocessing

import pytest
import torch

from tests.small import write_shards
from tests.train.gradient_ranks import (
    CASES,
    FITS,
    averaged,
    compare,
    differences,
    fit,
    fit_all,
    gradients,
    make_batch,
)
from tests.train.test_gather import free_port

forked = multiprocessing.get_context("forkserver")
forked.set_forkserver_preload(["tests.train.gradient_ranks"])  # torch and open_clip are imported once for all of them
PATIENCE = 300  # seconds
TILED = [name for name in CASES if name.endswith("tile 3")]
RUNS = [
    pytest.param(2, TILED, id="2 ranks, tiled"),
    pytest.param(4, [name for name in TILED if "all" in name], id="4 ranks, few"),
    pytest.param(2, list(CASES), id="2 ranks", marks=pytest.mark.full),
    pytest.param(4, list(CASES), id="4 ranks", marks=pytest.mark.full),
]
QUICK = [name for name in FITS if name.startswith("ddp")]


def together(target, arguments):
    """Run target in a process for each of some arguments."""
    processes = [forked.Process(target=target, args=some) for some in arguments]
    for process in processes:
        process.start()
    for process in processes:
        process.join(PATIENCE)
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    return codes


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """One process, the whole batch in one piece, all logits held: loss and gradients of each case."""
    batch, folder = make_batch(), tmp_path_factory.mktemp("expected")
    found = {name: gradients(options | {"tile": 0}, batch) for name, options in CASES.items()}
    torch.save(found, folder / "expected.pt")
    return folder, found


def assert_equal(found):
    for case, of in found.items():
        assert of.keys() >= {"loss", "model.logit_scale", "model.positional_embedding", "model.visual.proj"}
        assert ("model.logit_bias" in of) == case.startswith("sigmoid") and len(of) >= 38
        far = {name: value for name, value in of.items() if not value <= 1e-10}
        assert not far, (case, far)


@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
def test_each_option_changes_the_gradient(expected, loss):
    """So that none of them could be left out everywhere."""
    names = [name for name, case in CASES.items() if case.get("loss", "softmax") == loss and case["tile"] == 0]
    found = [expected[1][name] for name in names]
    assert len(found) >= 4 and all(value.any() for gradient in found for value in gradient.values())
    norms = sorted(float(gradient["model.visual.proj"].norm()) for gradient in found)
    assert min(after - before for before, after in itertools.pairwise(norms)) > 1e-4


@pytest.mark.parametrize("name", CASES)
def test_one_rank(expected, name):
    for pieces in (1, 4):
        found = gradients(CASES[name] | {"accumulate": pieces}, make_batch())
        assert_equal({f"{name}, accumulate {pieces}": differences(found, expected[1][name])})


@pytest.mark.parametrize(("ranks", "names"), RUNS)
def test_several_ranks(expected, ranks, names):
    folder, port = expected[0], free_port()
    assert together(compare, [(str(folder), names, rank, ranks, port) for rank in range(ranks)]) == [0] * ranks
    for rank in range(ranks):
        found = torch.load(folder / f"{ranks}.{rank}.pt", weights_only=True)
        assert len(found) == 2 * len(names)
        assert_equal(found)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return str(write_shards(tmp_path_factory.mktemp("data"), 24, broken=(3, 17)))


@pytest.fixture(scope="module")
def alone(data):
    """`fit` of one process on whole batches."""
    return fit(data, 1)


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(QUICK, id="ddp"),
        pytest.param([name for name in FITS if name not in QUICK], id="others", marks=pytest.mark.full),
    ],
)
def fits(request, data, tmp_path_factory):
    """name -> what each of two ranks found: one process group for some fits."""
    folder, port = tmp_path_factory.mktemp("fits"), free_port()
    assert together(fit_all, [(str(folder), data, request.param, rank, port) for rank in (0, 1)]) == [0, 0]
    ranks = [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    assert len(ranks[0]) >= 2
    return {name: [rank[name] for rank in ranks] for name in request.param}


def assert_same_weights(found, expected):
    assert found.keys() == expected.keys() and len(found) >= 38
    for name, value in expected.items():
        assert torch.allclose(found[name], value, rtol=1e-7, atol=1e-9), name


def test_a_fit_of_two_ranks_ends_with_the_weights_of_one(fits, alone):
    for ranks in fits.values():
        for rank in ranks:
            assert_same_weights(rank["weights"], alone["weights"])


def test_gradients_are_exchanged_once_a_step(fits, alone):
    trained = sum(value.numel() for key, value in alone["weights"].items() if "attn_mask" not in key)
    for name, ranks in fits.items():
        for rank in ranks:
            if FITS[name][1] == 1:
                assert sum(rank["sizes"]) >= trained  # DDP by itself: in buckets, while the towers still work
            else:
                assert [size for size in rank["sizes"] if size > 1000] == [trained]  # the loss's own are smaller


def test_a_fit_in_pieces_ends_with_the_same_weights(alone, data):
    found = fit(data, 1, accumulate=3)
    assert_same_weights(found["weights"], alone["weights"])
    assert found["runs"] == [(False, False)] * 3 + [(False, True)] * 3 and alone["runs"] == [(False, True)]


def test_both_passes_of_a_fit_are_in_half_precision(data):
    assert fit(data, 1, precision="bf16-mixed", accumulate=2)["runs"] == [(True, False)] * 2 + [(True, True)] * 2


def test_ranks_share_gradients_and_the_statistics_that_move(tmp_path):
    port = free_port()
    assert together(averaged, [(str(tmp_path), rank, port) for rank in (0, 1)]) == [0, 0]
    for rank in (0, 1):
        linear, moving, still, double, unused = torch.load(tmp_path / f"averaged.{rank}.pt", weights_only=True)
        assert all((value == 1.5).all() for value in [*linear, *double, *moving[:2], *still[:2]])
        assert all((value == 15).all() for value in moving[2:4]) and moving[4] == 10 * (rank + 1)  # a count
        assert all((value == 10 * (rank + 1)).all() for value in still[2:])
        assert unused == [None, None] and double[0].dtype == torch.float64
