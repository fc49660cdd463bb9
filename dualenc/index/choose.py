"""Recipe `auto`: which kind of index reaches the asked-for recall at the least cost, found out by trial builds.

Every candidate is tried on a small random sample, those that may still win on a larger one; times on all rows follow
from the two. What was chosen, what was turned down and why is one table, which the index keeps.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from tqdm import tqdm

from dualenc.index.candidate import NEAR, Candidate, as_json, rank, size, table
from dualenc.index.kinds import KINDS
from dualenc.index.queries import Queries
from dualenc.index.recipe import load_recipe
from dualenc.index.trial import Clock, Sample, Trial, attempt, build_seconds, power_law, quick, straight_line
from dualenc.index.vectors import Rows, unit_rows

MOST_QUERIES = 400
SMALLER, FEWEST = 4, 1000  # the small sample is the large one's first quarter, or so many rows
GRAPH_ROWS = 8_192  # a graph is tried on no more: it is slow to build
# how a search's time grows with the rows, as a power: (at best, usually), until it has been measured
GROWTH = {"flat": (1.0, 1.0), "scan": (0.9, 1.0), "ivf": (0.25, 0.5), "hnsw": (0.0, 0.2)}
SECONDS, FLOATS, POWER = 4.0, 200_000 * 256, 0.7  # what choosing may take, for so many numbers, and how that grows
SCANS = 40  # times the speed of exact search that no scan of all codes reaches: they are a sixteenth of the bytes
GRAPH_SHARE = 0.25  # of that time, for one graph

__all__ = ["Candidate", "as_json", "choose", "table"]


def choose(
    rows: Rows,
    queries: Queries,
    recipe: dict[str, Any],
    target: float,
    memory: int | None,
    latency: float | None,
    rerank: bool,
    load: Callable[[str, int], dict[str, Any]] = load_recipe,
    clock: Clock = time.perf_counter,
) -> list[Candidate]:
    """The candidates of an `auto` recipe, those to build first, in order (order 0, 1, …), then those turned down.

    target: ANN recall@10; memory: bytes; latency: seconds of a query alone; rerank: whether original rows can be had, to
    score codes again. Of the queries only the half that chooses is looked at. load resolves a recipe for so many rows.
    OutOfReach (a ValueError): nothing meets what is asked; it says the best of each.
    """
    auto = recipe["build"]
    candidates = _candidates(auto["candidates"], rows, load, rerank)
    for one in candidates:
        if memory is not None and one.bytes > memory:
            one.reason = f"needs {size(one.bytes)}, above memory {size(memory)}"
    fitting = [one for one in candidates if not one.reason]
    flat = next((one for one in fitting if one.recipe["build"]["kind"] == "flat"), None)
    few = len(rows) <= auto["flat_up_to_rows"]
    if flat and (not len(queries.rows) or (few and latency is None)):
        return _flat_alone(candidates, flat)
    if fitting and len(queries.rows):
        trials = _Trials(_sample(rows, queries, auto["sample_rows"], target, clock), load, rerank, len(rows), rows.dim)
        if flat:
            trials.small(flat)
            trials.large(flat)
            if few and latency is not None and flat.single_ms is not None and flat.single_ms <= 1e3 * latency:
                return _flat_alone(candidates, flat)
        trials.run([one for one in fitting if one is not flat], flat)
    return rank(candidates, flat, target, memory, latency)


def _flat_alone(candidates: list[Candidate], flat: Candidate) -> list[Candidate]:
    flat.order, flat.reason, flat.recall = 0, "so few rows that exact search is quick", 1.0
    for one in candidates:
        one.reason = one.reason or "not tried: exact search is quick enough"
    return [flat, *(one for one in candidates if one is not flat)]


def _candidates(
    names: list[str], rows: Rows, load: Callable[[str, int], dict[str, Any]], rerank: bool
) -> list[Candidate]:
    made: list[Candidate] = []
    for name in names:
        resolved = _without_rerank(load(name, len(rows)), rerank)
        needed = KINDS[resolved["build"]["kind"]].bytes_needed(resolved["build"], len(rows), rows.dim)
        made.append(Candidate(name, resolved, needed))
    return made


def _without_rerank(recipe: dict[str, Any], rerank: bool) -> dict[str, Any]:
    return recipe if rerank else {**recipe, "search": {k: v for k, v in recipe["search"].items() if k != "rerank"}}


def _sample(rows: Rows, queries: Queries, most: int, target: float, clock: Clock) -> Sample:
    """Random rows in random order, none of them held out; and of the queries, the half that chooses."""
    chosen = np.arange(len(rows)) if queries.held is None else np.delete(np.arange(len(rows)), queries.held)
    picked = np.random.default_rng(0).permutation(chosen)[:most]
    order = np.argsort(picked)  # read in the order on disk, kept in the order drawn
    read = np.empty((len(picked), rows.dim), np.float32)
    for part in np.array_split(order, math.ceil(len(order) / 16_384)):
        read[part] = unit_rows(rows.take(picked[part]), "vectors", numbers=picked[part])
    half = max(1, len(queries.rows) // 2)
    return Sample(read, queries.rows[:half][:MOST_QUERIES], len(chosen), target, clock)


class _Trials:
    """Trials of the candidates, most promising first, for as long as there is time."""

    def __init__(self, sample: Sample, load: Callable[[str, int], dict[str, Any]], rerank: bool, rows: int, dim: int):
        self._sample, self._load, self._rerank, self._rows = sample, load, rerank, rows
        self._seconds = SECONDS * max(1.0, rows * dim / FLOATS) ** POWER
        self._end = math.inf
        self._small: dict[str, Trial] = {}
        most = len(sample.rows)
        self._sizes = (max(min(most, FEWEST), most // SMALLER), most)

    def run(self, candidates: list[Candidate], flat: Candidate | None) -> None:
        """Try each on the small sample, then on the large one those that may still be the cheapest."""
        best: Candidate | None = None
        self._end = self._sample.clock() + self._seconds
        with tqdm(total=2 * len(candidates), desc="choosing", unit="trial", disable=None) as bar:
            for one in candidates:
                bar.set_postfix_str(one.name)
                one.reason = self._pointless(one, candidates, flat)
                if one.reason:
                    pass
                elif self._late() and any(other.single_ms is not None for other in candidates):
                    one.reason = "not tried: the time for choosing was up"
                else:
                    self.small(one)
                bar.update()
            tried = [one for one in candidates if one.single_ms is not None]
            for one in sorted(tried, key=lambda one: (_family(one) == "hnsw", one.cost)):  # graphs last: slow to build
                bar.set_postfix_str(one.name)
                if self._worth_it(one, best, flat):
                    self.large(one)
                    best = one if one.cost < (best.cost if best else math.inf) else best
                bar.update()

    def _pointless(self, one: Candidate, candidates: list[Candidate], flat: Candidate | None) -> str:
        """Why codes cannot save anything, told from lists of whole rows; "" where they may, or those were not tried."""
        lists = next((o for o in candidates if o.name in self._small and o.recipe["build"].get("nlist", 1) > 1), None)
        build = one.recipe["build"]
        if lists is None or build.get("codes", "float32") == "float32" or build["kind"] != "ivf":
            return ""
        trial = self._small[lists.name]
        if build["nlist"] == 1:
            quick = flat is not None and SCANS * lists.cost < flat.cost
            return f"not tried: {lists.name} is over {SCANS} times as fast as exact search" if quick else ""
        assert trial.setting is not None
        nlist = self._load(lists.name, trial.rows)["build"]["nlist"]
        few = trial.setting.get("nprobe", nlist) * trial.rows < nlist * nlist
        return f"not tried: {lists.name} spends its time on finding the lists, not on reading them" if few else ""

    def _worth_it(self, one: Candidate, best: Candidate | None, flat: Candidate | None) -> bool:
        """Whether to try it on the large sample; the reason is noted where not."""
        small = self._small[one.name]
        least = (self._rows / small.rows) ** GROWTH[_family(one)][0]  # how much more all rows cost at least
        for how, time_ms in (("alone", "single_ms"), ("in a batch", "batch_ms")):
            if flat and (ours := getattr(small, time_ms) * least) > (exact := getattr(flat, time_ms)):
                one.reason = f"at least {ours:.3g} ms a query {how} against exact search's {exact:.3g}"
                return False
        if best and small.cost * least > NEAR * best.cost:
            one.reason = f"about {one.cost / best.cost:.2g} times {best.name}'s time a query, by {small.rows:,} rows"
        elif best and self._late():
            one.reason = f"judged by {small.rows:,} rows only: the time for choosing was up"
        one.guessed = bool(one.reason)
        return not one.guessed

    def small(self, one: Candidate) -> None:
        """Try it on the small sample; its times on all rows are a guess then."""
        trial = self._try(one, min(self._sizes[0], self._graph_rows(one) // SMALLER))
        if trial:
            self._small[one.name] = trial
            usual = (self._rows / trial.rows) ** GROWTH[_family(one)][1]
            one.single_ms, one.batch_ms = trial.single_ms * usual, trial.batch_ms * usual

    def large(self, one: Candidate) -> None:
        """Try it on the large sample, and extrapolate from the two."""
        small = self._small[one.name]
        one.single_ms = one.batch_ms = None
        large = self._try(one, min(self._sizes[1], self._graph_rows(one, small)))
        if large:
            grow = straight_line if _family(one) in ("flat", "scan") else power_law
            one.single_ms = grow((small.rows, small.single_ms), (large.rows, large.single_ms), self._rows)
            one.batch_ms = grow((small.rows, small.batch_ms), (large.rows, large.batch_ms), self._rows)

    def _try(self, one: Candidate, rows: int) -> Trial | None:
        """None, with the reason, where the target is out of reach."""
        tried = _without_rerank(self._load(one.name, rows), self._rerank)
        trial = attempt(tried, self._sample, rows)
        one.recall = trial.recall
        one.build_s = build_seconds(trial, quick(tried["build"]), one.recipe["build"], self._rows)
        if trial.setting is None:
            one.reason = f"reaches {trial.recall:.3f} of {self._sample.target:g} on {rows:,} sampled rows"
            return None
        return trial

    def _graph_rows(self, one: Candidate, small: Trial | None = None) -> int:
        if one.recipe["build"]["kind"] != "hnsw":
            return self._sizes[1]
        most = min(GRAPH_ROWS, self._sizes[1])
        if small is None:
            return most
        affordable = GRAPH_SHARE * self._seconds / max(small.add_s, 1e-9) * small.rows
        return int(min(most, max(affordable, 2 * small.rows)))

    def _late(self) -> bool:
        return self._sample.clock() > self._end


def _family(one: Candidate) -> str:
    build = one.recipe["build"]
    return "scan" if build.get("nlist") == 1 else build["kind"]
