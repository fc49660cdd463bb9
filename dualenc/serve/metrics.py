"""Prometheus metrics: requests, latency by route and stage, queues, caches. Label values come from the code alone.

With several workers each writes its numbers to files of a folder that they share (PROMETHEUS_MULTIPROC_DIR, which
must stand in the environment before a worker starts: `shared` makes it); whichever is asked adds them up.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest, multiprocess
from prometheus_client.core import GaugeMetricFamily

VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
BUCKETS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)  # seconds
METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"))

registry = CollectorRegistry()
_REQUESTS = Counter("dualenc_requests", "Requests answered", ["method", "route", "status"], registry=registry)
_LATENCY = Histogram(
    "dualenc_request_seconds",
    "From a request's start to its answer's end",
    ["route"],
    buckets=BUCKETS,
    registry=registry,
)
_STAGES = Histogram(
    "dualenc_stage_seconds", "Time in one stage of a request", ["stage"], buckets=BUCKETS, registry=registry
)
_QUEUE = Gauge(
    "dualenc_queue_length", "Requests that wait in a lane", ["lane"], registry=registry, multiprocess_mode="livesum"
)
_CACHES = Counter("dualenc_cache", "Look-ups in a cache", ["cache", "result"], registry=registry)

# Children by their labels: `labels()` checks and locks at each call, a dictionary does not
_requests: dict[tuple[str, str, int], Any] = {}
_latency: dict[str, Any] = {}
_stages: dict[str, Any] = {}
_queues: dict[str, Any] = {}
_caches: dict[tuple[str, str], Any] = {}


def count_request(method: str, route: str, status: int, seconds: float) -> None:
    """One request is answered. `route` is a template, never a path that a caller wrote."""
    key = (method, route, status)
    counter = _requests.get(key)
    if counter is None:
        known = method if method in METHODS else "other"
        counter = _REQUESTS.labels(known, route, str(status))
        if known == method:  # what callers invent must not fill the dictionary either
            _requests[key] = counter
    counter.inc()
    histogram = _latency.get(route)
    if histogram is None:
        histogram = _latency[route] = _LATENCY.labels(route)
    histogram.observe(seconds)


def time_stage(name: str, seconds: float) -> None:
    """A stage took so long."""
    histogram = _stages.get(name)
    if histogram is None:
        histogram = _stages[name] = _STAGES.labels(name)
    histogram.observe(seconds)


def set_queue(lane: str, length: int) -> None:
    """So many requests wait in a lane now."""
    gauge = _queues.get(lane)
    if gauge is None:
        gauge = _queues[lane] = _QUEUE.labels(lane)
    gauge.set(length)


def count_cache(cache: str, result: str) -> None:
    """A look-up in a cache: result "hit" or "miss"."""
    counter = _caches.get((cache, result))
    if counter is None:
        counter = _caches[cache, result] = _CACHES.labels(cache, result)
    counter.inc()


class _Indexes:
    """Collector of what the indexes are now: any worker knows, so nothing is shared."""

    def __init__(self, lives: dict[str, Any]):
        self.lives = lives

    def collect(self) -> Iterator[GaugeMetricFamily]:
        rows = GaugeMetricFamily("dualenc_index_rows", "Rows of an index", labels=["index"])
        generation = GaugeMetricFamily("dualenc_index_generation", "Generation that is searched", labels=["index"])
        for name, live in self.lives.items():
            rows.add_metric([name], len(live.index))
            generation.add_metric([name], live.generation)
        yield from (rows, generation)


def exposition(lives: dict[str, Any]) -> bytes:
    """All metrics as Prometheus reads them; `lives` are a service's indexes by name."""
    indexes = CollectorRegistry()
    indexes.register(_Indexes(lives))  # type: ignore[arg-type]
    return generate_latest(_numbers()) + generate_latest(indexes)


def summary() -> str:
    """Count and mean of every stage and route, as lines of text."""
    sums: dict[tuple[str, str], dict[str, float]] = {}
    for family in _numbers().collect():
        for sample in family.samples:
            if sample.name in ("dualenc_stage_seconds_sum", "dualenc_request_seconds_sum"):
                sums.setdefault(_what(sample), {})["sum"] = sample.value
            elif sample.name in ("dualenc_stage_seconds_count", "dualenc_request_seconds_count"):
                sums.setdefault(_what(sample), {})["count"] = sample.value
    lines = [f"{'what':<44}{'count':>10}{'mean ms':>12}"]
    for (kind, name), value in sorted(sums.items()):
        count = value.get("count", 0)
        mean = value.get("sum", 0) / count * 1000 if count else 0.0
        lines.append(f"{kind + ' ' + name:<44}{int(count):>10}{mean:>12.3f}")
    return "\n".join(lines) + "\n"


def _what(sample: Any) -> tuple[str, str]:
    kind = "stage" if sample.name.startswith("dualenc_stage") else "route"
    return kind, sample.labels[kind]


def _numbers() -> CollectorRegistry:
    """This process's metrics; with several workers, those of all."""
    folder = os.environ.get(VARIABLE)
    if not folder or not Path(folder).is_dir():
        return registry
    for file in Path(folder).glob("gauge_live*_*.db"):
        pid = int(file.stem.rpartition("_")[2])
        if not _alive(pid):  # a killed worker's queue is no longer one
            multiprocess.mark_process_dead(pid, folder)
    together = CollectorRegistry()
    multiprocess.MultiProcessCollector(together, folder)
    return together


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


@contextlib.contextmanager
def shared(workers: int) -> Iterator[None]:
    """Around the start of several workers: the folder that their metrics share. One worker needs none."""
    if workers < 2 or VARIABLE in os.environ:
        yield
        return
    with tempfile.TemporaryDirectory(prefix="dualenc-metrics-", ignore_cleanup_errors=True) as folder:
        os.environ[VARIABLE] = folder
        try:
            yield
        finally:
            os.environ.pop(VARIABLE, None)
