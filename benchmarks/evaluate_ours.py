"""Our side of a retrieval, in a process of its own: python evaluate_ours.py FOLDER OUT.json [--share 0.1] [--threads 2]

On FOLDER's images.npy, texts.npy and image_row.npy: metrics, time, memory. --share: that share of the captions alone ask
and are asked for, in the first images' order; the others lie in memory. Then the intervals of all images are drawn too.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any


def measure(folder: Path, share: float | None) -> dict[str, Any]:
    import numpy as np
    from peers.peak import watched

    from dualenc.evaluate.intervals import mean_intervals
    from dualenc.evaluate.metrics import retrieval_metrics

    images, texts, row = (
        np.load(folder / f"{name}.npy", allow_pickle=False) for name in ("images", "texts", "image_row")
    )
    if share is None:
        metrics, cost = watched(lambda: retrieval_metrics(images, texts, row, ks=(1, 5, 10)))
        return {"metrics": metrics, **cost}
    some = round(share * len(texts))

    def part() -> dict[str, float]:
        return retrieval_metrics(images, texts[:some], row[:some], ks=(1, 5, 10), strict=False)

    metrics, cost = watched(part)
    hits = np.random.default_rng(0).random((len(texts), 3)) < 0.5
    _, drawn = watched(lambda: mean_intervals(hits, row))
    peak = max(cost["peak_mib"], drawn["peak_mib"])
    return {"metrics": metrics, **cost, "peak_mib": peak, "interval_seconds": drawn["seconds"], "share": share}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--share", type=float)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = str(options.threads)  # before numpy loads
    options.out.write_text(json.dumps(measure(options.folder, options.share)), encoding="utf-8")


if __name__ == "__main__":
    main()
