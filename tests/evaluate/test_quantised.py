"""What 8 bits cost is measured on the same pixels and tokens, and scored as retrieval is."""

from __future__ import annotations

import dualenc.torchvision_ops  # noqa: F401

import numpy as np
import pytest
import torch

from dualenc.data.shards import open_source
from dualenc.embed.run import embed_source
from dualenc.evaluate.metrics import retrieval_metrics
from dualenc.evaluate.quantised import quantised_recall
from dualenc.model.encoder import DualEncoder
from dualenc.model.towers import image_features, text_features
from tests.small import loaded, sample, write_shards, write_tar


@pytest.fixture(scope="module")
def tiny():
    return DualEncoder(loaded("vit"), path="tiny", device="cpu")


def towers(tiny, spoil=0.0):
    """The float towers as functions of arrays; spoil: how far their rows are turned away."""
    rng = np.random.default_rng(0)

    def run(features, values):
        with torch.no_grad():
            rows = features(tiny.model, torch.from_numpy(values)).numpy()
        rows = rows + spoil * rng.standard_normal(rows.shape)
        return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)

    def text(tokens):
        assert tokens.shape[1] == tiny.tokenizer.context_length and tokens.dtype == np.int64
        return run(text_features, tokens)

    def image(pixels):
        assert pixels.dtype == np.uint8
        return run(image_features, pixels)

    return {"image": image, "text": text}


def own_text(i):
    """Some images without captions, and captions of several lengths."""
    return [] if i % 5 == 3 else [f"number {'very ' * (i % 4)}{i}", f"{i}"][: 1 + i % 2]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    members = [member for i in range(23) for member in sample(f"k{i:02d}", captions=own_text(i), seed=i)]
    members = [(n, b"not a picture") if n in ("k00.png", "k11.png") else (n, data) for n, data in members]
    return open_source(write_tar(tmp_path_factory.mktemp("pairs") / "a.tar", members))


@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_equal_towers_cost_nothing(tiny, source, batch_size):
    """And the metrics are those of the ordinary way: `embed`, then `retrieval_metrics`."""
    found = quantised_recall(tiny, towers(tiny), source, batch_size=batch_size, workers=0)
    assert found["float"] == found["int8"]
    embedded = embed_source(tiny, source, workers=0, accelerator="cpu")
    assert len(embedded.images) == 21 and len(embedded.texts) < 30
    expected = retrieval_metrics(embedded.images, embedded.texts, embedded.image_row, strict=False)
    assert found["float"] == pytest.approx(expected, abs=1e-9)
    assert 0 < found["float"]["text_to_image/recall@10"] < 1  # neither chance nor a constant


@pytest.mark.parametrize("side", ["image", "text"])
def test_a_spoilt_tower_costs_something(tiny, source, side):
    """Either of them; the float side stays what it is."""
    good, bad = towers(tiny), towers(tiny, spoil=1.0)
    expected = quantised_recall(tiny, good, source, workers=0)["float"]
    found = quantised_recall(tiny, good | {side: bad[side]}, source, workers=0)
    assert found["float"] == expected
    assert found["int8"]["text_to_image/mean_rank"] != expected["text_to_image/mean_rank"]


def test_a_small_gallery_leaves_large_ks_out(tiny, tmp_path):
    source = open_source(write_shards(tmp_path / "few", 6))
    found = quantised_recall(tiny, towers(tiny), source, workers=0)["int8"]
    assert "text_to_image/recall@5" in found and "text_to_image/recall@10" not in found
    assert "image_to_text/recall@10" in found  # two captions an image


def test_data_without_pairs_is_refused(tiny, tmp_path):
    source = open_source(write_tar(tmp_path / "a.tar", [m for i in range(3) for m in sample(f"k{i}", captions=[])]))
    with pytest.raises(ValueError, match="no image with a caption"):
        quantised_recall(tiny, towers(tiny), source, workers=0)


@pytest.mark.parametrize("settings", [{"batch_size": 0}, {"workers": -1}])
def test_settings_that_measure_nothing_are_refused(tiny, source, settings):
    with pytest.raises(ValueError, match="use"):
        quantised_recall(tiny, towers(tiny), source, **settings)
