"""Gradients of several ranks are those of one process on the whole batch."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from dualenc.data.dataset import Batches
from dualenc.data.prepare import Prepare
from dualenc.data.shards import open_source
from dualenc.data.transforms import Augment
from dualenc.model.folder import load_checkpoint
from dualenc.train.module import ContrastiveModule
from tests.small import SIGLIP_TEXT, TEXT, VISION, write_shards
from tests.train.conftest import read_log
from tests.train.two_ranks import gradients

ROOT = Path(__file__).resolve().parents[2]
CASES = {
    "softmax": {"embed_dim": 8, "vision": VISION["vit"], "text": TEXT},
    "sigmoid": {"embed_dim": 8, "vision": VISION["vit"], "text": TEXT, "loss": "sigmoid"},
    "two captions": {"embed_dim": 8, "vision": VISION["vit"], "text": TEXT},
    "timm vit": {"embed_dim": 8, "vision": VISION["timm_vit"], "text": SIGLIP_TEXT},
}


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Per case: settings, weights and a batch of 8 of which one row, on the second rank, is not valid."""
    source = open_source(write_shards(tmp_path_factory.mktemp("g"), 8, shards=1, broken=(6,)))
    cases = {}
    for name, settings in CASES.items():
        torch.manual_seed(1)
        module = ContrastiveModule(**settings)
        prepare = Prepare(module.spec, Augment(), captions=2 if name == "two captions" else 1)
        batch = Batches(source, prepare, all_captions=False)[[(i, 0) for i in range(8)]]
        state = {k: v.double() if v.is_floating_point() else v for k, v in module.state_dict().items()}
        cases[name] = {"settings": settings, "state": state, "batch": batch}
    return cases


@pytest.fixture(scope="module")
def ranks(whole, tmp_path_factory):
    """What each of two ranks found: one process group for all cases."""
    folder = tmp_path_factory.mktemp("ranks")
    torch.save(whole, folder / "cases.pt")
    env = os.environ | {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": free_port(),
        "WORLD_SIZE": "2",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "tests.train.two_ranks", str(folder)]
    running = [
        subprocess.Popen(command, cwd=ROOT, env=env | {"RANK": str(r)}, stderr=subprocess.PIPE, text=True)
        for r in (0, 1)
    ]
    for process in running:
        _, errors = process.communicate(timeout=200)
        assert process.returncode == 0, errors[-3000:]
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.mark.parametrize("name", CASES)
def test_two_ranks_have_the_gradients_of_one_process(whole, ranks, name):
    case = whole[name]
    assert case["batch"]["valid"].tolist() == [True] * 6 + [False, True]
    alone = gradients(case["settings"], case["state"], case["batch"], parallel=False)
    assert "model.logit_scale" in alone
    for found in (rank["gradients"][name] for rank in ranks):
        assert found.keys() == alone.keys() and len(found) > 20
        for key, value in alone.items():
            if key == "loss":
                assert found[key] == pytest.approx(value, rel=1e-12)
            else:
                largest = float(value.abs().max())
                assert float((found[key] - value).abs().max()) <= 1e-8 * max(1e-3, largest), key
                assert largest > 0, key


def test_a_fit_on_two_devices_gives_the_weights_of_one(command, settings, tmp_path):
    """`dualenc fit`, in float64, with a sample that does not decode: the same weights and the same counts."""
    data = write_shards(tmp_path / "data", 24, broken=(3, 17))
    changes = {"data": {"train": str(data), "zeroshot": None}, "trainer": {"max_epochs": 2, "precision": "64-true"}}
    assert command("fit", tmp_path / "one", **changes) == 0
    changes["trainer"] |= {"devices": 2}
    (tmp_path / "two.yaml").write_text(yaml.safe_dump(settings(tmp_path / "two", **changes)))
    done = subprocess.run(
        [sys.executable, "-m", "dualenc", "fit", "--config", str(tmp_path / "two.yaml")],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = (torch.load(tmp_path / n / "checkpoints" / "last.ckpt", weights_only=True) for n in ("one", "two"))
    assert one["global_step"] == two["global_step"] == 4
    for key, tensor in one["state_dict"].items():
        assert torch.allclose(two["state_dict"][key], tensor, rtol=1e-7, atol=1e-9), key
    logs = [read_log(tmp_path / name / "log" / "metrics.csv") for name in ("one", "two")]
    for name in ("train/loss", "data/seen", "val/mean_recall", "val/text_to_image/recall@1"):
        assert [v for _, v in logs[1][name]] == pytest.approx([v for _, v in logs[0][name]], rel=1e-9), name
    assert any(name.startswith("data/dropped/") for name in logs[0])
    assert load_checkpoint(tmp_path / "two" / "checkpoints" / "last.ckpt").provenance["samples_seen"] == 48
