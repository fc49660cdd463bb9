"""benchmarks/serve.py on toy data and fake servers: each part runs, and what the asking process counts is what happened."""

from __future__ import annotations

import json
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
FAKE = """
import json, os, signal, sys, threading, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1
    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        hits = [{"id": i, "similarity": 1.0, "url": f"u{i}", "caption": "c"} for i in range(asked.get("num_images", 3))]
        if OFF: hits[-1]["id"] += 100
        self.send(200, hits if self.path == "/knn-service" else {"hits": hits})
    def do_GET(self):
        self.send(200, {"status": "ok"})
    def send(self, status, body):
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        if CLOSES: self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(data)
    def log_message(self, *_): pass

class Server(ThreadingHTTPServer):
    daemon_threads, request_queue_size = True, 128

words = sys.argv
CLOSES, OFF = "--indices" in words, "--off" in words
server = Server(("127.0.0.1", int(words[words.index("--port") + 1])), Handler)
signal.signal(signal.SIGTERM, lambda *_: os.killpg(0, signal.SIGKILL) if "--workers" in words else os._exit(0))
if "--workers" in words:
    os.setpgrp()
    def fork():
        if os.fork() == 0:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            server.serve_forever()
    fork(), fork()
    while True:
        os.wait()
        fork()
server.serve_forever()
"""


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """The module benchmarks/serve.py, with servers that are fakes."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    import index_peers
    import serve_side

    fake = tmp_path / "fake.py"
    fake.write_text(FAKE)
    monkeypatch.setattr(serve_side, "OURS", (sys.executable, str(fake)))
    monkeypatch.setattr(serve_side, "THEIRS", fake)
    monkeypatch.setattr(index_peers, "interpreter", lambda name, folder: Path(sys.executable))
    import serve

    return serve


@pytest.fixture
def found(tmp_path: Path, benchmark):
    """A small index in the place of 100,000 rows."""
    from serve_data import Assets

    from dualenc import Index

    rows = np.random.default_rng(0).standard_normal((60, 8)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    said = [{"key": f"{i}", "url": f"u{i}", "caption": "c"} for i in range(50)]
    Index.build(rows[:50], tmp_path / "plain", metadata=said, recipe="flat")
    np.save(tmp_path / "queries.npy", rows[50:])
    names = ("encoder", "plain", "pictures", "queries.npy", "scenes.json")
    return Assets(*(tmp_path / name for name in names))


def options(benchmark, tmp_path: Path, part: str):
    words = ["--only", part, "--share", "0.005", "--rounds", "2", "--out", str(tmp_path / "trial.json")]
    return benchmark.arguments(words)


def check(results: dict) -> dict[str, dict]:
    """A part's results go into JSON and come back; goals by what they say."""
    assert json.loads(json.dumps(results)) == results and results["goals"]
    return {each["what"]: each for each in results["goals"]}


def test_speed(benchmark, found, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import serve_side
    import serve_speed

    asked: list[str] = []
    run = serve_side.Load.run

    def noted(self, port, asks, clients, count, start=0):
        some = json.loads(Path(asks).read_text())
        if len(some) > 100:  # texts and vectors
            assert start + count <= len(some), "else the first ones come again"
        asked.extend(
            body["text"] for _, body in some[start : start + count] if body and len(some) != 1 and "text" in body
        )
        return run(self, port, asks, clients, count, start=start)

    monkeypatch.setattr(serve_side.Load, "run", noted)
    results = serve_speed.measure_speed(options(benchmark, tmp_path, "speed"), found, tmp_path)
    assert len(check(results)) == 3
    timed = asked[1:]  # less the warm round
    assert len(timed) > 12 and len(set(timed)) == len(timed), "a text that is not new is answered from the cache"
    assert {way.split(",")[0] for way in results["ways"]} == {"healthz", "new text", "repeated text", "vector"}
    assert all(way["ms"]["p50"] <= way["ms"]["p95"] <= way["ms"]["max"] for way in results["ways"].values())


def test_the_peer_answers_from_the_same_rows(benchmark, found, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pyarrow.parquet as pq
    import serve_side
    import serve_speed

    monkeypatch.setattr(serve_speed, "peer_versions", lambda peers: {})
    goals = check(serve_speed.measure_peer(options(benchmark, tmp_path, "peer"), found, tmp_path))
    assert goals["share of hits that both give"]["measured"] == 1 and len(goals) == 5
    table = pq.read_table(tmp_path / "clip_retrieval_parquet" / "metadata" / "metadata_0000.parquet")
    assert table["url"].to_pylist() == [f"u{i}" for i in range(50)] and table.column_names == ["url", "caption"]
    assert (tmp_path / "clip_retrieval_arrow" / "image.index").stat().st_size > 50 * 8 * 4
    monkeypatch.setattr(serve_side, "OURS", (*serve_side.OURS, "--off"))
    with serve_side.ours({}, tmp_path) as one, serve_side.clip_retrieval(found, tmp_path, "parquet") as other:
        one.seconds_until("/healthz")
        assert serve_speed.same_hits(found, one, other) == 0.9, "the fake gives one wrong hit of ten"


def test_start(benchmark, found, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import serve_start

    monkeypatch.setattr(serve_start, "PLAIN", {serve_start.PLAINEST: "print('{folder}')"})
    results = serve_start.measure(options(benchmark, tmp_path, "start"), found, tmp_path)
    assert len(check(results)) == 3
    seconds = results["seconds"]
    assert seconds["/healthz"] <= seconds["search by vector"] <= seconds["search by text"]
    with pytest.raises(RuntimeError, match="the plain process failed"):
        serve_start.plain("import no_such_module", 1)


def test_long_runs(benchmark, found, tmp_path: Path) -> None:
    import serve_long

    for part, measure in (("clients", serve_long.measure_clients), ("soak", serve_long.measure_soak)):
        results = measure(options(benchmark, tmp_path, part), found, tmp_path)
        lost = [goal for what, goal in check(results).items() if "losses" in what]
        assert [goal["measured"] for goal in lost] == [0]
    assert [each["requests"] for each in results["memory"]] == [0, *range(50, 1001, 50)]
    assert all(0 < each["own_mib"] < each["resident_mib"] for each in results["memory"])


def test_a_killed_worker_loses_its_own(benchmark, found, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import serve_long

    for name, value in {"KILLS": 1, "BEFORE": 0.4, "AFTER": 0.4}.items():
        monkeypatch.setattr(serve_long, name, value)
    results = serve_long.measure_kill(options(benchmark, tmp_path, "kill"), found, tmp_path)
    (kill,) = results["kills"]
    assert all(goal["met"] for goal in results["goals"]) and kill["answered"] > 8
    assert 0 < kill["connections_of_the_killed"] <= serve_long.AT_ONCE and kill["lost"] > 0


@pytest.fixture
def script() -> Iterator:
    """A server of one thread that plays replies from a list: bytes to send, whether to close then."""
    listener = socket.create_server(("127.0.0.1", 0))
    replies: list[tuple[bytes, bool]] = []

    def play() -> None:
        connection = None
        for data, closes in replies:
            connection = connection or listener.accept()[0]
            while b"\r\n\r\n" not in connection.recv(65536):
                pass
            for i in range(0, len(data), 40):  # in pieces
                connection.sendall(data[i : i + 40])
            if closes:
                connection.close()
                connection = None

    def start(some: list[tuple[bytes, bool]]) -> int:
        replies.extend(some)
        threading.Thread(target=play, daemon=True).start()
        return listener.getsockname()[1]

    yield start
    listener.close()


def said(status: int, body: bytes, *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status} X", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


def test_what_is_asked_and_counted(benchmark, script) -> None:
    import serve_load
    import serve_long

    length = "Content-Length: 100"
    port = script(
        [
            (said(200, b"x" * 100, length), False),
            (said(503, b"x" * 100, length), False),
            (said(200, b"5\r\nhello\r\n0\r\n\r\n", "Transfer-Encoding: chunked"), False),
            (said(200, b"x" * 100, length, "Connection: close"), True),
            (said(200, b"x" * 99, length), True),
            (said(200, b"x" * 70), True),  # until the server closes
            (b"", True),
        ]
    )
    asks = [serve_load.request("/a", None), serve_load.request("/b", {"text": "ä"})]
    result = serve_load.Run({"port": port, "clients": 1, "count": 7, "start": 1}, asks).go()
    assert result["done"] == 5 and result["bad"] == {"503": 1} and result["connections"] == 4
    assert [(one["ask"], one["why"]) for one in result["lost"]] == [(1, "the server closed")] * 2
    assert all(one["client_port"] > 0 for one in result["lost"])
    assert serve_long.trouble(result) == 3
    assert asks[1].endswith(b'{"text": "\\u00e4"}') and b"Content-Length: 18\r\n" in asks[1]


def test_who_is_connected(benchmark) -> None:
    import os

    from serve_proc import connections_of, family

    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)) as client:
            taken = listener.accept()[0]
            assert (
                connections_of(os.getpid(), port) == {client.getsockname()[1]} and family(os.getpid())[0] == os.getpid()
            )
            taken.close()
        assert connections_of(os.getpid(), port) == set()


def test_nobody_listens(benchmark) -> None:
    import serve_load
    import serve_side

    result = serve_load.Run({"port": serve_side.free_port(), "clients": 2, "count": 3}, [b"GET"]).go()
    assert result["done"] == 0 and len(result["lost"]) == 3 and result["lost"][0]["client_port"] == 0
    assert serve_load.spread([]) == {}
    assert serve_load.spread([i / 1000 for i in range(1, 101)]) | {"mean": 0} == {
        "p50": 50, "p95": 95, "p99": 99, "max": 100, "mean": 0
    }  # fmt: skip
    with pytest.raises(RuntimeError, match="counts only where all is answered"):
        serve_side.sound(result)


def test_the_texts_never_repeat(benchmark) -> None:
    from serve_data import texts

    some = texts(0, 80_000)
    assert len(set(some)) == len(some) and texts(79_000, 5) == some[79_000:79_005]
    assert all(text.startswith("a ") for text in some)


def test_a_trial_needs_its_own_file(benchmark, tmp_path: Path) -> None:
    for words in (["--rows", "5"], ["--rounds", "1"], ["--share", "0.5"]):
        with pytest.raises(SystemExit):
            benchmark.arguments(words)
    assert "soak" not in benchmark.arguments([]).parts and benchmark.arguments(["--only", "soak"]).parts == ["soak"]


def test_the_record(benchmark, found, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import goals
    import serve_data
    import serve_start
    from record import entry

    monkeypatch.setattr(serve_data, "assets", lambda scratch, rows: found)
    some = [{"what": "a thing", "wanted": "<= 2", "measured": 3.0, "met": False}]
    monkeypatch.setattr(serve_start, "measure", lambda options, found, scratch: {"goals": some})
    chosen = options(benchmark, tmp_path, "start")
    chosen.out.write_text(json.dumps({"peer": entry({"goals": []})}))
    record = benchmark.run(chosen)
    assert list(json.loads(chosen.out.read_text())) == ["peer", "start"] == sorted(record)
    assert "| start: a thing | ≤ 2 | 3 **missed** |" in goals.markdown(record, benchmark.PARTS)
    assert "MISSED" in goals.table(record, ["start"]) and "fastapi" in record["start"]["versions"]


@pytest.mark.full
@pytest.mark.skipif(not Path("/usr/bin/chromium").exists(), reason="no Chromium here")
def test_page(benchmark, found, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import serve_page
    import serve_side

    picture = "data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7"
    page = f'<ol id=grid></ol><script>setTimeout(() => grid.innerHTML = "<img width=9 src={picture}>", 50)</script>'
    fake = FAKE.replace('self.send(200, {"status": "ok"})', f"self.page({page!r}.encode())").replace(
        "    def log_message",
        """    def page(self, data):
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
    def log_message""",
    )
    (tmp_path / "page.py").write_text(fake)
    monkeypatch.setattr(serve_side, "OURS", (sys.executable, str(tmp_path / "page.py")))
    monkeypatch.setattr(serve_side.Server, "seconds_until", lambda self, path, body: None)
    import time

    time.sleep(0.5)
    results = serve_page.measure(options(benchmark, tmp_path, "page"), found, tmp_path)
    assert all(goal["met"] for goal in results["goals"]), results
    assert min(results["painted_ms"]["first"]) >= 50
