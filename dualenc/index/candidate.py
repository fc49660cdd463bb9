"""What `auto` weighed: the recipes, what each would cost, which is built first, and why the others are not; as a table."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from dualenc.index.tune import OutOfReach

NEAR = 1.25  # of those within this of the cheapest, the one that builds fastest is taken


@dataclass
class Candidate:
    """A recipe that `auto` weighed. Times are estimates for all rows; None: not tried."""

    name: str
    recipe: dict[str, Any]  # resolved for all rows
    bytes: int
    single_ms: float | None = None  # a query alone
    batch_ms: float | None = None  # a query in a batch
    build_s: float | None = None
    recall: float | None = None  # on the sample
    reason: str = ""
    order: int | None = None  # 0: chosen; 1 and on: to be built when those before disappoint; None: turned down
    guessed: bool = False  # tried on the small sample only

    @property
    def chosen(self) -> bool:
        return self.order == 0

    @property
    def ok(self) -> bool:
        """Whether it was not turned down."""
        return self.order is not None

    @property
    def cost(self) -> float:
        """Geometric mean of the times alone and in a batch, in ms."""
        return (
            math.inf if self.single_ms is None or self.batch_ms is None else math.sqrt(self.single_ms * self.batch_ms)
        )


def rank(
    candidates: list[Candidate], flat: Candidate | None, target: float, memory: int | None, latency: float | None
) -> list[Candidate]:
    """Those to build, in order, then those turned down, each with its reason. flat: exact search, where memory allows it.

    Slower than exact search, alone or in a batch: turned down. OutOfReach where none is left.
    """
    tried = [one for one in candidates if one.single_ms is not None and (one.guessed or not one.reason)]
    if latency is not None:
        tried = [one for one in tried if not _late(one, 1e3 * latency)]
    if flat and flat in tried:
        tried = [one for one in tried if one is flat or not _slower(one, flat)]
    if not tried:
        raise OutOfReach(_nothing_fits(candidates, target, memory, latency))
    sure = [one for one in tried if not one.guessed] or tried
    cheapest = min(sure, key=lambda one: one.cost)
    best = min((one for one in sure if one.cost <= NEAR * cheapest.cost), key=lambda one: one.build_s or 0.0)
    order = [best, *sorted((one for one in tried if one is not best), key=lambda one: (one.guessed, one.cost))]
    for place, one in enumerate(order):
        one.order, one.reason = place, one.reason or _comparison(one, best, cheapest, len(order))
    return order + [one for one in candidates if not one.ok]


def _late(one: Candidate, most_ms: float) -> bool:
    """Whether a query takes longer than asked; the reason is noted."""
    assert one.single_ms is not None
    if one.single_ms <= most_ms:
        return False
    one.reason = f"takes {one.single_ms:.3g} ms a query, above latency {most_ms:.3g} ms"
    return True


def _slower(one: Candidate, flat: Candidate) -> bool:
    """Whether exact search is quicker, alone or in a batch; the reason is noted."""
    for how, ours, exact in (
        ("alone", one.single_ms, flat.single_ms),
        ("in a batch", one.batch_ms, flat.batch_ms),
    ):
        if (ours or 0.0) > (exact or 0.0):
            one.reason = f"{ours:.3g} ms a query {how} against exact search's {exact:.3g}"
            return True
    return False


def _comparison(one: Candidate, best: Candidate, cheapest: Candidate, left: int) -> str:
    if one is best:
        if left == 1:
            return "nothing else meets what was asked, or is faster than it"
        return "the least time a query" if best is cheapest else f"nearly {cheapest.name}'s speed, and built sooner"
    if one.cost < best.cost:
        longer = (one.build_s or 0.0) / max(best.build_s or 0.0, 1e-9)
        return f"takes {longer:.2g} times as long to build for {best.cost / one.cost:.2f} times the speed"
    return f"{one.cost / best.cost:.3g} times {best.name}'s time a query"


def _nothing_fits(candidates: list[Candidate], target: float, memory: int | None, latency: float | None) -> str:
    asked = [f"recall={target:g}"]
    asked += [] if memory is None else [f"memory={size(memory)}"]
    asked += [] if latency is None else [f"latency={1e3 * latency:.3g}ms"]
    smallest = min(candidates, key=lambda one: one.bytes)
    best = [f"the least memory is {size(smallest.bytes)} ({smallest.name})"]
    measured = [one for one in candidates if one.recall is not None]
    if measured:
        closest = max(measured, key=lambda one: one.recall or 0.0)
        best.append(f"the best recall within memory {closest.recall:.3f} ({closest.name})")
    timed = [one for one in candidates if one.single_ms is not None]
    if timed:
        fastest = min(timed, key=lambda one: one.single_ms or math.inf)
        best.append(f"the best latency at that recall {fastest.single_ms:.3g} ms ({fastest.name})")
    return f"no kind of index meets {' with '.join(asked)}: {', '.join(best)}; ask for less of one, or for fewer rows"


def table(candidates: list[dict[str, Any]]) -> str:
    """Aligned text of `as_json`'s lines, the chosen one marked; times that were measured in full follow the reason."""
    lines = [["", "recipe", "size", "alone ms", "batch ms", "build s", "recall", "why"]]
    for one in candidates:
        numbers = [_number(one[name]) for name in ("single_ms", "batch_ms", "build_s")]
        recall = "-" if one["recall"] is None else f"{one['recall']:.3f}"
        chosen = one.get("chosen", one["order"] == 0)
        mark = "->" if chosen else str(one["order"]) if one["order"] is not None else "x"
        full = one.get("measured")
        built = f"; built in full: {full['single_ms']:.3g} and {full['batch_ms_per_query']:.3g} ms" if full else ""
        lines.append([mark, one["recipe"], size(one["bytes"]), *numbers, recall, one["reason"] + built])
    widths = [max(len(line[column]) for line in lines) for column in range(7)]
    text = []
    for *cells, why in lines:
        left = [cell.ljust(width) for cell, width in zip(cells[:2], widths, strict=False)]
        right = [cell.rjust(width) for cell, width in zip(cells[2:], widths[2:], strict=True)]
        text.append("  ".join([*left, *right, why]))
    return "\n".join(text)


def as_json(candidates: list[Candidate]) -> list[dict[str, Any]]:
    """The table for the manifest."""
    return [
        {
            "recipe": one.name,
            "order": one.order,
            "bytes": one.bytes,
            "single_ms": _rounded(one.single_ms),
            "batch_ms": _rounded(one.batch_ms),
            "build_s": _rounded(one.build_s),
            "recall": one.recall,
            "guessed": one.guessed,
            "reason": one.reason,
        }
        for one in candidates
    ]


def size(count: int) -> str:
    """4_100_000_000 -> "4.1 GB"."""
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= unit:
            return f"{count / unit:.3g} {name}"
    return f"{count} B"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")
