"""Servers for tests: in a thread, or as the process that a user starts."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from dualenc import Index
from dualenc.serve.process import Process
from dualenc.serve.run import listen

PATIENCE = 60  # seconds, of a machine that is busy


def rows(count: int, dim: int = 16, seed: int = 0) -> np.ndarray:
    """(count, dim) float32 unit rows."""
    found = np.random.default_rng(seed).standard_normal((count, dim)).astype(np.float32)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def small_index(folder: Path, count: int = 100, **more: Any) -> Path:
    """A flat index of random rows with a caption, a key and a number each."""
    metadata = [{"caption": f"picture {i}", "key": f"k{i}", "n": i, "even": i % 2 == 0} for i in range(count)]
    Index.build(rows(count), folder, metadata=metadata, recipe="flat", **more)
    return folder


@contextlib.contextmanager
def in_thread(app: Any) -> Iterator[str]:
    """Serve an ASGI application in a thread; its URL."""
    ready, listener = threading.Event(), listen("127.0.0.1", 0)
    server = Process(app, ready.set)
    thread = threading.Thread(target=server.answer, args=(listener,))
    thread.start()
    try:
        assert ready.wait(PATIENCE)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(PATIENCE)
        listener.close()
    assert not thread.is_alive()


class Started:
    """A server process of its own: what it printed, its address, its workers."""

    def __init__(self, process: subprocess.Popen[str], log: Path):
        self.process, self.log = process, log
        self.line = process.stdout.readline() if process.stdout else ""
        found = re.search(r"http://\S+", self.line)
        self.url = found[0] if found else ""

    def workers(self) -> list[int]:
        """Process ids of its workers (the child that only counts semaphores left out)."""
        path = Path(f"/proc/{self.process.pid}/task")
        children = [int(pid) for task in path.iterdir() for pid in (task / "children").read_text().split()]
        return [pid for pid in children if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal; its exit code."""
        self.process.send_signal(number)
        return self.process.wait(PATIENCE)

    @property
    def errors(self) -> str:
        """What it wrote to stderr."""
        return self.log.read_text()


@contextlib.contextmanager
def started(log: Path, *words: str, application: str | None = None, **environment: str) -> Iterator[Started]:
    """`dualenc serve WORDS` in a process of its own, on a free port; with another application, where one is named."""
    code = "import sys\nfrom dualenc.cli import main\n"
    if application is not None:
        code += f"import dualenc.serve.run as run\nrun.serve.__defaults__ = ({application!r},)\n"
    words = words if "--port" in words else (*words, "--port", "0")
    code += f"if __name__ == '__main__': sys.exit(main({['serve', *words]!r}))\n"
    script = log.with_suffix(".py")
    script.write_text(code)
    known = {name: value for name, value in os.environ.items() if name != "DUALENC_TOKEN"}
    root = str(Path(__file__).parents[2])
    with open(log, "w") as errors:
        process = subprocess.Popen(
            [sys.executable, str(script)],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env={**known, "PYTHONPATH": root, **environment},
        )
    try:
        yield Started(process, log)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        if process.stdout:
            process.stdout.close()


def until(happens: Any, seconds: float = PATIENCE) -> Any:
    """What `happens()` returns as soon as that is true."""
    end = time.monotonic() + seconds
    while not (found := happens()):
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)
    return found
