"""Our side of a retrieval, in a process of its own: python evaluate_ours.py FOLDER OUT.json [--share 0.1] [--threads 2]

On FOLDER's images.npy, texts.npy and image_row.npy: metrics, time, memory. --share: time of that share of the captions
against all images, both ways; memory of that share of the captions and of the images asking all rows of the other side, and
of the intervals of all captions.
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
    from dualenc.evaluate.ranks import ranks

    images, texts, row = (
        np.load(folder / f"{name}.npy", allow_pickle=False) for name in ("images", "texts", "image_row")
    )
    if share is None:
        metrics, cost = watched(lambda: retrieval_metrics(images, texts, row, ks=(1, 5, 10)))
        return {"metrics": metrics, **cost}
    some = round(share * len(texts))

    def part() -> dict[str, float]:
        return retrieval_metrics(images, texts[:some], row[:some], ks=(1, 5, 10), strict=False)

    def asked() -> None:
        own = row < round(share * len(images))
        ranks(texts[:some], images, row[:some, None])
        ranks(
            images[: round(share * len(images))],
            texts,
            np.split(np.flatnonzero(own), np.flatnonzero(np.diff(row[own])) + 1),
        )

    metrics, cost = watched(part)
    _, held = watched(asked) if share < 1 else (None, cost)
    hits = np.random.default_rng(0).random((len(texts), 3)) < 0.5
    _, drawn = watched(lambda: mean_intervals(hits, row))
    peak = max(each["peak_mib"] for each in (cost, held, drawn))
    return {
        "metrics": metrics,
        **cost,
        "peak_mib": peak,
        "interval_seconds": drawn["seconds"],
        "share": share,
        "held": [len(images), len(texts)],
    }


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
