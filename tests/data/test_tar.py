"""`members` against the standard library's tarfile."""

import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dualenc.data.tar import Member, members
from tests.small import write_tar

LONG = "folder/" + "n" * 120 + "/" + "m" * 90 + ".jpg"  # more than ustar's 100 bytes
PLAIN = [("a.jpg", b"x" * 700), ("folder/", b""), ("folder/b.txt", b""), ("c.json", b"{}"), ("d.png", b"y" * 512)]
CASES = {
    "ustar": (PLAIN, tarfile.USTAR_FORMAT),
    "ustar with a prefix": ([("p" * 90 + "/" + "q" * 60 + ".jpg", b"1"), ("b.txt", b"2")], tarfile.USTAR_FORMAT),
    "gnu": (PLAIN, tarfile.GNU_FORMAT),
    "gnu long name": ([("a.jpg", b"1" * 600), (LONG, b"2"), ("b.txt", b"3")], tarfile.GNU_FORMAT),
    "pax": ([("a.jpg", b"1"), (LONG, b"2" * 513), ("é" * 60 + ".txt", b"3")], tarfile.PAX_FORMAT),
    "not ascii": ([("ключ.jpg", b"1"), ("b.txt", b"2")], tarfile.USTAR_FORMAT),
}


def reference(path):
    with tarfile.open(path) as tar:
        return [Member(i.name, i.offset_data, i.size) for i in tar if i.isreg()]


@pytest.mark.parametrize("case", CASES)
def test_equals_tarfile(tmp_path, case):
    path = write_tar(tmp_path / "t.tar", *CASES[case])
    found, damage = members(path)
    assert damage is None
    assert found == reference(path) and len(found) == sum(not name.endswith("/") for name, _ in CASES[case][0])
    data = path.read_bytes()
    wanted = [content for name, content in CASES[case][0] if not name.endswith("/")]
    assert [data[m.offset : m.offset + m.size] for m in found] == wanted


@pytest.mark.parametrize("case", ["ustar", "gnu long name", "pax"])
@given(data=st.data())
def test_a_cut_tar_keeps_what_is_whole_and_says_so(tmp_path_factory, case, data):
    path = write_tar(tmp_path_factory.mktemp("cut") / "t.tar", *CASES[case])
    whole, content = members(path)[0], path.read_bytes()
    ends = [m.offset + m.size for m in whole]
    cut = data.draw(st.integers(0, len(content) - 1) | st.sampled_from([e + d for e in ends for d in (-1, 0, 1)]))
    path.write_bytes(content[:cut])
    found, damage = members(path)
    assert found == [m for m in whole if m.offset + m.size <= cut]
    padded = max(-(-end // 512) * 512 for end in ends)
    if cut < padded:
        assert damage in ("truncated shard", "not a tar") and (damage == "truncated shard" or not found)


@given(at=st.integers(0, 3 * 512 - 1) | st.integers(100, 160), value=st.integers(0, 255) | st.sampled_from(b"89"))
def test_a_changed_header_byte_raises_nothing_and_reads_nothing_outside(tmp_path_factory, at, value):
    path = write_tar(tmp_path_factory.mktemp("byte") / "t.tar", [("a.jpg", b"1"), ("b.txt", b"2")])
    content = bytearray(path.read_bytes())
    content[at] = value
    path.write_bytes(content)
    found, damage = members(path)
    assert all(m.offset >= 0 and m.offset + m.size <= len(content) for m in found)
    assert damage in (None, "truncated shard", "not a tar")


def test_empty_files_and_other_files(tmp_path):
    path = tmp_path / "x.tar"
    path.write_bytes(b"")
    assert members(path) == ([], "truncated shard")
    path.write_bytes(b"hello")
    assert members(path) == ([], "not a tar")
    path.write_bytes(bytes(range(256)) * 40)
    assert members(path) == ([], "not a tar")
    assert members(write_tar(path, [])) == ([], None)
