"""Checking: the numbers are those of the data, and every kind of damage is found and named."""

from __future__ import annotations

import json
import os
import tarfile

import pytest

from dualenc.data.check import check
from dualenc.data.shards import open_source
from tests.data.test_images import encoded, picture
from tests.small import png, sample, write_tar


def members(key: str, image: bytes, text: bytes | None, **more: bytes) -> list[tuple[str, bytes]]:
    parts = {"jpg": image, "txt": text, **more}
    return [(f"{key}.{suffix}", data) for suffix, data in parts.items() if data is not None]


@pytest.fixture
def whole(tmp_path):
    """Three sizes in two formats, six captions."""
    write_tar(
        tmp_path / "data" / "a.tar",
        members("a", encoded(picture(size=(40, 30)), "JPEG"), b"one\ntwo words\n")
        + members("b", encoded(picture(size=(20, 60)), "JPEG"), b"three words here\n")
        + members("c", encoded(picture("RGBA", size=(50, 10))), b"x\ny\nfour words are here", cls=b"1"),
    )
    return tmp_path / "data"


def test_numbers_of_a_whole_data_set(whole):
    report = check(whole)
    assert not report.broken and report.problems == {}
    assert (report.samples, report.images, report.captions, report.classes) == (3, 3, 6, 1)
    spread = report.to_json()
    assert spread["captions_per_image"] == {"least": 1, "median": 2, "most": 3}
    assert spread["caption_words"] == {"least": 1, "median": 1.5, "most": 4}
    assert spread["caption_characters"] == {"least": 1, "median": 6, "most": 19}
    assert spread["formats"]["JPEG"] == {
        "count": 2,
        "width": {"least": 20, "median": 30, "most": 40},
        "height": {"least": 30, "median": 45, "most": 60},
    }
    assert spread["formats"]["PNG"]["count"] == 1 and spread["repairs"] == {"alpha": 1}
    assert json.loads(json.dumps(spread)) == spread and spread["broken"] is False
    lines = str(report).splitlines()
    assert lines[-1].split() == ["result", "whole"]
    assert [line.split()[-5:] for line in lines if "words" in line] == [["1", "to", "4,", "median", "1.5"]]


def test_a_source_and_a_path_give_the_same_report(whole):
    assert check(open_source(whole)).to_json() == check(str(whole)).to_json()


def test_every_kind_of_damage_is_found_and_named(tmp_path):
    good = encoded(picture(size=(40, 30)), "JPEG")
    write_tar(
        tmp_path / "data" / "a.tar",
        members("good", good, b"a")
        + members("cut", good[: len(good) // 2], b"a")
        + members("void", b"", b"a")
        + members("page", b"<html>", b"a")
        + members("silent", good, None)
        + members("blank", good, b" \n")
        + members("latin", good, "é".encode("latin-1"))
        + members("class", good, b"a", cls=b"one")
        + members("high", good, b"a", cls=b"2")
        + members("json", good, b"a", json=b"{")
        + [("alone.txt", b"a")],
    )
    flipped = write_tar(tmp_path / "data" / "d.tar", members("bit", good, b"a") + members("next", good, b"a"))
    content = bytearray(flipped.read_bytes())
    content[0] ^= 1
    flipped.write_bytes(content)
    write_tar(tmp_path / "data" / "b.tar", members("good", good, b"a") + members("last", good, b"a"))
    with tarfile.open(tmp_path / "data" / "b.tar") as tar:
        inside = tar.getmember("last.jpg").offset_data + 10
    os.truncate(tmp_path / "data" / "b.tar", inside)
    (tmp_path / "data" / "c.tar").write_bytes(b"hello" * 1000)
    (tmp_path / "data" / "classnames.txt").write_text("cat\ndog\n")
    report = check(tmp_path / "data")
    assert report.broken
    assert report.problems == {
        "truncated shard": [str(tmp_path / "data" / "b.tar")],
        "not a tar": [str(tmp_path / "data" / "c.tar")],
        "damaged shard": [str(flipped)],
        "missing image": ["alone", "bit"],
        "duplicate key": ["good"],
        "truncated image": ["cut"],
        "zero bytes": ["void"],
        "not an image": ["page"],
        "missing caption": ["silent", "blank"],
        "caption is not UTF-8": ["latin"],
        "class is not an integer": ["class"],
        "class without a name": ["high"],
        "metadata is not a JSON object": ["json"],
    }
    assert (report.samples, report.images) == (11, 8)
    assert all(reason in str(report) for reason in report.problems)
    assert str(report).splitlines()[-1].split() == ["result", "broken"]


def test_a_long_list_of_names_is_cut_in_print_alone(tmp_path):
    write_tar(tmp_path / "a.tar", [m for i in range(9) for m in members(f"k{i}", b"x", b"a")])
    report = check(tmp_path / "a.tar")
    assert report.problems == {"not an image": [f"k{i}" for i in range(9)]}
    assert "9 (k0, k1, k2, and 6 more)" in str(report)
    assert report.formats == {} and report.images == 0


def test_shards_without_a_sample_are_broken(tmp_path):
    write_tar(tmp_path / "a.tar", [("readme.md", b"a")])
    report = check(tmp_path / "a.tar")
    assert report.broken and report.samples == 0 and "no samples" in report.problems
    assert report.caption_words is None and json.dumps(report.to_json())


def test_classes_stand_in_for_captions(tmp_path):
    write_tar(tmp_path / "a.tar", sample("a", captions=[], cls=3))
    assert not check(tmp_path / "a.tar").broken


def test_class_names_may_lie_one_folder_up(tmp_path):
    write_tar(tmp_path / "test" / "0.tar", sample("a", cls=1) + sample("b", cls=2))
    assert not check(tmp_path / "test").broken
    (tmp_path / "classnames.txt").write_text("cat\ndog\n\n")  # an empty last line is no class
    assert check(tmp_path / "test").problems == {"class without a name": ["b"]}


def test_folders_of_images_are_checked_too(tmp_path):
    (tmp_path / "a.png").write_bytes(png())
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "b.png").write_bytes(b"")
    (tmp_path / "b.txt").write_text("a")
    assert check(tmp_path).problems == {"zero bytes": ["b"]}
    with pytest.raises(FileNotFoundError):
        check(tmp_path / "none")
    (tmp_path / "void").mkdir()
    with pytest.raises(ValueError, match="nor images"):
        check(tmp_path / "void")


def test_a_file_that_vanishes_is_a_reason_and_not_an_end(tmp_path):
    for name in "ab":
        (tmp_path / f"{name}.png").write_bytes(png())
        (tmp_path / f"{name}.txt").write_text("a")
    source = open_source(tmp_path)
    (tmp_path / "a.png").unlink()
    report = check(source)
    assert report.problems == {"unreadable file": ["a"]} and report.images == 1
