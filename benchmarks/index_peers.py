"""Peers in environments of their own, each a process that answers one request at a time (peers/serve.py)."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from timing import progress

SERVE = Path(__file__).parent / "peers" / "serve.py"
NEEDS = {
    # autofaiss 2.18 fails at import with a newer numpy or pyarrow (Python up to 3.12 therefore)
    "autofaiss": ("autofaiss==2.18.0", "numpy<2", "pyarrow<16", "faiss-cpu==1.15.1"),
    "hnswlib": ("hnswlib==0.8.0", "numpy"),
    "usearch": ("usearch==2.26.6", "numpy"),
}


def interpreter(peer: str, folder: Path) -> Path:
    """The Python of a peer's environment, which is made in `folder` where it is not there yet.

    CalledProcessError: pip could not install it; what pip says is on stderr.
    """
    home = folder / peer
    python, done = home / "bin" / "python", home / "installed.txt"
    needs = "\n".join(NEEDS[peer])
    if not done.exists() or done.read_text() != needs:
        progress(f"{peer}: making its environment in {home}")
        subprocess.run([sys.executable, "-m", "venv", "--clear", home], check=True)
        install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *NEEDS[peer]]
        subprocess.run(install, check=True, stdout=sys.stderr)
        done.write_text(needs)
    return python


class Client:
    """A peer that runs; `peer` starts one and ends it."""

    def __init__(self, name: str, process: subprocess.Popen[str], scratch: Path):
        self.name, self._process, self._scratch = name, process, scratch
        self._saved: dict[int, tuple[np.ndarray, str]] = {}

    def build(self, rows: np.ndarray, **options: Any) -> dict[str, Any]:
        """Build on rows (N, D): {"seconds", "save_seconds", "what" it took where nobody said, "versions"}."""
        return self._ask(do="build", rows=self._file(rows), folder=str(self._scratch), options=options)

    def find(self, queries: np.ndarray, k: int, setting: int | None) -> np.ndarray:
        """(Q, k) int64 row numbers."""
        out = self._scratch / "found.npy"
        self._ask(do="find", queries=self._file(queries), k=k, setting=setting, out=str(out))
        return np.load(out, allow_pickle=False)

    def seconds(self, queries: np.ndarray, k: int, setting: int | None, single: bool = False) -> float:
        """How long all queries took, as one batch or one by one, as the peer's own clock says."""
        asked = {"queries": self._file(queries), "k": k, "setting": setting, "single": single}
        return self._ask(do="time", **asked)["seconds"]

    def _file(self, array: np.ndarray) -> str:
        """The path under which the peer reads this array; written once."""
        if id(array) not in self._saved:
            path = self._scratch / f"{len(self._saved)}.npy"
            np.save(path, array, allow_pickle=False)
            self._saved[id(array)] = array, str(path)  # kept: its id is no other array's as long as it lives
        return self._saved[id(array)][1]

    def _ask(self, **request: Any) -> dict[str, Any]:
        assert self._process.stdin and self._process.stdout
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise RuntimeError(f"{self.name} ended with {self._process.wait()}; what it says is on stderr")
        reply = json.loads(line)
        if "error" in reply:
            raise RuntimeError(f"{self.name}: {reply['error']}")
        return reply


@contextmanager
def peer(name: str, folder: Path, threads: int) -> Iterator[Client]:
    """Start a peer from its environment in `folder`; it ends with the block."""
    command = [interpreter(name, folder), SERVE, name, "--threads", str(threads)]
    with tempfile.TemporaryDirectory() as scratch:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        try:
            yield Client(name, process, Path(scratch))
        finally:
            assert process.stdin and process.stdout
            with suppress(BrokenPipeError):  # a peer that died leaves a request in the buffer, which close() writes
                process.stdin.close()
            process.stdout.close()
            process.wait()
