"""The search setting of an index, chosen by measuring: the cheapest that reaches the asked-for ANN recall.

ANN recall@k of a query: the share of exact search's k best rows that the index returns too. Half of the queries choose
the setting, the other half report what it is worth; on both the lower bound of the mean has to reach the target.

A search has a width (nprobe, efSearch) and, with codes, a re-rank factor. Recall and time grow with both, which is
what saves most of the measurements.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import faiss
import numpy as np
from tqdm import tqdm

from dualenc.index.budget import OutOfReach, in_words
from dualenc.index.meter import STRIDE, Meter, Place, Search, Setting, least
from dualenc.index.recall import LEVEL, Truth
from dualenc.index.recall import truth as truth

K = 10
NEARLY = 0.999  # recall at which the curve ends
SIMILAR = 1.5  # settings within this of the cheapest are timed again, by turns


def tune(
    search: Search,
    ladders: dict[str, list[int]],
    queries: np.ndarray,
    truth: Truth | None,
    target: float,
    exact_scores: bool,
    seconds: float = 6.0,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[Setting, dict[str, Any]]:
    """(setting, record): the cheapest setting whose ANN recall is `target` at least, by its lower 95 % bound.

    search(queries, k, setting) -> ids, scores. ladders: {}, or values of one knob or two, ascending: the first is the
    width of the search, the second the re-rank factor. queries: (Q, D); truth: theirs, k included. exact_scores:
    whether `search` returns true cosines.

    The record: k, target, level; value and lower, on the `queries` that did not choose; chosen_on, the number that
    did; moved: settings passed over because they reached the target on the one half only; curve: of the settings
    measured those that no other beats in both recall and ms (per query of a batch), and the chosen one, by ms.
    seconds: when to stop refining the curve and the times; what the choice needs is measured however long it takes.
    With nothing to measure, value is None, `reason` says why, and the setting is the widest. One query does both.

    OutOfReach (a ValueError): no setting meets the target; it says the best that can be had.
    """
    k = K if truth is None else truth.ids.shape[1]
    record = {"k": k, "target": target, "value": None, "lower": None, "level": LEVEL, "queries": 0, "chosen_on": 0}
    if truth is None or not len(queries) or not k:
        reason = "there are no rows to find" if not k else "there are no queries to measure with"
        return {knob: ladder[-1] for knob, ladder in ladders.items()}, {**record, "reason": reason, "curve": []}
    with tqdm(desc="tune", unit="setting", disable=None) as bar:
        meter = Meter(search, ladders, queries, truth, exact_scores, target, seconds, clock, bar)
        chosen, moved = _choose(meter)
        curve = _curve(meter, chosen)
    if len(queries) == 1:
        record["reason"] = "there is one query: it chose, and it reports"
    return meter.setting(chosen), {
        **record,
        "value": round(float(meter.recall(chosen, 1).mean()), 4),
        "lower": round(meter.lower(chosen, 1), 4),
        "queries": len(meter.recall(chosen, 1)),
        "chosen_on": len(meter.recall(chosen, 0)),
        "moved": moved,
        "curve": [meter.point(place) for place in curve],
    }


def measure_latency(search: Search, queries: np.ndarray, setting: Setting) -> dict[str, Any]:
    """Milliseconds for one query alone (median of up to 100) and per query of a batch, k = 10, after a warm-up."""
    search(queries[:10], K, setting)
    single = []
    for query in queries[:100]:
        start = time.perf_counter()
        search(query[None], K, setting)
        single.append(time.perf_counter() - start)
    start = time.perf_counter()
    search(queries, K, setting)
    batch = (time.perf_counter() - start) / len(queries)
    timed = {"single_ms": round(statistics.median(single) * 1e3, 4), "batch_ms_per_query": round(batch * 1e3, 4)}
    return {**timed, "batch": len(queries), "threads": faiss.omp_get_max_threads()}


def _choose(meter: Meter) -> tuple[Place, int]:
    """The cheapest place that meets the target on both halves, and how many met it on the first alone.

    The reporting half is asked as late as can be: whatever it turns down, it has helped to choose.
    """
    chosen = _cheapest(meter, (0,))
    if chosen is not None and not meter.meets(chosen, 1):
        chosen = _cheapest(meter, (0, 1))
    if chosen is None:
        raise OutOfReach(_best(meter))
    passed_over = [place for place in meter.measured(1) if meter.meets(place, 0) and not meter.meets(place, 1)]
    return chosen, len(passed_over)


def _cheapest(meter: Meter, halves: tuple[int, ...]) -> Place | None:
    """The cheapest place that meets the target on these halves; None where the widest of all does not.

    From the widest re-rank down: each narrower one needs the same width at least, and drops out once it costs more
    than the cheapest so far.
    """
    found: list[Place] = []
    limit = float("inf")
    for rerank in range(meter.last[1], -1, -1):
        width = _least_width(meter, rerank, found[-1][0] if found else 0, halves, limit)
        if width is not None:
            found.append((width, rerank))
            limit = min(limit, SIMILAR * meter.ms(found[-1]))
        elif not found:
            return None
    near = [place for place in found if meter.ms(place) <= limit]
    if len(near) > 1:
        meter.by_turns(near, 5)
    return min(near, key=meter.ms)


def _least_width(meter: Meter, rerank: int, first: int, halves: tuple[int, ...], limit: float) -> int | None:
    """The least width from `first` on that meets the target; None: there is none, or it costs more than `limit` ms."""

    def meets(width: int) -> bool:
        return all(meter.meets((width, rerank), half) for half in halves)

    return least(meets, first, meter.last[0], lambda width: meter.ms((width, rerank)) > limit)


def _best(meter: Meter) -> str:
    """What to say when the target is out of reach: the best that was measured, by the worse of its halves."""
    meter.recall(meter.last, 0)  # a few queries may have told enough
    halves = {place: [half for half in (0, 1) if place in meter.measured(half)] for place in meter.measured(0)}
    worse = {place: min(asked, key=lambda half: meter.lower(place, half)) for place, asked in halves.items()}
    place = max(worse, key=lambda place: meter.lower(place, worse[place]))
    recall = meter.recall(place, worse[place])
    return (
        f"ANN recall@{meter.k} is {recall.mean():.4f} at best, {meter.lower(place, worse[place]):.4f} by its lower "
        f"{LEVEL:.0%} bound over {len(recall)} queries ({in_words(meter.setting(place)) or 'nothing to set'}), "
        f"below recall={meter.target:g}; ask for less, or take a recipe with more exact codes, or flat"
    )


def _curve(meter: Meter, chosen: Place) -> list[Place]:
    """Places from cheap to nearly exact that no other beats, and the chosen one, by time; as far as time allows."""
    for place in _coarse(meter, chosen, -1):
        meter.recall(place, 1)  # all of them together take less than the chosen one did
    for place in meter.measured(0):
        if meter.fits(meter.ms(place)):
            meter.recall(place, 1)
    before = chosen
    for place in _coarse(meter, chosen, 1):
        if meter.recall(before, 1).mean() >= NEARLY or not meter.fits(_expected(meter, before, place)):
            break
        meter.recall(place, 1)
        before = place
    meter.by_turns(_pareto(meter, chosen), 3)
    return _pareto(meter, chosen)


def _coarse(meter: Meter, place: Place, way: int) -> Iterator[Place]:
    """From a place on to the widest (way 1) or the narrowest (way -1) of all, both knobs at once, by strides."""
    end = meter.last if way == 1 else (0, 0)
    while place != end:
        step = zip(place, (STRIDE, 1), meter.last, strict=True)
        width, rerank = (min(max(at + way * stride, 0), last) for at, stride, last in step)
        yield (place := (width, rerank))


def _expected(meter: Meter, known: Place, place: Place) -> float:
    """At most so many ms: each part of a search grows with one knob or with none."""
    old, new = meter.setting(known), meter.setting(place)
    return meter.ms(known) * max(new[knob] / old[knob] for knob in old)


def _pareto(meter: Meter, chosen: Place) -> list[Place]:
    kept: list[Place] = []
    best = -1.0
    for place in sorted(meter.measured(1), key=lambda place: (meter.ms(place), -meter.recall(place, 1).mean())):
        recall = meter.recall(place, 1).mean()
        if recall > best or place == chosen:
            kept.append(place)
        best = max(best, recall)
    return kept
