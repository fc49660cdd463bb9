"""Samples and batches: DESIGN's "Batch"."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from dualenc.data.collate import Collate
from dualenc.data.dataset import Batches, ImageCache
from dualenc.data.order import PADDING
from dualenc.data.prepare import Prepare
from dualenc.data.sample import Sample
from dualenc.data.shards import open_source
from dualenc.data.transforms import Augment
from dualenc.images import BadImage, decode
from dualenc.pixels import evaluation
from tests.small import COLOURS, png, sample, write_shards, write_tar


@pytest.fixture(scope="module")
def messy(tmp_path_factory):
    members = [
        *sample("good", captions=["one red", "two red", "three red"], cls=3),
        *sample("silent", captions=[], cls=1),
        ("broken.png", b"no picture"),
        ("broken.txt", b"a caption"),
        ("latin.png", png()),
        ("latin.txt", b"\xff\xfe"),
        ("class.png", png()),
        ("class.txt", b"a caption"),
        ("class.cls", b"cat"),
        ("json.png", png()),
        ("json.txt", b"a caption"),
        ("json.json", b"{"),
    ]
    return open_source(write_tar(tmp_path_factory.mktemp("messy") / "t.tar", members))


def batches(source, encoder, augment=None, all_captions=False, cache=None, **settings):
    return Batches(source, Prepare(encoder.spec, augment, **settings), all_captions=all_captions, cache=cache)


def reasons(source, encoder, augment=None):
    made = batches(source, encoder, augment)
    return {key: made.row(i)["reason"] for i, key in enumerate(source.keys)}


def test_what_cannot_be_used_says_why(messy, encoder):
    common = {"good": None, "latin": "caption is not UTF-8", "class": "class is not an integer"}
    evaluated, trained = reasons(messy, encoder), reasons(messy, encoder, Augment())
    assert evaluated.pop("broken") == trained.pop("broken") != None  # noqa: E711  (the decoder's own words)
    assert evaluated == common | {"silent": None, "json": "metadata is not a JSON object"}
    assert trained == common | {"silent": "missing caption", "json": None}


def test_a_file_that_is_gone_or_unreadable_costs_its_row_alone(encoder, tmp_path, monkeypatch):
    for name in "abcd":
        (tmp_path / f"{name}.png").write_bytes(png())
        (tmp_path / f"{name}.txt").write_text("a caption")
    source = open_source(tmp_path)
    (tmp_path / "a.png").unlink()
    real = type(source).sample

    def unreadable(self, i, *kinds):
        if self.keys[i] in "bc":
            raise OSError(5, "Input/output error")
        return real(self, i, *kinds)

    monkeypatch.setattr(type(source), "sample", unreadable)
    gone = "unreadable file"
    for augment in (None, Augment()):
        assert reasons(source, encoder, augment) == {"a": gone, "b": gone, "c": gone, "d": None}
    assert ImageCache(source, 32).reasons.keys() >= {0, 1}


def test_a_batch_is_what_the_design_says(messy, encoder):
    size = encoder.spec["image"]["size"]
    rows = [(i, 0) for i in range(len(messy))]
    batch = batches(messy, encoder, all_captions=True)[[*rows, (PADDING, 0)]]
    assert batch["image"].dtype == torch.uint8 and batch["image"].shape == (7, 3, *size)
    assert batch["text"].dtype == torch.int64 and batch["text"].shape[0] == 7
    assert batch["key"] == [*messy.keys, ""]
    assert batch["valid"].dtype == torch.bool and batch["valid"].tolist() == [True, True] + [False] * 5
    assert batch["reason"][-1] == "padding" and batch["position"].tolist() == [0, 1, 2, 3, 4, 5, PADDING]
    assert "label" in batch and batch["label"].tolist()[:2] == [3, 1] and batch["label"].dtype == torch.int64
    assert not batch["image"][~batch["valid"]].any()
    pixels = evaluation(messy.read(0), encoder.spec["image"])
    assert np.array_equal(batch["image"][0].permute(1, 2, 0), pixels)
    assert batch["image"].is_contiguous(memory_format=torch.channels_last)
    assert batch["origin"] == [0] * 6 + [0]
    assert batch["text_row"].tolist() == [0, 0, 0] and batch["all_text"].shape[0] == 3
    assert torch.equal(batch["all_text"][0, : batch["text"].shape[1]], batch["text"][0, : batch["all_text"].shape[1]])


def test_labels_are_left_out_where_one_is_missing(encoder, tmp_path):
    source = open_source(write_tar(tmp_path / "t.tar", sample("a", cls=0) + sample("b")))
    batch = batches(source, encoder)[[(0, 0), (1, 0)]]
    assert "label" not in batch and "all_text" not in batch
    assert batches(source, encoder)[[(0, 0)]]["label"].tolist() == [0]


def test_one_caption_is_drawn_by_seed_epoch_and_key(encoder, tmp_path):
    source = open_source(write_tar(tmp_path / "t.tar", sample("a", captions=[f"caption {i}" for i in range(4)])))

    def captions(seed):
        made = batches(source, encoder, Augment(), seed=seed)
        return [made.row(0, epoch)["captions"] for epoch in range(200)]

    drawn = captions(5)
    assert drawn == captions(5) != captions(6)
    counts = [drawn.count([f"caption {i}"]) for i in range(4)]
    assert sum(counts) == 200 and min(counts) > 30


def test_captions_that_are_cut_are_counted_once(encoder):
    long = "cat " * 40
    samples = [{"image": np.zeros((2, 2, 3), np.uint8), "key": "k", "position": 0, "label": None, "reason": None}]
    samples[0] |= {"captions": [long, long, "cat"], "origin": 0}
    assert Collate(encoder.spec, all_captions=True)(samples)["truncated"] == 2
    assert Collate(encoder.spec, all_captions=False)(samples)["truncated"] == 1
    assert Collate(encoder.spec, all_captions=False, captions=3)(samples)["truncated"] == 2


def test_several_captions_of_an_image_differ_where_there_are_as_many(encoder, tmp_path):
    captions = [f"caption {i}" for i in range(4)]
    members = sample("a", captions=captions) + sample("b", captions=["only one"]) + [("c.png", b"no picture")]
    source = open_source(write_tar(tmp_path / "t.tar", members))
    made = batches(source, encoder, Augment(), captions=3)
    drawn = [made.row(0, epoch)["captions"] for epoch in range(60)]
    assert all(len(set(three)) == 3 for three in drawn)
    assert {caption for three in drawn for caption in three} == set(captions) and len(set(map(tuple, drawn))) > 12
    assert made.row(1)["captions"] == ["only one"] * 3
    batch = made[[(0, 5), (1, 5), (2, 5)]]
    assert batch["texts"].shape[:2] == (3, 3) and batch["texts"].dtype == torch.int64
    length = min(batch["texts"].shape[2], batch["text"].shape[1])
    assert torch.equal(batch["texts"][:, 0, :length], batch["text"][:, :length])
    expected = made.collate.tokenizer(drawn[5])
    assert np.array_equal(batch["texts"][0, :, : expected.shape[1]].numpy(), expected)
    assert made[[(2, 0)]]["texts"].shape[:2] == (1, 3)  # a rank whose samples all fail has the others' shape


def test_a_cache_of_large_enough_images_changes_nothing(encoder, tmp_path):
    source = open_source(write_shards(tmp_path, 6, shards=1, broken=(3,)))
    cache = ImageCache(source, 32)
    for i in range(6):
        plain, cached = (batches(source, encoder, Augment(flip=0.5), cache=c).row(i, 1) for c in (None, cache))
        assert np.array_equal(plain.pop("image"), cached.pop("image")) and plain == cached
    assert cache.pixels.is_shared()
    with pytest.raises(BadImage):
        cache[3]


def test_a_cache_shrinks_and_never_enlarges(tmp_path):
    sizes = [(100, 50), (20, 90), (10, 12)]
    members = [(f"{i}.png", png(size, COLOURS["red"])) for i, size in enumerate(sizes)]
    source = open_source(write_tar(tmp_path / "t.tar", members))
    cache = ImageCache(source, 25)
    assert [cache[i].size for i in range(3)] == [(50, 25), (20, 90), (10, 12)]
    whole = decode(source.read(0)).resize((50, 25), Image.Resampling.BICUBIC)
    assert np.array_equal(np.asarray(cache[0]), np.asarray(whole))
    assert np.array_equal(np.asarray(cache[1]), np.asarray(decode(source.read(1))))


def captioned(**fields):
    return Sample("k", {"image": png(), "txt": b"from text", "json": json.dumps(fields).encode()})


def test_captions_are_drawn_from_named_fields_with_probabilities(encoder):
    prepare = Prepare(encoder.spec, Augment(), fields={"txt": 0.2, "synthetic": 0.8})
    some = captioned(synthetic=["one  made", "two made"], other="never")
    drawn = [prepare(some, epoch)["captions"][0] for epoch in range(500)]
    assert set(drawn) == {"from text", "one made", "two made"}
    assert 60 < drawn.count("from text") < 140 and min(drawn.count("one made"), drawn.count("two made")) > 150
    assert drawn == [prepare(some, epoch)["captions"][0] for epoch in range(500)]
    lacking = captioned(synthetic=3)
    assert {prepare(lacking, epoch)["captions"][0] for epoch in range(20)} == {"from text"}
    none = Prepare(encoder.spec, Augment(), fields={"synthetic": 1.0})(lacking, 0)
    assert none["reason"] == "missing caption"


def test_several_captions_of_several_fields_are_as_many_and_differ(encoder):
    prepare = Prepare(encoder.spec, Augment(), captions=3, fields={"txt": 0.5, "a": 0.5})
    some = captioned(a=["a one", "a two", "a three"])
    drawn = [prepare(some, epoch)["captions"] for epoch in range(200)]
    assert all(len(three) == 3 for three in drawn)
    of_a = [[c for c in three if c != "from text"] for three in drawn]
    assert all(len(set(part)) == len(part) for part in of_a) and {len(part) for part in of_a} == {0, 1, 2, 3}
    assert 0.3 < np.mean([three[0] == "from text" for three in drawn]) < 0.7  # no field always comes first


class Asked:
    """A source that notes which stretches it was asked to read ahead."""

    def __init__(self, source):
        self.source, self.asked = source, []

    def prefetch(self, first, last):
        self.asked.append((first, last))

    def __len__(self):
        return len(self.source)

    def __getattr__(self, name):
        return getattr(self.source, name)


def test_a_block_is_asked_for_when_its_first_sample_is_due(encoder, shards):
    source = Asked(open_source(shards))
    made = Batches(source, Prepare(encoder.spec), all_captions=False, block=10)
    made[[(3, 0), (11, 0), (5, 0), (PADDING, 0)]]
    assert sorted(source.asked) == [(0, 10), (10, 20)]
    made[[(12, 0), (23, 0)]]
    assert sorted(source.asked) == [(0, 10), (10, 20), (20, 24)]


def test_a_shard_that_was_replaced_is_counted_as_such(encoder, tmp_path, caplog):
    path = write_tar(tmp_path / "a.tar", sample("a") + sample("b"))
    source = open_source(path)
    write_tar(path, sample("a") + sample("c", captions=["another length of text"]))
    made = batches(source, encoder, Augment())
    assert [made.row(i)["reason"] for i in range(2)] == ["changed shard"] * 2
    assert ImageCache(source, 32).reasons == {0: "changed shard", 1: "changed shard"}
    told = [r.getMessage() for r in caplog.records]
    assert len(told) == 1 and "a.tar was changed since it was listed" in told[0]
