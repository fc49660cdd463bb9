"""Settings of a search, measured: recall and time, each setting no more often than needed."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import numpy as np
from tqdm import tqdm

from dualenc.index.budget import in_words
from dualenc.index.recall import Truth, lower_bound, recall_per_query

SLACK = 1e-9  # means of tenths are off their decimal fractions by rounding
STRIDE = 3  # rungs from one coarse step to the next; the shipped ladders grow by a third to a half a rung
FEW = 100  # queries that a setting is first tried on: they warm it up, and tell those that are far from the target

Setting = dict[str, int]
Search = Callable[[np.ndarray, int, Setting], tuple[np.ndarray, np.ndarray]]
Place = tuple[int, int]  # positions on the ladder of widths (nprobe, efSearch) and on that of re-rank factors


def least(
    meets: Callable[[int], bool], first: int, last: int, too_dear: Callable[[int], bool] = lambda place: False
) -> int | None:
    """The least place from `first` to `last` that `meets`, where those above one that does do too: by strides, so that
    nothing much larger is measured, then by bisection. None: there is none, or one that does not meet is `too_dear`."""
    short, place = first - 1, first
    while not meets(place):
        if place == last or too_dear(place):
            return None
        short, place = place, min(place + STRIDE, last)
    while place - short > 1:
        middle = (short + place) // 2
        short, place = (short, middle) if meets(middle) else (middle, place)
    return place


class Meter:
    """Measures a setting's recall once per half of the queries (0 chooses, 1 reports); its time, as often as asked."""

    def __init__(
        self,
        search: Search,
        ladders: dict[str, list[int]],
        queries: np.ndarray,
        truth: Truth,
        exact_scores: bool,
        target: float,
        seconds: float,
        clock: Callable[[], float],
        bar: tqdm,
    ):
        middle = max(1, len(queries) // 2)
        self.halves = (slice(0, middle), slice(middle if len(queries) > 1 else 0, len(queries)))
        widths, reranks = ([*ladders.values(), [0], [0]])[:2]
        self.last: Place = (len(widths) - 1, len(reranks) - 1)
        self._search, self._ladders, self._queries, self._truth = search, ladders, queries, truth
        self._exact_scores, self.target, self._clock, self._bar = exact_scores, target, clock, bar
        self._end = clock() + seconds
        self.k = truth.ids.shape[1]
        self._recall: dict[tuple[Place, int], np.ndarray] = {}
        self._tried: dict[Place, tuple[np.ndarray, float]] = {}
        self._times: dict[Place, list[float]] = {}

    def setting(self, place: Place) -> Setting:
        return {knob: self._ladders[knob][i] for knob, i in zip(self._ladders, place, strict=False)}

    def recall(self, place: Place, half: int) -> np.ndarray:
        """(Q / 2,) recall of each query of a half."""
        if (place, half) not in self._recall:
            self._try(place)
            found = self.time(place, half)
            part = self._truth.part(self.halves[half])
            self._recall[place, half] = recall_per_query(*found, part, self._exact_scores)
            self._bar.set_postfix_str(f"{in_words(self.setting(place))}: {self._recall[place, half].mean():.3f}")
        return self._recall[place, half]

    def _try(self, place: Place) -> tuple[np.ndarray, float]:
        """Recall on the first few queries, and ms for each, the first search at a setting: slower than the next."""
        if place not in self._tried:
            few = slice(0, min(FEW, self.halves[0].stop))
            start = self._clock()
            found = self._run(place, few)
            ms = (self._clock() - start) / len(found[0]) * 1e3
            self._tried[place] = recall_per_query(*found, self._truth.part(few), self._exact_scores), ms
        return self._tried[place]

    def time(self, place: Place, half: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Run a half of the queries and note the time; what was found."""
        start = self._clock()
        found = self._run(place, self.halves[half])
        self._times.setdefault(place, []).append((self._clock() - start) / len(found[0]) * 1e3)
        self._bar.update()
        return found

    def _run(self, place: Place, part: slice) -> tuple[np.ndarray, np.ndarray]:
        return self._search(self._queries[part], self.k, self.setting(place))

    def lower(self, place: Place, half: int) -> float:
        return lower_bound(self.recall(place, half))

    def meets(self, place: Place, half: int) -> bool:
        """Whether the lower bound is at the target; of the choosing half a few queries may be enough to say no."""
        many = self.halves[0].stop >= 3 * FEW
        if half == 0 and many and (place, 0) not in self._recall and self._hopeless(place):
            return False
        return self.lower(place, half) >= self.target - SLACK

    def _hopeless(self, place: Place) -> bool:
        few, _ = self._try(place)
        error = max(float(few.std()), 0.1) / len(few) ** 0.5  # queries that are alike by chance prove little
        return float(few.mean()) + 4 * error < self.target

    def ms(self, place: Place) -> float:
        """Median time per query of a batch, once tried."""
        return statistics.median(self._times.get(place) or [self._try(place)[1]])

    def fits(self, ms: float) -> bool:
        """Whether a half at so many ms a query still fits into the time."""
        return self._clock() + ms * self.halves[0].stop / 1e3 <= self._end

    def by_turns(self, places: list[Place], turns: int) -> None:
        """Time settings one after the other until each has been timed so often, or time is up."""
        for turn in range(1, turns):
            for place in places:
                if len(self._times[place]) <= turn and self.fits(self.ms(place)):
                    self.time(place)

    def measured(self, half: int) -> list[Place]:
        return [place for place, measured in self._recall if measured == half]

    def point(self, place: Place) -> dict[str, Any]:
        recall = round(float(self.recall(place, 1).mean()), 4)
        return {"setting": self.setting(place), "recall": recall, "ms": float(f"{self.ms(place):.4g}")}
