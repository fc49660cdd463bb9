"""Requests on loopback from a second process, a bounded number of clients at a time: python serve_load.py

One JSON object a line on stdin, one back on stdout. Each client sends its next request when it has the reply to its last
one, over a connection that stays open where the server lets it. One thread and plain sockets: it takes the same few
microseconds of each request whoever answers, and says how many.

    {"port": 8000, "asks": FILE, "clients": 8, "count": 1000, "seconds": null, "start": 0}
      asks: JSON list of [path, body]; a body of null is a GET, else a POST of that JSON. Taken in turn from number
      `start` on. count, seconds: when to stop, whichever comes first.
      -> {"done", "seconds", "ms": {"p50", "p95", "p99", "max", "mean"}, "bad": {"503": 2}, "lost": [LOST…],
          "cpu_share", "bytes", "connections"}
      LOST, a request without a whole reply: {"ask", "client_port", "at" seconds from the start, "why"}
"""

from __future__ import annotations

import json
import os
import selectors
import socket
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

HOST, PATIENCE = "127.0.0.1", 60.0  # seconds without any reply after which what is open counts as lost


class Reply(NamedTuple):
    """What came back: its status, its bytes in all, and whether the server keeps the connection."""

    status: int
    bytes: int
    stays: bool


def request(path: str, body: Any) -> bytes:
    """An HTTP/1.1 request as it is sent."""
    if body is None:
        return f"GET {path} HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode()
    data = json.dumps(body).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: {HOST}\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
    )
    return head.encode() + data


def reply(got: bytes | bytearray, ended: bool) -> Reply | None:
    """The reply that these bytes are; None while something is missing. ended: the server has closed."""
    end = got.find(b"\r\n\r\n")
    if end < 0:
        return None
    head = bytes(got[:end]).lower()
    status = int(head[9:12])
    named = dict(line.split(b":", 1) for line in head.split(b"\r\n")[1:])
    stays = named.get(b"connection", b"").strip() != b"close" and head.startswith(b"http/1.1")
    if b"content-length" in named:
        whole = end + 4 + int(named[b"content-length"])
        return Reply(status, whole, stays) if len(got) >= whole else None
    if b"chunked" in named.get(b"transfer-encoding", b""):
        return Reply(status, len(got), stays) if got.endswith(b"\r\n0\r\n\r\n") else None
    return Reply(status, len(got), False) if ended else None


class Client:
    """One connection, opened anew where it was closed, and the request that is under way on it."""

    def __init__(self, port: int):
        self.port, self.socket, self.got, self.opened = port, None, bytearray(), 0
        self.sent = self.asked = 0
        self.began = 0.0

    def send(self, number: int, data: bytes, selector: selectors.BaseSelector) -> None:
        """Ask; the clock runs from before the connection is opened, where there is none."""
        self.asked, self.began = number, time.perf_counter()
        self.got.clear()
        if self.socket is None:
            self.socket = socket.create_connection((HOST, self.port), timeout=10)
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.opened += 1
            selector.register(self.socket, selectors.EVENT_READ, self)
        self.socket.sendall(data)

    def close(self, selector: selectors.BaseSelector) -> int:
        """Give the connection up; returns the port that it had on this side."""
        if self.socket is None:
            return 0
        port = self.socket.getsockname()[1]
        selector.unregister(self.socket)
        self.socket.close()
        self.socket = None
        return port


class Run:
    """One job: what is still to be asked, and what has come back."""

    def __init__(self, job: dict[str, Any], asks: list[bytes]):
        self.job, self.asks = job, asks
        self.count = job.get("count") or sys.maxsize
        self.next = 0
        self.taken: list[float] = []
        self.bad: Counter[str] = Counter()
        self.lost: list[dict[str, Any]] = []
        self.bytes = 0
        self.selector = selectors.DefaultSelector()
        self.clients = [Client(job["port"]) for _ in range(min(job.get("clients", 1), self.count))]
        self.start = time.perf_counter()
        self.until = self.start + (job.get("seconds") or 1e9)

    def go(self) -> dict[str, Any]:
        """Ask until count or time is out; every request that was sent is waited for."""
        cpu = time.process_time()
        busy = sum(self._ask(client) for client in self.clients)
        while busy:
            events = self.selector.select(PATIENCE)
            if not events:
                for client in self.clients:
                    self._lose(client, f"no reply in {PATIENCE:g} s")
                break
            for key, _ in events:
                busy -= self._read(key.data)
        seconds, cpu = time.perf_counter() - self.start, time.process_time() - cpu
        return {
            "done": len(self.taken),
            "seconds": round(seconds, 4),
            "ms": spread(self.taken),
            "bad": dict(self.bad),
            "lost": self.lost,
            "cpu_share": round(cpu / seconds, 4),
            "bytes": self.bytes,
            "connections": sum(client.opened for client in self.clients),
        }

    def _ask(self, client: Client) -> bool:
        """Send the next request; whether there was one."""
        while self.next < self.count and time.perf_counter() < self.until:
            number = (self.job.get("start", 0) + self.next) % len(self.asks)
            self.next += 1
            try:
                client.send(number, self.asks[number], self.selector)
                return True
            except OSError as error:
                self._lose(client, f"{type(error).__name__}: {error}")
                time.sleep(0.01)  # nobody listens: no storm of attempts
        client.close(self.selector)  # what the server does with it from now on is no loss
        return False

    def _read(self, client: Client) -> int:
        """Take what has come; 1 when this client has nothing more to ask, else 0."""
        why = "the server closed"
        try:
            data = client.socket.recv(1 << 18)
        except OSError as error:
            data, why = b"", type(error).__name__
        client.got += data
        whole = reply(client.got, not data)
        if whole is None and data:
            return 0
        if whole is None:
            self._lose(client, why)
        else:
            self.taken.append(time.perf_counter() - client.began)
            self.bytes += whole.bytes
            if whole.status != 200:
                self.bad[str(whole.status)] += 1
            if not whole.stays or not data:
                client.close(self.selector)
        return 0 if self._ask(client) else 1

    def _lose(self, client: Client, why: str) -> None:
        port, at = client.close(self.selector), time.perf_counter() - self.start
        self.lost.append({"ask": client.asked, "client_port": port, "at": round(at, 4), "why": why})


def spread(taken: list[float]) -> dict[str, float]:
    """Quantiles of seconds, in milliseconds; the smallest value that at least that share does not exceed."""
    if not taken:
        return {}
    ordered = sorted(taken)
    at = {name: ordered[-(-len(ordered) * share // 100) - 1] for name, share in (("p50", 50), ("p95", 95), ("p99", 99))}
    named = {**at, "max": ordered[-1], "mean": sum(ordered) / len(ordered)}
    return {name: round(value * 1e3, 4) for name, value in named.items()}


def main() -> None:
    asks: dict[str, list[bytes]] = {}
    for line in sys.stdin:
        job = json.loads(line)
        path = job["asks"]
        if path not in asks:
            asks[path] = [request(where, body) for where, body in json.loads(Path(path).read_text())]
        try:
            found = Run(job, asks[path]).go()
        except Exception as error:  # the other side raises it
            found = {"error": f"{type(error).__name__}: {error}"}
        sys.stdout.write(json.dumps(found) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    os.environ.setdefault("PYTHONHASHSEED", "0")
    main()
