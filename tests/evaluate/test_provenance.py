"""Provenance: a checksum that follows the data and nothing else, and what stands beside it."""

from __future__ import annotations

import shutil
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from dualenc.data.shards import open_source
from dualenc.embed.store_writer import StoreWriter
from dualenc.evaluate.page.provenance import checksum, provenance, settings_digest, source_checksum
from dualenc.evaluate.page.words import flat, grouped
from tests.small import sample, write_shards, write_tar


def test_equal_data_have_equal_checksums_wherever_they_lie_and_however_they_are_packed(tmp_path):
    one, other = write_shards(tmp_path / "a", 12, shards=1), write_shards(tmp_path / "b" / "c", 12, shards=3)
    found = checksum(one)
    assert found == checksum(other) == checksum(str(one / "*.tar"))
    assert found.samples == 12
    assert found.covers == "keys, sizes, and the bytes of all samples"
    assert len(found.value) == 64


@pytest.mark.parametrize(
    "changed",
    [
        {"colour": "green"},
        {"captions": ["a red picturf"]},
        {"key": "t"},
        {"seed": 3},
        {"cls": 1},
        {"json": {"a": 1}},
    ],
)
def test_whatever_changes_in_a_sample_changes_the_checksum(tmp_path, changed):
    write_tar(tmp_path / "one.tar", [*sample("s"), *sample("z")])
    write_tar(tmp_path / "other.tar", [*sample(**{"key": "s", **changed}), *sample("z")])
    assert checksum(tmp_path / "one.tar").value != checksum(tmp_path / "other.tar").value


def test_above_the_cap_some_bytes_are_read_and_every_key_and_size(tmp_path):
    def found(name, i, **changed):
        samples = [sample(**({"key": f"s{k}"} | (changed if k == i else {}))) for k in range(6)]
        write_tar(tmp_path / name, [member for members in samples for member in members])
        return source_checksum(open_source(tmp_path / name), most=3)

    plain = found("plain.tar", 0)
    assert plain.covers == "keys, sizes, and the bytes of one sample in 2"
    assert found("read.tar", 2, captions=["a bad picture"]) != plain
    assert found("size.tar", 3, captions=["a longer caption"]) != plain
    assert found("key.tar", 3, key="t3") != plain
    assert found("unread.tar", 3, captions=["a bad picture"]) == plain  # as it says of itself


def test_a_store_is_known_by_its_manifest_or_its_bytes(tmp_path):
    rows = np.eye(4, dtype=np.float32)
    metadata = pa.table({"key": list("abcd")})
    plan = {"bounds": [0, 4], "dim": 4, "dtype": "float32", "fingerprint": "f", "encoder": "e"}
    writer = StoreWriter(tmp_path / "store", plan)
    texts = pa.table({"key": list("abcd"), "caption": list("abcd"), "image_row": [0, 1, 2, 3]})
    writer.write_part(0, rows, rows, metadata, texts, {})
    assert writer.finish()
    found = checksum(tmp_path / "store")
    assert found.samples == 4
    assert "manifest" in found.covers
    shutil.copytree(tmp_path / "store", tmp_path / "moved")
    assert checksum(tmp_path / "moved") == found
    (tmp_path / "moved" / "manifest.json").unlink()  # as clip-retrieval writes it
    bare = checksum(tmp_path / "moved")
    assert bare.samples == 4
    assert bare.covers == "the store's files"
    pa.parquet.write_table(pa.table({"key": list("abce")}), tmp_path / "moved" / "metadata" / "metadata_0000.parquet")
    assert checksum(tmp_path / "moved").value != bare.value


def test_provenance_says_what_was_run(shards):
    encoder = SimpleNamespace(path="runs/e", fingerprint="f" * 64)
    made = provenance(["dualenc", "eval", "--data", "with space"], encoder, shards, seed=3)
    assert made["command"] == "dualenc eval --data 'with space'"
    assert (made["encoder"], made["fingerprint"], made["seed"]) == ("runs/e", "f" * 64, 3)
    assert (made["data"], made["data/samples"]) == (str(shards), 24)
    assert made["data/sha256"] == checksum(shards).value
    assert {"dualenc", "torch", "open_clip", "numpy", "python"} <= made["versions"].keys()
    assert made["date"].endswith(" UTC")
    assert "CPUs" in made["machine"]


def test_several_encoders_and_data_are_numbered(shards, val_shards):
    encoders = [SimpleNamespace(path=name, fingerprint=name * 2) for name in "ab"]
    made = provenance(["dualenc"], encoders, [shards, val_shards, shards])
    assert (made["encoder"], made["encoder 2"], made["fingerprint 2"]) == ("a", "b", "bb")
    assert (made["data"], made["data 2"]) == (str(shards), str(val_shards))
    assert "data 3" not in made  # the same one is read once
    assert made["data 2/samples"] == 12
    assert [name for name, _ in grouped(flat(made))][:4] == ["command", "encoder", "fingerprint", "encoder 2"]


def test_settings_are_known_whatever_their_order():
    assert settings_digest({"a": 1, "b": [1, 2]}) == settings_digest({"b": [1, 2], "a": 1})
    assert settings_digest({"a": 1}) != settings_digest({"a": 2})
