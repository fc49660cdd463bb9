"""Members over a connection that breaks; copies in a cache that several processes share and that has a limit."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dualenc.data.shards import open_source
from dualenc.data.stream import cache as shard_cache
from dualenc.data.stream import held, transport
from dualenc.data.stream.cache import Cache, Copy, NoRoom, size_in_bytes
from dualenc.data.stream.remote import expand, fetch_all, is_remote, members
from dualenc.data.stream.transport import BROKEN, MISSING, Reader, ShardError
from tests.data.stream.server import in_use, serving
from tests.small import write_shards, write_tar

MEMBERS = [(f"{i:03d}.{kind}", bytes([i]) * (700 * i + 1)) for i in range(8) for kind in ("jpg", "txt")]
BIG = 10**9
FORK = multiprocessing.get_context("fork")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(transport, "DELAY", 0.001)


@pytest.fixture
def server(tmp_path):
    with serving(tmp_path / "served") as running:
        for name in "abcd":
            write_tar(running.folder / f"{name}.tar", MEMBERS)
        yield running


def read(url: str, retries: int = 2, cache: Cache | None = None) -> tuple[list[tuple[str, bytes]], str | None]:
    """What could be read, and the reason why there is no more."""
    found = []
    try:
        for member in members(url, retries, cache):
            found.append(member)  # noqa: PERF402  (it raises in the middle)
    except ShardError as error:
        return found, error.reason
    return found, None


@settings(max_examples=10)
@given(st.lists(st.integers(0, 70_000), max_size=3), st.booleans(), st.booleans())
def test_members_come_once_wherever_the_stream_breaks(tmp_path_factory, breaks, ranges, cached):
    folder = tmp_path_factory.mktemp("s")
    write_tar(folder / "a.tar", MEMBERS)
    with serving(folder, ranges) as server:
        server.faults["a.tar"] += breaks
        cache = Cache(folder / "cache", BIG) if cached else None
        assert read(server.url("a.tar"), 3, cache) == (MEMBERS, None)
        if cache is not None:
            asked = server.asked("a.tar")
            assert read(server.url("a.tar"), 3, cache) == (MEMBERS, None) and server.asked("a.tar") == asked
            assert cache.path(server.url("a.tar")).read_bytes() == (folder / "a.tar").read_bytes()


def test_every_way_in_gives_the_same(server):
    path = server.folder / "a.tar"
    for url in (server.url("a.tar"), str(path), f"file:{path}", path.as_uri(), f"pipe:cat {path}"):
        assert read(url) == (MEMBERS, None)


def test_what_came_before_a_break_is_kept_and_the_reason_said(server):
    server.faults["a.tar"] += [30_000, 0, 0]
    found, reason = read(server.url("a.tar"))
    assert reason == BROKEN and found == MEMBERS[: len(found)] and len(found) > 3
    assert read(server.url("none.tar")) == ([], MISSING) == read(str(server.folder / "none.tar"))


@pytest.mark.parametrize("fault, reason", [(("length", 20_000), "truncated shard"), ("cut", "truncated shard")])
def test_a_tar_that_ends_early_where_the_server_calls_it_whole(server, tmp_path, fault, reason):
    server.faults["a.tar"] += [("length", 20_000) if fault[0] == "length" else fault]
    cache = Cache(tmp_path / "cache", BIG)
    found, why = read(server.url("a.tar"), cache=cache)
    assert why == reason and found == MEMBERS[: len(found)] and len(found) > 3
    assert cache.open(server.url("a.tar")) is None  # what came short is asked for again
    assert read(server.url("a.tar"), cache=cache) == (MEMBERS, None)


def test_behind_a_damaged_header_the_rest_is_read(server):
    data = bytearray((server.folder / "a.tar").read_bytes())
    data[data.find(b"003.jpg") + 100] ^= 1
    (server.folder / "a.tar").write_bytes(data)
    found, reason = read(server.url("a.tar"))
    assert reason == "damaged shard" and [name for name, _ in found] == [n for n, _ in MEMBERS if n != "003.jpg"]
    (server.folder / "b.tar").write_bytes(b"<html>not here</html>" * 100)
    assert read(server.url("b.tar")) == ([], "not a tar")


def test_a_break_behind_the_end_loses_nothing_but_the_copy(server, tmp_path):
    size = (server.folder / "a.tar").stat().st_size
    server.faults["a.tar"] += [size - 600]
    cache = Cache(tmp_path / "cache", BIG)
    assert read(server.url("a.tar"), cache=cache) == (MEMBERS, None) and server.asked("a.tar") == 1
    assert cache.open(server.url("a.tar")) is None


def test_giving_up_in_the_middle_leaves_nothing(server, tmp_path):
    cache = Cache(tmp_path / "cache", BIG)
    before = in_use()
    stream = members(server.url("a.tar"), cache=cache)
    next(stream)
    stream.close()
    assert os.listdir(cache.folder) == [] and in_use() == before


@pytest.mark.parametrize("shards", [30, pytest.param(1000, marks=pytest.mark.full)])
def test_files_and_processes_do_not_grow_with_the_shards(server, tmp_path, shards):
    cache = Cache(tmp_path / "cache", 100_000)

    read(server.url("a.tar"), cache=cache)
    before = in_use()
    for i in range(shards):
        server.faults["b.tar"] += [[0, 20_000, "404"][i % 3]]
        read(server.url("b.tar") + f"?{i}", 0, cache if i % 2 else None)
    assert in_use() == before


# The cache


def test_a_copy_is_the_shard_and_is_asked_for_once(server, tmp_path):
    cache = Cache(tmp_path / "cache", BIG)
    path = cache.fetch(server.url("a.tar"))
    assert path.name == "a.tar" and path.read_bytes() == (server.folder / "a.tar").read_bytes()
    modified = path.stat().st_mtime_ns
    assert cache.fetch(server.url("a.tar")) == path and server.asked("a.tar") == 1
    assert path.stat().st_mtime_ns == modified  # an index of the tar knows it by this
    assert cache.path(server.url("x/a.tar")) != path


def test_a_copy_that_is_read_counts_as_used(server, tmp_path):
    cache = Cache(tmp_path / "cache", BIG)
    path = cache.fetch(server.url("a.tar"))
    used = path.stat().st_atime_ns  # a usual disk leaves this alone when a file is only read, and read again
    for _ in range(3):
        time.sleep(0.02)
        cache.open(server.url("a.tar")).close()
        assert path.stat().st_atime_ns > used
        used = path.stat().st_atime_ns


def test_names_stay_readable(tmp_path):
    cache = Cache(tmp_path, BIG)
    for url, name in (
        ("https://h/x/a-00{1}.tar?signature=ab/cd.tar", "a-00_1_.tar"),
        ("pipe:aws s3 cp s3://b/c/000.tar -", "000.tar"),
        ("pipe:cat '/a b/c.tar'", "c.tar"),
        ("https://h/", "h"),
    ):
        assert cache.path(url).name == name and cache.path(url).parent.parent == tmp_path


def test_those_used_longest_ago_go_first(server, tmp_path):
    size = (server.folder / "a.tar").stat().st_size
    cache = Cache(tmp_path / "cache", 3 * size)
    urls = [server.url(f"{name}.tar") for name in "abcd"]
    for url in [*urls[:3], urls[0], urls[3]]:
        assert read(url, cache=cache)[1] is None
        assert sum(file.stat().st_size for file in cache.folder.rglob("*") if file.is_file()) <= 3 * size
    assert [cache.open(url) is not None for url in urls] == [True, False, True, True]


def test_what_is_not_ours_in_the_folder_stays(server, tmp_path):
    mine = tmp_path / "cache" / "important" / "data.tar"
    mine.parent.mkdir(parents=True)
    mine.write_bytes(bytes(10**6))
    cache = Cache(tmp_path / "cache", 100_000)
    for name in "abcd":
        read(server.url(f"{name}.tar"), cache=cache)
    assert mine.stat().st_size == 10**6


def test_an_open_copy_that_goes_is_read_to_its_end(server, tmp_path):
    size = (server.folder / "a.tar").stat().st_size
    cache = Cache(tmp_path / "cache", size)
    read(server.url("a.tar"), cache=cache)
    stream = members(server.url("a.tar"), cache=cache)
    found = [next(stream)]
    read(server.url("b.tar"), cache=cache)
    assert cache.open(server.url("a.tar")) is None and found + list(stream) == MEMBERS


def test_a_shard_above_the_limit_is_streamed(server, tmp_path, caplog):
    cache = Cache(tmp_path / "cache", 20_000)
    assert read(server.url("a.tar"), cache=cache) == (MEMBERS, None)
    assert os.listdir(cache.folder) == [] and "larger than the cache may be" in caplog.text


def test_a_full_disk_ends_the_copy_and_not_the_reading(server, tmp_path, caplog, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shard_cache.os, "replace", full)
    cache = Cache(tmp_path / "cache", BIG)
    assert read(server.url("a.tar"), cache=cache) == (MEMBERS, None)
    assert "No space left" in caplog.text and not list(cache.folder.glob(".shard-*"))


def fetching(cache: Cache, urls: list[str], wanted: bytes, results) -> None:
    results.put(all(cache.fetch(url).read_bytes() == wanted for url in urls))


def test_several_processes_fetch_the_same_at_once(server, tmp_path):
    wanted, results = (server.folder / "a.tar").read_bytes(), FORK.Queue()
    urls = [server.url(f"{name}.tar") for name in "abcd"]
    cache = Cache(tmp_path / "cache", BIG)
    processes = [FORK.Process(target=fetching, args=(cache, urls, wanted, results)) for _ in range(4)]
    for process in processes:
        process.start()
    assert [results.get(timeout=30) for _ in processes] == [True] * 4
    for process in processes:
        process.join()
    assert [server.asked(f"{name}.tar") for name in "abcd"] == [1] * 4  # the others waited for it


def streaming(cache: Cache, urls: list[str], turns: int, results) -> None:
    results.put(all(read(url, cache=cache) == (MEMBERS, None) for _ in range(turns) for url in urls))


def test_several_processes_stream_through_one_small_cache(server, tmp_path):
    results = FORK.Queue()
    urls = [server.url(f"{name}.tar") for name in "abcd"]
    cache = Cache(tmp_path / "cache", 3 * (server.folder / "a.tar").stat().st_size)
    processes = [FORK.Process(target=streaming, args=(cache, urls[i:] + urls[:i], 3, results)) for i in range(3)]
    for process in processes:
        process.start()
    assert [results.get(timeout=30) for _ in processes] == [True] * 3
    for process in processes:
        process.join()


def holding(cache: Cache, url: str, ready, done) -> None:
    cache.fetch(url)
    ready.set()
    done.wait(30)


def test_what_a_living_process_fetched_stays(server, tmp_path, caplog):
    cache = Cache(tmp_path / "cache", int(1.5 * (server.folder / "a.tar").stat().st_size))
    urls, ready, done = [server.url(f"{name}.tar") for name in "abc"], FORK.Event(), FORK.Event()
    read(urls[2], cache=cache)  # streamed: nobody holds it
    process = FORK.Process(target=holding, args=(cache, urls[0], ready, done))
    process.start()
    assert ready.wait(30) and not cache.path(urls[2]).exists()
    open(cache.path(urls[0]).with_name(".a.tar.dualenc-index"), "w").close()
    with pytest.raises(NoRoom, match="the cache is full"):
        cache.fetch(urls[1])
    assert read(urls[1], cache=cache) == (MEMBERS, None) and "the cache is full" in caplog.text
    assert sorted(path.name for path in cache.path(urls[0]).parent.iterdir()) == [".a.tar.dualenc-index", "a.tar"]
    done.set()
    process.join()
    path = cache.fetch(urls[1])
    assert not cache.path(urls[0]).parent.exists()
    with pytest.raises(NoRoom):
        Cache(cache.folder, cache.limit).fetch(urls[0])  # this process lives
    assert path.read_bytes() == (server.folder / "b.tar").read_bytes()


def test_a_copy_that_goes_before_it_is_held_is_fetched_again(server, tmp_path, monkeypatch):
    def late(file, path):
        if server.asked("a.tar") == 1:
            held.removed(path.parent)
        return held.hold(file, path)

    monkeypatch.setattr(shard_cache, "hold", late)
    cache = Cache(tmp_path / "cache", BIG)
    assert cache.fetch(server.url("a.tar")).exists() and server.asked("a.tar") == 2
    monkeypatch.setattr(shard_cache, "hold", lambda file, path: file.close())
    with pytest.raises(NoRoom, match="other processes need the room"):
        cache.fetch(server.url("b.tar"))


def test_a_shard_without_an_end_is_fetched_as_it_is(server, tmp_path):
    whole = (server.folder / "a.tar").read_bytes()
    (server.folder / "a.tar").write_bytes(whole[:20_000])
    path = Cache(tmp_path / "cache", BIG).fetch(server.url("a.tar"))
    assert path.read_bytes() == whole[:20_000] and server.asked("a.tar") == 1


def test_files_are_held_once_and_no_more_than_half_of_what_may_be_open(tmp_path, monkeypatch, caplog):
    limits = [4, 8]
    monkeypatch.setattr(held, "_held", {})
    monkeypatch.setattr(held.resource, "getrlimit", lambda _: tuple(limits))
    monkeypatch.setattr(held.resource, "setrlimit", lambda _, new: limits.__setitem__(slice(None), new))
    held._warn.cache_clear()
    before, _ = in_use()
    for i in [0, 0, *range(6), *range(6)]:
        path = tmp_path / f"{i}" / "x.tar"
        path.parent.mkdir(exist_ok=True)
        path.touch()
        known = held._held.get(path)
        assert held.hold(path.open("rb"), path) and known in (None, held._held.get(path))
    assert limits == [8, 8] and len(held._held) == 4 == in_use()[0] - before
    assert len(caplog.records) == 1 and "more than 4 files of the cache are in use" in caplog.text
    assert [held.removed(tmp_path / f"{i}") for i in range(6)] == [False] * 4 + [True] * 2
    path = tmp_path / "0" / "x.tar"
    path.unlink()
    path.touch()
    limits[:] = 16, 16
    assert held.hold(path.open("rb"), path) and not held.removed(tmp_path / "0")  # the one that is there now
    for file in held._held.values():
        file.close()
    assert held.removed(tmp_path / "0")


def test_what_a_killed_process_left_is_removed_and_what_a_living_one_writes_is_not(server, tmp_path, monkeypatch):
    cache = Cache(tmp_path / "cache", BIG)
    server.faults["b.tar"] += ["stall"]
    process = FORK.Process(target=cache.fetch, args=(server.url("b.tar"),))
    process.start()
    deadline = time.monotonic() + 20
    while not list(tmp_path.glob("cache/.shard-*.tmp")) or not server.asked("b.tar"):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    (left,) = tmp_path.glob("cache/.shard-*.tmp")
    monkeypatch.setattr(shard_cache, "YOUNG", -1.0)
    cache.make_room()
    assert left.exists()
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    cache.make_room()
    assert not left.exists()
    assert cache.fetch(server.url("b.tar")).read_bytes() == (server.folder / "b.tar").read_bytes()


def test_a_young_file_without_a_lock_may_be_anothers_at_its_beginning(tmp_path):
    (tmp_path / ".shard-x.tmp").write_bytes(b"")
    Cache(tmp_path, BIG).make_room()
    assert (tmp_path / ".shard-x.tmp").exists()


def test_a_copy_that_did_not_come_whole_is_no_copy(server, tmp_path):
    cache = Cache(tmp_path / "cache", BIG)
    server.faults["a.tar"] += [20_000, 0, 0]
    with pytest.raises(ShardError, match="broken stream"):
        cache.fetch(server.url("a.tar"), retries=1)
    assert not [file for file in cache.folder.rglob("*") if file.is_file() and file.suffix != ".lock"]
    reader = Reader(server.url("b.tar"))
    copy = Copy(cache, server.url("b.tar"), reader)
    copy.read(3000)
    copy.close()
    assert cache.open(server.url("b.tar")) is None


# Whole data sets


def test_validation_reads_remote_shards_at_random(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    write_shards(tmp_path / "s", 12, shards=3)
    local = open_source(tmp_path / "s")
    with serving(tmp_path / "s") as server:
        source = open_source(server.url("shard-{000..002}.tar"))
        assert list(source.keys) == list(local.keys) and source.digest() == local.digest()
        assert source.sample(7) == local.sample(7)
        open_source(server.url("shard-{000..002}.tar"))
        assert len(server.requests) == 3
    assert [path.name for path in fetch_all([f"file:{tmp_path}/s/shard-000.tar", str(tmp_path)])] == [
        "shard-000.tar",
        tmp_path.name,
    ]


def test_what_does_not_fit_says_how_much_would(server, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("DUALENC_CACHE_SIZE", "130kB")
    with pytest.raises(NoRoom, match=r"4 shards need about 0\.00\d+ GB: set DUALENC_CACHE_SIZE"):
        fetch_all([server.url(f"{name}.tar") for name in "abcd"])
    monkeypatch.setenv("DUALENC_CACHE_SIZE", "a lot")
    with pytest.raises(ValueError, match="DUALENC_CACHE_SIZE 'a lot' is no size"):
        fetch_all([server.url("a.tar")])


def test_a_shard_that_is_missing_for_validation_is_an_error(server, tmp_path):
    with pytest.raises(OSError, match=r"none.tar: missing shard: HTTP 404; all shards are needed"):
        fetch_all([server.url("a.tar"), server.url("none.tar")], Cache(tmp_path / "cache", BIG))


def test_patterns(tmp_path):
    write_shards(tmp_path / "s", 4, shards=2)
    one, two = f"{tmp_path}/s/shard-000.tar", f"{tmp_path}/s/shard-001.tar"
    assert expand(["https://h/a-{08..11}.tar"]) == [f"https://h/a-{i:02d}.tar" for i in range(8, 12)]
    assert expand(["pipe:cat {a,b}.tar | x"]) == ["pipe:cat a.tar | x", "pipe:cat b.tar | x"]
    assert expand([f"{tmp_path}/s"]) == expand([f"{tmp_path}/s/*.tar"]) == expand([one, two]) == [one, two]
    with pytest.raises(FileNotFoundError, match="no such file"):
        expand([f"{tmp_path}/none-{{0..3}}.tar"])
    with pytest.raises(ValueError, match="no shards"):
        expand([str(tmp_path)])
    with pytest.raises(ValueError, match="named twice"):
        expand(["https://h/a.tar", "https://h/{a,b}.tar"])
    assert [is_remote(path) for path in ("https://h/a", "pipe:x", "file:/a", tmp_path, "a/b-{0..3}.tar")] == [
        True, True, True, False, False
    ]  # fmt: skip


def test_sizes():
    wanted = {"20GB": 20 * 10**9, 5000: 5000, "1.5 GiB": 3 * 2**29, "7k": 7000, "12": 12}
    assert {text: size_in_bytes(text, "x") for text in wanted} == wanted
    for text in ("", "GB", "-1", "0", "3 apples", "1I"):
        with pytest.raises(ValueError, match="is no size"):
            size_in_bytes(text, "x")
