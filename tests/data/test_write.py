"""Shards that any webdataset tool reads, cut where asked, the same bytes for the same samples."""

from __future__ import annotations

import tarfile

import pytest
import webdataset
from hypothesis import example, given
from hypothesis import strategies as st

from dualenc.data.shards import open_source
from dualenc.data.write import KEY_BYTES, encode_sample, shards, tar_key
from tests.small import png


def write(folder, count=7, **sizes):
    with shards(folder, **sizes) as writer:
        for i in range(count):
            image = png(seed=i)
            writer.write(encode_sample(f"k{i}", image, "png", [f"caption {i}", "second"], {"n": i}, i % 3))
    return folder


def test_webdataset_reads_what_was_written(tmp_path):
    write(tmp_path / "a", samples=3)
    paths = sorted(str(path) for path in (tmp_path / "a").iterdir())
    assert [path.rsplit("/", 1)[-1] for path in paths] == ["000000.tar", "000001.tar", "000002.tar"]
    samples = list(webdataset.WebDataset(paths, shardshuffle=False).decode())
    assert [s["__key__"] for s in samples] == [f"k{i}" for i in range(7)]
    assert [s["txt"] for s in samples] == [f"caption {i}\nsecond" for i in range(7)]
    assert [(s["json"]["n"], s["cls"]) for s in samples] == [(i, i % 3) for i in range(7)]
    raw = list(webdataset.WebDataset(paths, shardshuffle=False))
    assert [s["png"] for s in raw] == [png(seed=i) for i in range(7)]


def test_shards_end_at_their_size_in_bytes(tmp_path):
    size = len(png(seed=0))
    write(tmp_path / "a", samples=100, size=2 * size)
    with tarfile.open(tmp_path / "a" / "000000.tar") as tar:
        assert len([name for name in tar.getnames() if name.endswith(".png")]) == 2


def test_equal_samples_give_equal_bytes_in_plain_headers(tmp_path):
    one, two = (write(tmp_path / name) / "000000.tar" for name in "ab")
    assert one.read_bytes() == two.read_bytes()
    with tarfile.open(one) as tar:
        assert all(not member.pax_headers for member in tar)  # else readers by offset need the slow way


def test_a_percent_sign_in_the_folder_is_a_percent_sign(tmp_path):
    assert len(open_source(write(tmp_path / "50%d off"))) == 7


def test_captions_are_one_line_each(tmp_path):
    sample = encode_sample("k", b"x", "jpg", ["two\nlines\t here ", "a\u2028b"])
    assert sample["txt"].decode().splitlines() == ["two lines here", "a b"]
    assert "txt" not in encode_sample("k", b"x", "jpg", [])


@pytest.mark.parametrize("key", ["", "a.b", "folder.d/a.b"])
def test_a_key_that_readers_would_cut_is_refused(key):
    with pytest.raises(ValueError, match="cannot name a sample"):
        encode_sample(key, b"x", "jpg", ["a"])


@pytest.mark.parametrize("sizes", [{"samples": 0}, {"size": 0}])
def test_shards_that_hold_nothing_are_refused(tmp_path, sizes):
    with pytest.raises(ValueError, match="hold nothing"), shards(tmp_path / "a", **sizes):
        pass


@given(st.text(st.characters(codec=None), max_size=150))
def test_any_text_makes_a_key_that_comes_back(text):
    key = tar_key(text)
    assert key and "." not in key and len(key.encode()) <= KEY_BYTES
    assert not key.startswith("/") and all(part for part in key.split("/"))
    assert tar_key(key) == key
    encode_sample(key, b"x", "jpg", ["a"])


@example(["____/_", "__a__/b"])
@given(st.lists(st.text("ab/._é猫", min_size=1, max_size=130).map(tar_key), unique=True, min_size=1, max_size=5))
def test_keys_come_back_from_a_tar(tmp_path_factory, keys):
    keys = list(dict.fromkeys(map(tar_key, keys)))
    folder = tmp_path_factory.mktemp("keys")
    with shards(folder) as writer:
        for key in keys:
            writer.write(encode_sample(key, png(), "png", [key]))
    source = open_source(folder)
    assert source.keys == keys
    assert [s["__key__"] for s in webdataset.WebDataset(str(folder / "000000.tar"), shardshuffle=False)] == keys


def test_keys_cut_for_their_length_stay_apart():
    assert tar_key("x" * 200) != tar_key("x" * 201)
