"""Text queries on image rows behind a modality gap: `auto` tuned on texts, an index tuned on images, exact search."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from index_data import GAP_ROWS, GAPS, Gap, K, described, recall, reseeded
from index_measure import BATCH, built, by_turns, chosen, goal, ours

from dualenc.index import exact_search

TARGET = 0.95
NOISE = 0.9  # of the same search timed twice: when flat is what auto chose, it is exact search


def measure(options: Any) -> dict[str, Any]:
    """Each of GAPS."""
    rows = options.rows or GAP_ROWS
    results = {name: compare(name, gap, rows, options) for name, gap in GAPS.items()}
    return {
        "data": {"rows": rows, "seed": options.seed, "queries": BATCH, "sets": described(GAPS)},
        "k": K,
        "target": TARGET,
        "sets": results,
        "goals": [entry for name, found in results.items() for entry in goals(name, found)],
    }


def compare(name: str, gap: Gap, rows: int, options: Any) -> dict[str, Any]:
    """One set: built for texts and for images, both asked for texts that neither has seen."""
    clusters = reseeded(gap.clusters, rows / GAP_ROWS, options.seed)
    images, more = (gap.images.draw(clusters, count, stream)[0] for stream, count in enumerate((rows, 2 * BATCH)))
    tuned, texts = (gap.texts.draw(clusters, BATCH, stream)[0] for stream in (0, 1))
    best = {"texts": exact_search(texts, images, K), "images": exact_search(more[BATCH:], images, K)}
    with tempfile.TemporaryDirectory() as folder:
        auto, auto_seconds = built(images, Path(folder) / "auto", recall=TARGET, queries=tuned)
        own, own_seconds = built(images, Path(folder) / "own", recipe="ivf", recall=TARGET, queries=more[:BATCH])
        flat, _ = built(images, Path(folder) / "flat", recipe="flat")
        ways = {"auto": ours(auto, texts), "exact": ours(flat, texts)}
        times = by_turns(ways, f"cross-modal, {name}", options.repeats)
        found = {
            label: {
                "seconds": seconds,
                **chosen(index),
                "recall_texts": recall(index.search(texts, K)[0], best["texts"][0]),
                "recall_images": recall(index.search(more[BATCH:], K)[0], best["images"][0]),
            }
            for label, index, seconds in (("auto", auto, auto_seconds), ("tuned on images", own, own_seconds))
        }
    found["auto"] |= times["auto"]
    best_cosine = {side: round(float(scores[:, 0].mean()), 3) for side, (_, scores) in best.items()}
    return {**found, "exact": times["exact"], "best_cosine": best_cosine}


def goals(name: str, found: dict[str, Any]) -> list[dict[str, Any]]:
    """What the issue asks for."""
    auto, exact = found["auto"], found["exact"]
    floor = NOISE if auto["build"]["kind"] == "flat" else 1
    return [
        goal(f"{name}: ANN recall@{K} on unseen texts, auto", auto["recall_texts"], least=TARGET),
        goal(f"{name}: the same, tuned on images", found["tuned on images"]["recall_texts"], most=TARGET - 0.1),
        goal(
            f"{name}: queries/s over exact search's, batches",
            auto["queries_per_second"] / exact["queries_per_second"],
            least=floor,
        ),
        goal(f"{name}: the same, single queries", exact["single_ms"] / auto["single_ms"], least=floor),
    ]
