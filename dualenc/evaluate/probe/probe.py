"""Linear probe and few-shot probes on frozen embeddings, with the zero-shot classifier beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch

from dualenc.evaluate.groups.groups import groups_of
from dualenc.evaluate.intervals import TIMES
from dualenc.evaluate.metrics import class_ranks, per_class_recall
from dualenc.evaluate.probe.choice import choose, spread
from dualenc.evaluate.probe.data import Set, Sets, at_most, draw_shots, held_out, most_shots, seen_share, sets
from dualenc.evaluate.probe.fit import fit, principal
from dualenc.evaluate.probe.numbers import ZERO, Fitted, Report, by_groups, counted, few, how, numbers
from dualenc.evaluate.probe.page import page
from dualenc.evaluate.probe.progress import Progress
from dualenc.evaluate.sections import Embedded, Section, TextEncoder, check_dim
from dualenc.evaluate.zeroshot.classifier import classifier
from dualenc.evaluate.zeroshot.zeroshot import class_places
from dualenc.model.names import Classes, class_prompts, in_order_of

SHOTS = (1, 2, 4, 8, 16)  # as in CLIP's paper
VALIDATED_ON = (
    4  # validation images of a class, at the most, that a few-shot probe looks at (as CoOp, Zhou et al. 2022)
)


def evaluate_probe(
    encoder: TextEncoder,
    train: Embedded,
    test: Embedded,
    val: Embedded | None = None,
    names: Mapping[str, Sequence[str] | None] | None = None,
    classes: Classes | None = None,
    templates: Sequence[str] | None = None,
    shots: Sequence[int] | None = None,
    seeds: int = 3,
    label: str = "label",
    by: Sequence[str] = (),
    seed: int = 0,
    times: int = TIMES,
    device: str | torch.device = "cpu",
) -> tuple[Report, Section]:
    """Flat report and page section of the probe on all of `train`, and on `shots` images a class, `seeds` times each.

    The embeddings stay as they are: what is fitted is a logistic regression (`probe.fit`). Its strength is chosen on
    `val`, or on a fifth of each class of `train` (`probe.choice`); the probe that is measured learns from both. A few-shot
    probe learns from its shots alone and looks at no more than VALIDATED_ON validation images a class. shots: None for those
    of SHOTS that every class has the images for, beside those held out; the others are "probe/shots/left_out".

    names: class names of "train", "val" and "test", where a set has its own (`probe.data.sets`). classes, templates: for
    the zero-shot classifier among the classes that train holds, `in_order_of` those names; without classes there is none.
    label: the metadata column with the classes. by: metadata columns of `test`. times: bootstrap draws, 0 for no intervals.
    Keys: "probe/acc1", "probe/shots/4/acc1", "probe/zeroshot/acc1", "…/mean_per_class_recall" (`probe.numbers`).
    "probe/test_in_train": share of test images whose embedding is also one of train or val.
    ValueError: data of another width, labels that do not fit, too few images for the shots, test images all in train.
    """
    given = {"train": train, "val": val, "test": test}
    for each in given.values():
        if each is not None:
            check_dim(encoder, each)
    _check_shots(shots or (), seeds)
    groups = {column: groups_of(test.metadata, column) for column in by}  # a wrong name is told before the work
    found, unlabelled = sets(given, names or {}, label)
    seen = {"probe/test_in_train": seen_share(found)}
    data, pool = _validated(found, seed)
    shots, left_out = _enough(data, shots, held=found.val is None)
    own = next((each for each in (names or {}).values() if each), None)
    zero = None if classes is None else _zero_shot(encoder, found, classes, templates, own)
    target, number = found.test.target, len(found.classes)
    full, drawn = _all(data, pool, shots, [seed + i for i in range(seeds)], device)
    ways = {"probe/": full.right} | ({} if zero is None else {ZERO: zero})
    ways |= {f"probe/shots/{count}/": np.mean([each.right for each in some], axis=0) for count, some in drawn.items()}
    report = numbers(ways, target, number, times, seed) | counted(found, data, pool, unlabelled) | how(full) | seen
    report |= left_out
    for count, some in drawn.items():
        report |= few(some, target, number, f"probe/shots/{count}/", seed)
    recall, size = per_class_recall(~full.right, target, number)
    report |= {f"probe/recall/{found.classes[c]}": float(recall[c]) for c in np.flatnonzero(size)}
    grouped = [
        by_groups(full.right, target, [group[row] for row in found.test.row], f"probe/by/{column}/", times, seed)
        for column, group in groups.items()
    ]
    for more, _ in grouped:
        report |= more
    return report, page(report, test, found, full, shots, [table for _, table in grouped], seeds, seed)


def _validated(found: Sets, seed: int) -> tuple[Sets, Set]:
    """The sets, train less what is held out; and the validation rows."""
    if found.val is not None:
        return found, found.val
    kept, out = held_out(found.train.target, seed)
    return found._replace(train=found.train.take(kept)), found.train.take(out)


def _enough(data: Sets, shots: Sequence[int] | None, held: bool) -> tuple[Sequence[int], Report]:
    """The shots; where none are given those of SHOTS that every class has the images for among those to learn from, and what
    the report says of the others. ValueError: too few images for those given. held: whether some are held out."""
    if shots is not None:
        for count in shots:
            draw_shots(data.train.target, count, data.classes, held=held)
        return shots, {}
    most = most_shots(data.train.target)
    left_out = ", ".join(str(count) for count in SHOTS if count > most)
    return [count for count in SHOTS if count <= most], {"probe/shots/left_out": left_out} if left_out else {}


def _all(
    data: Sets, pool: Set, shots: Sequence[int], seeds: Sequence[int], device: str | torch.device
) -> tuple[Fitted, dict[int, list[Fitted]]]:
    """The probe of all images, and those of each number of shots, one a seed."""
    with Progress(1 + len(shots) * len(seeds)) as progress:
        full = _probe(data.train, pool, data.test, len(data.classes), device, progress, together=True)
        return full, {count: [_few(data, pool, count, each, device, progress) for each in seeds] for count in shots}


def _probe(
    train: Set, val: Set, test: Set, classes: int, device: str | torch.device, progress: Progress, together: bool
) -> Fitted:
    """Choose a strength, fit there (on train and val `together`, or on train alone), classify the test rows."""
    axes = principal(train.rows, train.target, classes, device)
    choice = choose(axes, val, progress.tell, progress.fitted)
    start: torch.Tensor | None = choice.start
    if together:
        rows, target = np.concatenate([train.rows, val.rows]), np.concatenate([train.target, val.target])
        axes, start = principal(rows, target, classes, device), None  # its weights lie along other axes
    probe, _ = fit(axes, 10**choice.power / spread(axes), start, tell=progress.tell)
    progress.done()
    return Fitted(probe, choice, class_ranks(probe.scores(test.rows), test.target) == 0)


def _few(data: Sets, pool: Set, count: int, seed: int, device: str | torch.device, progress: Progress) -> Fitted:
    some = data.train.take(draw_shots(data.train.target, count, data.classes, seed))
    val = pool.take(at_most(pool.target, min(count, VALIDATED_ON), seed))
    return _probe(some, val, data.test, len(data.classes), device, progress, together=False)


def _zero_shot(
    encoder: TextEncoder,
    found: Sets,
    classes: Classes,
    templates: Sequence[str] | None,
    own: Sequence[str] | None,
) -> npt.NDArray[np.bool_]:
    """Which test images the zero-shot classifier gets right among the classes that train holds."""
    if own is not None and not isinstance(found.label[0], str):
        classes = in_order_of(classes, own)
    place = {name: i for i, name in enumerate(classes.names)}
    where = [place.get(label, -1) if isinstance(label, str) else int(label) for label in found.label]
    unknown = [name for name, at in zip(found.classes, where, strict=True) if not 0 <= at < len(classes.names)]
    if unknown:
        raise ValueError(
            f"{len(unknown)} classes of the data ({unknown[0]!r}) are none of the {len(classes.names)} class names; give "
            "the list the labels were made with"
        )
    weights, prompts = classifier(encoder, classes, templates), class_prompts(classes, templates)
    own_prompts = [prompts[at] for at in where]
    return class_places(found.test.rows, weights[where], found.test.target, own_prompts) == 0


def _check_shots(shots: Sequence[int], seeds: int) -> None:
    if any(count < 1 for count in shots) or len(set(shots)) != len(shots):
        raise ValueError(f"shots {', '.join(map(str, shots))}: give each number of images a class once, from 1 on")
    if seeds < 1:
        raise ValueError(f"seeds is {seeds}, so no shots would be drawn; use 1 or more")
