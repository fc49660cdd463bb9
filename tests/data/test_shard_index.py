"""The table of a shard's samples: what it says, when it is believed, and where it is kept."""

import contextlib
import dataclasses
import errno
import hashlib
import itertools
import json
import os
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from webdataset.tariterators import group_by_keys, tar_file_expander

from dualenc.data import shard_index as module
from dualenc.data.keys import Keys
from dualenc.data.shard_index import BARREN, cached_index, group, make_index, read_indexes
from dualenc.data.shards import read_at
from dualenc.data.tar import DAMAGED, TRUNCATED
from dualenc.data.tar import members as listed
from tests.small import png, sample, write_tar

NAMES = ["a", "a.b", "x/a", "x/a.b", "x.y/a", "b", "x/b", "__c__"]
EXTENSIONS = ["jpg", "JPG", "png", "txt", "json", "cls", "seg.png", "txt.gz"]
FILES = st.tuples(st.sampled_from(NAMES), st.sampled_from([*EXTENSIONS, ""]), st.binary(max_size=3))


def by_webdataset(path):
    with open(path, "rb") as stream:
        samples = list(group_by_keys(tar_file_expander([{"url": str(path), "stream": stream}])))
    return [(s["__key__"], {k: v for k, v in s.items() if not k.startswith("__")}) for s in samples]


@given(st.lists(FILES, max_size=8))
def test_samples_are_grouped_as_webdataset_groups_them(tmp_path_factory, files):
    members = [(f"{name}.{extension}".rstrip("."), data) for name, extension, data in files]
    path = write_tar(tmp_path_factory.mktemp("group") / "t.tar", members)
    found = group((name, place) for name, *place in listed(path)[0])
    ours = [(key, {e: read_at(str(path), *place) for e, place in parts.items()}) for key, parts in found]
    neighbours = [key for key, _ in ours]
    if any(a == b for a, b in itertools.pairwise(neighbours)):  # a file twice in a sample
        with pytest.raises(ValueError, match="duplicate file name"):
            by_webdataset(path)
    else:
        assert ours == by_webdataset(path)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "dualenc" / "index"


@pytest.fixture
def tar(tmp_path):
    """Three samples with images, one without, one name that is not UTF-8, and a cut."""
    members = [
        *sample("a", cls=3),
        ("b.txt", b"alone"),
        *sample("k\udcff", json={"x": 1}),
        ("c.JPG", b"12"),
        ("d.jpg", b"3"),
    ]
    path = write_tar(tmp_path / "data" / "t.tar", members)
    os.truncate(path, listed(path)[0][-1].offset)
    return str(path)


def beside(path):
    return Path(path).with_name(f".{Path(path).name}.dualenc-index")


def same(one, other):
    ours, theirs = dataclasses.asdict(one), dataclasses.asdict(other)
    assert np.array_equal(ours.pop("places"), theirs.pop("places"))
    assert list(ours.pop("keys")) == list(theirs.pop("keys")) and ours == theirs
    return True


def test_what_an_index_says(tar):
    index = make_index(tar)
    assert index.keys == ["a", "k\udcff", "c"] and index.imageless == ["b"] and index.damage == TRUNCATED
    assert index.extensions == {"png": 2, "txt": 3, "cls": 1, "json": 1, "jpg": 1}
    names = {name: (offset, size) for name, offset, size in listed(tar)[0]}
    none = (-1, -1)
    assert [tuple(zip(row[::2], row[1::2], strict=True)) for row in index.places.tolist()] == [
        (names["a.png"], names["a.txt"], none, names["a.cls"]),
        (names["k\udcff.png"], names["k\udcff.txt"], names["k\udcff.json"], none),
        (names["c.JPG"], none, none, none),
    ]


def test_an_index_is_kept_beside_its_shard_and_read_back_without_headers(tar, cache, monkeypatch):
    assert cached_index(tar) is None
    made = make_index(tar)
    assert beside(tar).is_file() and not cache.exists() and os.listdir(Path(tar).parent).count("t.tar") == 1
    assert len(os.listdir(Path(tar).parent)) == 2
    monkeypatch.setattr(module, "members", None)
    assert same(cached_index(tar), made) and same(read_indexes([tar], strict=True)[0], made)


def test_data_that_moves_with_its_index_keeps_it(tar, tmp_path):
    made = make_index(tar)
    moved = tmp_path / "moved"
    Path(tar).parent.rename(moved)
    assert same(cached_index(str(moved / "t.tar")), made)


@pytest.mark.parametrize("change", ["size", "time", "both"])
def test_an_index_of_another_state_of_the_shard_is_made_anew(tar, change):
    make_index(tar)
    stat = os.stat(tar)
    write_tar(Path(tar), sample("new"))
    if change == "time":
        os.truncate(tar, stat.st_size)
    elif change == "size":
        os.utime(tar, ns=(stat.st_mtime_ns, stat.st_mtime_ns))
    assert cached_index(tar) is None
    assert read_indexes([tar], strict=True)[0].keys == ["new"]
    assert cached_index(tar).keys == ["new"]


@given(data=st.data())
def test_a_damaged_index_is_never_believed(tmp_path_factory, data):
    path = str(write_tar(tmp_path_factory.mktemp("bits") / "t.tar", sample("a") + sample("b")))
    make_index(path)
    content = bytearray(beside(path).read_bytes())
    if data.draw(st.booleans()):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at] ^= data.draw(st.integers(1, 255))
    else:
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    beside(path).write_bytes(content)
    assert cached_index(path) is None
    again = read_indexes([path], strict=True)[0]
    assert again.keys == ["a", "b"] and same(cached_index(path), again)


@pytest.mark.parametrize(
    "content", [b"", b"\0" * 5000, b"dualenc shard index 1\n", b"dualenc shard index 0\n" + b"x" * 500]
)
def test_another_file_in_the_place_of_an_index_is_passed_over(tar, content):
    beside(tar).write_bytes(content)
    assert cached_index(tar) is None and same(make_index(tar), cached_index(tar))


def forged(tar, change):
    """An index with a right checksum and wrong contents."""
    index = make_index(tar)
    head = len(module._FORMAT) + module._DIGEST
    body = change(module._encoded(index)[head:], index)
    digest = hashlib.blake2b(body, digest_size=module._DIGEST).digest()
    beside(tar).write_bytes(module._FORMAT + digest + body)
    return cached_index(tar)


def with_place(row, column, value):
    def change(body, index):
        index.places[row, column] = value(index)
        return module._encoded(index)[-len(body) :]

    return change


def with_facts(**more):
    def change(body, index):
        line, _, rest = body.partition(b"\n")
        return json.dumps(json.loads(line) | more).encode() + b"\n" + rest

    return change


def with_ends(ends):
    return lambda body, index: module._encoded(dataclasses.replace(index, keys=Keys(index.keys.data, np.array(ends))))[
        len(module._FORMAT) + module._DIGEST :
    ]


@pytest.mark.parametrize(
    "change",
    [
        with_place(0, 0, lambda index: index.size),
        with_place(0, 1, lambda index: index.size),
        with_place(1, 0, lambda index: -2),
        with_place(1, 1, lambda index: -1),
        with_place(2, 0, lambda index: 2**63 - 1),
        with_place(0, 1, lambda index: 2**63 - 1),
        with_place(0, 3, lambda index: -(2**63)),
        with_place(0, 4, lambda index: 5),  # a place without a size
        with_place(2, slice(0, 2), lambda index: -1),  # a sample without an image
        with_facts(samples=2),
        with_facts(samples=4),
        with_facts(samples=-1),
        with_facts(samples="3"),
        with_facts(samples=2**70),
        with_facts(size=5),
        with_facts(damage="a\nb"),
        with_facts(extensions=[1]),
        with_facts(imageless=7),
        lambda body, index: body + b"x",
        lambda body, index: body.partition(b"\n")[2],
        lambda body, index: b"[" * 100_000 + b"\n" + body,
        with_ends([1, 0, 4]),
        with_ends([1, 2, 99]),
        with_ends([-1, 2, 4]),
    ],
)
def test_what_points_outside_the_shard_is_refused(tar, change):
    assert forged(tar, change) is None
    assert make_index(tar).keys == ["a", "k\udcff", "c"]


def test_a_forged_index_would_be_read_if_it_were_sound(tar):
    """The test above sees the checks, not its own mistakes."""
    assert same(forged(tar, lambda body, index: body), make_index(tar))
    assert forged(tar, with_place(0, 1, lambda index: 1)).places[0, 1] == 1
    assert forged(tar, with_facts(damage=DAMAGED)).damage == DAMAGED


def test_a_folder_that_takes_no_files_leaves_the_index_in_the_cache(tar, cache, monkeypatch):
    for number in (errno.EROFS, errno.EACCES, errno.ENOSPC):
        with monkeypatch.context() as patch:
            full(patch, [Path(tar).parent], number)
            made = make_index(tar)
        assert not beside(tar).exists() and len(os.listdir(cache)) == 1
        assert os.listdir(Path(tar).parent) == ["t.tar"]
        assert same(cached_index(tar), made)
        next(cache.iterdir()).unlink()


def test_a_stale_index_beside_does_not_hide_the_one_in_the_cache(tar, monkeypatch):
    make_index(tar)
    os.utime(tar, ns=(1, 1))
    full(monkeypatch, [Path(tar).parent], errno.EROFS)
    made = make_index(tar)
    assert made.mtime_ns == 1 and same(cached_index(tar), made)


def test_without_any_place_for_it_headers_are_read_each_time(tar, cache, monkeypatch):
    full(monkeypatch, [Path(tar).parent, cache], errno.ENOSPC)
    assert make_index(tar).keys == ["a", "k\udcff", "c"] and cached_index(tar) is None
    assert read_indexes([tar], strict=True)[0].keys == ["a", "k\udcff", "c"]
    assert not list(Path(tar).parent.glob("*.tmp")) and not beside(tar).exists()


def test_no_home_is_no_error(tar, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", "not/absolute")
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # what it does where there is no home
    full(monkeypatch, [Path(tar).parent], errno.EROFS)
    assert make_index(tar).keys == ["a", "k\udcff", "c"]
    assert os.listdir(tmp_path) == ["data"]


def full(monkeypatch, folders, number):
    """Writing an index into these folders fails (tests run as root, whom no permission stops)."""
    real = module.whole_file

    @contextlib.contextmanager
    def whole_file(path):
        with real(path) as partial:
            yield partial
            if path.parent in folders:
                raise OSError(number, os.strerror(number))

    monkeypatch.setattr(module, "whole_file", whole_file)


def test_a_shard_that_changes_while_it_is_read_leaves_no_index(tar, monkeypatch):
    real = module.members

    def members(path):
        found = real(path)
        os.utime(path, ns=(5, 5))
        return found

    monkeypatch.setattr(module, "members", members)
    make_index(tar)
    assert not beside(tar).exists()


def test_progress_is_shown_only_where_headers_are_read(tmp_path, monkeypatch):
    seen = []
    real = module.tqdm
    monkeypatch.setattr(
        module, "tqdm", lambda items, **more: seen.append((len(items), more)) or real(items, disable=True)
    )
    paths = [str(write_tar(tmp_path / f"{i}.tar", sample(f"k{i}"))) for i in range(3)]
    read_indexes(paths[:1], strict=True)
    read_indexes(paths, strict=True)
    read_indexes(paths, strict=True)
    assert [(n, more["disable"]) for n, more in seen] == [(1, None), (2, None), (0, True)]
    assert seen[0][1]["desc"] == "indexing shards"


def test_many_shards_without_images_are_not_all_looked_at(tmp_path, monkeypatch):
    write_tar(tmp_path / "000.tar", [])  # says nothing
    for i in range(1, 30):
        write_tar(tmp_path / f"{i:03d}.tar", [(f"{i}.bmp", b""), (f"{i}.txt", b"")])
    looked = []
    real = module.members
    monkeypatch.setattr(module, "members", lambda path: looked.append(path) or real(path))
    paths = [str(path) for path in sorted(tmp_path.glob("*.tar"))]
    wanted = rf"no sample with an image .* in {BARREN + 1} of its 30 shards, but \.bmp \({BARREN}\), \.txt \({BARREN}\)"
    with pytest.raises(ValueError, match=wanted):
        read_indexes(paths, strict=True)
    assert len(looked) == BARREN + 1
    assert len(read_indexes(paths, strict=False)) == 30
    write_tar(tmp_path / "999.tar", [("a.png", png())])
    assert (
        len(read_indexes([*paths[1 : BARREN - 1], str(tmp_path / "999.tar"), *paths], strict=True)) == 30 + BARREN - 1
    )


def test_two_writers_at_once_leave_a_whole_index(tar):
    made = make_index(tar)
    threads = [threading.Thread(target=make_index, args=(tar,)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert same(cached_index(tar), made) and len(os.listdir(Path(tar).parent)) == 2
