"""Where every sample of an epoch went: seen, or dropped for a reason, per source and over all ranks."""

from __future__ import annotations

import collections
import logging
from collections.abc import Mapping
from typing import Any

from dualenc.data.dataset import warn_once
from dualenc.data.stream.samples import REST_LEFT, SHARD_LEFT
from dualenc.data.stream.transport import BROKEN, MISSING, shown
from dualenc.data.tar import DAMAGED, NOT_A_TAR, TRUNCATED
from dualenc.train.ranks import of_all

log = logging.getLogger("dualenc")

SEEN, CUT = "seen", "captions_cut"
LEFT = (SHARD_LEFT, REST_LEFT)  # not dropped: another epoch shows them
OF_SHARDS = frozenset({TRUNCATED, DAMAGED, NOT_A_TAR, BROKEN, MISSING, *LEFT})  # reasons that count shards, not samples
Key = tuple[int, str]  # (number of the source, SEEN or a reason); -1: of no source in particular


class Counts:
    """Samples of this rank since the epoch began."""

    def __init__(self) -> None:
        self._counts: collections.Counter[Key] = collections.Counter()

    def add(self, batch: dict[str, Any]) -> None:
        """Count the rows of a batch, and what was dropped while it was read."""
        for origin, reason in zip(batch["origin"], batch["reason"], strict=True):
            if reason != "padding":
                self._counts[origin, reason or SEEN] += 1
        for origin, reason, count in batch.get("dropped", ()):
            self._counts[origin, reason] += count
        self._counts[-1, CUT] += batch["truncated"]

    def total(self) -> collections.Counter[Key]:
        """The counts of all ranks together."""
        return sum((collections.Counter(part) for part in of_all(dict(self._counts))), collections.Counter())

    def any_seen(self) -> bool:
        """Whether this rank saw a sample that could be used."""
        return any(what == SEEN for _, what in self._counts)

    def clear(self) -> None:
        self._counts.clear()

    def state(self) -> list[list[Any]]:
        """The counts of all ranks as plain types, for a checkpoint; every rank must call it."""
        return [[origin, what, count] for (origin, what), count in sorted(self.total().items())]

    def load(self, state: list[list[Any]]) -> None:
        """Go on from a checkpoint's counts, on one rank."""
        self._counts = collections.Counter({(origin, what): count for origin, what, count in state})


def samples(total: Mapping[Key, int]) -> int:
    """How many samples were counted, seen or dropped."""
    return sum(count for (_, what), count in total.items() if what != CUT and what not in OF_SHARDS)


def refuse_nothing(total: Mapping[Key, int]) -> None:
    """ValueError where samples were counted and not one of them was seen."""
    lost = {what: count for (_, what), count in total.items() if what != CUT}
    if lost and SEEN not in lost:
        listed = ", ".join(f"{count:,} {what}" for what, count in lost.items())
        raise ValueError(
            f"none of this epoch's samples could be used ({listed}), so nothing was learnt; `dualenc data check` lists them"
        )


def metrics(total: Mapping[Key, int], left: Mapping[str, int], names: list[str]) -> dict[str, float]:
    """`data/seen`, `data/dropped/REASON`, `data/shards/REASON` (shards of which some or all is lost), `data/captions_cut`,
    `data/REASON` of what is left for other epochs; with several sources also `data/SOURCE/seen` and so on."""
    found: collections.Counter[str] = collections.Counter({"data/seen": 0, "data/captions_cut": 0})
    labels = short_names(names)
    for (origin, what), count in total.items():
        unit = "shards" if what in OF_SHARDS else "dropped"
        name = what if what in (SEEN, CUT) else f"{unit}/{what.replace(' ', '_')}"
        found[f"data/{name}"] += count
        if origin >= 0 and len(labels) > 1:
            found[f"data/{labels[origin]}/{name}"] += count
    found.update({f"data/{name}": count for name, count in left.items()})
    return {name: float(count) for name, count in found.items()}


def evaluated(total: Mapping[Key, int], name: str) -> dict[str, float]:
    """`seen` and `dropped/REASON` of an evaluation set; what was dropped is told the first time."""
    counted = {what: float(count) for (_, what), count in total.items() if what not in (SEEN, CUT)}
    if counted:
        lost = ", ".join(f"{count:,.0f} {reason}" for reason, count in counted.items())
        warn_once(f"{name}: left out of the scores: {lost}")
    dropped = {f"dropped/{what.replace(' ', '_')}": count for what, count in counted.items()}
    return {SEEN: float(sum(count for (_, what), count in total.items() if what == SEEN)), **dropped}


def report(total: Mapping[Key, int], left: Mapping[str, int], epoch: int) -> None:
    """One line for the log: a warning where something was dropped, else information."""
    by_reason: collections.Counter[str] = collections.Counter()
    for (_, what), count in total.items():
        by_reason[what] += count
    seen, cut = by_reason.pop(SEEN, 0), by_reason.pop(CUT, 0)
    rest = [f"{count:,} {reason.replace('_', ' ')}" for reason, count in left.items() if count]
    rest += [
        f"{count:,} {reason.removesuffix(' left for other epochs')}"
        for reason in LEFT
        if (count := by_reason.pop(reason, 0))
    ]
    lost = [f"{count:,} {reason}" for reason, count in by_reason.most_common() if count]
    parts = [f"epoch {epoch}: {seen:,} samples seen", f"{cut:,} captions cut" if cut else ""]
    parts += ["dropped: " + ", ".join(lost) if lost else "", "left: " + ", ".join(rest) if rest else ""]
    log.log(logging.WARNING if lost else logging.INFO, "; ".join(part for part in parts if part))


def short_names(names: list[str]) -> list[str]:
    """The last parts of paths, as few of them as tell the paths apart."""
    plain = [shown(name).removesuffix("?…") for name in names]  # signatures have no place in a log
    parts = [[p for p in name.split("/") if p] or [name] for name in plain]
    for depth in range(1, max(map(len, parts), default=1) + 1):
        short = ["_".join(some[-depth:]).replace(".", "_") for some in parts]
        if len(set(short)) == len(short):
            return short
    return [f"{number}" for number in range(len(names))]
