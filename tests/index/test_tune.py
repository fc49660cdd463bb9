"""The setting that tuning chooses, against looking at every setting there is."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dualenc.index.exact import exact_search
from dualenc.index.recall import Truth, lower_bound
from dualenc.index.tune import K, OutOfReach, measure_latency, truth, tune
from dualenc.index.vectors import Array

NPROBE = [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512]
RERANK = [1, 2, 4, 8, 16]


class Fake:
    """A search of known recall and cost: query i finds the first of its ten rows, the more the wider it is searched.

    Time stands still but for what a search costs, so that what is cheapest can be told from what was measured.
    """

    def __init__(self, need: np.ndarray, spoiled: float = 0.0, price=(1.0, 1.0, 1.0), noise: float = 0.0):
        self.need, self.spoiled, self.price, self.noise = need, spoiled, price, noise
        self.now, self.calls = 0.0, []
        self.rng = np.random.default_rng(0)
        self.queries = np.arange(len(need), dtype=np.float32)[:, None]
        ids = np.tile(np.arange(10), (len(need), 1))
        self.truth = Truth(ids, np.full((len(need), 1), 2, np.float32), np.full((len(need), 1), 9))

    def hits(self, setting: dict[str, int], which: np.ndarray) -> np.ndarray:
        """Rows found: all ten once the width is what a query needs; few candidates are scored right or lost."""
        width, rerank = setting.get("nprobe", setting.get("efSearch", 1)), setting.get("rerank")
        share = np.minimum(width / self.need[which], 1)
        kept = 1.0 if rerank is None else 1 - self.spoiled / rerank
        return np.floor(10 * share * kept + 1e-9).astype(int)

    def cost(self, setting: dict[str, int]) -> float:
        """ms per query."""
        fixed, width, rerank = self.price
        return fixed + width * setting.get("nprobe", 0) / 10 + rerank * setting.get("rerank", 0) / 10

    def search(self, queries, k, setting):
        assert k == 10
        self.calls.append((dict(setting), len(queries)))
        self.now += self.cost(setting) * (1 + self.noise * self.rng.uniform()) * len(queries) / 1e3
        right = np.arange(10) < self.hits(setting, queries[:, 0].astype(int))[:, None]
        return np.where(right, np.arange(10), 500 + np.arange(10)), np.ones((len(queries), 10), np.float32)

    def tune(self, ladders, target, seconds=1e9):
        return tune(self.search, ladders, self.queries, self.truth, target, False, seconds, clock=lambda: self.now)

    def every(self, ladders):
        """(cost, setting, recall on each half, lower bound on each half) of every setting, cheapest first."""
        middle = len(self.need) // 2
        halves = (np.arange(middle), np.arange(middle, len(self.need)))
        rows = []
        for values in itertools.product(*ladders.values()):
            setting = dict(zip(ladders, values, strict=True))
            each = [self.hits(setting, half) / 10 for half in halves]
            rows.append((self.cost(setting), setting, [e.mean() for e in each], [lower_bound(e) for e in each]))
        return sorted(rows, key=lambda row: row[0])


def needs(rng: np.random.Generator, count: int, middle: float = 20, spread: float = 1.0) -> np.ndarray:
    return middle * np.exp(spread * rng.normal(size=count))


@given(
    seed=st.integers(0, 10_000),
    count=st.one_of(st.integers(2, 300), st.integers(600, 900)),
    middle=st.floats(0.5, 400),
    target=st.sampled_from([0.3, 0.8, 0.9, 0.95, 0.99, 1.0]),
    first=st.integers(0, 5),
    rungs=st.integers(1, 13),
    knobs=st.sampled_from(["none", "nprobe", "rerank", "both"]),
    spoiled=st.floats(0, 1),
    price=st.tuples(st.floats(0, 5), st.floats(0.01, 2), st.floats(0.01, 20)),
)
def test_takes_the_cheapest_that_there_is(seed, count, middle, target, first, rungs, knobs, spoiled, price):
    """Of all settings the cheapest whose bound meets the target on both halves; none where none does."""
    fake = Fake(needs(np.random.default_rng(seed), count, middle), spoiled, price)
    ladders = {"nprobe": NPROBE[first : first + rungs], "rerank": RERANK[first % 3 :][:3]}
    wanted = {"none": (), "nprobe": ("nprobe",), "rerank": ("rerank",), "both": ("nprobe", "rerank")}[knobs]
    ladders = {knob: ladders[knob] for knob in wanted}
    every = fake.every(ladders)
    fits = [row for row in every if min(row[3]) >= target - 1e-9]
    if not fits:
        with pytest.raises(OutOfReach, match=f"below recall={target:g}"):
            fake.tune(ladders, target)
        return
    setting, record = fake.tune(ladders, target)
    cost, best, recalls, lowers = fits[0]
    assert fake.cost(setting) == pytest.approx(cost)
    if setting == best:
        assert record["value"] == round(recalls[1], 4)
        assert record["lower"] == round(lowers[1], 4)
    assert (record["queries"], record["chosen_on"]) == (count - count // 2, count // 2)
    assert (record["target"], record["k"], record["level"]) == (target, 10, 0.95)
    cheaper = [row for row in every if row[0] < cost - 1e-9 and row[3][0] >= target - 1e-9]
    assert (record["moved"] > 0) == bool(cheaper)  # what the choosing half would have taken
    check_curve(record["curve"], setting, fake, every)


def check_curve(curve, setting, fake, every):
    at = {tuple(row[1].items()): row for row in every}
    assert [point["ms"] for point in curve] == sorted(point["ms"] for point in curve)
    assert setting in [point["setting"] for point in curve]
    best = -1.0
    for point in curve:
        cost, _, recalls, _ = at[tuple(point["setting"].items())]
        assert point["ms"] == pytest.approx(cost, rel=1e-3)
        assert point["recall"] == round(recalls[1], 4)
        assert point["recall"] > best or point["setting"] == setting
        best = max(best, point["recall"])
    widest = {tuple(point["setting"].items()) for point in curve}
    most = max(row[2][1] for row in every)
    assert max(point["recall"] for point in curve) >= min(0.999, most) - 1e-4 or len(widest) == len(every)
    cheapest = every[0]
    assert curve[0]["ms"] == pytest.approx(cheapest[0], rel=1e-3)


def test_each_setting_is_searched_once_a_half_and_timed_by_turns():
    fake = Fake(needs(np.random.default_rng(1), 400))
    setting, record = fake.tune({"nprobe": NPROBE}, 0.95)
    batches = [(call["nprobe"], size) for call, size in fake.calls if size == 200]
    assert {size for _, size in fake.calls} == {200, 100}  # each setting is warmed up before it is timed
    assert len([call for call in fake.calls if call[1] == 100]) == len({nprobe for nprobe, _ in batches})
    for point in record["curve"]:
        assert batches.count((point["setting"]["nprobe"], 200)) == 3
    assert {nprobe for nprobe, _ in batches} == {point["setting"]["nprobe"] for point in record["curve"]}
    of_last = [batches.index(batch) for batch in batches[-len(record["curve"]) :]]
    assert len(set(of_last)) == len(record["curve"])  # by turns, not one by one
    before = [call["nprobe"] for call, size in fake.calls[: fake.calls.index((setting, 200))]]
    assert max(before) <= 5 * setting["nprobe"]  # nothing far wider is searched to get there


def test_what_is_far_from_the_target_is_told_by_a_few_queries():
    need = needs(np.random.default_rng(1), 2000)
    fake = Fake(need)
    setting, _ = fake.tune({"nprobe": NPROBE}, 0.9, seconds=0.0)
    chosen_at = fake.calls.index((setting, 1000))
    whole = {call["nprobe"] for call, size in fake.calls[: chosen_at + 1] if size == 1000}
    few = {call["nprobe"] for call, size in fake.calls if size == 100}
    assert {1, 4, 12}.issubset(few - whole)
    assert setting == next(row[1] for row in fake.every({"nprobe": NPROBE}) if min(row[3]) >= 0.9 - 1e-9)
    # a first few that are harder than the rest do not hide the cheapest
    need[:100] *= 1.1
    easier = Fake(need)
    assert easier.tune({"nprobe": NPROBE}, 0.9)[0] == next(
        row[1] for row in easier.every({"nprobe": NPROBE}) if min(row[3]) >= 0.9 - 1e-9
    )


def test_settings_of_similar_cost_are_timed_again():
    """One slow run does not turn a setting down: of the similar ones the medians of five decide."""
    fake = Fake(np.full(400, 8.0), 0.4, (1.0, 1.0, 0.1))
    ladders = {"nprobe": [4, 6, 8], "rerank": [8, 16]}
    cheap, dear = {"nprobe": 8, "rerank": 8}, {"nprobe": 8, "rerank": 16}
    assert fake.cost(cheap) < fake.cost(dear)
    assert fake.tune(ladders, 0.9)[0] == cheap
    hit = Fake(np.full(400, 8.0), 0.4, (1.0, 1.0, 0.1))
    honest, slowed = hit.search, []

    def search(queries, k, setting):
        if setting == cheap and len(queries) == 200 and not slowed:
            slowed.append(True)
            hit.now += 0.2 * hit.cost(cheap) * len(queries) / 1e3
        return honest(queries, k, setting)

    hit.search = search
    assert hit.tune(ladders, 0.9)[0] == cheap
    assert slowed


@pytest.mark.parametrize("seed", range(25))
def test_under_noise_what_is_taken_meets_the_target_and_is_near_the_cheapest(seed):
    fake = Fake(needs(np.random.default_rng(seed), 200), 0.3, (1.0, 1.0, 3.0), noise=0.3)
    ladders = {"nprobe": NPROBE, "rerank": RERANK}
    setting, _ = fake.tune(ladders, 0.8)
    every = fake.every(ladders)
    fits = [row for row in every if min(row[3]) >= 0.8 - 1e-9]
    assert setting in [row[1] for row in fits]
    assert fake.cost(setting) <= 1.3 * fits[0][0]


def test_what_only_the_choosing_half_likes_is_passed_over():
    """The second half needs twice the width of the first."""
    need = np.r_[np.full(100, 12.0), np.full(100, 30.0)]
    setting, record = Fake(need).tune({"nprobe": NPROBE}, 1.0)
    assert setting == {"nprobe": 32}
    assert (record["value"], record["lower"]) == (1, 1)
    assert record["moved"] >= 1
    assert Fake(need[::-1].copy()).tune({"nprobe": NPROBE}, 1.0)[1]["moved"] == 0


@pytest.mark.parametrize("hard_half", [0, 1])
def test_a_target_out_of_reach_says_the_best(hard_half):
    easy, hard = np.full(50, 1.0), np.full(50, 160.0)
    fake = Fake(np.r_[hard, easy] if hard_half == 0 else np.r_[easy, hard])
    with pytest.raises(OutOfReach) as error:
        fake.tune({"nprobe": [1, 4, 16, 128]}, 0.99)
    text = str(error.value)
    assert text.startswith(
        "ANN recall@10 is 0.8000 at best, 0.8000 by its lower 95% bound over 50 queries (nprobe 128)"
    )
    assert "below recall=0.99; ask for less" in text
    assert "\n" not in text
    assert isinstance(error.value, ValueError)


def test_a_setting_that_is_fixed_is_measured_all_the_same():
    fake = Fake(np.full(100, 10.0))
    setting, record = fake.tune({"nprobe": [8]}, 0.5)
    assert (setting, record["value"], len(record["curve"])) == ({"nprobe": 8}, 0.8, 1)
    with pytest.raises(OutOfReach, match=r"0\.8000 at best"):
        fake.tune({"nprobe": [8]}, 0.9)


def test_time_that_is_up_ends_the_curve_but_not_the_choice():
    need = needs(np.random.default_rng(1), 400)
    ladders = {"nprobe": NPROBE}
    unhurried, hurried = Fake(need, price=(100.0, 100.0, 1.0)), Fake(need, price=(100.0, 100.0, 1.0))
    setting, record = hurried.tune(ladders, 0.9, seconds=0.0)
    assert setting == unhurried.tune(ladders, 0.9)[0]
    assert record["curve"][-1]["setting"] == setting
    assert record["curve"][0]["setting"] == {"nprobe": 1}  # what is cheap is there
    assert len(hurried.calls) < 0.7 * len(unhurried.calls)
    some, limit = Fake(need, price=(100.0, 100.0, 1.0)), 0.6 * unhurried.now
    some.tune(ladders, 0.9, seconds=limit)
    assert hurried.now < some.now <= limit * 1.05  # warm-ups may go over by a little


def test_the_narrow_rerank_that_never_gets_there_is_not_tried_to_the_end():
    """At rerank 1 no width is enough: its wide searches cost more than what was found already."""
    fake = Fake(np.full(400, 4.0), 0.9, (1.0, 1.0, 0.01))
    assert fake.tune({"nprobe": NPROBE, "rerank": RERANK}, 0.9, seconds=0.0)[0] == {"nprobe": 4, "rerank": 16}
    assert max(call["nprobe"] for call, _ in fake.calls) <= 32
    assert not [
        call for call, _ in fake.calls if call["nprobe"] in (2, 3) and call["rerank"] < 16
    ]  # nor from the start


def test_the_chosen_setting_stands_in_the_curve_even_where_another_beats_it():
    setting, record = Fake(np.r_[np.full(100, 30.0), np.full(100, 5.0)]).tune({"nprobe": NPROBE}, 1.0)
    assert setting == {"nprobe": 32}
    assert [point["setting"] for point in record["curve"] if point["recall"] == 1][-1] == setting
    assert len([point for point in record["curve"] if point["recall"] == 1]) == 2


@pytest.mark.parametrize("case", ["no truth", "no queries", "no rows"])
def test_with_nothing_to_measure_the_widest_is_taken(case):
    queries = np.eye(4, dtype=np.float32)[: 0 if case == "no queries" else 3]
    empty = Truth(np.zeros((3, 0), np.int64), np.zeros((3, 1)), np.zeros((3, 1), np.int64))
    true = {"no truth": None, "no queries": truth(queries, Array(np.eye(4)), 10, np.arange(4)), "no rows": empty}[case]
    setting, record = tune(None, {"nprobe": [1, 9], "rerank": [1, 4]}, queries, true, 0.9, True)  # type: ignore[arg-type]
    assert setting == {"nprobe": 9, "rerank": 4}
    assert record["value"] is record["lower"] is None
    assert ("no rows" if case == "no rows" else "no queries") in record["reason"]
    assert (record["queries"], record["curve"]) == (0, [])


def test_one_query_chooses_and_reports():
    fake = Fake(np.array([10.0]))
    setting, record = fake.tune({"nprobe": NPROBE}, 0.8)
    assert setting == {"nprobe": 8}
    assert (record["queries"], record["chosen_on"]) == (1, 1)
    assert "one query" in record["reason"]


def test_latency_is_of_single_queries_and_of_a_batch():
    sizes = []
    times = measure_latency(
        lambda queries, k, setting: sizes.append((len(queries), k, setting)), np.ones((250, 4)), {"a": 1}
    )
    assert sizes == [(10, K, {"a": 1})] + [(1, K, {"a": 1})] * 100 + [(250, K, {"a": 1})]
    assert times["batch"] == 250
    assert times["single_ms"] >= 0 <= times["batch_ms_per_query"]
    assert times["threads"] >= 1


@pytest.fixture(scope="module")
def lists(make_data):
    """10,000 rows in FAISS's own inverted lists, and text queries."""
    import faiss

    data = make_data(10_000, 64, 900, seed=3)
    index = faiss.index_factory(64, "IVF100,Flat", faiss.METRIC_INNER_PRODUCT)
    index.train(data.images)
    index.add(data.images)
    return data, index


def test_the_recall_holds_on_queries_never_seen(lists):
    """faiss itself: whatever target, the bound of the record is kept on other queries of the same kind."""
    import faiss

    data, index = lists

    def search(queries, k, setting):
        scores, found = index.search(queries, k, params=faiss.SearchParametersIVF(nprobe=setting["nprobe"]))
        return found + 7, scores

    true = truth(data.texts[:500], Array(data.images), K, np.arange(10_000) + 7)
    best, _ = exact_search(data.texts[500:], data.images, K)
    ladder = [n for n in NPROBE if n < 100] + [100]
    for target in (0.5, 0.8, 0.9, 0.97, 1.0):
        setting, record = tune(search, {"nprobe": ladder}, data.texts[:500], true, target, True)
        found, _ = search(data.texts[500:], K, setting)
        unseen = np.mean([len(set(a) & set(b)) for a, b in zip(found.tolist(), (best + 7).tolist(), strict=True)]) / K
        assert unseen >= target - 0.01
        assert abs(unseen - record["value"]) < 2.5 * (record["value"] - record["lower"]) + 0.003
        assert target <= record["lower"] <= record["value"]
    assert (setting, record["value"]) == ({"nprobe": 100}, 1) or unseen == pytest.approx(1, abs=1e-3)
