"""`members` against the standard library's tarfile, and against every kind of damage."""

import itertools
import tarfile

import pytest
import webdataset
from hypothesis import given
from hypothesis import strategies as st

from dualenc.data.tar import BLOCK, DAMAGED, NOT_A_TAR, TRUNCATED, Member, members
from tests.small import write_tar

LONG = "folder/" + "n" * 120 + "/" + "m" * 90 + ".jpg"  # more than ustar's 100 bytes
PLAIN = [("a.jpg", b"x" * 700), ("folder/", b""), ("folder/b.txt", b""), ("c.json", b"{}"), ("d.png", b"y" * 512)]
CASES = {
    "ustar": (PLAIN, tarfile.USTAR_FORMAT),
    "ustar with a prefix": ([("p" * 90 + "/" + "q" * 60 + ".jpg", b"1"), ("b.txt", b"2")], tarfile.USTAR_FORMAT),
    "gnu": (PLAIN, tarfile.GNU_FORMAT),
    "gnu long name": ([("a.jpg", b"1" * 600), (LONG, b"2"), ("b.txt", b"3"), ("c.jpg", b"4")], tarfile.GNU_FORMAT),
    "pax": ([("a.jpg", b"1"), (LONG, b"2" * 513), ("é" * 60 + ".txt", b"3"), ("d.jpg", b"4")], tarfile.PAX_FORMAT),
    "names of several pages": ([(f"{i}" * n, b"1" * n) for i, n in enumerate((700, 5000, 9000))], tarfile.PAX_FORMAT),
    "not ascii": ([("ключ.jpg", b"1"), ("b.txt", b"2")], tarfile.USTAR_FORMAT),
}


def reference(path):
    with tarfile.open(path, errors="surrogateescape") as tar:
        return [Member(i.name, i.offset_data, i.size) for i in tar if i.isreg()]


def by_webdataset(path, samples=4):
    """What webdataset's TarWriter writes: before each member a pax header with the time."""
    with webdataset.TarWriter(str(path)) as writer:
        for i in range(samples):
            writer.write({"__key__": f"s{i}", "jpg": b"x" * (700 + i), "txt": b"a caption", "cls": b"1"})
    return path


@pytest.mark.parametrize("case", CASES)
def test_equals_tarfile(tmp_path, case):
    path = write_tar(tmp_path / "t.tar", *CASES[case])
    found, damage = members(path)
    assert damage is None
    assert found == reference(path) and len(found) == sum(not name.endswith("/") for name, _ in CASES[case][0])
    data = path.read_bytes()
    wanted = [content for name, content in CASES[case][0] if not name.endswith("/")]
    assert [data[m.offset : m.offset + m.size] for m in found] == wanted


def test_what_webdataset_writes(tmp_path):
    path = by_webdataset(tmp_path / "t.tar")
    assert path.read_bytes()[156:157] == b"x"  # the case that is meant
    assert members(path) == (reference(path), None) and len(reference(path)) == 12


NAMES = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=130)


@given(
    st.lists(st.tuples(NAMES.map(lambda n: n.strip("/") or "x"), st.binary(max_size=1100)), max_size=5),
    st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]),
)
def test_any_names_and_contents_are_those_of_tarfile(tmp_path_factory, files, kind):
    path = write_tar(tmp_path_factory.mktemp("any") / "t.tar", files, kind)
    assert members(path) == (reference(path), None)
    assert [size for _, _, size in members(path)[0]] == [len(data) for _, data in files]


def test_links_folders_and_old_headers(tmp_path):
    with tarfile.open(tmp_path / "t.tar", "w", format=tarfile.GNU_FORMAT) as tar:
        for kind in (tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE, tarfile.CONTTYPE):
            info = tarfile.TarInfo(f"m{kind.decode()}.jpg")
            info.type, info.linkname = kind, "l" * 150
            tar.addfile(info)
        tar.addfile(tarfile.TarInfo("last.jpg"))
    assert members(tmp_path / "t.tar") == (reference(tmp_path / "t.tar"), None)
    assert [m.name for m in members(tmp_path / "t.tar")[0]] == ["m7.jpg", "last.jpg"]
    path = write_tar(tmp_path / "old.tar", [("a.jpg", b"1"), ("b/", b""), ("c.txt", b"2")])
    data = bytearray(path.read_bytes())
    for at in (0, 1024, 1536):  # no magic, and a folder is told by its slash: tar before POSIX
        data[at + 257 : at + 265] = bytes(8)
        data[at + 156] = 0
        if at == 1024:
            data[at + 1] = ord("/")
        seal(data, at)
    path.write_bytes(data)
    assert members(path) == (reference(path), None) and [m.name for m in members(path)[0]] == ["a.jpg", "c.txt"]


def seal(data, at):
    """Make a changed header's checksum right."""
    data[at + 148 : at + 156] = b" " * 8
    data[at + 148 : at + 156] = b"%06o\0 " % sum(data[at : at + BLOCK])


def test_sizes_in_base_256_and_in_pax_records(tmp_path):
    path = write_tar(tmp_path / "t.tar", [("a.jpg", b"x" * 700), ("b.txt", b"2")])
    data, whole = bytearray(path.read_bytes()), members(path)
    data[124:136] = b"\x80" + (700).to_bytes(11, "big")
    seal(data, 0)
    path.write_bytes(data)
    assert members(path) == whole and reference(path) == whole[0]
    data[124:136] = b"00000000000\0"
    seal(data, 0)
    record = b"12 size=700\n"
    head = bytearray(data[:BLOCK])
    head[124:136], head[156:157] = b"%011o\0" % len(record), b"x"
    seal(head, 0)
    path.write_bytes(head + record.ljust(BLOCK, b"\0") + data)
    assert members(path) == ([Member("a.jpg", 1536, 700), Member("b.txt", 3072, 1)], None)
    assert reference(path) == members(path)[0]
    data[124:136] = b"%011o\0" % 600  # the two sizes contradict each other
    seal(data, 0)
    path.write_bytes(head + record.ljust(BLOCK, b"\0") + data)
    assert members(path) == ([Member("b.txt", 3072, 1)], DAMAGED)


@pytest.mark.parametrize(("kind", "text"), [(b"x", b"22 GNU.sparse.major=1\n"), (b"S", b"2")])
def test_what_lies_in_pieces_is_not_given_as_one(tmp_path, kind, text):
    with tarfile.open(tmp_path / "t.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, type_, data in [("x", kind, text), ("a.jpg", b"0", b"1"), ("b.jpg", b"0", b"2")]:
            info = tarfile.TarInfo(name)
            info.type, info.size = type_, len(data)
            tar.addfile(info)  # writes what follows of regular files alone
            tar.fileobj.write(data.ljust(BLOCK, b"\0"))
            tar.offset += BLOCK
    found, damage = members(tmp_path / "t.tar")
    assert [m.name for m in found] == ["a.jpg", "b.jpg"][kind == b"x" :] and damage == DAMAGED


def test_a_size_with_more_digits_than_a_number_may_have_is_damage(tmp_path):
    path = write_tar(tmp_path / "t.tar", [("a.jpg", b"1"), ("b.jpg", b"2")])
    data, record = path.read_bytes(), b"5011 size=" + b"9" * 5000 + b"\n"
    head = bytearray(data[:BLOCK])
    head[124:136], head[156:157] = b"%011o\0" % len(record), b"x"
    seal(head, 0)
    path.write_bytes(head + record.ljust(10 * BLOCK, b"\0") + data)
    assert [m.name for m in members(path)[0]] == ["b.jpg"] and members(path)[1] == DAMAGED


def test_a_tar_within_a_member_is_not_taken_for_headers_off_their_grid(tmp_path):
    inner = write_tar(tmp_path / "u.tar", [("inner.jpg", b"1")]).read_bytes()
    path = write_tar(tmp_path / "t.tar", [("a.jpg", b"x" + inner), ("b.jpg", b"2")])
    content = bytearray(path.read_bytes())
    content[3] ^= 1
    path.write_bytes(content)
    assert [m.name for m in members(path)[0]] == ["b.jpg"]


def test_a_flipped_bit_in_a_magic_word_costs_no_neighbour(tmp_path):
    path = write_tar(tmp_path / "t.tar", *CASES["gnu long name"])
    whole, content = members(path)[0], bytearray(path.read_bytes())
    content[whole[2].offset - BLOCK + 258] ^= 1
    path.write_bytes(content)
    assert members(path) == ([*whole[:2], whole[3]], DAMAGED)


@pytest.mark.parametrize("kind", [b"x", b"L", b"g", b"K"])
@pytest.mark.parametrize("case", ["gnu", "gnu long name", "pax"])
def test_a_file_whose_kind_became_an_extended_headers_costs_no_neighbour(tmp_path, case, kind):
    path = write_tar(tmp_path / "t.tar", *CASES[case])
    whole, content = members(path)[0], bytearray(path.read_bytes())
    header = whole[1].offset - BLOCK
    assert content[header + 156 : header + 157] == b"0"
    content[header + 156 : header + 157] = kind
    path.write_bytes(content)
    assert members(path) == ([whole[0], *whole[2:]], DAMAGED)


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
    padded = max(-(-end // BLOCK) * BLOCK for end in ends)
    if cut < padded:
        assert damage in (TRUNCATED, NOT_A_TAR) and (damage == TRUNCATED or not found)


TARS = ["webdataset", "ustar", "gnu", "gnu long name", "pax", "not ascii"]


def make(folder, case):
    return by_webdataset(folder / "t.tar") if case == "webdataset" else write_tar(folder / "t.tar", *CASES[case])


def headers(whole):
    """(first byte, end) of each regular member's headers; a folder's header is counted to the member after it."""
    ends = [0, *(-(-(m.offset + m.size) // BLOCK) * BLOCK for m in whole)]
    return [(start, m.offset) for start, m in zip(ends, whole, strict=False)]


@pytest.mark.parametrize("case", TARS)
@given(data=st.data())
def test_a_changed_byte_in_a_header_loses_one_member_at_most_and_says_so(tmp_path_factory, case, data):
    path = make(tmp_path_factory.mktemp("byte"), case)
    whole, content = members(path)[0], bytearray(path.read_bytes())
    victim = data.draw(st.integers(0, len(whole) - 1))
    start, end = headers(whole)[victim]
    known = [*range(99, 109), *range(124, 158), *range(257, 265), 345]  # name, size, checksum, kind, magic, prefix
    at = data.draw(st.integers(start, end - 1) | st.sampled_from([end - BLOCK + k for k in known]))
    content[at] ^= data.draw(st.integers(1, 255) | st.sampled_from([1 << bit for bit in range(8)]))
    path.write_bytes(content)
    found, damage = members(path)
    others = [m for i, m in enumerate(whole) if i != victim]
    text = (
        (start, end) != (end - BLOCK, end) and start + BLOCK <= at < end - BLOCK and case != "ustar" and case != "gnu"
    )
    if text:  # the text of an extended header has no checksum: a name may change, a place may not
        assert [m for m in found if m in others] == others and len(found) <= len(whole)
        assert all((m.offset, m.size) == (whole[victim].offset, whole[victim].size) for m in found if m not in others)
        assert damage in (None, DAMAGED)
    else:
        assert found == whole or (found == others and damage == DAMAGED)
        assert damage in (None, DAMAGED)


@pytest.mark.parametrize("case", TARS)
@given(data=st.data())
def test_destroyed_headers_lose_their_member_and_give_none_a_wrong_name(tmp_path_factory, case, data):
    path = make(tmp_path_factory.mktemp("block"), case)
    whole, content = members(path)[0], bytearray(path.read_bytes())
    victim = data.draw(st.integers(0, len(whole) - 1))
    start, end = headers(whole)[victim]
    block = data.draw(st.sampled_from([b for b in range(start, end, BLOCK) if b in (start, end - BLOCK)]))
    content[block : block + BLOCK] = data.draw(st.binary(min_size=BLOCK, max_size=BLOCK))
    path.write_bytes(content)
    found, damage = members(path)
    assert set(found) <= set(whole) and damage in (DAMAGED, NOT_A_TAR)
    assert set(whole[:victim]) | set(whole[victim + 2 :]) <= set(found)  # at most the neighbour is lost with it


@given(st.integers(0, 40), st.integers(1, 6), st.sampled_from([0, 255]))
def test_a_hole_in_the_middle_keeps_both_ends(tmp_path_factory, first, blocks, value):
    path = by_webdataset(tmp_path_factory.mktemp("hole") / "t.tar", samples=6)
    whole, content = members(path)[0], bytearray(path.read_bytes())
    content[first * BLOCK : (first + blocks) * BLOCK] = bytes([value]) * (blocks * BLOCK)
    path.write_bytes(content)
    found, damage = members(path)
    spans = zip(headers(whole), whole, strict=True)
    hit = [m for (start, end), m in spans if start < (first + blocks) * BLOCK and end > first * BLOCK]
    assert set(found) >= set(whole) - set(hit) and set(found) <= set(whole)
    assert damage == DAMAGED or found == whole


def test_a_lost_piece_of_the_file_loses_what_was_in_it(tmp_path):
    path = by_webdataset(tmp_path / "t.tar", samples=6)
    whole, content = members(path)[0], path.read_bytes()
    cut = headers(whole)[4][0] + BLOCK, headers(whole)[9][0] + 2 * BLOCK  # from one member's headers into another's
    path.write_bytes(content[: cut[0]] + content[cut[1] :])
    found, damage = members(path)
    assert [m.name for m in found] == [m.name for m in whole[:4] + whole[10:]] and damage == DAMAGED
    data = path.read_bytes()
    for ours, theirs in zip(found, whole[:4] + whole[10:], strict=True):
        assert data[ours.offset :][: ours.size] == content[theirs.offset :][: theirs.size]


def test_after_the_end_there_are_zeros(tmp_path):
    path = write_tar(tmp_path / "t.tar", PLAIN)
    whole, content = members(path)[0], path.read_bytes()
    path.write_bytes(content + bytes(100_000))  # tapes have large blocks
    assert members(path) == (whole, None)
    path.write_bytes(content + bytes(3 << 20))  # what a crash leaves of a file that was being written
    assert members(path) == (whole, TRUNCATED)
    path.write_bytes(content + b"something")
    assert members(path) == (whole, DAMAGED)
    path.write_bytes(content + by_webdataset(tmp_path / "u.tar").read_bytes())
    assert [m.name for m in members(path)[0]] == [m.name for m in whole] + [
        f"s{i}.{e}" for i, e in itertools.product(range(4), ("cls", "jpg", "txt"))
    ]
    assert members(path)[1] == DAMAGED


def test_a_damaged_header_far_from_the_next_one(tmp_path):
    path = write_tar(tmp_path / "t.tar", [("a.jpg", b"1"), ("b.jpg", b"ustar" * 600_000), ("c.jpg", b"3")])
    whole, content = members(path)[0], bytearray(path.read_bytes())
    content[1024] ^= 1
    path.write_bytes(content)
    assert members(path) == ([whole[0], whole[2]], DAMAGED)


def test_an_extended_header_of_absurd_size_is_passed_over(tmp_path):
    path = by_webdataset(tmp_path / "t.tar")
    whole, content = members(path)[0], bytearray(path.read_bytes())
    content[124:136] = b"%011o\0" % (3 << 20)
    seal(content, 0)
    path.write_bytes(content)
    assert members(path) == ([], TRUNCATED)
    path.write_bytes(bytes(content[:BLOCK]) + bytes(3 << 20) + path.read_bytes()[2 * BLOCK :])
    assert [m.name for m in members(path)[0]] == [m.name for m in whole[1:]] and members(path)[1] == DAMAGED


def test_names_that_are_not_utf8_keep_their_bytes(tmp_path):
    path = write_tar(tmp_path / "t.tar", [("a\udcff.jpg", b"1"), ("b\udcfe.txt", b"2")], tarfile.GNU_FORMAT)
    assert [m.name for m in members(path)[0]] == ["a\udcff.jpg", "b\udcfe.txt"]


def test_empty_files_and_other_files(tmp_path):
    path = tmp_path / "x.tar"
    path.write_bytes(b"")
    assert members(path) == ([], TRUNCATED)
    path.write_bytes(b"hello")
    assert members(path) == ([], NOT_A_TAR)
    path.write_bytes(bytes(range(256)) * 40)
    assert members(path) == ([], NOT_A_TAR)
    assert members(write_tar(path, [])) == ([], None)
