"""An index under any sequence of changes, against a dictionary that does the same the obvious way."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from dualenc.index import Index, merge

DIM = 8
ALL = 10_000  # more than any of these indexes has rows: a search so wide misses nothing
RECIPES: dict[str, dict[str, Any]] = {
    "flat": {"build": {"kind": "flat"}},
    "hnsw": {"build": {"kind": "hnsw", "M": 16}, "search": {"efSearch": ALL}},
    "hnsw_sq8": {"build": {"kind": "hnsw", "M": 16, "codes": "sq8"}, "search": {"efSearch": ALL, "rerank": 64}},
    "ivf": {"build": {"kind": "ivf", "nlist": 4}, "search": {"nprobe": 4}},
    "ivf_sq8": {"build": {"kind": "ivf", "nlist": 4, "codes": "sq8"}, "search": {"nprobe": 4, "rerank": 64}},
    "ivf_pq": {
        "build": {"kind": "ivf", "nlist": 2, "codes": "pq", "dims_per_code": 1},
        "search": {"nprobe": 2, "rerank": 64},
    },
    "scan_rabitq": {
        "build": {"kind": "ivf", "nlist": 1, "codes": "rabitq", "bits": 4},
        "search": {"nprobe": 1, "rerank": 64},
    },
}


class Changes(RuleBasedStateMachine):
    recipe: dict[str, Any]

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.rng = np.random.default_rng(0)
        self.rows: dict[int, tuple[np.ndarray, dict[str, Any]]] = {}  # id -> row, metadata; in the index's order
        self.next_id = self.made = self.merged = 0

    def teardown(self) -> None:
        shutil.rmtree(self.folder)

    def _new(self, count: int) -> tuple[np.ndarray, list[dict[str, Any]]]:
        rows = self.rng.normal(size=(count, DIM)) + 0.3
        rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
        table = [{"key": f"k{self.made + row}", "part": int(self.rng.integers(3))} for row in range(count)]
        self.made += count
        return rows, table

    @initialize(count=st.integers(20, 60), start=st.integers(0, 10**12))
    def build(self, count: int, start: int) -> None:
        rows, table = self._new(count)
        ids = np.arange(start, start + count)
        self.index = Index.build(rows, self.folder / "index", ids, table, recipe=self.recipe, recall=0.01)
        self.rows = dict(zip(ids.tolist(), zip(rows, table, strict=True), strict=True))
        self.next_id = start + count

    @rule(count=st.integers(1, 30))
    def add(self, count: int) -> None:
        rows, table = self._new(count)
        self.index.add(rows, metadata=table)
        for row, about in zip(rows, table, strict=True):
            self.rows[self.next_id] = (row, about)
            self.next_id += 1

    @rule(count=st.integers(1, 6), first=st.integers(0, 10**15))
    def add_with_ids(self, count: int, first: int) -> None:
        ids = first + 7 * np.arange(count)
        rows, table = self._new(count)
        if set(ids.tolist()) & self.rows.keys():
            with pytest.raises(ValueError, match="in the index already"):
                self.index.add(rows, ids, table)
            return
        self.index.add(rows, ids, table)
        self.rows.update(zip(ids.tolist(), zip(rows, table, strict=True), strict=True))
        self.next_id = max(self.next_id, int(ids.max()) + 1)

    @precondition(lambda self: self.rows)
    @rule(data=st.data(), fresh=st.integers(0, 3))
    def upsert(self, data: st.DataObject, fresh: int) -> None:
        old = data.draw(st.lists(st.sampled_from(sorted(self.rows)), max_size=5, unique=True))
        rows, table = self._new(len(old) + fresh)
        if not len(rows):
            return
        for place, i in enumerate(old):
            table[place]["key"] = self.rows[i][1]["key"]
        self.index.upsert(rows, table)
        ids = old + list(range(self.next_id, self.next_id + fresh))
        self.next_id += fresh
        for i in old:
            del self.rows[i]
        self.rows.update(zip(ids, zip(rows, table, strict=True), strict=True))

    @precondition(lambda self: self.rows)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        ids = data.draw(st.lists(st.sampled_from(sorted(self.rows)), min_size=1, max_size=20, unique=True))
        self.index.remove(ids)
        for i in ids:
            del self.rows[i]

    @rule()
    def compact(self) -> None:
        self.index.compact()
        assert self.index.manifest["tombstones"] == 0

    @rule()
    def reopen(self) -> None:
        self.index = Index.open(self.folder / f"index{self.merged or ''}", verify=True)

    @precondition(lambda self: self.rows and self.merged < 3)
    @rule(count=st.integers(20, 40), same=st.booleans())
    def merge(self, count: int, same: bool) -> None:
        rows, table = self._new(count)
        other = self.folder / f"other{self.merged}"
        Index.build(rows, other, None, table, recipe=self.recipe if same else "flat", recall=0.01)
        out = self.folder / f"index{self.merged + 1}"
        merge(self.index.folder, other, out, renumber=True)
        self.merged += 1
        self.index = Index.open(out)
        for place, (row, about) in enumerate(zip(rows, table, strict=True)):
            self.rows[self.next_id + place] = (row, about)
        self.next_id += count

    @invariant()
    def same_rows(self) -> None:
        ids = list(self.rows)
        assert len(self.index) == len(ids)
        assert sorted(self.index.ids.tolist()) == sorted(ids)
        if ids:
            assert self.index.rows(ids).to_pylist() == [about for _, about in self.rows.values()]
            np.testing.assert_allclose(
                self.index.vectors(ids), np.stack([row for row, _ in self.rows.values()]), atol=2e-6
            )

    @invariant()
    def same_answers(self) -> None:
        queries = self._new(3)[0]
        for where, keep in ((None, lambda about: True), ("part = 1", lambda about: about["part"] == 1)):
            live = {i: row for i, (row, about) in self.rows.items() if keep(about)}
            ids, scores = self.index.search(queries, 5, where)
            for query, found, given_scores in zip(queries, ids, scores, strict=True):
                best = sorted((-float(query.astype(np.float64) @ row), i) for i, row in live.items())[:5]
                real = found[found >= 0]
                assert len(real) == len(best) == len(set(real.tolist()))
                np.testing.assert_allclose(given_scores[: len(best)], [-score for score, _ in best], atol=2e-6)
                np.testing.assert_allclose(
                    [query @ live[i] for i in real.tolist()], [-score for score, _ in best], atol=2e-6
                )


@pytest.mark.parametrize("name", RECIPES)
def test_changes_against_a_dictionary(name: str) -> None:
    machine = type("ChangesOf" + name, (Changes,), {"recipe": RECIPES[name]})
    base = settings.get_profile(settings.get_current_profile_name())
    run_state_machine_as_test(
        machine,
        settings=settings(
            base,
            max_examples=max(4, base.max_examples // 25),
            stateful_step_count=12,
            suppress_health_check=list(HealthCheck),
            deadline=None,
        ),
    )
