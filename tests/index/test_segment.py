"""A segment's search against float64 cosines of all its rows: candidates scored again, filters, removed rows, odd ids."""

from __future__ import annotations

import itertools
import threading

import faiss
import numpy as np
import pytest

from dualenc.index import load_recipe, segment
from dualenc.index.kinds import KINDS
from dualenc.index.segment import Segment, search_segments
from dualenc.index.vectors import Array

EXACT, CODED = ["flat", "hnsw", "ivf"], ["hnsw_sq8", "ivf_sq8", "ivf_pq", "ivf_rabitq", "scan_pq", "scan_rabitq"]
ALL = [*EXACT, *CODED]
NARROW = {"hnsw": {"efSearch": 20}, "ivf": {"nprobe": 3}, "flat": {}}
WIDE = {"hnsw": {"efSearch": 4096}, "ivf": {"nprobe": 4096}, "flat": {}}


@pytest.fixture(scope="module")
def pool(make_data):
    return make_data(700, 16, 40, seed=3)


class Counting(Array):
    """Rows that count how often they are asked for."""

    asked = 0

    def take(self, rows):
        self.asked += 1
        return super().take(rows)


def make(recipe, images, ids, removed=(), order=None):
    """A segment of one of the shipped recipes. order: in which rows are added to FAISS."""
    build = load_recipe(recipe, len(images))["build"]
    cls = KINDS[build["kind"]]
    mean = images.mean(axis=0) if build.get("centred") else None
    kind = cls.new(build, images.shape[1], mean, images if cls.trains(build) else None)
    order = np.arange(len(images)) if order is None else order
    kind.add(images[order], ids[order])
    return Segment(1, kind, ids, np.array(removed, np.int64), None if kind.exact else Counting(images))


def setting(part, widths, rerank=4):
    chosen = widths[part.kind.name]
    return chosen if part.kind.exact else {**chosen, "rerank": rerank}


def odd_ids(count, seed=0):
    """Far apart, up to the last one there is, in no order."""
    rng = np.random.default_rng(seed)
    ids = np.unique(rng.integers(0, 2**62, 2 * count))[:count]
    ids[-1] = 2**63 - 1
    return rng.permutation(ids)


def brute(queries, images, ids, allowed, k):
    """The k best of the rows allowed, by float64 cosines; -1 and -inf where there are fewer."""
    scores = queries.astype(np.float64) @ images.astype(np.float64).T
    scores[:, ~allowed] = -np.inf
    best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    scores = np.take_along_axis(scores, best, 1)
    wide = max(0, k - best.shape[1])
    found = np.pad(np.where(np.isneginf(scores), -1, ids[best]), ((0, 0), (0, wide)), constant_values=-1)
    return found, np.pad(scores, ((0, 0), (0, wide)), constant_values=-np.inf)


def same(found, scores, expected, cosines):
    assert found.dtype == np.int64
    assert scores.dtype == np.float32
    assert np.array_equal(found, expected)
    assert np.array_equal(np.isneginf(scores), np.isneginf(cosines))
    there = ~np.isneginf(cosines)
    assert np.abs(scores[there] - cosines[there]).max(initial=0) < 1e-6


@pytest.fixture(scope="module")
def parts(pool):
    """One segment of each recipe, with odd ids and every seventh row removed."""
    ids, removed = odd_ids(700), np.arange(0, 700, 7)
    return {recipe: make(recipe, pool.images, ids, removed) for recipe in ALL}


@pytest.mark.parametrize("recipe", ALL)
def test_the_widest_search_is_exact_and_leaves_out_what_was_removed(parts, pool, recipe):
    part = parts[recipe]
    live = np.arange(700) % 7 != 0
    assert (len(part), part.live) == (700, 600)
    assert np.array_equal(part.alive, np.flatnonzero(live))
    same(*part.search(pool.texts, 10, setting(part, WIDE, 256)), *brute(pool.texts, pool.images, part.ids, live, 10))


@pytest.mark.parametrize("recipe", ALL)
@pytest.mark.parametrize("k", [10, 120])  # of 120 a narrow search finds all for some queries alone
def test_a_query_finds_the_same_alone_and_in_company(parts, pool, recipe, k):
    """To the bit, as pages of a search are told apart by scores. FAISS itself: up to 19 queries, from 20 on by products of
    whole matrices."""
    part = parts[recipe]
    found, scores = part.search(pool.texts[:16], k, setting(part, NARROW))
    for query in range(16):
        alone = part.search(pool.texts[query : query + 1], k, setting(part, NARROW))
        assert np.array_equal(alone[0][0], found[query]) and np.array_equal(alone[1][0], scores[query])


def test_scores_again_are_the_same_beside_a_query_with_fewer_candidates(parts, pool):
    part = parts["ivf_pq"]
    candidates = np.stack([part.ids[part.alive][start : start + 40] for start in range(4)])
    candidates[1, 30:] = -1
    found, scores = part._rescore(pool.texts[:4], candidates, 40)
    assert (found[1, 30:] == -1).all() and np.isneginf(scores[1, 30:]).all() and np.isfinite(scores[1, :30]).all()
    for query in range(4):
        alone = part._rescore(pool.texts[query : query + 1], candidates[query : query + 1], 40)
        assert np.array_equal(alone[0][0], found[query]) and np.array_equal(alone[1][0], scores[query])


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("buffer", [1, 20_000, 1 << 24])
@pytest.mark.parametrize("recipe", CODED)
def test_candidates_are_scored_again(parts, pool, recipe, buffer, threads, monkeypatch):
    """By one query at a time, some, or all: always the float64 order of FAISS's own candidates."""
    part = parts[recipe]
    narrow = setting(part, NARROW)
    candidates, estimates = part.kind.search(pool.texts, 40, narrow, part.ids, part._standing)
    monkeypatch.setattr(segment, "BUFFER", buffer)
    monkeypatch.setattr(segment, "MOSTLY", 0)  # as for a segment of which few rows were removed
    workers, rescore = set(), Segment._rescore
    monkeypatch.setattr(Segment, "_rescore", lambda *given: workers.add(threading.get_ident()) or rescore(*given))
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(threads)
    try:
        found, scores = part.search(pool.texts, 10, narrow)
    finally:
        faiss.omp_set_num_threads(before)
    assert (workers == {threading.get_ident()}) == (
        threads == 1 or buffer == 1 << 24
    )  # one block needs no other thread
    rows = part.find(candidates)
    true = np.einsum("qd,qkd->qk", pool.texts.astype(np.float64), pool.images[rows].astype(np.float64))
    order = np.argsort(-true, axis=1)[:, :10]
    same(found, scores, np.take_along_axis(candidates, order, 1), np.take_along_axis(true, order, 1))
    assert not np.array_equal(order, np.arange(10)[None].repeat(40, 0))  # FAISS's own order was another one
    assert np.abs(estimates[:, :10] - scores).max() > 1e-4


@pytest.mark.parametrize("recipe", ["ivf_pq", "scan_rabitq", "hnsw_sq8"])
def test_through_a_filter_candidates_double_until_they_change_nothing(parts, pool, recipe, monkeypatch):
    """Each query by itself, in float64: what codes of rows elsewhere are worth, the unfiltered setting does not know."""
    part = parts[recipe]
    monkeypatch.setattr(Segment, "_few", lambda *_: -1)
    mask = np.random.default_rng(0).random(600) < 0.5
    allowed, start = part.allow(mask), setting(part, NARROW, 1)
    expected, doubled = [], 0
    for query in pool.texts:
        best, wide = None, 1
        while True:
            ids = part.kind.search(query[None], min(5 * wide, 700), start, part.ids, allowed)[0][0]
            ids = ids[ids >= 0]
            true = pool.images[part.find(ids)].astype(np.float64) @ query
            before, best = best, ids[np.argsort(-true)][:5].tolist()
            if best == before or 5 * wide >= allowed.count:
                break
            wide *= 2
        doubled += wide > 2
        expected.append(best)
    found, _ = part.search(pool.texts, 5, start, allowed)
    assert found.tolist() == expected
    assert (doubled > 5) == (recipe != "hnsw_sq8")


@pytest.mark.parametrize("recipe", ALL)
@pytest.mark.parametrize("alive", [0, 1, 9])
def test_fewer_rows_than_are_asked_for(pool, recipe, alive):
    """Of 30 rows few are left: FAISS has no more candidates, and -1 stands for those."""
    ids = odd_ids(30)
    part = make(recipe, pool.images[:30], ids, np.arange(alive, 30))
    mask = np.arange(30) < alive
    for k in (1, 5, 12, 40):
        same(*part.search(pool.texts, k, setting(part, WIDE, 30)), *brute(pool.texts, pool.images[:30], ids, mask, k))
    assert [part.search(pool.texts[:0], 5, setting(part, WIDE, 30))[side].shape for side in (0, 1)] == [(0, 5)] * 2


@pytest.mark.parametrize("recipe", ALL)
def test_a_filter_that_leaves_few_rows_compares_exactly_these(parts, pool, recipe, monkeypatch):
    part = parts[recipe]
    rng = np.random.default_rng(1)
    monkeypatch.setattr(type(part.kind), "search", None)  # FAISS is not asked
    for count in (0, 1, 7, 250):
        mask = np.zeros(part.live, bool)
        mask[rng.permutation(part.live)[:count]] = True
        allowed, whole = part.allow(mask), np.zeros(700, bool)
        whole[part.alive[mask]] = True
        assert np.array_equal(allowed.rows, whole)
        expected = brute(pool.texts, pool.images, part.ids, whole, 10)
        same(*part.search(pool.texts, 10, setting(part, NARROW), allowed), *expected)
        same(*part.search(pool.texts, 10, setting(part, NARROW), allowed), *expected)  # from what was kept
        assert part.search(pool.texts[:0], 10, setting(part, NARROW), allowed)[0].shape == (0, 10)


@pytest.mark.parametrize(("gathered", "reads"), [(1 << 20, 1), (1, 3)])
def test_a_filters_rows_are_read_once_where_they_fit(parts, pool, gathered, reads, monkeypatch):
    part = parts["ivf_pq"]
    monkeypatch.setattr(segment, "GATHERED", gathered)
    allowed = part.allow(np.arange(600) < 50)
    before = part.vectors.asked
    first = part.search(pool.texts, 5, setting(part, NARROW), allowed)
    for _ in range(2):
        for mine, theirs in zip(part.search(pool.texts, 5, setting(part, NARROW), allowed), first, strict=True):
            assert np.array_equal(mine, theirs)
    assert part.vectors.asked - before == reads


@pytest.mark.parametrize("recipe", ALL)
@pytest.mark.parametrize("every", [2, 5])
def test_faiss_through_a_filter(parts, pool, recipe, every, monkeypatch):
    """A filter that leaves many rows goes to FAISS, and as wide a search as there is misses nothing."""
    part = parts[recipe]
    monkeypatch.setattr(Segment, "_few", lambda *_: -1)
    mask = np.arange(600) % every == 0
    whole = np.zeros(700, bool)
    whole[part.alive[mask]] = True
    got = part.search(pool.texts, 10, setting(part, WIDE, 256), part.allow(mask))
    same(*got, *brute(pool.texts, pool.images, part.ids, whole, 10))


def test_when_an_exact_scan_pays(parts, monkeypatch):
    part = parts["ivf"]
    nlist = part.kind.build["nlist"]
    assert part._few({"nprobe": 1}) == segment.GATHERED // (4 * part.kind.dim)
    monkeypatch.setattr(segment, "GATHERED", 40 * part.kind.dim)
    assert part._few({"nprobe": nlist}) == 2 * (nlist + 700)
    assert 10 < part._few({"nprobe": 1}) < 700
    assert parts["flat"]._few({}) == 1400
    monkeypatch.setattr(segment, "LARGEST", 400 * part.kind.dim)
    assert parts["flat"]._few({}) == 100  # never so many rows that reading them would fill the memory


@pytest.mark.parametrize("recipe", ALL[1:])  # flat indexes hold nothing out: their order is the segment's
def test_rows_that_were_added_in_another_order(pool, recipe, monkeypatch):
    """As held-out rows are: FAISS numbers them otherwise than the segment does."""
    held = np.sort(np.random.default_rng(0).permutation(700)[:70])
    order = np.concatenate([np.setdiff1d(np.arange(700), held), held])
    part = make(recipe, pool.images, odd_ids(700), np.arange(0, 700, 3), order)
    live = np.arange(700) % 3 != 0
    rows = np.array([699, *held[:20], 5, 5, 0])
    assert np.abs(part.take(rows) - pool.images[rows]).max() < 1e-6
    same(*part.search(pool.texts, 8, setting(part, WIDE, 256)), *brute(pool.texts, pool.images, part.ids, live, 8))
    mask = np.random.default_rng(2).random(part.live) < 0.3
    whole = np.zeros(700, bool)
    whole[part.alive[mask]] = True
    for few in (1e9, -1):
        monkeypatch.setattr(Segment, "_few", lambda *_, few=few: few)
        got = part.search(pool.texts, 8, setting(part, WIDE, 256), part.allow(mask))
        same(*got, *brute(pool.texts, pool.images, part.ids, whole, 8))


@pytest.mark.parametrize(
    "ids",
    [
        np.arange(50),
        np.arange(10**15, 10**15 + 50),
        np.arange(50) * 3,
        np.arange(50)[::-1] + 5,
        np.random.default_rng(0).permutation(50),
        odd_ids(50),
        np.array([7]),
        np.array([], np.int64),
    ],
)
def test_rows_are_found_by_id(ids):
    part = Segment(1, None, ids.astype(np.int64), np.array([0, 3])[: len(ids)], None)
    where = {int(i): row for row, i in enumerate(ids)}
    asked = [*where, 0, 1, 2, 6, 10**15 - 1, 10**15 + 50, 2**63 - 1, 2**62]
    found = part.find(np.array(asked, np.int64))
    assert found.tolist() == [where.get(i, -1) for i in asked]
    assert part.find(np.array([asked[:2], asked[-2:]], np.int64)).shape == (2, 2)


def test_originals_come_in_order_without_what_was_removed(parts, pool, monkeypatch):
    monkeypatch.setattr(segment, "BLOCK", 97)
    for recipe in ("flat", "ivf", "ivf_pq"):
        part = parts[recipe]
        ids, rows = zip(*part.originals(), strict=True)
        assert max(map(len, ids)) == 97
        assert np.array_equal(np.concatenate(ids), part.ids[part.alive])
        assert np.abs(np.concatenate(rows) - pool.images[part.alive]).max() < 1e-6


def test_codes_alone_give_no_rows_back(parts, pool):
    part = parts["ivf_pq"]
    bare = Segment(1, part.kind, part.ids, part.removed, None)
    assert part.lossless
    assert not bare.lossless
    with pytest.raises(ValueError, match=r"pq without their original rows.*re-ranks") as error:
        bare.take(np.array([0]))
    assert "\n" not in str(error.value)
    allowed = bare.allow(np.arange(600) < 5)  # a filter that leaves few rows is answered by the codes
    found, _ = bare.search(pool.texts, 10, {"nprobe": 4096}, allowed)
    assert {tuple(sorted(line)) for line in found[:, :5].tolist()} == {tuple(sorted(part.ids[part.alive[:5]].tolist()))}
    assert (found[:, 5:] == -1).all()


@pytest.mark.parametrize("recipe", ["flat", "hnsw", "ivf", "ivf_pq"])
def test_several_segments_answer_as_one(pool, recipe):
    ids = odd_ids(700)
    cuts = [0, 400, 650, 700]
    parts = [make(recipe, pool.images[a:b], ids[a:b], [1, 3]) for a, b in itertools.pairwise(cuts)]
    live = np.ones(700, bool)
    live[[a + gone for a in cuts[:-1] for gone in (1, 3)]] = False
    wide = setting(parts[0], WIDE, 256)
    for k in (1, 10, 690, 720):
        same(*search_segments(parts, pool.texts, k, wide), *brute(pool.texts, pool.images, ids, live, k))
    mask = np.random.default_rng(0).random(700) < 0.2
    allowed = [part.allow(mask[a:b][part.alive]) for part, a, b in zip(parts, cuts[:-1], cuts[1:], strict=True)]
    found = search_segments(parts, pool.texts, 10, wide, allowed)
    same(*found, *brute(pool.texts, pool.images, ids, mask & live, 10))


def test_of_equal_rows_the_earlier_segments_comes_first(pool):
    parts = [make("flat", pool.images[:5], np.arange(first, first + 5)) for first in (100, 0, 50)]
    found, scores = search_segments(parts, pool.images[2:3], 3, {})
    assert found.tolist() == [[102, 2, 52]]
    assert np.ptp(scores) == 0
