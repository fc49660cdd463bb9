"""CLIP_benchmark in an environment of its own, asked over files: its metrics, its retrieval, its memory."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import index_peers
from timing import progress

SCRIPT = Path(__file__).parent / "peers" / "clip_benchmark_peer.py"
PEER = "clip-benchmark"
ALONE = "clip-benchmark==1.6.2"  # without its dependencies: the two modules asked need nothing beyond these four
index_peers.NEEDS[PEER] = ("torch==2.13.0", "scikit-learn==1.9.1", "numpy==2.4.6", "tqdm==4.70.1")


def interpreter(folder: Path) -> Path:
    """The Python of CLIP_benchmark's environment under `folder`, made where it is not there yet.

    Its own list of dependencies (open_clip, transformers, pycocoevalcap, …) is left out: `zeroshot_retrieval` imports
    torch and tqdm, `zeroshot_classification` scikit-learn beside them. CalledProcessError: pip could not install it.
    """
    python = index_peers.interpreter(PEER, folder)
    done = folder / PEER / "installed_alone.txt"
    if not done.exists() or done.read_text() != ALONE:
        progress(f"{PEER}: {ALONE} without its dependencies")
        install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", ALONE]
        subprocess.run(install, check=True, stdout=sys.stderr)
        done.write_text(ALONE)
    return python


def run(peers: Path, verb: str, given: Path, out: Path, threads: int) -> None:
    """One of the peer's verbs, in a process of its own. CalledProcessError: it failed, and says why on stderr."""
    command = [interpreter(peers), SCRIPT, verb, given, out, "--threads", str(threads)]
    found = subprocess.run(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment(threads)
    )
    if found.returncode:
        sys.stderr.write(found.stderr)
        found.check_returncode()


def environment(threads: int) -> dict[str, str]:
    """Of both sides' processes."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    return os.environ | {name: str(threads) for name in names}
