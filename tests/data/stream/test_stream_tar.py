"""Tars read from start to end give what `tar.members` lists of them, whole or damaged."""

from __future__ import annotations

import io
import tarfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dualenc.data import tar
from dualenc.data.stream.tar import TarStream
from tests.small import write_tar


class Once(io.BytesIO):
    tail = io.BytesIO.read


def listed(path) -> tuple[list[tuple[str, bytes]], str | None]:
    """The oracle: what the random access reader finds in a file."""
    found, damage = tar.members(path)
    data = path.read_bytes()
    return [(name, data[offset : offset + size]) for name, offset, size in found], damage


def streamed(data: bytes) -> tuple[list[tuple[str, bytes]], str | None]:
    stream = TarStream(Once(data))
    return list(stream), stream.damage


FORMATS = [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]
NAMES = ["a.jpg", "folder/b.txt", "folder/", "n" * 150 + ".png", "häßlich/ü.json", "y" * 99]


@pytest.mark.parametrize("format", FORMATS)
def test_every_kind_of_header_is_read(tmp_path, format):
    names = NAMES if format != tarfile.USTAR_FORMAT else [n for n in NAMES if len(n) < 100]
    wanted = [(name, bytes([i]) * (i * 512 + i)) for i, name in enumerate(names)]
    path = write_tar(tmp_path / "a.tar", [(n, b"" if n.endswith("/") else d) for n, d in wanted], format)
    assert streamed(path.read_bytes()) == ([(n, d) for n, d in wanted if not n.endswith("/")], None)


def test_large_members_come_whole(tmp_path):
    wanted = [(f"{i}.jpg", np.random.default_rng(i).bytes((i << 20) + i - 1)) for i in (1, 2, 3)]
    assert streamed(write_tar(tmp_path / "a.tar", wanted).read_bytes()) == (wanted, None)


def test_links_and_devices_have_no_bytes(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as file:
        for kind in (tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.FIFOTYPE):
            info = tarfile.TarInfo("odd")
            info.type, info.linkname = kind, "x.jpg"
            file.addfile(info)
        info = tarfile.TarInfo("x.jpg")
        info.size = 3
        file.addfile(info, io.BytesIO(b"abc"))
    assert streamed((tmp_path / "a.tar").read_bytes()) == ([("x.jpg", b"abc")], None)


@given(st.data())
def test_damage_is_the_same_as_in_a_file(tmp_path_factory, data):
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    sizes = data.draw(st.lists(st.integers(0, 1100), max_size=5))
    format = data.draw(st.sampled_from(FORMATS))
    names = data.draw(st.permutations([n for n in NAMES if format != tarfile.USTAR_FORMAT or len(n) < 100]))
    given = [(n, b"" if n.endswith("/") else rng.bytes(s)) for n, s in zip(names, sizes, strict=False)]
    path = write_tar(tmp_path_factory.mktemp("t") / "a.tar", given, format)
    raw = bytearray(path.read_bytes())
    used = max(tar.BLOCK, len(raw.rstrip(b"\0")) + 700)
    for place in data.draw(st.lists(st.integers(0, min(used, len(raw) - 1)), max_size=4)):
        raw[place] = data.draw(st.integers(0, 255))
    raw = raw[: data.draw(st.one_of(st.just(len(raw)), st.integers(0, len(raw))))]
    path.write_bytes(raw)
    assert streamed(bytes(raw)) == listed(path)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("name", ["b.jpg", "n" * 96])
def test_what_follows_the_end_is_read_on_and_counted(tmp_path, format, name):
    long = "n" * (
        99 if format == tarfile.USTAR_FORMAT else 150
    )  # where that is in an extended header, others may be lost
    whole = write_tar(tmp_path / "a.tar", [("a.jpg", b"1"), (long, b"")], format).read_bytes()
    more = write_tar(tmp_path / "b.tar", [(name, b"2"), ("c.jpg", b"3")], tarfile.USTAR_FORMAT).read_bytes()
    (tmp_path / "both.tar").write_bytes(whole + more)
    found, damage = streamed(whole + more)
    assert (found, damage) == listed(tmp_path / "both.tar")
    assert ("c.jpg", b"3") in found and damage == tar.DAMAGED


def test_a_size_that_nothing_has_is_a_cut_and_no_more_is_held_than_there_is(tmp_path):
    path = write_tar(tmp_path / "a.tar", [("a.jpg", b"1"), ("b.jpg", b"2")], tarfile.USTAR_FORMAT)
    data = bytearray(path.read_bytes())
    data[1024 + 124 : 1024 + 136] = b"\x80" + (2**62).to_bytes(11, "big")
    data[1024 + 148 : 1024 + 156] = b" " * 8
    data[1024 + 148 : 1024 + 156] = b"%06o\0 " % sum(data[1024:1536])
    path.write_bytes(data)
    with open(path, "rb") as file:  # which refuses to read so much at once
        stream = TarStream(file)
        assert (list(stream), stream.damage) == ([("a.jpg", b"1")], tar.TRUNCATED) == listed(path)
