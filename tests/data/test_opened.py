"""Reading by offset: few descriptors, few calls, and never another file's bytes."""

import gc
import itertools
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dualenc.data import opened as module
from dualenc.data.opened import OPEN_FILES, OpenFile, opened

CONTENT = bytes(i * 7 % 251 for i in range(200_000))


def stat_of(path):
    stat = os.stat(path)
    return str(path), stat.st_size, stat.st_mtime_ns


@pytest.fixture
def file(tmp_path):
    (tmp_path / "f").write_bytes(CONTENT)
    return OpenFile(str(tmp_path / "f"))


@given(st.lists(st.tuples(st.integers(0, 150_000), st.integers(0, 50_000)), min_size=1, max_size=4))
def test_pieces_are_those_of_the_file(tmp_path_factory, pieces):
    path = tmp_path_factory.mktemp("pieces") / "f"
    path.write_bytes(CONTENT)
    ends = [0]
    for gap, size in pieces:  # members do not overlap
        ends.append(min(len(CONTENT), ends[-1] + gap % 40_000 + size % 20_000))
    wanted = [(a, b - a) for a, b in itertools.pairwise(ends)][::-1]
    assert OpenFile(str(path)).read(wanted) == [CONTENT[a : a + n] for a, n in wanted]


@pytest.mark.parametrize(
    ("wanted", "calls"),
    [
        ([(0, 100), (1024, 20), (2048, 5)], 1),  # neighbours
        ([(0, 20_000), (60_000, 5_000)], 1),  # less than three times as much between them as is wanted
        ([(0, 100), (100_000, 20)], 2),
        ([(500, 100)], 1),
    ],
)
def test_neighbours_are_read_at_once(file, monkeypatch, wanted, calls):
    real, seen = os.pread, []
    monkeypatch.setattr(module.os, "pread", lambda *args: seen.append(args) or real(*args))
    assert file.read(wanted) == [CONTENT[a : a + n] for a, n in wanted] and len(seen) == calls


@pytest.mark.parametrize("wanted", [[(199_990, 20)], [(0, 10), (199_990, 11)], [(300_000, 1), (300_010, 1)]])
def test_a_file_that_is_too_short_is_an_error(file, wanted):
    with pytest.raises(OSError, match="was cut since it was listed") as error:
        file.read(wanted)
    assert file.path in str(error.value) and "\n" not in str(error.value)


def test_a_file_that_changed_is_not_opened(tmp_path):
    path = tmp_path / "f"
    path.write_bytes(b"12")
    listed = stat_of(path)
    assert opened(*listed).read([(0, 2)]) == [b"12"]
    module.opened.cache_clear()
    os.utime(path, ns=(1, 1))
    for _ in range(2):
        with pytest.raises(OSError, match="was changed since it was listed") as error:
            opened(*listed)
        assert str(path) in str(error.value)
    os.utime(path, ns=(listed[2], listed[2]))
    assert opened(*listed).read([(0, 2)]) == [b"12"]
    module.opened.cache_clear()
    path.write_bytes(b"123")
    os.utime(path, ns=(listed[2], listed[2]))
    with pytest.raises(OSError, match="was changed"):
        opened(*listed)


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="only Linux lists a process's open files")
def test_few_descriptors_stay_open_and_none_is_closed_in_use(tmp_path):
    def open_here():
        places = [os.path.realpath(f"/proc/self/fd/{n}") for n in os.listdir("/proc/self/fd")]
        return sum(place.startswith(str(tmp_path)) for place in places)

    paths = [tmp_path / f"{i}" for i in range(OPEN_FILES + 40)]
    for i, path in enumerate(paths):
        path.write_bytes(bytes([i]))
    first = opened(*stat_of(paths[0]))
    for _ in range(2):
        for i, path in enumerate(paths):
            assert opened(*stat_of(path)).read([(0, 1)]) == [bytes([i])]
        gc.collect()
        assert open_here() == OPEN_FILES + 1
    assert first.read([(0, 1)]) == [b"\0"]  # long since pushed out by others, and still its own file
    del first
    gc.collect()
    assert open_here() == OPEN_FILES


def test_hints_cover_the_range_in_steps_that_linux_takes_whole(file, monkeypatch):
    seen = []
    monkeypatch.setattr(module.os, "posix_fadvise", lambda fd, at, n, advice: seen.append((at, n)), raising=False)
    file.will_need(1000, 900_000)
    assert seen[0][0] == 1000 and all(n <= 128 << 10 for _, n in seen)
    assert [at + n for at, n in seen] == [at for at, _ in seen[1:]] + [900_000]
