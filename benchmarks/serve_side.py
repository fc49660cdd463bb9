"""The processes of a measurement: our server, clip-retrieval's, and the one that asks; each ended with its block."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import index_peers
from serve_data import Assets, for_clip_retrieval
from timing import progress

HERE = Path(__file__).parent
OURS = (sys.executable, "-m", "dualenc", "serve")
THEIRS = HERE / "peers" / "clip_retrieval_peer.py"
HOST, PATIENCE = "127.0.0.1", 180.0  # seconds that a server may take to answer
PEER = "clip-retrieval"
index_peers.NEEDS[PEER] = (
    # its own pins allow nothing newer of numpy and pyarrow; torch is pinned so that pip takes the CPU wheel that is here;
    # `clip`, which it imports, needs pkg_resources, which setuptools 81 no longer brings
    "clip-retrieval==2.45.0",
    "numpy==1.26.4",
    "pyarrow==15.0.2",
    "torch==2.13.0",
    "torchvision==0.28.0",
    "setuptools<81",
)


class Server:
    """A server's process and where it listens."""

    def __init__(self, command: list[str], port: int, log: Path, threads: int):
        self.port, self.log = port, log
        self.began = time.perf_counter()
        with log.open("ab") as out:
            environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
            self.process = subprocess.Popen(command, stdout=out, stderr=out, env=environment)

    def get(self, path: str, body: Any = None, timeout: float = 30.0) -> tuple[int, Any]:
        """(status, JSON) of one request over a connection of its own. OSError: nobody listens, or no whole reply."""
        connection = http.client.HTTPConnection(HOST, self.port, timeout=timeout)
        try:
            data = None if body is None else json.dumps(body)
            connection.request("GET" if body is None else "POST", path, data, {"Content-Type": "application/json"})
            reply = connection.getresponse()
            return reply.status, json.loads(reply.read())
        except (http.client.HTTPException, json.JSONDecodeError) as error:
            raise OSError(str(error)) from error
        finally:
            connection.close()

    def seconds_until(self, path: str, body: Any = None, pause: float = 0.005) -> float:
        """Seconds from the process's start until a request is answered with 200; it is asked again and again.

        RuntimeError: the process ended, or nothing came in time; the log says why.
        """
        until = time.perf_counter() + PATIENCE
        while time.perf_counter() < until:
            with contextlib.suppress(OSError):
                if self.get(path, body)[0] == 200:
                    return time.perf_counter() - self.began
            if self.process.poll() is not None:
                break
            time.sleep(pause)
        raise RuntimeError(f"no answer at {path}: {self.log.read_text(errors='replace')[-2000:]}")

    def stop(self) -> int:
        """End it as a person would; the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(15)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()


def free_port() -> int:
    """A port that nobody listens at just now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def ours(indexes: dict[str, Path], scratch: Path, threads: int = 2, workers: int = 1) -> Iterator[Server]:
    """`dualenc serve` on some indexes, started; whoever needs it waits for it."""
    port = free_port()
    names = [f"{name}={folder}" for name, folder in indexes.items()]
    words = ["--port", str(port), "--threads", str(threads), *(["--workers", str(workers)] if workers > 1 else [])]
    server = Server([*OURS, *names, *words], port, scratch / "ours.log", threads)
    try:
        yield server
    finally:
        server.stop()


@contextlib.contextmanager
def clip_retrieval(found: Assets, peers: Path, metadata: str, threads: int = 2) -> Iterator[Server]:
    """clip-retrieval's `back` on the rows of `plain`, in its environment under `peers`, ready to answer."""
    python = index_peers.interpreter(PEER, peers)
    port = free_port()
    words = {
        "indices": for_clip_retrieval(found, metadata),
        "architecture": found.architecture,
        "weights": found.encoder / "open_clip_model.safetensors",
        "port": port,
        "threads": threads,
        "metadata": metadata,
    }
    command = [str(python), str(THEIRS)]
    command += [word for name, value in words.items() for word in (f"--{name}", str(value))]
    log = found.plain.parent / f"clip_retrieval_{metadata}.log"
    log.unlink(missing_ok=True)
    server = Server(command, port, log, threads)
    try:
        progress(f"clip-retrieval, {metadata}: answers after {server.seconds_until('/indices-list'):.1f} s")
        yield server
    finally:
        server.stop()


def peer_versions(peers: Path) -> dict[str, str]:
    """Of what matters in clip-retrieval's environment."""
    names = ("clip-retrieval", "flask", "werkzeug", "faiss-cpu", "numpy", "pyarrow", "pandas", "torch")
    code = f"import importlib.metadata as m, json; print(json.dumps({{n: m.version(n) for n in {names!r}}}))"
    made = subprocess.run(
        [index_peers.interpreter(PEER, peers), "-c", code], capture_output=True, text=True, check=True
    )
    return json.loads(made.stdout)


class Load:
    """The second process (serve_load.py), which asks what it is told to."""

    def __init__(self, process: subprocess.Popen[str], scratch: Path):
        self._process, self._scratch, self._files = process, scratch, 0

    def asks(self, some: list[tuple[str, Any]]) -> str:
        """The file that holds these (path, body) requests."""
        self._files += 1
        path = self._scratch / f"asks_{self._files}.json"
        path.write_text(json.dumps(some))
        return str(path)

    def start(self, port: int, asks: str, clients: int, count: int | None = None, **named: Any) -> None:
        """Begin a job; `result` waits for its end."""
        assert self._process.stdin
        job = {"port": port, "asks": asks, "clients": clients, "count": count, **named}
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()

    def result(self) -> dict[str, Any]:
        """What the job found. RuntimeError: it failed, or the process is gone."""
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the asking process ended with {self._process.wait()}; stderr says why")
        found = json.loads(line)
        if "error" in found:
            raise RuntimeError(f"asking failed: {found['error']}")
        return found

    def run(self, port: int, asks: str, clients: int, count: int | None = None, **named: Any) -> dict[str, Any]:
        """One job from start to end."""
        self.start(port, asks, clients, count, **named)
        return self.result()


@contextlib.contextmanager
def load(scratch: Path) -> Iterator[Load]:
    """The asking process."""
    command = [sys.executable, str(HERE / "serve_load.py")]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield Load(process, scratch)
    finally:
        assert process.stdin and process.stdout
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        process.stdout.close()
        process.wait()


def sound(found: dict[str, Any]) -> dict[str, Any]:
    """A job's result, of which every request was answered with 200. RuntimeError: one was not."""
    if found["bad"] or found["lost"]:
        raise RuntimeError(f"a measurement counts only where all is answered: {found['bad']}, {found['lost'][:3]}")
    return found
