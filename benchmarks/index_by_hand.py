"""The best FAISS setting found by hand: a grid of kinds, each at the least setting that reaches the recall."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import faiss as _faiss
import numpy as np
from index_data import K, recall
from index_measure import Way, way
from timing import progress, seconds

faiss: Any = _faiss
PROBES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
SEARCHES = (10, 12, 16, 20, 24, 32, 40, 48, 64, 80, 96, 128, 160, 192, 256, 384, 512)
FACTORS = (1, 2, 4, 8, 16, 32)
LISTS = {"nprobe": PROBES}
CODED = {"k_factor_rf": FACTORS}
GRID = (  # factory; knobs, the last one is raised until the recall is reached, for each value of the others
    ("IVF512,Flat", LISTS),
    ("IVF1024,Flat", LISTS),
    ("IVF2048,Flat", LISTS),
    ("IVF1024,SQ8", LISTS),
    ("HNSW16,Flat", {"efSearch": SEARCHES}),
    ("HNSW32,Flat", {"efSearch": SEARCHES}),
    ("HNSW16,SQ8", {"efSearch": SEARCHES}),
    ("PQ{half}x4fs,RFlat", CODED),
    ("IVF1024,PQ{half}x4fs,RFlat", CODED | LISTS),
)
CONSTRUCTION = 100  # efConstruction of the graphs


@dataclass(frozen=True)
class Hand:
    """One FAISS index of the grid.."""

    name: str
    index: Any
    build_seconds: float

    def search(self, queries: np.ndarray, setting: dict[str, int]) -> np.ndarray:
        """(Q, K) row numbers. The setting stays with the index."""
        self.set(setting)
        return self.index.search(queries, K)[1]

    def set(self, setting: dict[str, int]) -> None:
        text = ",".join(f"{knob}={value}" for knob, value in setting.items())
        faiss.ParameterSpace().set_index_parameters(self.index, text)


def build(factory: str, gallery: np.ndarray) -> Hand:
    """One index of the grid; fewer lists where there are few rows."""
    rows, dim = gallery.shape
    name = factory.format(half=dim // 2)
    for lists in (512, 1024, 2048):
        name = name.replace(f"IVF{lists},", f"IVF{max(1, min(lists, rows // 39))},")
    index = faiss.index_factory(dim, name, faiss.METRIC_INNER_PRODUCT)
    inner = faiss.downcast_index(index.base_index) if "RFlat" in name else index
    if "IVF" in name:
        gallery = gallery - gallery.mean(axis=0)
        inner.cp.max_points_per_centroid = 64
    if "HNSW" in name:
        inner.hnsw.efConstruction = CONSTRUCTION

    def make() -> None:
        index.train(gallery)
        index.add(gallery)

    return Hand(name, index, round(seconds(make), 2))


def settings(hand: Hand, knobs: dict[str, tuple[int, ...]], reaches: Any) -> Iterator[dict[str, int]]:
    """For each value of the first knobs the least of the last at which `reaches(setting)`; none where none does."""
    (last, ladder), *others = [*knobs.items()][::-1]
    firsts = [{others[0][0]: value} for value in others[0][1]] if others else [{}]
    for first in firsts:
        for value in ladder:
            if reaches(first | {last: value}):
                yield first | {last: value}
                break


def grid(gallery: np.ndarray, queries: np.ndarray, best: np.ndarray, targets: tuple[float, ...]) -> dict[str, Any]:
    """{target: [{"name", "setting", "recall", "build_seconds", "batch", "single", "way"}, ...]}: all that reach it."""
    found: dict[str, Any] = {str(target): [] for target in targets}
    for factory, knobs in GRID:
        hand = build(factory, gallery)
        progress(f"by hand: {hand.name} built in {hand.build_seconds} s")
        known: dict[str, float] = {}

        def measured(setting: dict[str, int], hand: Hand = hand, known: dict[str, float] = known) -> float:
            return known.setdefault(str(setting), recall(hand.search(queries, setting), best))

        for target in targets:
            for setting in settings(hand, knobs, lambda s, t=target, m=measured: m(s) >= t):
                searched = timed(hand, setting, queries)
                found[str(target)].append(
                    {
                        "name": hand.name,
                        "setting": setting,
                        "recall": measured(setting),
                        "build_seconds": hand.build_seconds,
                        "batch": min(searched.batch() for _ in range(3)) / len(queries),
                        "single": min(searched.single() for _ in range(3)) / searched.singles,
                        "way": searched,
                    }
                )
    return found


def timed(hand: Hand, setting: dict[str, int], queries: np.ndarray) -> Way:
    """This index at this setting; setting it is no part of the time."""
    plain = way(lambda some: hand.index.search(some, K), queries)

    def set_first(call: Any) -> Any:
        def run() -> float:
            hand.set(setting)
            return call()

        return run

    return Way(set_first(plain.batch), set_first(plain.single), len(queries), plain.singles)


def winners(entries: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """{"batch": the fastest in batches, "single": the fastest alone}."""
    return {mode: min(entries, key=lambda entry: entry[mode]) for mode in ("batch", "single") if entries}
