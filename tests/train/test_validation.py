"""What validation collects, in any order and over any number of ranks."""

import numpy as np
import pytest
import torch

from dualenc.data.dataset import Batches
from dualenc.data.order import BatchOrder
from dualenc.data.prepare import Prepare
from dualenc.data.shards import open_source
from dualenc.evaluate.metrics import retrieval_metrics
from dualenc.train import validation
from dualenc.train.validation import Embeddings, zero_shot_scores
from tests.small import sample, write_tar


def collected(encoder, source, batch_size, ranks=1):
    """The parts that each rank collects."""
    parts = []
    for rank in range(ranks):
        seen = Embeddings()
        order = BatchOrder(len(source), batch_size, rank=rank, ranks=ranks)
        with torch.no_grad():
            for places in order:
                seen.add(encoder.model, Batches(source, Prepare(encoder.spec), all_captions=True)[places])
        parts.append(seen)
    return parts


@pytest.mark.parametrize(("batch_size", "ranks"), [(12, 1), (5, 1), (4, 2), (6, 3), (8, 4)])
def test_rows_are_those_of_the_data_set_whatever_the_ranks(encoder, val_shards, monkeypatch, batch_size, ranks):
    source = open_source(val_shards)
    expected = collected(encoder, source, 12)[0].whole()
    parts = collected(encoder, source, batch_size, ranks)
    monkeypatch.setattr(validation, "gathered", lambda _: [part._batches for part in reversed(parts)])
    found = parts[0].whole()
    assert found.keys() == expected.keys() == {"image", "text", "label", "image_row"}
    assert found["image"].shape == (11, 16) and found["text"].shape == (22, 16)  # one of twelve does not decode
    for name in ("label", "image_row"):
        assert np.array_equal(found[name], expected[name])
    for name in ("image", "text"):
        assert np.abs(found[name] - expected[name]).max() < 1e-6
    assert found["image_row"].tolist() == [i for i in range(11) for _ in range(2)]
    assert found["label"].tolist() == [i % 8 for i in range(12) if i != 5]


def test_recall_equals_the_metrics_over_images_with_captions(encoder, tmp_path, monkeypatch):
    members = [m for i in range(6) for m in sample(f"k{i}", "red", [f"caption {i}"] * (i % 3), seed=i)]
    source = open_source(write_tar(tmp_path / "t.tar", members))
    seen = collected(encoder, source, 4)[0]
    images = encoder.embed_images([_picture(source, i) for i in (1, 2, 4, 5)])
    texts = encoder.embed_texts([f"caption {i}" for i in (1, 2, 2, 4, 5, 5)])
    expected = retrieval_metrics(images, texts, np.array([0, 1, 1, 2, 3, 3]), ks=(1,))
    found = seen.recall()
    for way in ("text_to_image", "image_to_text"):
        assert found[f"{way}/recall@1"] == pytest.approx(expected[f"{way}/recall@1"])
        assert f"{way}/recall@10" not in found  # ten of four images would always hit
    recalls = [v for k, v in found.items() if "recall@" in k]
    assert found["mean_recall"] == pytest.approx(np.mean(recalls))


def _picture(source, i):
    from dualenc.images import decode

    return decode(source.read(i))


def test_a_set_without_pairs_says_so(encoder, tmp_path):
    source = open_source(write_tar(tmp_path / "t.tar", sample("a", captions=[])))
    with pytest.raises(ValueError, match="has both an image and a caption"):
        collected(encoder, source, 1)[0].recall()


def test_zero_shot_needs_labels(encoder, shards):
    seen = collected(encoder, open_source(shards), 24)[0]
    with pytest.raises(ValueError, match=r"no KEY\.cls"):
        zero_shot_scores(encoder.model, encoder.tokenizer, seen, ["red", "blue"], ["{}"])


def test_zero_shot_is_the_argmax_over_classes(encoder, val_shards):
    seen = collected(encoder, open_source(val_shards), 12)[0]
    names = ["red", "green", "blue", "yellow", "black", "white", "purple", "orange"]
    found = zero_shot_scores(encoder.model, encoder.tokenizer, seen, names, ["{}", "a {} picture"])
    rows = np.stack([encoder.embed_texts([name, f"a {name} picture"]).mean(axis=0) for name in names])
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    whole = seen.whole()
    right = (whole["image"] @ rows.T).argmax(axis=1) == whole["label"]
    assert found["acc1"] == pytest.approx(right.mean())
    two = zero_shot_scores(encoder.model, encoder.tokenizer, _only_two(seen), names[:2], ["{}"])
    assert "acc5" not in two and "acc5" in found  # undefined below five classes


def _only_two(seen):
    batch = {k: v.copy() for k, v in seen._batches[0].items()}
    batch["valid"] = batch["valid"] & (batch["label"] < 2)
    two = Embeddings()
    two._batches = [batch]
    return two
