"""Latency of text searches beside /healthz, and requests/s beside clip-retrieval's `back`: by turns, medians of rounds."""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from index_measure import goal
from serve_data import Assets, texts
from serve_side import Load, Server, clip_retrieval, load, ours, peer_versions, sound
from timing import progress

CLIENTS = 8
K, USUAL = 10, 40  # hits asked for; what clip-retrieval's own client asks for
CHECKED = 100  # queries whose hits are compared
METADATA = {"parquet": "its default", "arrow": "use_arrow"}  # clip-retrieval's ways to read metadata


class Way(NamedTuple):
    """Requests that are timed together: `count` of a file's, in each round the next ones."""

    port: int
    asks: str
    clients: int
    count: int


def by_turns(asking: Load, ways: Mapping[str, Way], rounds: int, label: str) -> dict[str, list[dict[str, Any]]]:
    """What each way took in each round, one after the other within a round, forwards and backwards by turns."""
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in ways}
    for way in ways.values():  # and all are warm
        sound(asking.run(way.port, way.asks, way.clients, max(way.count // 10, 1), start=0))
    for each in range(rounds):
        progress(f"{label}: {each + 1} of {rounds}")
        for name in list(ways) if each % 2 == 0 else reversed(ways):
            way = ways[name]
            found[name].append(
                sound(asking.run(way.port, way.asks, way.clients, way.count, start=way.count * (each + 1)))
            )
    return found


def summary(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians over rounds, and how far they lie apart."""
    rates = [each["done"] / each["seconds"] for each in rounds]
    quantiles = {name: round(statistics.median(each["ms"][name] for each in rounds), 3) for name in rounds[0]["ms"]}
    return {
        "ms": quantiles,
        "requests_per_second": round(statistics.median(rates), 1),
        "slowest_round": round(min(rates), 1),
        "quickest_round": round(max(rates), 1),
        "asking_cpu_share": round(statistics.median(each["cpu_share"] for each in rounds), 3),
    }


def ratio(some: list[Any], others: list[Any], figure: Any) -> float:
    """The median over rounds of a figure of the one over that of the other."""
    return statistics.median(figure(a) / figure(b) for a, b in zip(some, others, strict=True))


def rate(found: dict[str, Any]) -> float:
    return found["done"] / found["seconds"]


def measure_speed(options: argparse.Namespace, found: Assets, scratch: Path) -> dict[str, Any]:
    """One client and eight: new texts, repeated ones, vectors, /healthz."""
    count = options.count
    with ours({"plain": found.plain}, scratch, options.threads) as server, load(scratch) as asking:
        server.seconds_until("/search", {"text": "warm", "k": K})
        alone, together = (
            asking.asks([("/search", {"text": text, "k": K}) for text in texts(start, most * (options.rounds + 1))])
            for start, most in ((0, count(400)), (100_000, count(1200)))
        )
        again = asking.asks([("/search", {"text": "a red circle", "k": K})])
        vectors = asking.asks([("/search", {"embedding": row, "k": K}) for row in rows(found)])
        health = asking.asks([("/healthz", None)])
        ways = {
            "healthz, 1 client": Way(server.port, health, 1, count(1000)),
            "new text, 1 client": Way(server.port, alone, 1, count(400)),
            "repeated text, 1 client": Way(server.port, again, 1, count(1000)),
            "vector, 1 client": Way(server.port, vectors, 1, count(1000)),
            "healthz, 8 clients": Way(server.port, health, CLIENTS, count(4000)),
            "new text, 8 clients": Way(server.port, together, CLIENTS, count(1200)),
            "repeated text, 8 clients": Way(server.port, again, CLIENTS, count(2000)),
            "vector, 8 clients": Way(server.port, vectors, CLIENTS, count(2000)),
        }
        taken = by_turns(asking, ways, options.rounds, "speed")
    figures = {name: summary(rounds) for name, rounds in taken.items()}
    p95 = ratio(taken["new text, 8 clients"], taken["healthz, 8 clients"], lambda each: each["ms"]["p95"])
    return {
        "ways": figures,
        "goals": [
            goal("new text, 1 client: p50, ms", figures["new text, 1 client"]["ms"]["p50"], most=10),
            goal("repeated text, 1 client: p50, ms", figures["repeated text, 1 client"]["ms"]["p50"], most=3),
            goal("8 clients: p95 of new texts over /healthz's", p95, most=4),
        ],
    }


def measure_peer(options: argparse.Namespace, found: Assets, scratch: Path) -> dict[str, Any]:
    """/knn-service and /search, against clip-retrieval's /knn-service on the same FAISS file: vectors, eight clients."""
    count, versions = options.count, peer_versions(options.peers)  # first: it makes the environment
    with (
        ours({"plain": found.plain}, scratch, options.threads) as server,
        clip_retrieval(found, options.peers, "parquet", options.threads) as parquet,
        clip_retrieval(found, options.peers, "arrow", options.threads) as arrow,
        load(scratch) as asking,
    ):
        server.seconds_until("/readyz")
        agreed = same_hits(found, server, parquet)
        ours_alone = asking.asks([("/search", {"embedding": row, "k": K}) for row in rows(found)])
        ways = {"ours, /search, 10 hits": Way(server.port, ours_alone, CLIENTS, count(2000))}
        for hits in (K, USUAL):
            asks = asking.asks([("/knn-service", knn(row, hits)) for row in rows(found)])
            ways[f"ours, {hits} hits"] = Way(server.port, asks, CLIENTS, count(2000))
            ways[f"clip-retrieval, parquet, {hits} hits"] = Way(parquet.port, asks, CLIENTS, count(5000 // hits))
            ways[f"clip-retrieval, arrow, {hits} hits"] = Way(arrow.port, asks, CLIENTS, count(1000))
        taken = by_turns(asking, ways, options.rounds, "peer")
    goals = [goal("share of hits that both give", agreed, least=0.999)]
    for metadata, said in METADATA.items():
        for hits in (K, USUAL):
            more = ratio(taken[f"ours, {hits} hits"], taken[f"clip-retrieval, {metadata}, {hits} hits"], rate)
            goals.append(goal(f"requests/s over clip-retrieval's ({said}), {hits} hits", more, least=3))
    return {"ways": {name: summary(rounds) for name, rounds in taken.items()}, "versions": versions, "goals": goals}


def rows(found: Assets) -> list[list[float]]:
    """The held-out vectors, as JSON has them."""
    return np.load(found.queries, allow_pickle=False).tolist()


def knn(row: list[float], hits: int) -> dict[str, Any]:
    """What clip-retrieval's client sends, less the duplicates' removal, which would leave other hits."""
    return {
        "text": None,
        "image": None,
        "image_url": None,
        "embedding_input": row,
        "deduplicate": False,
        "use_safety_model": False,
        "use_violence_detector": False,
        "indice_name": "plain",
        "use_mclip": False,
        "aesthetic_score": "",
        "aesthetic_weight": "",
        "modality": "image",
        "num_images": hits,
        "num_result_ids": hits,
    }


def same_hits(found: Assets, one: Server, other: Server) -> float:
    """Share of hits that both servers give for the same vectors; their metadata must be equal wherever ids are."""
    equal = total = 0
    for row in rows(found)[:CHECKED]:
        ours_said, theirs_said = (
            {hit["id"]: (hit["url"], hit["caption"]) for hit in server.get("/knn-service", knn(row, K))[1]}
            for server in (one, other)
        )
        both = ours_said.keys() & theirs_said.keys()
        if any(ours_said[each] != theirs_said[each] for each in both):
            raise RuntimeError("the servers say different things of the same rows; they do not serve the same index")
        equal, total = equal + len(both), total + max(len(ours_said), len(theirs_said))
    return equal / total
