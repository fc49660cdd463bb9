"""A server under load for longer: 64 clients for a minute, memory over 100,000 requests, a worker that is killed."""

from __future__ import annotations

import argparse
import os
import signal
import time
from pathlib import Path
from typing import Any

from index_measure import goal
from serve_data import Assets, texts
from serve_proc import anonymous, connections_of, family, resident
from serve_side import Load, Server, load, ours
from serve_speed import knn, rows
from timing import progress

MANY, SECONDS = 64, 60.0  # clients, and how long they ask
FILL, REQUESTS, EACH = 100_000, 100_000, 10_000  # that fill the caches, that memory is measured over, between two looks
AT_ONCE = 8  # clients
KILLS, BEFORE, AFTER = 3, 2.0, 10.0  # workers killed; seconds of load before and after
LOADING = 2000.0  # milliseconds: who takes longer waits for an encoder that is still loading


def mixed(asking: Load, found: Assets, count: int) -> str:
    """Requests of many kinds: new texts, repeated ones, vectors, filters, neighbours, items, pages of hits, bad ones not."""
    some = rows(found)
    said = texts(50_000, count)
    asks: list[tuple[str, Any]] = []
    for i in range(count):
        row = some[i % len(some)]
        kinds = (
            ("/search", {"text": said[i], "k": 10}),
            ("/search", {"text": said[i % 50], "k": 40, "offset": i % 5 * 40}),
            ("/search", {"embedding": row, "k": 10}),
            ("/search", {"embedding": row, "k": 10, "where": f"caption like '%{('red', 'blue', 'ring')[i % 3]}%'"}),
            ("/knn-service", knn(row, 10)),
            (f"/items/{i * 37 % 1000}/similar?k=10", None),
            (f"/items/{i * 53 % 1000}", None),
            ("/search", {"terms": [{"text": said[i]}, {"id": i % 1000, "weight": -0.5}], "k": 10}),
        )
        asks.append(kinds[i % len(kinds)])
    return asking.asks(asks)


def trouble(result: dict[str, Any]) -> int:
    """Requests without a reply, or with another than 200."""
    return len(result["lost"]) + sum(result["bad"].values())


def measure_clients(options: argparse.Namespace, found: Assets, scratch: Path) -> dict[str, Any]:
    """64 clients for a minute: errors, requests lost, rate."""
    with ours({"plain": found.plain}, scratch, options.threads) as server, load(scratch) as asking:
        server.seconds_until("/search", {"text": "warm", "k": 1})
        asks = mixed(asking, found, options.count(40_000))
        progress(f"clients: {MANY} for {SECONDS * options.share:g} s")
        result = asking.run(server.port, asks, MANY, seconds=SECONDS * options.share)
    return {
        "result": result,
        "goals": [goal(f"{MANY} clients for a minute: errors and losses", trouble(result), most=0)],
    }


def measure_soak(options: argparse.Namespace, found: Assets, scratch: Path) -> dict[str, Any]:
    """Memory over 100,000 requests: what the processes hold themselves, without pages of mapped files.

    As many come before them: the cache of texts takes 32 MiB, which some 22,000 new texts fill (one request of four).
    """
    fill, total, each = options.count(FILL), options.count(REQUESTS), options.count(EACH)
    with ours({"plain": found.plain}, scratch, options.threads) as server, load(scratch) as asking:
        server.seconds_until("/search", {"text": "warm", "k": 1})
        asks = mixed(asking, found, fill + total)
        memory, results = [_memory(server, 0)], []
        for start in range(0, fill + total, each):
            results.append(asking.run(server.port, asks, AT_ONCE, each, start=start))
            memory.append(_memory(server, start + each))
    settled = next(look for look in memory if look["requests"] >= fill)
    growth = memory[-1]["own_mib"] / settled["own_mib"] - 1
    return {
        "memory": memory,
        "p95_ms": [result["ms"]["p95"] for result in results],
        "goals": [
            goal(f"memory over {total:,} requests, once {fill:,} have filled the caches: growth", growth, most=0.05),
            goal("errors and losses meanwhile", sum(map(trouble, results)), most=0),
        ],
    }


def _memory(server: Server, requests: int) -> dict[str, float]:
    own, whole = anonymous(server.process.pid), resident(server.process.pid)
    progress(f"soak: {requests:,} requests, {own:.0f} MiB, {whole:.0f} with mapped files")
    return {"requests": requests, "own_mib": round(own, 1), "resident_mib": round(whole, 1)}


def measure_kill(options: argparse.Namespace, found: Assets, scratch: Path) -> dict[str, Any]:
    """kill -9 of one of two workers under load: whose requests were lost, and when two answer again."""
    kills = []
    with ours({"plain": found.plain}, scratch, 1, workers=2) as server, load(scratch) as asking:
        server.seconds_until("/search", {"text": "warm", "k": 1})
        asks = mixed(asking, found, 20_000)
        for each in range(KILLS):
            progress(f"kill: {each + 1} of {KILLS}")
            wait_for_workers(server, asking, asks)
            asking.start(server.port, asks, AT_ONCE, seconds=BEFORE + AFTER, start=each * 5000)
            time.sleep(BEFORE)
            holding = {pid: connections_of(pid, server.port) for pid in family(server.process.pid)}
            victim = max(holding, key=lambda pid: len(holding[pid]) if pid != server.process.pid else -1)
            os.kill(victim, signal.SIGKILL)
            result = asking.result()
            foreign = [one for one in result["lost"] if one["client_port"] not in holding[victim]]
            kills.append(
                {
                    "connections_of_the_killed": len(holding[victim]),
                    "answered": result["done"],
                    "lost": len(result["lost"]),
                    "lost_of_others": foreign,
                    "bad": result["bad"],
                }
            )
    others = sum(len(each["lost_of_others"]) + sum(each["bad"].values()) for each in kills)
    own = sum(max(each["lost"] - each["connections_of_the_killed"], 0) for each in kills)
    return {
        "kills": kills,
        "goals": [
            goal("a worker killed: lost or failed requests that were not its own", others, most=0),
            goal("lost requests beyond one for each of its connections", own, most=0),
        ],
    }


def wait_for_workers(server: Server, asking: Load, asks: str, patience: float = 120.0) -> None:
    """Until two processes answer, texts too, and none waits for its encoder. RuntimeError: that does not come about."""
    until = time.perf_counter() + patience
    while time.perf_counter() < until:
        asking.start(server.port, asks, 2 * AT_ONCE, seconds=0.4)
        time.sleep(0.2)
        busy = [pid for pid in family(server.process.pid) if connections_of(pid, server.port)]
        result = asking.result()
        if len(busy) >= 2 and not trouble(result) and result["ms"]["max"] < LOADING:
            return
        time.sleep(0.3)
    raise RuntimeError(f"two workers were asked for, and one answers: {server.log.read_text(errors='replace')[-2000:]}")
