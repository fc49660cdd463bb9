"""The real server as a process: an index that grows under load, a stop under load, a worker that is killed."""

from __future__ import annotations

import os
import re
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2 as httpx
import numpy as np
import pytest

from dualenc import Index
from dualenc.cli import main
from dualenc.serve import Client
from dualenc.serve.settings import Settings
from tests.serve.running import Started, in_thread, rows, small_index, started, until


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return small_index(tmp_path / "photos", 500)


class Load:
    """Clients that search by vector, one request after the other, until told to stop; each answer is checked."""

    def __init__(self, url: str, clients: int = 8, most: float = float("inf")):
        self.url, self.most, self.stopped = url, most, threading.Event()
        self.answered, self.errors, self.wrong = 0, list[Exception](), list[str]()
        self._lock, self.queries = threading.Lock(), rows(50, seed=8)
        self._threads = [threading.Thread(target=self._ask, args=(n,), daemon=True) for n in range(clients)]

    def _ask(self, number: int) -> None:
        asked = number
        with httpx.Client(timeout=60, trust_env=False) as http:
            while not self.stopped.is_set() and self.answered < self.most:
                asked += 1
                query = {"embedding": self.queries[asked % 50].tolist(), "k": 3}
                try:
                    reply = http.post(f"{self.url}/search", json=query)
                except httpx.ConnectError:  # nothing was sent: nobody had accepted it
                    if self.stopped.wait(0.05):
                        return
                except httpx.HTTPError as error:
                    self.errors.append(error)
                else:
                    good = reply.status_code == 200 and len(reply.json()["hits"]) == 3
                    with self._lock:
                        self.answered += 1
                    if not good:
                        self.wrong.append(reply.text)

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        until(lambda: self.answered > len(self._threads))
        return self

    def __exit__(self, *_: object) -> None:
        self.stopped.set()
        for thread in self._threads:
            thread.join(60)


@contextmanager
def serving(tmp_path: Path, folder: Path, *words: str) -> Iterator[Started]:
    with started(tmp_path / "log", str(folder), *words) as server:
        assert server.url, server.errors
        yield server


def failures(server: Started) -> list[str]:
    """Lines of the log that are not about a request which was answered."""
    return [line for line in server.errors.splitlines() if " 200 " not in line]


def test_rows_that_are_added_under_load_are_found(tmp_path: Path, folder: Path) -> None:
    new = rows(20, seed=77)
    np.save(tmp_path / "new.npy", new)
    with serving(tmp_path, folder) as server, Client(server.url) as client:
        with Load(server.url) as load:
            for part in range(2):
                np.save(tmp_path / f"part{part}.npy", new[part * 10 : part * 10 + 10])
                assert main(["index", "add", str(folder), str(tmp_path / f"part{part}.npy")]) == 0
                wanted = 500 + part * 10 + 3
                hits = until(
                    lambda w=wanted, p=part: (h := client.search(embedding=new[p * 10 + 3], k=1)).ids == [w] and h
                )
                assert (hits.rows, hits.generation) == (510 + part * 10, 2 + part)
            Index.open(folder).remove([503])
            until(lambda: client.search(embedding=new[3], k=1).ids != [503])
            seen = load.answered
            until(lambda: load.answered > seen + 20)
        assert (load.errors, load.wrong) == ([], [])
        assert server.stop() == 0


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_stop_under_load_answers_all_that_was_accepted(tmp_path: Path, folder: Path, workers: str) -> None:
    with serving(tmp_path, folder, "--workers", workers) as server, Load(server.url) as load:
        until(lambda: load.answered > 50)
        assert server.stop() == 0
        load.stopped.set()
    assert (load.errors, load.wrong) == ([], [])
    assert failures(server) == ["dualenc: stopping: what is running is finished first"]


def test_a_killed_worker_loses_its_own_requests_alone(tmp_path: Path, folder: Path) -> None:
    with serving(tmp_path, folder, "--workers", "2") as server:
        with Load(server.url) as load:
            before = server.workers()
            os.kill(before[0], signal.SIGKILL)
            until(lambda: len(found := server.workers()) == 2 and before[0] not in found)
            seen = load.answered
            until(lambda: load.answered > seen + 50)
        assert len(load.errors) <= 8  # one each of the clients, whose connections that worker had
        assert load.wrong == []
        assert failures(server) == [f"dualenc: worker {before[0]} died (signal 9); another is started"]
        assert server.stop() == 0


def test_texts_that_nobody_waits_for_are_not_embedded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As who types leaves one search after the other behind."""
    from dualenc.serve.app import create_app
    from tests.serve.fakes import FakeEncoder

    embedded, free = list[str](), threading.Event()

    class Slow(FakeEncoder):
        def embed_texts(self, texts: Any) -> np.ndarray:
            embedded.extend(texts)
            assert free.wait(60)
            return super().embed_texts(texts)

    monkeypatch.setattr("dualenc.serve.encoders.load", lambda need, *_: Slow(need.dim))
    app = create_app(Settings({"photos": folder}, encoder="slow"))
    with in_thread(app) as url:
        address = ("127.0.0.1", int(url.rpartition(":")[2]))
        until(lambda: app.state.service.ready()["photos"]["encoder"] == "ready")
        left = _count(url, 499)
        for number in range(8):
            with socket.create_connection(address) as caller:
                body = b'{"text": "typed %d"}' % number
                head = b"POST /search HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
                caller.sendall(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
                until(lambda: embedded)
                time.sleep(0.05)
        until(lambda: _count(url, 499) == left + 8)
        free.set()
        assert httpx.post(f"{url}/search", json={"text": "typed to the end"}).status_code == 200
    assert embedded == ["typed 0", "typed to the end"]


def test_a_worker_that_replaces_another_waits_for_its_encoder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dualenc.serve.app import create_app
    from dualenc.serve.process import Process
    from dualenc.serve.run import listen
    from tests.serve.fakes import FakeEncoder

    def slow(need: Any, *_: Any) -> FakeEncoder:
        time.sleep(1)
        assert hasattr(service, "_pool")  # the service has started
        return FakeEncoder(need.dim)

    def listening() -> None:
        states.append(service.ready()["photos"]["encoder"])
        server.should_exit = True

    states = list[str]()
    monkeypatch.setattr("dualenc.serve.encoders.load", slow)
    app = create_app(Settings({"photos": folder}, encoder="slow"))
    service = app.state.service
    server = Process(app, listening, prepared=lambda: service.settled(60))
    with listen("127.0.0.1", 0) as listener:
        assert server.answer(listener)
    assert states == ["ready"]


def _count(url: str, status: int) -> int:
    """Answers to POST /search with this status, as the server counts them."""
    line = rf'dualenc_requests_total{{method="POST",route="/search",status="{status}"}} (\S+)'
    found = re.search(line, httpx.get(f"{url}/metrics").text)
    return int(float(found[1])) if found else 0


def test_vectors_are_searched_without_torch(tmp_path: Path, folder: Path) -> None:
    with serving(tmp_path, folder) as server, Client(server.url) as client:
        assert client.search(embedding=rows(1)[0], k=1).ids == [0]
        assert httpx.get(f"{server.url}/healthz").status_code == 200
        assert "torch" not in Path(f"/proc/{server.process.pid}/maps").read_text()


@pytest.mark.full
def test_the_python_client_outlives_a_restart(tmp_path: Path, folder: Path) -> None:
    with serving(tmp_path, folder) as server, Client(server.url) as client:
        assert client.search(id=5, k=1).ids == [5]
        port = server.url.rpartition(":")[2]
        assert server.stop() == 0
        with started(tmp_path / "again", str(folder), "--port", port) as again:
            assert again.url == server.url
            assert client.search(id=5, k=1).ids == [5]


def _memory(pid: int) -> int:
    """Bytes of a process that are its own alone: its heap, not the pages of the index."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith("Private_Dirty"))


@pytest.mark.full
def test_sixty_four_clients_for_a_minute(tmp_path: Path, folder: Path) -> None:
    with serving(tmp_path, folder, "--workers", "2") as server:
        with Load(server.url, clients=64) as load:
            time.sleep(60)
        assert (load.errors, load.wrong) == ([], [])
        assert load.answered > 1000
        assert server.stop() == 0
    assert failures(server) == ["dualenc: stopping: what is running is finished first"]


@pytest.mark.full
def test_memory_stays_flat_over_a_hundred_thousand_requests(tmp_path: Path, folder: Path) -> None:
    with serving(tmp_path, folder) as server:
        with Load(server.url, most=10_000) as load:
            until(lambda: load.answered >= 10_000, 600)
        before = _memory(server.process.pid)
        with Load(server.url, most=100_000) as load:
            until(lambda: load.answered >= 100_000, 1800)
        grown = _memory(server.process.pid) - before
        assert (load.errors, load.wrong) == ([], [])
        assert grown < 8 << 20, f"{grown / (1 << 20):.1f} MiB over 100,000 requests"


@pytest.mark.full
@pytest.mark.parametrize("workers", ["1", "2"])
def test_texts_and_images_end_to_end(tmp_path: Path, encoder_folder: Path, encoder: Any, workers: str) -> None:
    """A real encoder, tiny: what the server finds is what its own rows say."""
    from tests.small import COLOURS, png, write_shards

    write_shards(tmp_path / "shards", 24)
    words = [
        "embed",
        "--encoder",
        str(encoder_folder),
        "--data",
        str(tmp_path / "shards"),
        "--out",
        str(tmp_path / "store"),
    ]
    assert main([*words, "--workers", "0"]) == 0
    assert main(["index", "build", str(tmp_path / "store"), str(tmp_path / "photos")]) == 0
    index = Index.open(tmp_path / "photos")
    with (
        serving(tmp_path, tmp_path / "photos", "--workers", workers, "--precision", "float32") as server,
        Client(server.url, timeout=300) as client,
    ):
        assert np.abs(client.embed_texts(["a red picture"]) - encoder.embed_texts(["a red picture"])).max() < 1e-4
        text = encoder.embed_texts(["a red picture"])
        assert client.search("a red picture", k=24).ids == index.search(text, k=24)[0][0].tolist()
        red = png(colour=COLOURS["red"], seed=0)  # the very bytes of the first sample
        best = client.search(image=red, k=1)[0]
        assert (best.metadata["key"], round(best.score, 2)) == ("s000", 1)
        assert client.image(best.id, size=32)[:2] == b"\xff\xd8"
        names = list(COLOURS)
        assert {each["name"] for each in client.classify(red, names, k=8)} == set(names)
        assert server.stop() == 0
    assert [line for line in failures(server) if "died" in line or "Traceback" in line] == []


@pytest.mark.full
@pytest.mark.parametrize("workers", ["1", "2"])
def test_many_stops_under_load(tmp_path: Path, folder: Path, workers: str) -> None:
    for _ in range(15):
        test_a_stop_under_load_answers_all_that_was_accepted(tmp_path, folder, workers)
