"""A peer's index in the peer's own environment: ENV/bin/python serve.py autofaiss|hnswlib|usearch [--threads 2]

One JSON object a line on stdin, one back on stdout; arrays by the path of a .npy file. Times are taken here, so that no
transport is in them. Needs nothing but numpy and the peer.

    {"do": "build", "rows": PATH, "folder": PATH, "options": {}}   -> {"seconds", "save_seconds", "what", "versions"}
    {"do": "find", "queries": PATH, "k": 10, "setting": 64, "out": PATH}  -> {}; int64 row numbers (Q, k) in `out`
    {"do": "time", "queries": PATH, "k": 10, "setting": 64, "single": false}   -> {"seconds"} for all of them
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import json
import os
import sys
import time
from typing import Any

PACKAGES = ("autofaiss", "faiss-cpu", "hnswlib", "usearch", "numpy", "pyarrow")


def answer(peer: Any, request: dict[str, Any], arrays: dict[str, Any]) -> dict[str, Any]:
    """Do what one request asks. arrays: queries that were read before."""
    import numpy as np

    if request["do"] == "build":
        return peer.build(request["rows"], request["folder"], **request["options"]) | {"versions": versions()}
    path = request["queries"]
    if path not in arrays:
        arrays[path] = np.load(path, allow_pickle=False)
    peer.set(request["setting"])
    if request["do"] == "find":
        np.save(request["out"], np.asarray(peer.search(arrays[path], request["k"]), np.int64), allow_pickle=False)
        return {}
    if request["do"] != "time":
        raise ValueError(f"do={request['do']!r}; it is build, find or time")
    batches = [arrays[path]] if not request["single"] else [row[None] for row in arrays[path]]
    start = time.perf_counter()
    for batch in batches:
        peer.search(batch, request["k"])
    return {"seconds": time.perf_counter() - start}


def versions() -> dict[str, str]:
    """Of what is installed here."""
    found = {dist.metadata["Name"].lower(): dist.version for dist in importlib.metadata.distributions()}
    return {name: found[name] for name in PACKAGES if name in found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peer", choices=("autofaiss", "hnswlib", "usearch"))
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = str(options.threads)  # before the peer loads OpenMP
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a peer prints is no reply
    module = importlib.import_module(f"{options.peer}_peer")
    peer, arrays = module.Peer(options.threads), {}
    for line in sys.stdin:
        try:
            reply = answer(peer, json.loads(line), arrays)
        except Exception as error:  # the other side raises it
            reply = {"error": f"{type(error).__name__}: {error}"}
        replies.write(json.dumps(reply) + "\n")
        replies.flush()


if __name__ == "__main__":
    main()
