"""Losses over 1, 2 and 4 processes are those of one: value, and gradients of encoders, scale and bias."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn.functional import normalize

from dualenc.model.losses import contrastive_loss, sigmoid_loss
from tests.model.loss_cases import Case, D, both, cases, features
from tests.model.loss_ranks import NARROW, TILES, WORLDS, values_and_gradients

ROOT = Path(__file__).resolve().parents[2]
LOSSES = ("softmax", "sigmoid")


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> dict[int, list[dict]]:
    """What every rank found, by the number of ranks: one process group for all cases of one number."""
    folder = tmp_path_factory.mktemp("ranks")
    command = [sys.executable, "-W", "error::FutureWarning", "-m", "tests.model.loss_ranks", str(folder)]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return {n: [torch.load(folder / f"{n}-{r}.pt", weights_only=True) for r in range(n)] for n in WORLDS}


@pytest.fixture(scope="module")
def alone() -> dict[str, list[list[torch.Tensor]]]:
    """The same of this process, on whole batches."""
    return {
        f"{name}, tile {tile}": values_and_gradients(case, tile, ranks=False)
        for name, case in cases().items()
        for tile in TILES
    }


@pytest.mark.parametrize("ranks", WORLDS)
def test_every_option_has_the_gradients_of_one_process(found, alone, ranks):
    assert len(alone) == len(cases()) * len(TILES) > 40
    for name, expected in alone.items():
        for rank, measured in enumerate(found[ranks]):
            for loss, mine, theirs in zip(LOSSES, measured[name], expected, strict=True):
                assert len(mine) == len(theirs) == (5 if loss == "sigmoid" else 4)
                for part, a, b in zip(("value", "image", "text", "scale", "bias"), mine, theirs, strict=False):
                    assert torch.allclose(a, b, rtol=1e-10, atol=1e-10), f"{name}: {loss} {part}, rank {rank}"


@pytest.mark.parametrize("ranks", WORLDS)
def test_the_value_is_equal_on_all_ranks_bit_for_bit(found, ranks):
    for name, expected in found[ranks][0].items():
        if name == "one tower":
            continue
        for measured in found[ranks]:
            for mine, theirs in zip(measured[name], expected, strict=True):
                assert torch.equal(mine[0], theirs[0]), name


@pytest.mark.parametrize("name", NARROW)
@pytest.mark.parametrize("ranks", WORLDS)
def test_narrow_types_are_summed_as_one_process_does(found, ranks, name):
    """Features travel in their own type; their gradients are summed over ranks in float32."""
    expected = values_and_gradients(cases()["all options"], 3, ranks=False, dtype=NARROW[name])
    share = 2e-5 if name == "float32" else 2e-2
    for measured in found[ranks]:
        for mine, theirs in zip(measured[name], expected, strict=True):
            assert torch.allclose(mine[0], theirs[0], rtol=1e-5)
            for a, b in zip(mine[1:], theirs[1:], strict=True):
                assert (a - b).abs().max() <= share * b.abs().max().clamp(min=1e-3)


@pytest.mark.parametrize("ranks", WORLDS)
def test_one_tower_may_be_frozen(found, ranks):
    """The gradients of features, before any mean, are the number of ranks times those of one process."""
    whole = features(8, D), features(8, D, seed=1)
    expected = []
    for tile in TILES:
        for trained in (0, 1):
            pair = [normalize(x, dim=1) for x in whole]
            pair[trained].requires_grad_()
            both(Case(*pair), *pair, torch.tensor(10.0), torch.tensor(-5.0), tile=tile)[0].backward()
            expected.append(pair[trained].grad)
    for number, one in enumerate(expected):
        rows = torch.cat([measured["one tower"][number] for measured in found[ranks]])
        assert torch.allclose(rows, ranks * one, rtol=1e-10, atol=1e-12)


def test_ranks_without_a_process_group_are_one():
    image, text = (normalize(features(5, D, seed=seed), dim=1) for seed in (0, 1))
    scale, bias = torch.tensor(10.0), torch.tensor(-5.0)
    assert contrastive_loss(image, text, scale, ranks=True) == contrastive_loss(image, text, scale)
    assert sigmoid_loss(image, text, scale, bias, ranks=True) == sigmoid_loss(image, text, scale, bias)
