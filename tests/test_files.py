"""Files and folders that appear whole or not at all."""

import json
import os
import stat
import time

import pytest

from dualenc.files import read_json, refuse_existing, sha256, shipped, whole_file, whole_folder, write_json


class Crash(Exception):
    pass


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def test_a_file_appears_at_the_end(tmp_path):
    path = tmp_path / "deep" / "f.bin"
    with whole_file(path) as partial:
        partial.write_bytes(b"new")
        assert not path.exists() and partial.parent == path.parent
    assert path.read_bytes() == b"new" and names(path.parent) == ["f.bin"]


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "f.bin"
    path.write_bytes(b"old")
    with pytest.raises(Crash), whole_file(path) as partial:
        partial.write_bytes(b"half")
        raise Crash
    assert path.read_bytes() == b"old" and names(tmp_path) == ["f.bin"]


def test_what_is_written_is_as_readable_as_any_other_file(tmp_path):
    before = os.umask(0o027)
    try:
        with whole_file(tmp_path / "f") as partial:
            partial.write_bytes(b"")
        with whole_folder(tmp_path / "d") as partial:
            (partial / "x").write_bytes(b"")
    finally:
        assert os.umask(before) == 0o027  # and the umask is as it was
    assert stat.S_IMODE((tmp_path / "f").stat().st_mode) == 0o640
    assert stat.S_IMODE((tmp_path / "d").stat().st_mode) == 0o750


def test_a_folder_appears_at_the_end(tmp_path):
    with whole_folder(tmp_path / "a" / "d") as partial:
        (partial / "x").write_text("1")
        assert not (tmp_path / "a" / "d").exists()
    assert names(tmp_path / "a") == ["d"] and names(tmp_path / "a" / "d") == ["x"]


@pytest.mark.parametrize("replace", [False, True])
def test_a_failed_folder_leaves_nothing(tmp_path, replace):
    if replace:
        (tmp_path / "d").mkdir()
        (tmp_path / "d" / "old").write_text("old")
    with pytest.raises(Crash), whole_folder(tmp_path / "d", replace=replace) as partial:
        (partial / "x").write_text("half")
        raise Crash
    assert names(tmp_path) == (["d"] if replace else [])
    assert not replace or names(tmp_path / "d") == ["old"]


def test_a_folder_is_replaced_only_when_asked(tmp_path):
    (tmp_path / "d").mkdir()
    with whole_folder(tmp_path / "d") as partial:  # an empty one is nobody's
        (partial / "x").write_text("1")
    with pytest.raises(FileExistsError, match="not empty"), whole_folder(tmp_path / "d") as partial:
        raise AssertionError("not reached")
    with whole_folder(tmp_path / "d", replace=True) as partial:
        (partial / "y").write_text("2")
        assert names(tmp_path / "d") == ["x"]  # the old one stays until the new one is complete
    assert names(tmp_path) == ["d"] and names(tmp_path / "d") == ["y"]


@pytest.fixture
def later(monkeypatch):
    """A function after which the clock says a minute more."""
    now = time.time
    return lambda: monkeypatch.setattr(time, "time", lambda: now() + 60)


def test_what_a_killed_process_left_goes_first_and_what_is_being_made_stays(tmp_path, later):
    with whole_folder(tmp_path / "d") as held:
        (held / "x").write_text("1")
        left, other = (tmp_path / f".{name}.0a1b2c3d.tmp" for name in ("d", "other"))
        for folder in (left, other):
            folder.mkdir()
        (left / "half").write_bytes(b"half")
        with pytest.raises(Crash), whole_folder(tmp_path / "d"):
            raise Crash
        assert left.exists()  # somebody may be about to hold it
        later()
        with pytest.raises(Crash), whole_folder(tmp_path / "d"):
            raise Crash
        assert names(tmp_path) == sorted(folder.name for folder in (held, other))
        (tmp_path / ".d.0a1b2c3d.tmp").mkdir()
    assert names(tmp_path / "d") == ["x"]
    with pytest.raises(FileExistsError), whole_folder(tmp_path / "d"):
        raise AssertionError("not reached")
    assert names(tmp_path) == [other.name, "d"]


def test_an_old_folder_goes_back_where_its_process_was_killed_between_the_two_renames(tmp_path, later):
    old, new = tmp_path / ".d.0a1b2c3d.old", tmp_path / ".d.0a1b2c3d.tmp"
    for folder in (old, new):
        folder.mkdir()
        (folder / "x").write_text(folder.suffix)
    later()
    with pytest.raises(Crash), whole_folder(tmp_path / "d", replace=True):
        raise Crash
    assert names(tmp_path) == ["d"] and (tmp_path / "d" / "x").read_text() == ".old"
    (tmp_path / "d").rename(old)
    (tmp_path / "d").mkdir()  # the new one stands: the old one was only not removed yet
    with whole_folder(tmp_path / "d", replace=True) as partial:
        (partial / "y").write_text("2")
    assert names(tmp_path) == ["d"] and names(tmp_path / "d") == ["y"]


def test_the_old_folder_comes_back_when_the_last_rename_fails(tmp_path, monkeypatch):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "old").write_text("old")
    real, calls = os.replace, []

    def replace(source, target):
        calls.append(target)
        if len(calls) == 2:
            raise OSError("no")
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(OSError, match="no"), whole_folder(tmp_path / "d", replace=True) as partial:
        (partial / "x").write_text("1")
    assert names(tmp_path) == ["d"] and names(tmp_path / "d") == ["old"]


def test_what_exists_is_refused(tmp_path):
    refuse_existing(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    refuse_existing(tmp_path / "empty")
    (tmp_path / "file").write_text("")
    for path in (tmp_path, tmp_path / "file"):
        with pytest.raises(FileExistsError, match=str(path)):
            refuse_existing(path)


def test_json(tmp_path):
    value = {"ключ": [1, 2.5, None, True], "a": "b"}
    write_json(tmp_path / "f.json", value)
    text = (tmp_path / "f.json").read_text(encoding="utf-8")
    assert read_json(tmp_path / "f.json") == value == json.loads(text) and "ключ" in text and text.endswith("\n")
    with pytest.raises(ValueError):
        write_json(tmp_path / "f.json", float("nan"))
    assert read_json(tmp_path / "f.json") == value
    for broken in (b"{", b"\xff\xfe\xfa"):
        (tmp_path / "f.json").write_bytes(broken)
        with pytest.raises(ValueError, match=r"f\.json is not valid JSON") as error:
            read_json(tmp_path / "f.json")
        assert "\n" not in str(error.value)


def test_sha256(tmp_path):
    (tmp_path / "f").write_bytes(b"abc")
    assert sha256(tmp_path / "f") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2
    (tmp_path / "f").write_bytes(b"a" * 1_000_000)
    assert sha256(tmp_path / "f") == "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0"


def test_shipped_configs_resolve_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("scenes", "scenes.yaml", "configs/scenes.yaml"):
        assert shipped("configs", name).name == "scenes.yaml" and shipped("configs", name).is_file()
    assert shipped("index", "flat").parts[-2:] == ("index", "flat.yaml")
    (tmp_path / "flat").write_text("mine")
    assert shipped("index", "flat").read_text() == "mine"  # a path that exists comes first
    for name in ("scene", "other/scenes.yaml", "../configs/scenes"):
        with pytest.raises(FileNotFoundError, match=r"no configs of that name .*scenes"):
            shipped("configs", name)


def test_what_cannot_be_written_bears_the_name_that_was_given():
    with pytest.raises(OSError) as error, whole_file("/proc/nowhere.json"):
        pass
    assert error.value.filename == "/proc/nowhere.json"
