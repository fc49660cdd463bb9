"""Against autofaiss with its defaults: one build each, searches by turns."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from index_data import ROWS, SETS, K, described, held_out, recall
from index_measure import BATCH, THREADS, built, by_turns, chosen, faster, goal, ours, theirs
from index_peers import peer

from dualenc.index import exact_search

TARGET = 0.95


def measure(options: Any) -> dict[str, Any]:
    """Each set of --sets."""
    results = {name: compare(name, options.rows or ROWS, options) for name in SETS if name in options.sets}
    return {
        "data": {
            "rows": options.rows or ROWS,
            "seed": options.seed,
            "sets": described({name: SETS[name] for name in results}),
        },
        "k": K,
        "sets": results,
        "goals": [entry for name, found in results.items() for entry in goals(name, found)],
    }


def compare(name: str, rows: int, options: Any) -> dict[str, Any]:
    """Both indexes of one set, built, asked and timed."""
    gallery, queries = held_out(name, rows, BATCH, options.seed)
    best = exact_search(queries, gallery, K)[0]
    with tempfile.TemporaryDirectory() as folder, peer("autofaiss", options.peers, THREADS) as client:
        theirs_built = client.build(gallery)
        index, seconds = built(gallery, Path(folder) / "index", recall=TARGET)
        ways = {"autofaiss": theirs(client, queries, None), "dualenc": ours(index, queries)}
        times = by_turns(ways, f"autofaiss, {name}", options.repeats)
        found = {
            "autofaiss": client.find(queries, K, None),
            "dualenc": index.search(queries, K)[0],
        }
        made = {"autofaiss": theirs_built, "dualenc": {"seconds": seconds, **chosen(index)}}
    return {side: {**made[side], "recall": recall(found[side], best), **times[side]} for side in made}


def goals(name: str, found: dict[str, Any]) -> list[dict[str, Any]]:
    """What the issue asks for."""
    mine, other = found["dualenc"], found["autofaiss"]
    return [
        goal(f"{name}: ANN recall@{K} on unseen queries", mine["recall"], least=TARGET),
        *faster(f"{name}: queries/s over autofaiss's", found, "dualenc", "autofaiss", 10),
        goal(f"{name}: build time over autofaiss's", mine["seconds"] / other["seconds"], most=0.2),
    ]
