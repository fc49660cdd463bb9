"""`auto`: what it takes, what it turns down and why, on data where the answer is known."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest

from dualenc.index import choose as module
from dualenc.index import trial as trials
from dualenc.index.candidate import Candidate, rank, size
from dualenc.index.choose import as_json, choose, table
from dualenc.index.kinds import KINDS
from dualenc.index.queries import Queries, pick_queries
from dualenc.index.recipe import load_recipe
from dualenc.index.threads import pools
from dualenc.index.trial import Sample, Trial, attempt, build_seconds, power_law, straight_line
from dualenc.index.vectors import Array
from tests.index.conftest import unit

NAMES = ["flat", "ivf", "ivf_sq8", "ivf_pq", "scan_pq", "hnsw"]


@pytest.fixture(autouse=True)
def one_thread():
    with pools(1):
        yield


def recipe(names=NAMES, flat_up_to_rows=500, sample_rows=4000):
    return {
        "build": {"kind": "auto", "candidates": names, "flat_up_to_rows": flat_up_to_rows, "sample_rows": sample_rows}
    }


def clusters(rows, dim, centres, seed=0):
    rng = np.random.default_rng(seed)
    middle = rng.normal(size=(centres, dim))
    return unit(middle[rng.integers(centres, size=rows)] + 0.2 * rng.normal(size=(rows, dim)))


class Work:
    """A clock that goes on by what the searches compare: the same table each time, and no noise."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        for kind in KINDS.values():
            if "search" not in vars(kind):
                monkeypatch.setattr(kind, "search", self.counted(kind.search))

    def counted(self, search):
        return lambda kind, queries, k, setting, ids, allowed=None, least=None: self.search(
            search, kind, queries, k, setting, ids, least
        )

    def search(self, search, kind, queries, k, setting, ids, least):
        code = {"float32": 1.0, "sq8": 0.5, "pq": 0.1}[kind.build.get("codes", "float32")]
        self.now += len(queries) * (1e-5 + 1e-6 * code * kind.scanned(setting, kind.total)) + 1e-8 * k * len(queries)
        return search(kind, queries, k, setting, ids, least=least)

    def __call__(self):
        self.now += 1e-7
        return self.now


@pytest.fixture
def clock(monkeypatch):
    return Work(monkeypatch)


EASY = clusters(20_000, 16, 400)
RANDOM = unit(np.random.default_rng(3).normal(size=(6_000, 64)))
STRANGE = Queries(unit(np.random.default_rng(4).normal(size=(400, 64))), "from everywhere")


def easy():
    rows = Array(EASY)
    return rows, pick_queries(EASY, rows, "image", None)


def test_lists_win_where_neighbours_lie_together(clock):
    out = choose(*easy(), recipe(["flat", "ivf"]), 0.95, None, None, True, clock=clock)
    assert [one.name for one in out] == ["ivf", "flat"] and [one.order for one in out] == [0, 1]
    assert out[0].chosen and out[0].ok and out[0].recall >= 0.95
    assert out[0].single_ms < out[1].single_ms / 3 and "times ivf's time a query" in out[1].reason


def test_exact_search_wins_where_nothing_beats_it(clock):
    """Random directions have no lists to lie in: all must be read, and the centroids too. Codes are scored twice."""
    out = choose(Array(RANDOM), STRANGE, recipe(["flat", "ivf"]), 1.0, None, None, True, clock=clock)
    assert out[0].name == "flat" and out[0].chosen and not out[1].ok
    assert "against exact search's" in out[1].reason
    # a bit cheaper than exact search is no reason to miss rows, nor to build for longer
    out = choose(Array(RANDOM), STRANGE, recipe(["flat", "ivf", "hnsw"]), 0.99, None, None, True, clock=clock)
    assert out[0].name == "flat" and out[0].cost < 1.25 * min(one.cost for one in out if not one.guessed)


def test_only_codes_fit_the_memory_and_the_table_says_so(clock):
    rows, queries = easy()
    memory = 20_000 * 30
    out = choose(rows, queries, recipe(), 0.9, memory, None, True, clock=clock)
    down = {one.name: one.reason for one in out if not one.ok}
    for name in ("flat", "ivf", "hnsw"):
        assert down[name] == f"needs {size(next(one.bytes for one in out if one.name == name))}, above memory 600 kB"
        assert next(one for one in out if one.name == name).single_ms is None  # no trial
    assert out[0].name in ("ivf_pq", "scan_pq") and out[0].bytes <= memory
    resolved = load_recipe("ivf", 20_000)["build"]
    assert next(one.bytes for one in out if one.name == "ivf") == KINDS["ivf"].bytes_needed(resolved, 20_000, 16)


def test_few_rows_are_searched_exactly_without_trials(monkeypatch):
    monkeypatch.setattr(module, "attempt", lambda *words: pytest.fail("a trial"))
    rows, queries = easy()
    out = choose(rows, queries, recipe(flat_up_to_rows=20_000), 0.95, None, None, True)
    assert out[0].name == "flat" and out[0].chosen and not any(one.ok for one in out[1:])
    nothing = Queries(np.zeros((0, 16), np.float32), "none", np.zeros(0, np.int64))
    out = choose(rows, nothing, recipe(), 0.95, None, 0.005, True)
    assert out[0].name == "flat"


def test_few_rows_too_are_tried_where_exact_search_is_too_slow(clock):
    rows, queries = easy()
    slow = choose(rows, queries, recipe(["flat", "ivf"], 20_000), 0.95, None, 10.0, True, clock=clock)
    assert [one.name for one in slow if one.ok] == ["flat"]
    quick = choose(rows, queries, recipe(["flat", "ivf"], 20_000), 0.95, None, 0.01, True, clock=clock)
    assert [one.name for one in quick if one.ok] == ["ivf"]
    assert "above latency 10 ms" in quick[1].reason


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"memory": 1000}, r"recall=0.95 with memory=1 kB: the least memory is \d+ kB \(scan_pq\)"),
        ({"latency": 1e-6}, r"latency=0.001ms: .*the best latency at that recall [\d.e-]+ ms \(\w+\)"),
        ({"target": 0.999, "memory": 600_000, "rerank": False}, r"the best recall within memory 0.\d+ \(\w+\)"),
    ],
)
def test_what_cannot_be_had_is_an_error_with_the_best_that_can(options, message, clock):
    options = {"target": 0.95, "memory": None, "latency": None, "rerank": True} | options
    with pytest.raises(ValueError, match=message):
        choose(*easy(), recipe(), clock=clock, **options)


def test_the_table_is_the_same_each_time_but_for_the_times(monkeypatch):
    with monkeypatch.context() as patch:
        first = choose(*easy(), recipe(), 0.95, None, None, True, clock=Work(patch))
    with monkeypatch.context() as patch:
        second = choose(*easy(), recipe(), 0.95, None, None, True, clock=Work(patch))
    assert as_json(first) == as_json(second) and table(as_json(first)) == table(as_json(second))
    read = json.loads(json.dumps(as_json(first), allow_nan=False))
    assert [one["order"] for one in read if one["order"] is not None] == list(range(sum(one.ok for one in first)))
    assert {one["recipe"] for one in read} == set(NAMES)
    lines = table(as_json(first)).split("\n")
    assert len(lines) == 1 + len(NAMES) and lines[1].startswith("->") and first[0].name in lines[1]
    column = lines[0].index("why")
    assert all(line[column:].startswith(one.reason) and one.reason for line, one in zip(lines[1:], first, strict=True))


def test_held_out_rows_and_the_reporting_half_stay_unseen(monkeypatch):
    seen = []
    init = Sample.__init__
    monkeypatch.setattr(Sample, "__init__", lambda self, *words: (seen.append(words), init(self, *words))[1])
    rows, queries = easy()
    choose(rows, queries, recipe(["flat", "ivf"], sample_rows=30_000), 0.9, None, None, True)
    sample, asked, total = seen[0][:3]
    assert total == len(sample) == len(EASY) - len(queries.held)
    assert not {row.tobytes() for row in sample} & {row.tobytes() for row in EASY[queries.held]}
    assert len(asked) == 400 and np.array_equal(asked, queries.rows[:400])
    few = Queries(queries.rows[:100], "few", queries.held)
    choose(rows, few, recipe(["flat", "ivf"], sample_rows=1000), 0.9, None, None, True)
    assert np.array_equal(seen[1][1], queries.rows[:50]) and len(seen[1][0]) == 1000


def test_time_that_is_up_ends_the_trials_and_says_so(clock, monkeypatch):
    monkeypatch.setattr(module, "SECONDS", 1e-9)
    out = choose(*easy(), recipe(["flat", "ivf", "ivf_sq8", "hnsw"]), 0.95, None, None, True, clock=clock)
    assert out[0].name == "ivf"  # the first is tried whatever it takes
    assert [one.reason for one in out[2:]] == ["not tried: the time for choosing was up"] * 2


def scripted(monkeypatch, times, add_s=0.1):
    """Trials that take as long as is said, and their order."""
    tried = []

    def attempt(resolved, sample, rows):
        tried.append((resolved["name"], rows))
        return Trial(rows, 1.0, {}, times[resolved["name"]], times[resolved["name"]], 0.0, add_s)

    monkeypatch.setattr(module, "attempt", attempt)
    return tried


def test_large_trials_are_for_those_that_may_win_and_graphs_come_last(monkeypatch):
    tried = scripted(monkeypatch, {"hnsw": 0.01, "ivf": 0.02, "ivf_pq": 0.019, "ivf_sq8": 0.5})
    names = ["hnsw", "ivf", "ivf_pq", "ivf_sq8"]
    out = choose(*easy(), recipe(names), 0.95, None, None, True)
    assert tried == [*((name, 1000) for name in names), ("ivf_pq", 4000), ("hnsw", 4000)]
    assert [one.name for one in out] == ["hnsw", "ivf_pq", "ivf", "ivf_sq8"]
    assert all("times ivf_pq's time a query, by 1,000 rows" in one.reason and one.guessed for one in out[2:])


@pytest.mark.parametrize(("add_s", "rows"), [(0.1, 4000), (0.3, 3333), (5.0, 2000)])
def test_a_graph_is_tried_on_as_many_rows_as_there_is_time_for(add_s, rows, monkeypatch):
    tried = scripted(
        monkeypatch, {"hnsw": 0.01}, add_s
    )  # a quarter of 4 s, at add_s for 1,000 rows; twice those at least
    choose(*easy(), recipe(["hnsw"]), 0.95, None, None, True)
    assert tried == [("hnsw", 1000), ("hnsw", rows)]


def test_a_sample_looks_for_neighbours_as_far_away_as_those_of_all_rows():
    sample = Sample(EASY[:4000], EASY[-50:], 20_000, 0.9, itertools.count().__next__)
    assert [sample.truth(rows).ids.shape for rows in (4000, 3000, 100)] == [(50, 2), (50, 2), (50, 1)]
    right = np.argsort(-(EASY[-50:] @ EASY[:4000].T), axis=1)[:, :2]
    assert np.array_equal(sample.truth(4000).ids, right)


def made(name, single, batch, build, **more):
    return Candidate(name, {"build": {"kind": "ivf"}}, 100, single, batch, build, 0.96, **more)


def test_of_those_nearly_as_fast_the_one_built_soonest_wins():
    flat = made("flat", 10.0, 5.0, 0.1)
    out = rank(
        [flat, made("hnsw", 1.0, 1.0, 120.0), made("ivf", 1.1, 1.1, 10.0), made("pq", 2.0, 2.0, 1.0)],
        flat,
        0.95,
        None,
        None,
    )
    assert [(one.name, one.order) for one in out] == [("ivf", 0), ("hnsw", 1), ("pq", 2), ("flat", 3)]
    assert out[0].reason == "nearly hnsw's speed, and built sooner"
    assert out[1].reason == "takes 12 times as long to build for 1.10 times the speed"
    assert out[2].reason == "1.82 times ivf's time a query"
    out = rank([made("hnsw", 1.0, 1.0, 120.0), made("ivf", 1.3, 1.3, 10.0)], None, 0.95, None, None)
    assert out[0].name == "hnsw" and out[0].reason == "the least time a query"


def test_slower_than_exact_search_in_either_is_turned_down():
    flat = made("flat", 1.2, 1.0, 0.1)
    out = rank([flat, made("a", 3.1, 0.01, 1.0), made("b", 0.01, 1.1, 1.0)], flat, 0.95, None, None)
    assert [(one.name, one.ok) for one in out] == [("flat", True), ("a", False), ("b", False)]
    assert out[1].reason == "3.1 ms a query alone against exact search's 1.2"
    assert out[2].reason == "1.1 ms a query in a batch against exact search's 1"
    flat, slow = made("flat", 1.2, 1.0, 0.1), made("a", 0.5, 2.0, 1.0)
    out = rank([flat, slow], flat, 0.95, None, 0.001)  # exact search is too slow itself: nothing to compare with
    assert [(one.name, one.ok) for one in out] == [("a", True), ("flat", False)]


def test_a_guess_comes_after_what_was_tried_on_both_samples():
    guess = made("hnsw", 0.1, 0.1, 1.0, guessed=True, reason="judged by 4,000 rows only: the time for choosing was up")
    out = rank([guess, made("ivf", 1.0, 1.0, 1.0)], None, 0.95, None, None)
    assert [one.name for one in out] == ["ivf", "hnsw"] and out[1].reason.startswith("judged by")
    guess.order = None
    out = rank([guess, made("pq", 2.0, 2.0, 1.0), made("ivf", 1.0, 1.0, 1.0)], None, 0.95, None, None)
    assert [one.name for one in out] == ["ivf", "pq", "hnsw"]
    assert rank([guess], None, 0.95, None, None)[0].chosen


@pytest.mark.parametrize("exponent", [0.0, 0.3, 1.0])
def test_a_power_law_is_recovered_and_kept_within_reason(exponent):
    times = {rows: 3.0 * rows**exponent for rows in (1000, 4000, 90_000)}
    assert power_law((1000, times[1000]), (4000, times[4000]), 90_000) == pytest.approx(times[90_000])
    assert power_law((1000, 2.0), (4000, 1.0), 90_000) == 1.0
    assert power_law((1000, 1.0), (4000, 9.0), 40_000) == 90.0
    assert power_law((4000, 1.0), (4000, 9.0), 40_000) == 90.0


def test_a_straight_line_is_recovered_and_kept_within_reason():
    assert straight_line((1000, 1.5), (4000, 3.0), 10_000) == pytest.approx(6.0)
    assert straight_line((1000, 1.0), (4000, 9.0), 8000) == 18.0
    assert straight_line((1000, 9.0), (4000, 8.0), 8000) == 12.0


def test_the_cheapest_setting_is_the_least_width_of_each_factor():
    """Against trying all settings."""
    sample = Sample(EASY[:3000], EASY[-300:], 3000, 0.9, itertools.count().__next__)
    for name in ("ivf", "ivf_pq", "hnsw"):
        resolved = load_recipe(name, 3000)
        build = trials.quick(resolved["build"])
        kind = trials._trained(build, sample.rows)
        trials._add(kind, sample, 3000)
        finder = trials._Finder(kind, resolved["search"], sample, 3000)
        settings = finder.cheapest()
        assert settings
        knob = next(iter(resolved["search"]))
        for setting in settings:
            assert finder.recall(setting) >= 0.9
            place = resolved["search"][knob].index(setting[knob])
            if place:
                assert finder.recall({**setting, knob: resolved["search"][knob][place - 1]}) < 0.9
        trial = attempt(resolved, sample, 3000)
        assert trial.setting in settings and trial.recall >= 0.9


def test_out_of_reach_is_told_with_the_recall_that_is_reached():
    sample = Sample(RANDOM[:2000], STRANGE.rows[:100], 2000, 1.0, itertools.count().__next__)
    resolved = load_recipe("scan_pq", 2000)
    resolved["search"].pop("rerank")
    trial = attempt(resolved, sample, 2000)
    assert trial.setting is None and 0.05 < trial.recall < 0.9


def test_building_grows_with_the_rows():
    tried = Trial(1000, 1.0, {}, 1.0, 1.0, 2.0, 3.0)
    flat = {"kind": "flat"}
    assert build_seconds(tried, flat, flat, 10_000) == 30.0
    graph = {"kind": "hnsw"}
    assert build_seconds(tried, graph, graph, 1_000_000) == pytest.approx(2 + 3 * 1000 * 2)
    ivf = {"kind": "ivf", "nlist": 100, "iterations": 5, "train_rows_per_list": 1000}
    full = ivf | {"nlist": 200, "iterations": 10}
    # twice the lists, twice the iterations, ten times the rows to train on; and as many to add, to twice the lists
    assert build_seconds(tried, ivf, full, 10_000) == pytest.approx(2 * 2 * 2 * 10 + 3 * 10 * 2)
