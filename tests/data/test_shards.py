"""Sources: what webdataset reads, in any process, and what is said about what cannot be used."""

import concurrent.futures
import functools
import multiprocessing
import os
import pickle
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import webdataset
from webdataset.tariterators import group_by_keys, tar_file_expander

from dualenc.data import shard_index, shards
from dualenc.data.items import IMAGE_SUFFIXES, Item, folder_items
from dualenc.data.opened import OPEN_FILES, OpenFile, opened
from dualenc.data.sample import KINDS, Sample
from dualenc.data.shards import open_source, read_at
from tests.small import png, sample, write_shards, write_tar


def by_webdataset(path):
    with open(path, "rb") as stream:
        samples = list(group_by_keys(tar_file_expander([{"url": str(path), "stream": stream}])))
    return [(s["__key__"], {k: v for k, v in s.items() if not k.startswith("__")}) for s in samples]


def test_a_source_gives_what_webdataset_reads(shards):  # the fixture
    source = open_source(shards)
    theirs = [s for path in sorted(shards.glob("*.tar")) for s in by_webdataset(path)]
    assert source.keys == [key for key, _ in theirs] and len(source) == 24
    for i, (_, parts) in enumerate(theirs):
        assert source.sample(i) == Sample(source.keys[i], {"image": parts["png"], "txt": parts["txt"]})
        assert source.sample(i, ("txt", "cls")).parts == {"txt": parts["txt"]}
        assert source.read(i) == parts["png"] == read_at(*source.location(i))
        assert source.read(i, "txt") == parts["txt"] and source.read(i, "json") is None
        assert source.sample(i, ("json",)).parts == {} and source.location(i, "cls") is None
    assert source.problems == {}


def test_a_key_twice_names_both_shards(tmp_path):
    first = write_tar(tmp_path / "1.tar", sample("a") + sample("k"))
    second = write_tar(tmp_path / "2.tar", sample("b") + sample("k"))
    with pytest.raises(ValueError, match="'k'") as error:
        open_source([first, second])
    assert str(first) in str(error.value) and str(second) in str(error.value) and "\n" not in str(error.value)
    source = open_source([first, second], strict=False)
    assert source.keys == ["a", "k", "b"] and source.problems == {"duplicate key": ["k"]}


def test_shards_without_images_say_what_they_hold(tmp_path):
    path = write_tar(tmp_path / "t.tar", [("a.bmp", b"1"), ("b.bmp", b"1"), ("a.txt", b"t"), ("noname", b"")])
    with pytest.raises(ValueError, match=r"but \.bmp \(2\), \.txt \(1\)") as error:
        open_source(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)
    (tmp_path / "z.tar").write_bytes(b"hello")
    with pytest.raises(ValueError, match="but no member at all; not a tar: 1"):
        open_source(tmp_path / "z.tar")


def test_samples_without_an_image_and_damaged_shards_are_listed(tmp_path):
    path = write_tar(tmp_path / "t.tar", [*sample("a"), ("b.txt", b"no image"), *sample("c")])
    path.write_bytes(path.read_bytes()[: open_source(path).location(1)[1] + 10])  # within c's image
    source = open_source(path)
    assert source.keys == ["a"]
    assert source.problems == {"missing image": ["b"], "truncated shard": [str(path.resolve())]}


def test_globs_braces_lists_and_folders(tmp_path):
    write_shards(tmp_path / "d", 12, shards=4)
    keys = open_source(tmp_path / "d").keys
    assert keys == sorted(keys) and len(keys) == 12
    assert open_source(str(tmp_path / "d" / "shard-*.tar")).keys == keys
    assert open_source(str(tmp_path / "d" / "shard-{000..003}.tar")).keys == keys
    assert open_source(str(tmp_path / "d" / "shard-00{0,3}.tar")).keys == keys[:3] + keys[9:]
    listed = [str(tmp_path / "d" / "shard-000.tar"), tmp_path / "d" / "shard-{001..003}.tar"]
    assert open_source(listed).keys == keys
    assert open_source(str(tmp_path / "*")).keys == keys  # a pattern that names the folder


def test_a_folder_whose_name_looks_like_a_pattern(tmp_path):
    write_shards(tmp_path / "[1]", 2, shards=1)
    assert len(open_source(tmp_path / "[1]")) == 2


@pytest.mark.parametrize("name", ["missing", "missing.tar", "shard-{000..001}.tar"])
def test_a_missing_path_is_named(tmp_path, name):
    with pytest.raises(FileNotFoundError, match="no such file or folder") as error:
        open_source(str(tmp_path / name))
    assert str(tmp_path) in str(error.value)


def test_remote_shards_are_copied_here_first(tmp_path, monkeypatch):
    for i in range(3):
        write_tar(tmp_path / f"{i}.tar", sample(f"k{i}"))
    asked = []

    def fetch_all(urls):
        asked.append(urls)
        return [tmp_path / url.rpartition("/")[2] for url in urls]

    remote = types.ModuleType("dualenc.data.stream.remote")
    remote.fetch_all = fetch_all
    monkeypatch.setitem(sys.modules, "dualenc.data.stream.remote", remote)
    source = open_source(["https://example.com/x/{1,0}.tar", str(tmp_path / "2.tar")])
    assert asked == [["https://example.com/x/1.tar", "https://example.com/x/0.tar"]]
    assert source.keys == ["k1", "k0", "k2"] and source.origin.tolist() == [0, 0, 1]
    assert open_source("pipe:cat /2.tar").keys == ["k2"]


def test_samples_know_which_item_of_the_list_they_come_from(tmp_path):
    write_shards(tmp_path / "a", 6, shards=3)
    write_shards(tmp_path / "b", 2, shards=1, prefix="b")
    names = [str(tmp_path / "b"), str(tmp_path / "a" / "shard-00{0,2}.tar"), str(tmp_path / "a" / "shard-001.tar")]
    source = open_source(names)
    assert source.names == names and source.origin.dtype == np.int64
    assert dict(zip(source.keys, source.origin.tolist(), strict=True)) == {
        "b000": 0, "b001": 0, "s000": 1, "s001": 1, "s004": 1, "s005": 1, "s002": 2, "s003": 2
    }  # fmt: skip
    assert open_source(tmp_path / "a").names == [str(tmp_path / "a")]
    (tmp_path / "c" / "a.png").parent.mkdir()
    (tmp_path / "c" / "a.png").write_bytes(png())
    assert open_source([tmp_path / "c"]).names == [str(tmp_path / "c")]
    assert open_source(tmp_path / "c").origin.tolist() == [0]
    with pytest.raises(ValueError, match="no shards") as error:  # nothing of a list is passed over
        open_source([tmp_path / "a", tmp_path / "c"])
    assert str(tmp_path / "c") in str(error.value)
    with pytest.raises(ValueError, match="key 's000' is in"):
        open_source([names[1], *names])
    again = open_source([names[0], *names, tmp_path / "a"], strict=False)
    assert again.keys == source.keys and again.origin.tolist() == [x + (x > 0) for x in source.origin.tolist()]
    assert all(again.sample(i) == source.sample(i) for i in range(8))


def test_a_folder_of_images(tmp_path):
    for name in ("b.png", "deep/a.PNG", "deep/c.v1.jpg", "d.png", "d.jpg", "e.png.png", "e.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(png())
    (tmp_path / "b.txt").write_text("one\ntwo\n")
    (tmp_path / "deep" / "c.v1.txt").write_text("three")
    source = open_source(tmp_path)
    places = [Path(source.location(i)[0]).relative_to(tmp_path.resolve()).as_posix() for i in range(len(source))]
    files = dict(zip(source.keys, places, strict=True))
    assert files == {
        "b": "b.png",
        "d.jpg": "d.jpg",  # two images of one name keep their suffix
        "d.png": "d.png",
        "deep/a": "deep/a.PNG",
        "deep/c.v1": "deep/c.v1.jpg",
        "e": "e.png",
        "e.png.png": "e.png.png",  # its name without suffix is another image's name
    }
    assert source.sample(source.keys.index("b")) == Sample("b", {"image": png(), "txt": b"one\ntwo\n"})
    assert source.read(source.keys.index("deep/c.v1"), "txt") == b"three"
    assert source.read(source.keys.index("deep/a"), "txt") is None
    assert source.read(0) == png() and read_at(*source.location(0)) == png()
    source.prefetch(0, len(source))
    (tmp_path / "b.png").unlink()
    i = source.keys.index("b")
    assert source.location(i) is None and source.sample(i, ("txt",)).captions() == ["one", "two"]
    with pytest.raises(FileNotFoundError, match=r"b\.png"):
        source.sample(i)


def test_a_folder_gives_the_images_that_pack_takes(tmp_path):
    for name in (
        *(f"a{suffix}" for suffix in IMAGE_SUFFIXES),
        "b.JP2",
        "._c.png",
        ".cache/d.png",
        "in/.e/f.png",
        "g.svg",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_bytes(png())
        (tmp_path / name).with_suffix(".txt").write_text("a caption")
    packed = [item.image for item in folder_items(tmp_path) if isinstance(item, Item)]
    source = open_source(tmp_path)
    places = [Path(source.location(i)[0]).relative_to(tmp_path.resolve()).as_posix() for i in range(len(source))]
    assert sorted(places) == sorted(packed) and len(places) == len(IMAGE_SUFFIXES) + 1


def test_a_digest_is_of_names_and_sizes_wherever_they_lie(tmp_path):
    for place in ("one", "two"):
        write_shards(tmp_path / place, 4)
        (tmp_path / place / "images" / "deep").mkdir(parents=True)
        (tmp_path / place / "images" / "a.png").write_bytes(png())
        (tmp_path / place / "images" / "deep" / "b.png").write_bytes(png())
        (tmp_path / place / "images" / "a.txt").write_text("a caption")
    for name, change in (("", "shard-001.tar"), ("images", "deep/b.png"), ("images", "a.txt")):
        first, second = (open_source(tmp_path / place / name) for place in ("one", "two"))
        assert first.digest() == second.digest()
        file = tmp_path / "two" / name / change
        data = file.read_bytes()
        file.write_bytes(data + b" " * 512)
        assert first.digest() != open_source(tmp_path / "two" / name).digest()
        file.write_bytes(data)
        if change != "a.txt":
            moved = file.rename(file.with_stem("z"))
            assert first.digest() != open_source(tmp_path / "two" / name).digest()
            moved.rename(file)


@pytest.fixture
def two(tmp_path):
    """Two shards of 3 samples with all kinds, big enough that neighbours are read at once and others are not."""
    for shard in range(2):
        members = []
        for i in range(3):
            key = f"s{shard}{i}"
            members += [(f"{key}.cls", b"1"), (f"{key}.jpg", key.encode() * 300), (f"{key}.json", b'{"a": 1}')]
            members += [(f"{key}.seg.png", bytes(2_000_000)), (f"{key}.txt", f"picture {key}".encode())]
        write_tar(tmp_path / "two" / f"{shard}.tar", members)
    return tmp_path / "two"


def read_all(source):
    return [source.sample(i) for i in range(len(source))]


def test_members_far_apart_are_read_too(two):
    for i, found in enumerate(read_all(open_source(two))):
        key = f"s{i // 3}{i % 3}"
        parts = {"image": key.encode() * 300, "txt": f"picture {key}".encode(), "json": b'{"a": 1}', "cls": b"1"}
        assert found == Sample(key, parts) and list(found.parts) == list(KINDS)


def test_a_source_crosses_to_forked_and_to_spawned_processes(two):
    source = open_source(two)
    wanted = read_all(source)
    assert read_all(pickle.loads(pickle.dumps(source))) == wanted
    for method in ("fork", "spawn"):
        with multiprocessing.get_context(method).Pool(2) as pool:
            assert pool.map(source.sample, range(6), chunksize=1) == wanted
    assert read_all(source) == wanted


def test_threads_may_read_at_once(two, monkeypatch):
    source = open_source(two)
    wanted = read_all(source) * 50
    monkeypatch.setattr(shards, "opened", functools.lru_cache(1)(opened.__wrapped__))  # files close all the time
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert list(pool.map(source.sample, [*range(6)] * 50)) == wanted


def test_a_hundred_shards_keep_few_files_open(tmp_path):
    for i in range(100):
        write_tar(tmp_path / f"{i:03d}.tar", sample(f"k{i:03d}"))
    source = open_source(tmp_path)
    counts = []
    for _ in range(3):
        assert {found.key for found in read_all(source)} == set(source.keys)
        counts.append(len(os.listdir("/proc/self/fd")))
    assert len(set(counts)) == 1
    here = [os.path.realpath(f"/proc/self/fd/{n}") for n in os.listdir("/proc/self/fd")]
    assert sum(place.startswith(str(tmp_path)) for place in here) <= OPEN_FILES


def test_shards_that_changed_since_they_were_listed_are_errors(two):
    source = open_source(two)
    opened.cache_clear()
    content = (two / "0.tar").read_bytes()
    (two / "0.tar").write_bytes(content[: source.location(1)[1] + 5])
    with pytest.raises(OSError, match="was changed since it was listed"):
        source.sample(0)
    (two / "0.tar").unlink()
    with pytest.raises(FileNotFoundError, match=r"0\.tar"):
        source.sample(0)
    source.prefetch(0, 6)  # a hint that cannot be given is no error
    assert source.sample(3).key == "s10"  # the other one is still there
    with open(two / "1.tar", "r+b") as file:  # cut while it is open
        file.truncate(source.location(4)[1] + 5)
    assert source.sample(3).key == "s10"
    with pytest.raises(OSError, match=r"1\.tar was cut since it was listed"):
        source.sample(4)


def test_prefetch_asks_for_what_samples_cover(two, monkeypatch):
    source = open_source(two)
    asked = []
    monkeypatch.setattr(OpenFile, "will_need", lambda self, start, end: asked.append((self.path, start, end)))
    source.prefetch(1, 5)
    ends = [source.location(i, "txt") for i in (2, 4)]
    starts = [source.location(i, "cls") for i in (1, 3)]
    assert asked == [(a[0], a[1], b[1] + b[2]) for a, b in zip(starts, ends, strict=True)]
    monkeypatch.undo()
    source.prefetch(0, 6)
    source.prefetch(3, 3)


def test_a_source_costs_its_tables_alone(two):
    source = open_source(two)
    held = [value for value in vars(source).values() if isinstance(value, np.ndarray)]
    assert sum(value.nbytes for value in held) / len(source) <= 80
    assert not any(isinstance(value, list) and len(value) >= len(source) for value in vars(source).values())


def test_headers_are_read_once(two, monkeypatch):
    wanted = read_all(open_source(two))
    monkeypatch.setattr(shard_index, "members", None)
    assert read_all(open_source(two)) == wanted


@pytest.mark.parametrize("where", ["header", "pax header", "zeros"])
def test_damage_in_the_middle_costs_one_sample(tmp_path, where):
    path = tmp_path / "t.tar"
    if where == "pax header":
        with webdataset.TarWriter(str(path)) as writer:
            for i in range(5):
                writer.write({"__key__": f"k{i}", "png": png(), "txt": b"a"})
    else:
        write_tar(path, [m for i in range(5) for m in sample(f"k{i}")])
    at = open_source(path).location(2)[1] - (1536 if where == "pax header" else 512)
    content = bytearray(path.read_bytes())
    content[at : at + 512] = bytes(512) if where == "zeros" else bytes([content[at] ^ 4]) + content[at + 1 : at + 512]
    path.write_bytes(content)
    source = open_source(path)
    assert source.keys == ["k0", "k1", "k3", "k4"] and all(found.captions() for found in read_all(source))
    assert source.problems == {"damaged shard": [str(path)], "missing image": ["k2"]}


def test_what_is_imported_here_is_declared():
    project = (Path(__file__).resolve().parents[2] / "pyproject.toml").read_text()
    assert '"braceexpand' in project.partition("dependencies = [")[2].partition("\n]")[0]


def test_a_folder_without_images_says_what_it_holds(tmp_path):
    (tmp_path / "notes.md").write_text("x")
    with pytest.raises(ValueError, match=r"neither shards .* nor images .* but \.md \(1\)"):
        open_source(tmp_path)
    with pytest.raises(ValueError, match=r"no shards"):
        open_source([tmp_path, tmp_path])
