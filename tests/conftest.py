"""What many tests share: one tiny encoder, a few tiny shards."""

from __future__ import annotations

import os

os.environ.setdefault("DUALENC_CLASSIFIERS", "off")  # tests keep nothing in the user's cache
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny towers: more threads only get in each other's way

import dualenc.torchvision_ops  # noqa: F401  (before whatever a test imports)

import pytest
from hypothesis import HealthCheck, settings

from tests.small import loaded, write_shards

patient = {"deadline": None, "suppress_health_check": list(HealthCheck), "print_blob": True}
settings.register_profile(
    "quick", derandomize=True, **patient
)  # the same examples every time: CI finds what a change broke
settings.register_profile("full", max_examples=300, **patient)  # new ones every time: `make test-all` goes looking
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))


@pytest.fixture(scope="session")
def encoder():
    """A DualEncoder of tiny random towers (a ViT and CLIP's text tower)."""
    from dualenc.model.encoder import DualEncoder

    return DualEncoder(loaded("vit"), path="tiny", device="cpu")


@pytest.fixture(scope="session")
def encoder_folder(encoder, tmp_path_factory):
    """The same encoder, as a folder. Copy it before changing anything."""
    folder = tmp_path_factory.mktemp("encoder") / "encoder"
    encoder.save(folder)
    return folder


@pytest.fixture(scope="session")
def shards(tmp_path_factory):
    """24 good samples in two shards, two captions each."""
    return write_shards(tmp_path_factory.mktemp("shards"), 24)


@pytest.fixture(scope="session")
def val_shards(tmp_path_factory):
    """12 samples in one shard, one of which does not decode, with classes by colour."""
    return write_shards(tmp_path_factory.mktemp("val"), 12, shards=1, broken=(5,), prefix="v", cls=lambda i: i % 8)
