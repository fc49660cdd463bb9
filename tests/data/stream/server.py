"""A real HTTP server on loopback that breaks off, answers with errors, lies about lengths, and stalls, when told to."""

from __future__ import annotations

import collections
import contextlib
import http.server
import os
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path


class Server:
    """Files of a folder. `faults[name]`: what happens to the next requests for a file, in order; then all is well.

    An int: the connection breaks after that many bytes of the body. "404", "503": that answer. "stall": nothing comes.
    ("length", n): the header says n bytes. "cut": no length is given, and half of the body.
    """

    def __init__(self, folder: Path, ranges: bool = True):
        self.folder, self.ranges = folder, ranges
        self.faults: dict[str, list] = collections.defaultdict(list)
        self.requests: list[tuple[str, str | None]] = []  # (name, Range)
        self.headers: list[dict[str, str]] = []
        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.http.daemon_threads = True
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def url(self, name: str = "") -> str:
        return f"http://127.0.0.1:{self.http.server_port}/{name}"

    def asked(self, name: str) -> int:
        return sum(asked == name for asked, _ in self.requests)

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()

    def _handler(server) -> type:
        class Handler(http.server.BaseHTTPRequestHandler):
            def log_message(self, *_: object) -> None:
                pass

            def do_GET(self) -> None:
                name = self.path.lstrip("/").partition("?")[0]
                server.requests.append((name, self.headers.get("Range")))
                server.headers.append(dict(self.headers))
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    server._answer(self, name)
                self.close_connection = True

        return Handler

    def _answer(self, handler: http.server.BaseHTTPRequestHandler, name: str) -> None:
        fault = self.faults[name].pop(0) if self.faults[name] else None
        path = self.folder / name
        if fault == "stall":
            time.sleep(30)
        if (isinstance(fault, str) and fault.isdigit()) or not path.is_file():
            return handler.send_error(int(fault) if isinstance(fault, str) else 404)
        data = path.read_bytes()
        wanted = re.fullmatch(r"bytes=(\d+)-", handler.headers.get("Range") or "")
        first = int(wanted[1]) if wanted and self.ranges else 0
        if first and first >= len(data):
            return handler.send_error(416)
        handler.send_response(206 if first else 200)
        if first:
            handler.send_header("Content-Range", f"bytes {first}-{len(data) - 1}/{len(data)}")
        body = data[first:]
        if isinstance(fault, tuple):
            body = body[: fault[1]]
            handler.send_header("Content-Length", str(fault[1]))
        elif fault == "cut":
            body = body[: len(body) // 2]
        else:
            handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body[:fault] if isinstance(fault, int) else body)
        return None


@contextlib.contextmanager
def serving(folder: Path, ranges: bool = True) -> Iterator[Server]:
    server = Server(folder, ranges)
    try:
        yield server
    finally:
        server.close()


def in_use() -> tuple[int, int]:
    """Open files of this process, sockets left out (the server has some), and its children, zombies included."""
    files = children = 0
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            files += not os.readlink(f"/proc/self/fd/{name}").startswith("socket:")
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(FileNotFoundError):  # a thread that has just ended
            children += len((task / "children").read_text().split())
    return files, children
