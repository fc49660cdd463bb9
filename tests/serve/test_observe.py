"""Request ids, the log, and the metrics."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest
from fastapi import FastAPI
from starlette.staticfiles import StaticFiles
from starlette.testclient import TestClient

from dualenc.serve import accesslog, metrics, observe, problems, record
from dualenc.serve.settings import Settings


def made(log: str = "text", folder=None) -> TestClient:
    app = FastAPI()
    app.state.service = SimpleNamespace(lives={"photos": SimpleNamespace(index=range(6000), generation=4)})
    observe.install(app, Settings(indexes={"a": "a"}, log=log))
    problems.install(app)

    @app.get("/items/{id}")
    async def item(id: int):
        with observe.stage("search"):
            pass
        await asyncio.to_thread(in_thread)
        observe.hit("texts")
        observe.miss("texts")
        observe.queue("text", 3)
        return {"id": observe.request_id(), "stages": record.current.get().stages}

    @app.get("/healthz")
    async def healthz():
        return {}

    if folder:
        app.mount("/", StaticFiles(directory=folder))
    return TestClient(app)


def in_thread():
    with observe.stage("metadata"):
        pass


def value(text: str, line: str) -> float:
    found = re.search("^" + re.escape(line) + r" (\S+)$", text, re.MULTILINE)
    return float(found[1]) if found else 0.0


def test_ids_are_made_or_taken_where_they_are_fit():
    client = made()
    first, second = (client.get("/items/1").headers["x-request-id"] for _ in range(2))
    assert re.fullmatch("[0-9a-f]{16}", first) and first != second
    reply = client.get("/items/1", headers={"X-Request-ID": "job-7.a_B"})
    assert reply.headers["x-request-id"] == "job-7.a_B" == reply.json()["id"]
    for bad in (b"a b", b"x" * 65, b"\x1b[31m", b'"', b"\xff", b""):
        assert re.fullmatch(
            "[0-9a-f]{16}", client.get("/items/1", headers={"X-Request-ID": bad}).headers["x-request-id"]
        )
    assert observe.request_id() == "-"


def test_a_request_is_over_when_it_is_answered():
    async def nothing(*_):
        pass

    async def ask():
        scope = {"type": "http", "method": "GET", "path": "/", "headers": []}
        await observe.Observe(nothing)(scope, None, nothing)
        return observe.request_id(), record.current.get()

    assert asyncio.run(ask()) == ("-", None)


def test_stages_belong_to_their_request_in_threads_too():
    assert set(made().get("/items/1").json()["stages"]) == {"search", "metadata"}
    with observe.stage("outside"):  # no request: counted all the same
        pass
    assert value(metrics.exposition({}).decode(), 'dualenc_stage_seconds_count{stage="outside"}') >= 1


def test_one_line_a_request(capsys):
    client = made()
    client.get("/items/5?text=private", headers={"X-Request-ID": "one"})
    (line,) = capsys.readouterr().err.splitlines()
    assert re.fullmatch(
        r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z INFO one GET /items/5 200 \d+\.\d ms testclient search=\S+ metadata=\S+",
        line,
    )
    client.get("/healthz")
    assert capsys.readouterr().err == ""  # a probe every second would be all there is in it


def test_a_line_of_json_has_the_same(capsys):
    made("json").get("/items/5?text=private", headers={"X-Request-ID": "one"})
    (line,) = capsys.readouterr().err.splitlines()
    fields = json.loads(line)
    assert {name: fields[name] for name in ("id", "method", "path", "route", "status", "client", "level")} == {
        "id": "one",
        "method": "GET",
        "path": "/items/5",
        "route": "/items/{id}",
        "status": 200,
        "client": "testclient",
        "level": "INFO",
    }
    assert fields["ms"] > 0 and set(fields["stages"]) == {"search", "metadata"}


@pytest.mark.parametrize("log", ["text", "json"])
def test_nobody_writes_lines_of_their_own(log, capsys):
    client = made(log)
    forged = "%0A2026-01-01T00:00:00.000Z%20INFO%20x%20GET%20/%20200%0D%1B%5B2J%E2%80%AE%C2%85%E2%80%A8%00"
    client.get("/nowhere" + forged, headers={"X-Request-ID": "a\x1b[0m"})
    client.request("ODD" * 1000, "/x" * 5000)
    text = capsys.readouterr().err
    assert len(text.splitlines()) == text.count("\n") == 2  # splitlines knows of every kind of line end
    assert all(letter.isprintable() or letter == "\n" for letter in text)
    assert max(map(len, text.splitlines())) < 700


def test_uvicorns_lines_are_as_ours(capsys):
    made()
    try:
        raise ValueError("of a request\nFORGED")
    except ValueError:
        logging.getLogger("uvicorn.error").exception("Exception in ASGI application")
    lines = capsys.readouterr().err.splitlines()
    assert "ERROR - Exception in ASGI application" in lines[0] and len(lines) > 2
    assert all(line.startswith("    | ") for line in lines[1:])


def test_what_is_escaped_can_be_read_back():
    assert accesslog.escaped("plain /path") == "plain /path"
    assert accesslog.escaped("a\\n\n\x1b\u202eé\ud800") == "a\\\\n\\n\\x1b\\u202eé\\ud800"
    for _ in range(3):
        accesslog.escaped("".join(map(chr, range(0x3000, 0x6000))))
    assert len(accesslog._escapes) < 0x3000


def test_metrics_have_what_the_server_did():
    client = made()
    before = client.get("/metrics").text
    for number in range(3):
        client.get(f"/items/{number}")
    client.get("/items/x")
    after = client.get("/metrics").text

    def more(line: str) -> float:
        return value(after, line) - value(before, line)

    assert more('dualenc_requests_total{method="GET",route="/items/{id}",status="200"}') == 3
    assert more('dualenc_requests_total{method="GET",route="/items/{id}",status="422"}') == 1
    assert more('dualenc_request_seconds_count{route="/items/{id}"}') == 4
    assert more('dualenc_request_seconds_bucket{le="10.0",route="/items/{id}"}') == 4
    assert more('dualenc_stage_seconds_count{stage="search"}') == 3
    assert more('dualenc_cache_total{cache="texts",result="hit"}') == 3
    assert value(after, 'dualenc_queue_length{lane="text"}') == 3
    assert value(after, 'dualenc_index_rows{index="photos"}') == 6000
    assert value(after, 'dualenc_index_generation{index="photos"}') == 4
    assert len(re.findall("^# TYPE", after, re.MULTILINE)) == len(set(re.findall("^# TYPE (.*)$", after, re.MULTILINE)))


def test_callers_cannot_add_labels(tmp_path):
    (tmp_path / "a.js").write_text("1")
    client = made(folder=tmp_path)
    client.get("/a.js"), client.get("/nowhere"), client.request("M0", "/items/1")

    def labels() -> int:
        return len(client.get("/metrics").text.splitlines())

    labels()
    before, children = labels(), len(metrics._requests)
    for number in range(50):
        client.get(f"/nowhere/{number}")
        client.get(f"/items/{number}?a={number}")
        client.request(f"M{number}", "/items/1")
    assert labels() == before and len(metrics._requests) == children


def test_the_summary_can_be_read():
    client = made()
    client.get("/items/1")
    text = client.get("/metrics-summary").text
    assert re.search(r"^route /items/\{id\} +\d+ +\d+\.\d{3}$", text, re.MULTILINE)
    assert re.search(r"^stage search +\d+ +\d+\.\d{3}$", text, re.MULTILINE)


WORKER = """
import sys
from dualenc.serve import observe, metrics
assert "fastapi" not in sys.modules and "torch" not in sys.modules
observe.hit("texts")
observe.queue("text", 5)
metrics.count_request("GET", "/x", 200, 0.1)
if sys.argv[1] == "tell":
    sys.stdout.buffer.write(metrics.exposition({}))
    print(metrics.summary())
"""


def test_workers_add_up_and_the_dead_do_not_wait():
    with metrics.shared(2):
        folder = os.environ[metrics.VARIABLE]
        subprocess.run([sys.executable, "-c", WORKER, "die"], check=True, timeout=60)
        told = subprocess.run([sys.executable, "-c", WORKER, "tell"], check=True, capture_output=True, timeout=60)
    text = told.stdout.decode()
    assert value(text, 'dualenc_cache_total{cache="texts",result="hit"}') == 2
    assert value(text, 'dualenc_requests_total{method="GET",route="/x",status="200"}') == 2
    assert value(text, 'dualenc_request_seconds_bucket{le="0.1",route="/x"}') == 2
    assert value(text, 'dualenc_queue_length{lane="text"}') == 5
    assert re.search(r"^route /x +2 +100.000$", text, re.MULTILINE)
    assert metrics.VARIABLE not in os.environ and not os.path.exists(folder)


def test_one_worker_needs_no_folder():
    with metrics.shared(1):
        assert metrics.VARIABLE not in os.environ


def test_counts_are_right_from_many_threads():
    name = "many threads"

    def work():
        for _ in range(500):
            observe.hit(name)
            with observe.stage(name):
                pass

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    text = metrics.exposition({}).decode()
    assert value(text, f'dualenc_cache_total{{cache="{name}",result="hit"}}') == 4000
    assert value(text, f'dualenc_stage_seconds_count{{stage="{name}"}}') == 4000


def test_an_error_is_counted_and_its_stage_ends():
    with pytest.raises(ValueError), observe.stage("broken"):
        raise ValueError
    assert value(metrics.exposition({}).decode(), 'dualenc_stage_seconds_count{stage="broken"}') == 1
