"""Against hnswlib, usearch and FAISS tuned by hand, at equal recall: each at the least setting that reaches it.

The peers' settings are chosen on the very queries that are measured, ours on others: the peers' way is the easier one.
"""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import index_by_hand
import numpy as np
from index_data import ROWS, SETS, K, described, held_out, recall
from index_measure import BATCH, THREADS, Way, built, by_turns, chosen, faster, goal, ours, theirs
from index_peers import peer
from timing import progress

from dualenc.index import Index, exact_search

TARGETS = (0.95, 0.99)
PEERS: dict[str, tuple[str, dict[str, str]]] = {  # name here: peer, options of its build; else its defaults
    "hnswlib": ("hnswlib", {}),
    "usearch": ("usearch", {}),
    "usearch, float32": ("usearch", {"dtype": "f32"}),
}
LADDER = (10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384, 448, 512, 768)


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
    """All sides on one set."""
    gallery, queries = held_out(name, rows, BATCH, options.seed)
    best = exact_search(queries, gallery, K)[0]
    results: dict[str, Any] = {"built": {}}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        clients = {}
        for label, (kind, given) in PEERS.items():
            clients[label] = stack.enter_context(peer(kind, options.peers, THREADS))
            results["built"][label] = clients[label].build(gallery, **given)
            progress(f"{label}: built in {results['built'][label]['seconds']:.1f} s")
        mine = {}
        for target in TARGETS:
            mine[target], seconds = built(gallery, folder / str(target), recall=target)
            results["built"][f"dualenc {target}"] = {"seconds": seconds, **chosen(mine[target])}
            progress(f"dualenc for {target}: built in {seconds} s")
        hand = index_by_hand.grid(gallery, queries, best, TARGETS)
        for target in TARGETS:
            results[str(target)] = at(target, mine[target], clients, hand[str(target)], queries, best, name, options)
    return results


def at(
    target: float,
    index: Index,
    clients: dict[str, Any],
    hand: list[dict[str, Any]],
    queries: np.ndarray,
    best: np.ndarray,
    name: str,
    options: Any,
) -> dict[str, Any]:
    """Every side at one recall, by turns."""
    results: dict[str, Any] = {"dualenc": {"recall": recall(index.search(queries, K)[0], best)}}
    ways: dict[str, Way] = {"dualenc": ours(index, queries)}
    for label, client in clients.items():
        setting, reached = least(client, queries, best, target)
        results[label] = {"setting": setting, "recall": reached}
        if setting is not None:
            ways[label] = theirs(client, queries, setting)
    for mode, winner in index_by_hand.winners(hand).items():
        results[f"FAISS by hand, {mode}"] = {key: winner[key] for key in ("name", "setting", "recall", "build_seconds")}
        ways[f"FAISS by hand, {mode}"] = winner["way"]
    for label, times in by_turns(ways, f"graphs, {name} at {target}", options.repeats).items():
        results[label] |= times
    grid = [{key: value for key, value in entry.items() if key != "way"} for entry in hand]
    return {**results, "grid": sorted(grid, key=lambda entry: entry["batch"])}


def least(client: Any, queries: np.ndarray, best: np.ndarray, target: float) -> tuple[int | None, float]:
    """(the least of LADDER that reaches the target, its recall); (None, the most that it reaches) where none does."""
    reached = 0.0
    for setting in LADDER:
        reached = recall(client.find(queries, K, setting), best)
        if reached >= target:
            return setting, reached
    return None, reached


def goals(name: str, found: dict[str, Any]) -> list[dict[str, Any]]:
    """What the issue asks for; a peer that cannot reach a recall is no goal there."""
    wanted = []
    for target in TARGETS:
        sides, mine = found[str(target)], found["built"][f"dualenc {target}"]["seconds"]
        title = f"{name} at {target}"
        wanted.append(goal(f"{title}: ANN recall@{K} on unseen queries", sides["dualenc"]["recall"], least=target))
        for label in PEERS:
            build = mine / found["built"][label]["seconds"]
            if sides[label]["setting"] is not None:
                wanted += faster(f"{title}: queries/s over {label}'s", sides, "dualenc", label, 1)
                wanted.append(goal(f"{title}: build time over {label}'s", build, most=0.5))
        for mode, number in (("batch", 0), ("single", 1)):
            side = f"FAISS by hand, {mode}"
            if side in sides:
                wanted.append(faster(f"{title}: queries/s over FAISS by hand", sides, "dualenc", side, 0.8)[number])
    return wanted
