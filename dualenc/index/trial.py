"""Trial builds: a kind of index on a random sample of the rows, tuned to the asked-for recall, and what it would cost on all."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from dualenc.index.fill import CODE_ROWS, GRAPH_BLOCK
from dualenc.index.kinds import KINDS, Kind
from dualenc.index.meter import SLACK, least
from dualenc.index.recall import Truth, recall_per_query, truth
from dualenc.index.recipe import FEWEST_ROWS_PER_LIST
from dualenc.index.segment import Segment
from dualenc.index.tune import K
from dualenc.index.vectors import Array

Clock = Callable[[], float]
TRIAL_ITERATIONS = 4  # of k-means
TIMED = 200  # queries of a batch that is timed
ALONE = 40  # queries that are timed one at a time
TURNS, LONG = 3, 0.3  # times that a batch is timed at most, and seconds after which that is enough


@dataclass(frozen=True)
class Trial:
    """What a kind costs on `rows` rows at the cheapest setting that reaches the target; setting None: none does."""

    rows: int
    recall: float
    setting: dict[str, int] | None
    single_ms: float  # a query alone
    batch_ms: float  # a query in a batch
    train_s: float
    add_s: float

    @property
    def cost(self) -> float:
        """Geometric mean of the times alone and in a batch, in ms."""
        return math.sqrt(self.single_ms * self.batch_ms)


class Sample:
    """Rows in random order, so that any first of them are a random sample, and queries with their exact results.

    Of all rows the 10 nearest count; of a tenth of them the 1 nearest does, which lies about as far away. (Were it 10
    there too, they would lie in other clusters than the query, and trials would tell of another task than the real one.)
    """

    def __init__(self, rows: np.ndarray, queries: np.ndarray, total: int, target: float, clock: Clock):
        self.rows, self.queries, self.total, self.target, self.clock = rows, queries, total, target, clock
        self.ids = np.arange(len(rows), dtype=np.int64)
        self._truth: dict[int, Truth] = {}

    def truth(self, rows: int) -> Truth:
        """Exact results among the first `rows` rows, computed once."""
        if rows not in self._truth:
            k = max(1, round(K * rows / self.total))
            self._truth[rows] = truth(self.queries, Array(self.rows[:rows]), k, self.ids[:rows])
        return self._truth[rows]

    def timed(self, work: Callable[[], Any]) -> tuple[Any, float]:
        """(what `work` returns, seconds)."""
        start = self.clock()
        made = work()
        return made, self.clock() - start


def attempt(recipe: dict[str, Any], sample: Sample, rows: int) -> Trial:
    """Build a resolved recipe on the first `rows` of the sample, find its cheapest setting, and time it."""
    build, ladders = quick(recipe["build"]), recipe["search"]
    kind, train_s = sample.timed(lambda: _trained(build, sample.rows[:rows]))
    _, add_s = sample.timed(lambda: _add(kind, sample, rows))
    originals = Array(sample.rows[:rows]) if "rerank" in ladders else None
    segment = Segment(1, kind, sample.ids[:rows], np.zeros(0, np.int64), originals)
    finder = _Finder(kind, ladders, sample, rows)
    settings = finder.cheapest()
    if not settings:
        return Trial(rows, finder.recall(finder.widest), None, math.inf, math.inf, train_s, add_s)
    timed = [(*time_it(segment.search, sample, setting), setting) for setting in settings]
    single, batch, setting = min(timed, key=lambda times: times[0] * times[1])
    return Trial(rows, finder.recall(setting), setting, single, batch, train_s, add_s)


def quick(build: dict[str, Any]) -> dict[str, Any]:
    """`build` with less training: lists a little worse, several times as soon."""
    most = {"iterations": TRIAL_ITERATIONS, "train_rows_per_list": FEWEST_ROWS_PER_LIST}
    return {key: min(value, most[key]) if key in most else value for key, value in build.items()}


class _Finder:
    """The settings of a kind that reach the target: for each re-rank factor the least width (nprobe, efSearch).

    Re-ranking finds what is among the candidates: its recall is theirs, and no original row has to be read to know it.
    """

    def __init__(self, kind: Kind, ladders: dict[str, list[int]], sample: Sample, rows: int):
        self._kind, self._sample, self._rows = kind, sample, rows
        self._truth = sample.truth(rows)
        self._ladders, self._factors = ladders, ladders.get("rerank", [1])
        self._knob = next((knob for knob in ladders if knob != "rerank"), None)
        self._widths = ladders[self._knob] if self._knob else [0]
        self._recalls: dict[tuple[int, int], np.ndarray] = {}
        self.widest = self._setting(self._widths[-1], self._factors[-1])

    def cheapest(self) -> list[dict[str, int]]:
        """For each factor that can do it the least width, as long as a larger factor makes do with less."""
        settings: list[dict[str, int]] = []
        last = len(self._widths) - 1
        # the widest search, for the most candidates, tells which factors can do it at all
        most = None if self._kind.exact else self._found(self._widths[last], self._factors[-1])
        for factor in self._factors:
            reachable = most is None or self._enough(self._hits(*most, factor))
            width = least(functools.partial(self._meets, factor=factor), 0, last) if reachable else None
            if width is not None and (not settings or width < last):
                settings.append(self._setting(self._widths[width], factor))
            elif settings:
                break
            last = last if width is None else width
        return settings

    def recall(self, setting: dict[str, int]) -> float:
        """Mean recall at a setting."""
        width = setting[self._knob] if self._knob else 0
        return float(self._measured(width, setting.get("rerank", 1)).mean())

    def _meets(self, place: int, factor: int) -> bool:
        return self._enough(self._measured(self._widths[place], factor))

    def _enough(self, recalls: np.ndarray) -> bool:
        return float(recalls.mean()) >= self._sample.target - SLACK

    def _measured(self, width: int, factor: int) -> np.ndarray:
        if (width, factor) not in self._recalls:
            self._recalls[width, factor] = self._hits(*self._found(width, factor), factor)
        return self._recalls[width, factor]

    def _found(self, width: int, factor: int) -> tuple[np.ndarray, np.ndarray]:
        asked = min(self._truth.ids.shape[1] * factor, self._rows)
        return self._kind.search(
            self._sample.queries,
            asked,
            self._setting(width, factor),
            self._sample.ids[: self._rows],
            least=self._truth.ids.shape[1],
        )

    def _hits(self, ids: np.ndarray, scores: np.ndarray, factor: int) -> np.ndarray:
        most = self._truth.ids.shape[1] * factor
        return recall_per_query(ids[:, :most], scores[:, :most], self._truth, self._kind.exact)

    def _setting(self, width: int, factor: int) -> dict[str, int]:
        setting = {self._knob: width} if self._knob else {}
        return setting | ({"rerank": factor} if "rerank" in self._ladders else {})


def _trained(build: dict[str, Any], rows: np.ndarray) -> Kind:
    """Trained and empty, as `fill` makes it: on as many rows, of which any first are random."""
    cls = KINDS[build["kind"]]
    mean = rows.mean(axis=0, dtype=np.float64).astype(np.float32) if build.get("centred") else None
    most = max(build.get("nlist", 0) * build.get("train_rows_per_list", 0), CODE_ROWS)
    return cls.new(build, rows.shape[1], mean, rows[:most] if cls.trains(build) else None)


def _add(kind: Kind, sample: Sample, rows: int) -> None:
    step = rows if kind.joins else GRAPH_BLOCK
    for start in range(0, rows, step):
        some = slice(start, min(start + step, rows))
        kind.add(sample.rows[some], sample.ids[some])


def time_it(search: Callable[..., Any], sample: Sample, setting: dict[str, int]) -> tuple[float, float]:
    """(ms of a query alone, ms of a query in a batch) after a warm-up: the faster ones, which others disturbed least."""
    queries = sample.queries[:TIMED]
    search(queries[:10], K, setting)
    alone = []
    for query in queries[:ALONE]:
        alone.append(sample.timed(lambda query=query: search(query[None], K, setting))[1])  # type: ignore[misc]
    batch: list[float] = []
    while len(batch) < TURNS and sum(batch) < LONG:
        batch.append(sample.timed(lambda: search(queries, K, setting))[1])
    return float(np.quantile(alone, 0.25)) * 1e3, min(batch) / len(queries) * 1e3


def power_law(small: tuple[float, float], large: tuple[float, float], rows: int) -> float:
    """The time on `rows` rows from (rows, time) at two sizes: t = a · rows^b, b from 0 to 1.

    A search never gets cheaper with more rows, and none costs more than in proportion: where it seems so, it is noise.

    >>> round(power_law((100, 2.0), (400, 4.0), 1600), 3)
    8.0
    """
    (few, fast), (many, slow) = small, large
    exponent = math.log(slow / fast) / math.log(many / few) if many > few and min(slow, fast) > 0 else 1.0
    return slow * (rows / many) ** min(max(exponent, 0.0), 1.0)


def straight_line(small: tuple[float, float], large: tuple[float, float], rows: int) -> float:
    """The same for searches that compare every row: a call's own cost, and so much a row (at least half of the time).

    >>> straight_line((100, 2.0), (400, 5.0), 1600)
    17.0
    """
    (few, fast), (many, slow) = small, large
    a_row = (slow - fast) / (many - few) if many > few else slow / many
    return slow + min(max(a_row, 0.5 * slow / many), slow / many) * (rows - many)


def build_seconds(trial: Trial, tried: dict[str, Any], full: dict[str, Any], rows: int) -> float:
    """About how long the build of all rows takes. tried, full: `build` as resolved for the trial's rows and for all."""
    if full["kind"] == "hnsw":  # each row searches a graph as deep as its logarithm
        return trial.train_s + trial.add_s * rows * math.log(rows) / (trial.rows * math.log(trial.rows))
    adding = trial.add_s * rows / trial.rows
    if full["kind"] == "flat":
        return adding

    def work(build: dict[str, Any], count: int) -> float:  # of k-means: all lists against all rows, each time
        return (
            build["nlist"]
            * build["iterations"]
            * min(count, max(build["nlist"] * build["train_rows_per_list"], CODE_ROWS))
        )

    lists = full["nlist"] / tried["nlist"]
    return trial.train_s * work(full, rows) / work(tried, trial.rows) + adding * lists
