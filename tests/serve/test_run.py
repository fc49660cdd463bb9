"""Starting and stopping: what is said, what is refused, and that nothing which was asked stays without an answer."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest

from dualenc.serve import protocol, run
from dualenc.serve.settings import Settings
from tests.serve import tiny_app
from tests.serve.running import Started, in_thread, small_index, started, until


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_index(tmp_path_factory.mktemp("run") / "photos", 1234)


@pytest.fixture(params=["1", "2"], ids=["one process", "two workers"])
def server(request: pytest.FixtureRequest, tmp_path: Path, folder: Path) -> Iterator[Started]:
    with started(tmp_path / "log", str(folder), "--workers", request.param, application=tiny_app.NAME) as server:
        yield server


def test_it_says_where_it_listens_once_it_answers(server: Started) -> None:
    assert server.line == f"dualenc: serving photos (1,234 rows) on {server.url}\n"
    assert server.url.startswith("http://127.0.0.1:")
    reply = httpx.get(f"{server.url}/pid").json()
    assert reply["indexes"] == ["photos"]
    assert reply["pid"] in (server.workers() or [server.process.pid])
    assert server.errors == ""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_what_is_running_is_finished(server: Started, number: int) -> None:
    replies: list[httpx.Response] = []
    slow = [threading.Thread(target=lambda: replies.append(httpx.get(f"{server.url}/sleep/1.5"))) for _ in range(4)]
    with httpx.Client() as idle:  # a kept connection must not hold it up
        idle.get(f"{server.url}/pid")
        for thread in slow:
            thread.start()
        assert until(lambda: _connections(server) >= 5)
        assert server.stop(number) == 0
    for thread in slow:
        thread.join()
    assert [reply.status_code for reply in replies] == [200] * 4
    assert {reply.headers["connection"] for reply in replies} == {"close"}
    assert server.errors == "dualenc: stopping: what is running is finished first\n"
    assert server.process.stdout is not None and server.process.stdout.read() == ""
    with pytest.raises(httpx.ConnectError):
        httpx.get(server.url)


def _connections(server: Started) -> int:
    """Established connections to the server's port, as the system counts them."""
    port = f":{int(server.url.rpartition(':')[2]):04X}"
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(line[1].endswith(port) and line[3] == "01" for line in lines)


def test_a_stop_while_a_worker_is_started_again(tmp_path: Path, folder: Path) -> None:
    """The one that starts lets nobody wait in the listener: who is not answered is refused, not reset."""
    words = (str(folder), "--workers", "2", "--encoder", "slow start")
    with started(tmp_path / "log", *words, application=tiny_app.NAME) as server:
        before = server.workers()
        os.kill(before[0], signal.SIGKILL)
        until(lambda: len(found := server.workers()) == 2 and before[0] not in found)
        server.process.terminate()
        with pytest.raises(httpx.ConnectError):  # any other error is a request that was accepted and lost
            while True:
                assert httpx.get(f"{server.url}/pid").status_code == 200
        assert server.process.wait(60) == 0


def test_workers_do_not_outlive_their_parent(tmp_path: Path, folder: Path) -> None:
    with started(tmp_path / "log", str(folder), "--workers", "2", application=tiny_app.NAME) as server:
        workers = server.workers()
        server.process.kill()
        server.process.wait()
        until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers))
        with pytest.raises(httpx.ConnectError):
            httpx.get(server.url)


def test_settings_reach_the_workers(tmp_path: Path, folder: Path) -> None:
    words = (f"a={folder}", f"b={folder}", "--workers", "2")
    with started(tmp_path / "log", *words, application=tiny_app.NAME, DUALENC_TOKEN="secret") as server:
        reply = httpx.get(f"{server.url}/pid").json()
        assert reply["token"] == "secret"
        assert reply["indexes"] == ["a", "b"]
        assert "a (1,234 rows), b (1,234 rows)" in server.line
        for pid in (server.process.pid, *server.workers()):
            assert b"secret" not in Path(f"/proc/{pid}/cmdline").read_bytes()
        workers = server.workers()
        for pid in workers:  # as Ctrl-C in a terminal does: it is for the one that watches them
            os.kill(pid, signal.SIGINT)
        time.sleep(0.6)
        assert server.workers() == workers
        assert server.errors == ""


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize(("encoder", "said"), [("broken", "photos cannot be opened; build it again"), ("late", "")])
def test_what_cannot_start_is_one_line(tmp_path: Path, folder: Path, workers: str, encoder: str, said: str) -> None:
    words = (str(folder), "--workers", workers, "--encoder", encoder)
    with started(tmp_path / "log", *words, application=tiny_app.NAME) as server:
        assert server.process.wait(60) == 1
        assert server.line == ""
        assert "Traceback" not in server.errors
        if said:
            assert server.errors == f"dualenc: error: {said}\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_a_signal_while_it_starts_ends_it(tmp_path: Path, folder: Path, number: int) -> None:
    words = (str(folder), "--encoder", str(int(number)))
    with started(tmp_path / "log", *words, application="tests.serve.test_run:stopped_early") as server:
        assert server.process.wait(60) == 0
        assert (server.line, server.errors) == ("", "")


def stopped_early(settings: Settings) -> None:
    """An application that is stopped while it is made."""
    os.kill(os.getpid(), int(settings.encoder or 0))
    raise AssertionError("the signal should have ended this process")


def test_hung_threads_do_not_keep_it(tmp_path: Path, folder: Path) -> None:
    words = (str(folder), "--encoder", "hung thread")
    with started(tmp_path / "log", *words, application=tiny_app.NAME) as server:
        assert server.stop() == 0


@pytest.mark.full
@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_stop_has_an_end(tmp_path: Path, folder: Path, workers: str) -> None:
    """A request that neither ends nor can be cancelled holds it up for a bounded time, and the exit code tells."""
    words = (str(folder), "--workers", workers)
    with started(tmp_path / "log", *words, application=tiny_app.NAME) as server:
        thread = threading.Thread(
            target=lambda: until(lambda: _connections(server) >= 1) and server.process.terminate()
        )
        thread.start()
        with pytest.raises(httpx.HTTPError):
            httpx.get(f"{server.url}/hang", timeout=60)
        assert server.process.wait(60) == 1
    assert "are lost" in server.errors


def test_a_taken_port_is_one_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from dualenc.cli import main

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["serve", str(folder), "--port", str(port)]) == 1
    assert f"port {port} of 127.0.0.1 is taken; stop what listens there" in capsys.readouterr().err


@pytest.mark.parametrize("host", ["203.0.113.7", "no-such-host.invalid"])
def test_an_address_that_is_not_ours_is_one_line(host: str) -> None:
    with pytest.raises(ValueError, match="is no address of this machine; use --host"):
        run.listen(host, 0)


def test_a_missing_extra_is_one_line(folder: Path) -> None:
    code = (
        "import sys, importlib.util\n"
        "find = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, *a: None if name in ('fastapi', 'uvicorn') else find(name, *a)\n"
        "sys.modules['fastapi'] = sys.modules['uvicorn'] = None\n"  # importing them raises
        "from dualenc.cli import main\n"
        f"sys.exit(main(['serve', {str(folder)!r}, '--port', '0']))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == (
        "dualenc: error: the server needs fastapi, uvicorn, which are not installed: pip install 'dualenc[serve]'\n"
    )


@pytest.mark.parametrize(
    ("host", "shown"),
    [
        ("127.0.0.1", "http://127.0.0.1:{}"),
        ("localhost", "http://localhost:{}"),
        ("::1", "http://[::1]:{}"),
        ("0.0.0.0", "http://127.0.0.1:{} and this machine's other addresses"),
    ],
)
def test_the_address_that_is_said_can_be_opened(host: str, shown: str) -> None:
    try:
        listener = run.listen(host, 0)
    except ValueError:
        pytest.skip(f"this machine has no {host}")
    with listener:
        assert run.address(host, listener) == shown.format(listener.getsockname()[1])


def test_connections_that_nobody_has_taken_yet_are_answered() -> None:
    """What the system has accepted when the server is told to stop is answered, not reset."""
    import asyncio

    from dualenc.serve.process import Process

    listener = run.listen("127.0.0.1", 0)
    waiting = [socket.create_connection(listener.getsockname()) for _ in range(5)]
    for each in waiting:
        each.sendall(b"GET /pid HTTP/1.1\r\nhost: x\r\n\r\n")
    server = Process(tiny_app.make(Settings({"a": Path("a")})))

    async def stopped_at_once() -> None:
        async def no_time() -> None:
            server.servers = []  # as if its loop had not looked at the listener yet

        server.config.load()
        server.lifespan = server.config.lifespan_class(server.config)
        await server.startup(sockets=[])
        await no_time()
        server.should_exit = True
        await server.shutdown(sockets=[listener])

    asyncio.run(stopped_at_once())
    for each in waiting:
        with each:
            assert each.recv(1000).startswith(b"HTTP/1.1 200")


def test_a_kept_connection_may_ask_once_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """A request that was on its way when the server was told to stop is answered, and told that it was the last."""
    from dualenc.serve import process

    monkeypatch.setattr(process, "LINGER", 30.0)
    ready, listener = threading.Event(), run.listen("127.0.0.1", 0)
    url = "http://{}:{}/pid".format(*listener.getsockname())
    server = process.Process(tiny_app.make(Settings({"a": Path("a")})), ready.set)
    thread = threading.Thread(target=server.answer, args=(listener,))
    thread.start()
    assert ready.wait(60)
    with httpx.Client() as kept:
        assert "connection" not in kept.get(url).headers
        server.should_exit = True
        until(lambda: listener.fileno() < 0)  # nobody new is let in
        reply = kept.get(url)
        assert (reply.status_code, reply.headers["connection"]) == (200, "close")
        thread.join(20)  # with its last connection gone it waits no longer
        assert not thread.is_alive()


def test_a_server_in_a_thread_leaves_the_signals_alone() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with in_thread(tiny_app.make(Settings({"a": Path("a")}))) as url:
        assert httpx.get(f"{url}/pid").status_code == 200
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("parser", ["httptools", "h11"])
def test_a_request_whose_caller_left_ends(
    parser: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from dualenc.serve import accesslog, observe, protocol

    monkeypatch.setattr(protocol, "best", protocol._bounded if parser == "httptools" else protocol._h11)
    accesslog.configure("text")
    with in_thread(observe.Observe(tiny_app.make(Settings({"a": Path("a")})))) as url:
        address = ("127.0.0.1", int(url.rpartition(":")[2]))
        for _ in range(3):
            with socket.create_connection(address) as caller:
                caller.sendall(b"GET /sleep/600 HTTP/1.1\r\nhost: x\r\n\r\n")
                time.sleep(0.05)
        assert httpx.get(f"{url}/pid").status_code == 200
        said = list[str]()
        until(lambda: said.append(capsys.readouterr().err) or "".join(said).count("GET /sleep/600 499 ") == 3)
    assert "Traceback" not in "".join(said) + capsys.readouterr().err


def test_it_listens_when_the_app_has_started_and_is_prepared() -> None:
    from dualenc.serve import process

    order: list[str] = []
    listener, tiny = run.listen("127.0.0.1", 0), tiny_app.make(Settings({"a": Path("a")}))

    async def app(scope: Any, receive: Any, send: Any) -> None:
        async def told(message: Any) -> None:
            order.append(message["type"])
            await send(message)

        await tiny(scope, receive, told)

    async def prepared() -> None:
        order.append("prepared" if not server.servers else "too late")

    def listening() -> None:
        order.append("listening")
        server.should_exit = True

    server = process.Process(app, listening, prepared=prepared)
    server.servers = []
    with listener:
        assert server.answer(listener)
    assert order == ["lifespan.startup.complete", "prepared", "listening", "lifespan.shutdown.complete"]


def test_a_closed_stdout_is_no_reason_not_to_serve(tmp_path: Path, folder: Path) -> None:
    log = tmp_path / "log"
    command = f"exec {sys.executable} -m dualenc serve {folder} --port 0 >&- 2>{log}"
    process = subprocess.Popen(["sh", "-c", command], env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])})
    try:
        found = until(lambda: _port_of(process.pid))
        assert httpx.get(f"http://127.0.0.1:{found}/healthz").status_code == 200
    finally:
        process.terminate()
        assert process.wait(30) == 0
    assert "Traceback" not in log.read_text()


def _port_of(pid: int) -> int | None:
    """The port at which a process listens."""
    sockets = {os.readlink(f"/proc/{pid}/fd/{name}") for name in os.listdir(f"/proc/{pid}/fd")}
    for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]:
        _, address, _, state, *rest = line.split()
        if state == "0A" and f"socket:[{rest[5]}]" in sockets:
            return int(address.rpartition(":")[2], 16)
    return None


def test_a_caller_who_does_not_read_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "STALLED", 0.3)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            while (message := await receive())["type"] != "lifespan.shutdown":
                await send({"type": f"{message['type']}.complete"})
            await send({"type": "lifespan.shutdown.complete"})
            return
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"50000000")]})
        await send({"type": "http.response.body", "body": b"x" * 50_000_000})

    with in_thread(app) as url:
        with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2]))) as caller:
            caller.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            time.sleep(1.5)
            taken = 0
            with contextlib.suppress(ConnectionError):
                while part := caller.recv(1 << 20):
                    taken += len(part)
            assert taken < 50_000_000  # what the system had taken already, and no more
        assert len(httpx.get(url).content) == 50_000_000  # whoever reads gets all


@pytest.mark.parametrize("proxy", [False, True])
def test_only_a_proxy_that_was_named_says_who_calls(proxy: bool) -> None:
    from dualenc.serve.process import Process

    seen = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            seen.append(scope["client"][0])
        await tiny(scope, receive, send)

    tiny = tiny_app.make(Settings({"a": Path("a")}))
    listener, ready = run.listen("127.0.0.1", 0), threading.Event()
    server = Process(app, ready.set, proxy=proxy)
    thread = threading.Thread(target=server.answer, args=(listener,))
    thread.start()
    assert ready.wait(60)
    try:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/pid"
        assert httpx.get(url, headers={"X-Forwarded-For": "10.1.2.3"}).status_code == 200
    finally:
        server.should_exit = True
        thread.join(60)
        listener.close()
    assert seen == ["10.1.2.3" if proxy else "127.0.0.1"]
