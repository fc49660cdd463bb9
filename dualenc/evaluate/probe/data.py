"""What a probe learns from and is measured on: labelled rows of three sets with one numbering, splits, shots."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from dualenc.evaluate.ranks import Ints
from dualenc.evaluate.sections import Embedded, listed
from dualenc.evaluate.zeroshot.labels import holds_lists

HELD_OUT = 0.2  # of each class's training rows, where no validation set is given


class Set(NamedTuple):
    """Labelled rows: which of the data set's images they are, their embeddings, their classes 0 .. C-1."""

    row: Ints  # (N,)
    rows: npt.NDArray[np.float32]  # (N, D)
    target: Ints  # (N,)

    def take(self, some: npt.ArrayLike) -> Set:
        """Some of the rows."""
        some = np.asarray(some, np.int64)
        return Set(self.row[some], self.rows[some], self.target[some])


class Sets(NamedTuple):
    """Training, validation (None: a part of training takes its place) and test, and the classes that training holds."""

    train: Set
    val: Set | None
    test: Set
    classes: list[str]  # C names, or numbers as text where nobody names them
    label: list[Any]  # C labels as the data says them: names or numbers


def sets(
    embedded: Mapping[str, Embedded | None], names: Mapping[str, Sequence[str] | None], column: str = "label"
) -> tuple[Sets, dict[str, int]]:
    """The labelled rows of "train", "val" (may be None) and "test" in one numbering; and how many have no label.

    names: each set's own class names in the order of its numbers. Where these lists differ, as two image folders' may,
    classes are matched by name; where they are the same, or nobody has one, by number.
    ValueError: no labels, a label outside the names, a class of validation or test that training does not hold,
    name lists that differ where a third set has none, or that hold a name twice.
    """
    given = {name: each for name, each in embedded.items() if each is not None}
    lists = {name: names.get(name) for name in given}
    known = {name: list(each) for name, each in lists.items() if each}
    by_name = any(each != next(iter(known.values())) for each in known.values())
    if by_name and (len(known) < len(given) or any(len(set(each)) < len(each) for each in known.values())):
        raise ValueError(
            f"the class names of {' and '.join(known)} differ, and classes can be matched by name only where each set has "
            "names and none of them twice; give --classes"
        )
    found = {name: _labels(each, lists[name], by_name, name, column) for name, each in given.items()}
    present = set(found["train"][1])
    if len(present) < 2:
        raise ValueError(f"train holds {len(present)} class, and telling classes apart takes two or more; add classes")
    place_in_list = {name: i for i, name in enumerate(known.get("train", []))}
    order = sorted(present, key=lambda label: (place_in_list.get(label, len(place_in_list)), label))
    for name in [name for name in ("val", "test") if name in found]:
        absent = set(found[name][1]) - present
        if absent:
            raise ValueError(
                f"{name} has classes that train has not, so no probe could learn them: "
                f"{listed(sorted(map(str, absent)))}; add them to train or leave them out of {name}"
            )
    place = {label: c for c, label in enumerate(order)}
    made = {
        name: Set(row, given[name].images[row], np.array([place[label] for label in labels], np.int64))
        for name, (row, labels) in found.items()
    }
    shown = _shown(order, next(iter(known.values()), None))
    unlabelled = {name: len(each.images) - len(made[name].row) for name, each in given.items()}
    return Sets(made["train"], made.get("val"), made["test"], shown, order), unlabelled


def seen_share(found: Sets) -> float:
    """Share of the test rows that are, byte for byte, training or validation rows. ValueError: all of them are."""
    learnt = {mark for each in (found.train, found.val) if each is not None for mark in _marks(each.rows)}
    share = float(np.mean([mark in learnt for mark in _marks(found.test.rows)]))
    if share == 1:
        raise ValueError(
            "every test image is in train or val, so the probe would be asked what it learnt; give other data"
        )
    return share


def _marks(rows: npt.NDArray[np.float32]) -> list[bytes]:
    return [hashlib.blake2b(row.tobytes(), digest_size=16).digest() for row in rows]


def held_out(target: Ints, seed: int = 0, share: float = HELD_OUT) -> tuple[Ints, Ints]:
    """Rows to learn from and rows to validate on: `share` of each class, one at the least where it has two or more.

    >>> kept, out = held_out(np.array([0, 0, 0, 0, 0, 1, 1, 2]))
    >>> len(kept), [int(c) for c in np.array([0, 0, 0, 0, 0, 1, 1, 2])[out]]
    (6, [0, 1])
    """
    out = []
    for rows in _shuffled(target, seed):
        count = max(1, round(share * len(rows))) if len(rows) > 1 else 0
        out.append(rows[:count])
    chosen = np.sort(np.concatenate(out))
    if not len(chosen):
        raise ValueError("every class of train has one image, so none can be held out to validate on; give --val")
    return np.setdiff1d(np.arange(len(target)), chosen), chosen


def draw_shots(target: Ints, count: int, classes: Sequence[str], seed: int = 0, held: bool = False) -> Ints:
    """`count` rows of each class, drawn by `seed`: with the same seed more shots hold all rows of fewer shots.

    ValueError names a class with fewer rows than that. held: whether a part of train was held out before.
    """
    size = np.bincount(target, minlength=len(classes))
    few = np.flatnonzero(size < count)
    if len(few):
        raise ValueError(
            f"{count} shots a class, but train has {size[few[0]]} images of {classes[few[0]]!r}"
            f"{' beside those held out to validate on' if held else ''} ({len(few)} such classes); "
            f"leave {count} out of --shots, or add images"
        )
    return np.sort(np.concatenate([rows[:count] for rows in _shuffled(target, seed)]))


def most_shots(target: Ints) -> int:
    """How many shots every class that occurs has images for.

    >>> most_shots(np.array([0, 0, 0, 1, 1]))
    2
    """
    return int(np.unique(target, return_counts=True)[1].min())


def at_most(target: Ints, count: int, seed: int = 0) -> Ints:
    """`count` rows of each class, or all where a class has fewer."""
    return np.sort(np.concatenate([rows[:count] for rows in _shuffled(target, seed)]))


def _shuffled(target: Ints, seed: int) -> list[Ints]:
    """The rows of each class that occurs, in an order drawn by `seed`."""
    order = np.random.default_rng(seed).permutation(len(target))
    order = order[np.argsort(target[order], kind="stable")]
    return np.split(order, np.flatnonzero(np.diff(target[order])) + 1)


def _labels(
    embedded: Embedded, names: Sequence[str] | None, by_name: bool, name: str, column: str
) -> tuple[Ints, list[Any]]:
    """Rows with a label, and the labels as they are, or of numbers their names where classes are matched `by_name`."""
    if column not in embedded.metadata.column_names:
        raise ValueError(
            f"{name} has no column {column!r}, so no classes; add KEY.cls files or name another column with --label "
            f"({', '.join(embedded.metadata.column_names)})"
        )
    if holds_lists(embedded.metadata, column):
        raise ValueError(
            f"{column} of {name} holds several classes an image; a probe tells one class from the others: name "
            "another column with --label"
        )
    values = embedded.metadata[column].to_pylist()
    row = [i for i, value in enumerate(values) if value is not None]
    if not row:
        raise ValueError(f"no image of {name} has a class in {column!r}; add KEY.cls files or name another --labels")
    found = [values[i] for i in row]
    kinds = {type(value) for value in found}
    if len(kinds) > 1 or not kinds <= {int, str, bool}:
        raise ValueError(
            f"{column} of {name} holds {' and '.join(sorted(kind.__name__ for kind in kinds))} values; classes are whole "
            "numbers or names"
        )
    if names is not None and kinds == {int}:
        outside = [value for value in found if not 0 <= value < len(names)]
        if outside:
            raise ValueError(
                f"{column} of {name} holds {outside[0]}, but its classes are numbered 0..{len(names) - 1}; give the "
                "class list the labels were made with"
            )
        found = [names[value] for value in found] if by_name else found
    return np.array(row, np.int64), found


def _shown(labels: Sequence[Any], names: Sequence[str] | None) -> list[str]:
    """What to call each class; open_clip's ImageNet list has two names twice, which get their number."""
    if names is None or isinstance(labels[0], str):
        return [str(label) for label in labels]
    times = Counter(names)
    return [names[label] if times[names[label]] == 1 else f"{names[label]} ({label})" for label in labels]
