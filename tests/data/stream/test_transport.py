"""Streams that break are taken up where they broke; what cannot be read is an error with its reason."""

from __future__ import annotations

import os
import stat
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dualenc.data.stream import transport
from dualenc.data.stream.transport import BROKEN, MISSING, Reader, ShardError, check_tools, scheme, shown
from tests.data.stream.server import in_use, serving

DATA = bytes(range(256)) * 40  # 10,240 bytes


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(transport, "DELAY", 0.001)


@pytest.fixture
def server(tmp_path):
    (tmp_path / "a.tar").write_bytes(DATA)
    with serving(tmp_path) as running:
        yield running


def whole(url: str, retries: int = 3, step: int = 1000) -> bytes:
    reader = Reader(url, retries)
    try:
        parts = []
        while part := reader.read(step):
            parts.append(part)
        assert reader.complete
        return b"".join(parts)
    finally:
        reader.close()


@settings(max_examples=8)
@given(st.lists(st.integers(0, len(DATA) - 1), max_size=3), st.booleans(), st.integers(1, 4000))
def test_bytes_come_once_wherever_the_stream_breaks(tmp_path_factory, breaks, ranges, step):
    folder = tmp_path_factory.mktemp("s")
    (folder / "a.tar").write_bytes(DATA)
    with serving(folder, ranges) as server:
        server.faults["a.tar"] += breaks
        assert whole(server.url("a.tar"), step=step) == DATA
        assert server.asked("a.tar") > bool(breaks)


def test_a_server_that_can_goes_on_from_the_byte_where_it_broke(server):
    server.faults["a.tar"] += [4000, "503", 1000]
    assert whole(server.url("a.tar")) == DATA
    assert [wanted for _, wanted in server.requests] == [None, "bytes=4000-", "bytes=4000-", "bytes=5000-"]


def test_a_server_that_cannot_is_read_again_from_the_start_without_losing_a_retry(server):
    server.ranges = False
    server.faults["a.tar"] += [4000]
    assert whole(server.url("a.tar"), retries=1) == DATA
    assert [wanted for _, wanted in server.requests] == [None, "bytes=4000-", None]


def test_a_name_with_brackets_is_a_name(server):
    (server.folder / "a[1-3].tar").write_bytes(DATA)
    assert whole(server.url("a[1-3].tar")) == DATA


def test_an_error_for_a_while_is_waited_out(server, monkeypatch):
    slept = []
    monkeypatch.setattr(transport.time, "sleep", slept.append)
    monkeypatch.setattr(transport, "DELAY", 8.0)
    server.faults["a.tar"] += ["503", "429", "500"]
    assert whole(server.url("a.tar")) == DATA
    assert slept == [8, 16, 30]


def test_the_last_retry_is_the_last(server):
    server.faults["a.tar"] += [3000] + [0] * 9
    reader = Reader(server.url("a.tar"), retries=2)
    assert reader.read(3000) == DATA[:3000]
    with pytest.raises(ShardError, match=r"broken stream: .*2 retries") as caught:
        reader.read(1)
    assert caught.value.reason == BROKEN and server.asked("a.tar") == 3


def test_progress_gives_all_retries_back(server, monkeypatch):
    monkeypatch.setattr(transport, "PROGRESS", 500)
    server.faults["a.tar"] += [1000] * 8
    assert whole(server.url("a.tar"), retries=1) == DATA


@pytest.mark.parametrize("status", ["404", "403", "410"])
def test_what_is_not_there_is_not_asked_for_again(server, status):
    server.faults["a.tar"] += [status]
    with pytest.raises(ShardError, match=f"HTTP {status}") as caught:
        whole(server.url("a.tar"))
    assert caught.value.reason == MISSING and server.asked("a.tar") == 1


def test_a_server_that_is_gone(server):
    server.close()
    with pytest.raises(ShardError, match=r"broken stream: curl: \(7\) ") as caught:
        whole(server.url("a.tar"), retries=1)
    assert caught.value.reason == BROKEN


def test_a_connection_over_which_nothing_comes_is_given_up(server, monkeypatch):
    monkeypatch.setattr(transport, "STALL", 1)
    server.faults["a.tar"] += ["stall"]
    assert whole(server.url("a.tar")) == DATA
    assert server.asked("a.tar") == 2


def test_closing_ends_the_program_even_where_it_waits(server):
    server.faults["a.tar"] += ["stall"]
    reader = Reader(server.url("a.tar"))
    reader._open()
    process = reader._source.proc
    begun = time.monotonic()
    reader.close()
    assert process.returncode is not None and time.monotonic() - begun < 10


def test_after_a_tars_end_nothing_is_waited_for(server):
    server.faults["a.tar"] += [4000]
    reader = Reader(server.url("a.tar"))
    assert reader.read(3000) == DATA[:3000]
    assert reader.tail(5000) == DATA[3000:4000] and not reader.complete
    assert server.asked("a.tar") == 1


def test_files_and_pipes(tmp_path):
    path = tmp_path / "with space.tar"
    path.write_bytes(DATA)
    assert whole(f"file:{path}") == whole(f"pipe:cat '{path}'") == whole(path.as_uri()) == DATA
    with pytest.raises(ShardError, match="No such file") as caught:
        whole(f"file:{tmp_path}/none.tar")
    assert caught.value.reason == MISSING


def test_a_pipe_that_fails_is_broken_and_one_without_its_program_an_error(tmp_path, capfd):
    with pytest.raises(ShardError, match="exit status 3") as caught:
        whole("pipe:printf abc; exit 3", retries=1)
    assert caught.value.reason == BROKEN
    with pytest.raises(FileNotFoundError, match="does not find a program"):
        whole("pipe:no_such_program_anywhere x", retries=1)


def test_a_pipe_that_breaks_once_is_run_again(tmp_path):
    (tmp_path / "a.tar").write_bytes(DATA)
    mark = tmp_path / "mark"
    command = (
        f"if [ -e {mark} ]; then cat {tmp_path}/a.tar; else touch {mark}; head -c 700 {tmp_path}/a.tar; exit 1; fi"
    )
    assert whole(f"pipe:{command}") == DATA


def program(folder, name: str, text: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{text}\n")
    (folder / name).chmod(0o755 | stat.S_IXUSR)


def test_s3_and_gs_go_through_their_programs(tmp_path, monkeypatch):
    (tmp_path / "a.tar").write_bytes(DATA)
    program(
        tmp_path / "bin",
        "aws",
        f'[ "$4" = s3://b/a.tar ] && exec cat {tmp_path}/a.tar; echo "An error occurred (404) when'
        ' calling the HeadObject operation: Not Found" >&2; exit 1',
    )
    program(
        tmp_path / "bin",
        "gsutil",
        f'[ "$3" = gs://b/a.tar ] && exec cat {tmp_path}/a.tar; echo "CommandException: No URLs'
        ' matched: gs://b/none.tar" >&2; exit 1',
    )
    monkeypatch.setenv("PATH", f"{tmp_path}/bin{os.pathsep}{os.environ['PATH']}")
    for name in ("s3", "gs"):
        assert whole(f"{name}://b/a.tar") == DATA
        with pytest.raises(ShardError) as caught:
            whole(f"{name}://b/none.tar")
        assert caught.value.reason == MISSING


def test_hugging_face_gets_the_users_token_and_none_where_there_is_none(tmp_path, monkeypatch):
    path = "datasets/org/name/resolve/v1/folder/a.tar"
    (tmp_path / path).parent.mkdir(parents=True)
    (tmp_path / path).write_bytes(DATA)
    with serving(tmp_path) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url().rstrip("/"))
        for token, header in (("hf_secret", "Bearer hf_secret"), (None, None)):
            monkeypatch.setattr("huggingface_hub.get_token", lambda token=token: token)
            assert whole("hf://datasets/org/name@v1/folder/a.tar") == DATA
            assert server.headers[-1].get("Authorization") == header
    with pytest.raises(ValueError, match="write hf://datasets/ORGANISATION"):
        whole("hf://name")


def test_a_missing_program_is_named(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    for url, tool in (
        ("https://x/a.tar", "curl"),
        ("s3://x/a.tar", "aws"),
        ("gs://x/a", "gsutil"),
        ("hf://a/b/c", "curl"),
    ):
        with pytest.raises(FileNotFoundError, match=f"^{tool} is not installed"):
            check_tools([url])
        with pytest.raises(FileNotFoundError, match=f"^{tool} is not installed"):
            Reader(url).read(1)
    check_tools(["a.tar", "file:/a.tar", "pipe:cat a.tar"])
    with pytest.raises(ValueError, match="webdav:// cannot be read"):
        check_tools(["webdav://x/a.tar"])


def test_nothing_is_left_open(server):
    whole(server.url("a.tar"))
    before = in_use()
    for turn in range(20):
        server.faults["a.tar"] += [turn * 100]
        reader = Reader(server.url("a.tar"))
        reader.read(5000 if turn % 2 else 20_000)
        reader.close()
        with pytest.raises(ShardError):
            whole(server.url("none.tar"))
    assert in_use() == before


def test_addresses():
    assert [scheme(url) for url in ("https://a/b", "pipe:cat x", "file:/a", "/a/b.tar", "a:b.tar", "s3://x")] == [
        "https", "pipe", "file", "", "", "s3"
    ]  # fmt: skip
    assert shown("https://me:secret@host/a.tar?signature=x") == "https://host/a.tar?…"
