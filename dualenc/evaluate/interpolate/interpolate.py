"""What encoders between a starting and a tuned one are worth, on the new task and on an old one (WiSE-FT's curve)."""

from __future__ import annotations

import functools
import itertools
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from dualenc.beside import class_folder
from dualenc.data.loader import make_loader
from dualenc.data.order import BatchOrder, epoch_order
from dualenc.data.prepare import Prepare
from dualenc.data.sample import BadSample, Sample
from dualenc.data.shards import Source, open_source
from dualenc.embed.run import embed_source
from dualenc.embed.store import is_store
from dualenc.evaluate.retrieval import evaluate_retrieval
from dualenc.evaluate.zeroshot.zeroshot import evaluate_zeroshot
from dualenc.model import folder
from dualenc.model.encoder import DualEncoder
from dualenc.model.interpolate import check_alike, check_alpha, interpolate, no_data, stale
from dualenc.model.names import class_files
from dualenc.model.spec import input_spec

log = logging.getLogger("dualenc")

RECALLS = tuple(f"{way}/recall@{k}" for way in ("text_to_image", "image_to_text") for k in (1, 5, 10))
ACCURACIES = ("zeroshot/acc1", "zeroshot/acc5", "zeroshot/mean_per_class_recall")
LEAST = 10  # images of a retrieval task: the largest K
FIRST = 100  # samples that are looked at before any work


class Statistics(NamedTuple):
    """What batch-norm statistics are measured again on: so many batches of a source, drawn in an order that is always equal."""

    source: Source
    batches: int
    batch_size: int = 64
    workers: int = 2

    def loaded(self, spec: dict[str, Any], decode: str) -> Iterable[dict[str, Any]]:
        """The batches, prepared as for an evaluation."""
        size = min(self.batch_size, len(self.source))
        order = BatchOrder(len(self.source), size, functools.partial(epoch_order, len(self.source), 0))
        loader = make_loader(self.source, Prepare(spec, decode=decode), order, self.workers, all_captions=False)
        return itertools.islice(loader, self.batches)

    def about(self) -> dict[str, Any]:
        """What a record says of it."""
        return {"data": ", ".join(self.source.names), "batches": self.batches, "batch_size": self.batch_size}


class Ends(NamedTuple):
    """Two encoders of one architecture, and where they are from."""

    start: folder.Loaded
    tuned: folder.Loaded
    names: dict[str, dict[str, str]]  # start, tuned -> {"encoder": what was named, "fingerprint": its own}
    statistics: Statistics | None


class Task(NamedTuple):
    """A data set that encoders are measured on: zero-shot classification where it has classes, else retrieval."""

    role: str  # new, old
    path: str
    source: Source
    classes: list[str]
    templates: list[str]

    @property
    def metric(self) -> str:
        """What its score is, in words."""
        return "zero-shot accuracy" if self.classes else "mean of Recall@1, 5 and 10 both ways"


class Point(NamedTuple):
    """An encoder on the curve: each task's score (a fraction), their mean, and all metrics by task."""

    alpha: float
    scores: dict[str, float]
    metrics: dict[str, dict[str, float]]

    @property
    def mean(self) -> float:
        return sum(self.scores.values()) / len(self.scores)


def open_task(role: str, path: str) -> Task:
    """A task by the path of its shards or folder, or ValueError or FileNotFoundError where it cannot be measured."""
    if is_store(path):
        raise ValueError(
            f"{path} is a store, the embeddings of one encoder, and each alpha is another; name the shards it was made of"
        )
    source = open_source(path)
    shards = Path(path) if Path(path).is_dir() else Path(path).parent
    classes, templates = class_files(path) if class_folder(shards) is not None else ([], [])
    if classes and not _any(source, "cls", lambda sample: sample.label() is not None):
        raise ValueError(f"{path}: has class names and no KEY.cls, so no right classes; add them, or name other data")
    if not classes and not _any(source, "txt", lambda sample: bool(sample.captions())):
        raise ValueError(
            f"{path}: has neither captions nor classnames.txt, so there is nothing to measure; add one, or name other data"
        )
    if not classes and len(source) < LEAST:
        raise ValueError(
            f"{path}: {len(source)} images, so Recall@{LEAST} would find every one of them; name {LEAST} or more"
        )
    return Task(role, path, source, classes, templates)


def _any(source: Source, kind: str, holds: Callable[[Sample], bool]) -> bool:
    """Whether `holds` is true of any of the first samples."""
    for i in range(min(FIRST, len(source))):
        try:
            if holds(source.sample(i, (kind, "json"))):
                return True
        except (BadSample, OSError):
            continue  # left out, and counted, when it is embedded
    return False


def check_alphas(alphas: Sequence[float]) -> list[float]:
    """The alphas in ascending order, each once. ValueError for one outside 0..1, and for fewer than two."""
    for alpha in alphas:
        check_alpha(alpha)
    if len(set(alphas)) < 2:
        raise ValueError(f"alphas {list(alphas)}: a curve has two points or more; give more, such as 0,0.25,0.5,0.75,1")
    return sorted(set(alphas))


def load_ends(start: str, tuned: str, alphas: Sequence[float], statistics: Statistics | None = None) -> Ends:
    """Both encoders, or ValueError where nothing lies between them, or where `alphas` need statistics that are not given."""
    loaded = folder.load(start), folder.load(tuned)
    check_alike(*loaded, (start, tuned))
    layers = stale(*loaded) if any(0 < alpha < 1 for alpha in alphas) else []
    if layers and statistics is None:
        raise no_data(layers)
    if statistics is not None and not layers:
        log.warning("no batch-norm statistics to measure again, so %s is not read", statistics.source.path)
    marks = [folder.fingerprint(one.model, one.tokenizer) for one in loaded]
    about = zip(("start", "tuned"), (start, tuned), marks, strict=True)
    names = {role: {"encoder": name, "fingerprint": mark} for role, name, mark in about}
    return Ends(*loaded, names, statistics if layers else None)


def encoder_at(ends: Ends, alpha: float, decode: str = "exact", device: str | None = None) -> DualEncoder:
    """The encoder at `alpha`; its provenance says what it is made of."""
    batches = None
    made: dict[str, Any] = {"alpha": alpha, **ends.names}
    if ends.statistics is not None and 0 < alpha < 1:
        batches = ends.statistics.loaded(input_spec(ends.tuned.model, ends.tuned.tokenizer), decode)
        made["statistics"] = ends.statistics.about()
    where = device or ("cuda" if torch.cuda.is_available() else "cpu")  # as DualEncoder
    loaded = interpolate(ends.start, ends.tuned, alpha, batches, where)
    return DualEncoder(loaded._replace(provenance=loaded.provenance | {"interpolated": made}), "", device, decode)


def curve(
    ends: Ends, alphas: Sequence[float], tasks: Sequence[Task], decode: str = "exact", **settings: Any
) -> Iterator[Point]:
    """Each alpha measured on each task, one encoder in memory at a time. settings: as `embed_source`."""
    device = "cpu" if settings.get("accelerator") == "cpu" else None
    for alpha in alphas:
        yield measure(encoder_at(ends, alpha, decode, device), alpha, tasks, **settings)


def measure(encoder: DualEncoder, alpha: float, tasks: Sequence[Task], **settings: Any) -> Point:
    """An encoder's score on each task: what `dualenc eval` says of it."""
    metrics: dict[str, dict[str, float]] = {}
    for task in tasks:
        embedded: Any = embed_source(encoder, task.source, **settings)
        if task.classes:
            found: Any = evaluate_zeroshot(encoder, embedded, task.classes, task.templates, examples=0, times=0)[0]
        else:
            found = evaluate_retrieval(encoder, embedded, examples=0, bootstrap=0)[0]
        metrics[task.role] = {name: found[name] for name in (ACCURACIES if task.classes else RECALLS) if name in found}
    scores = {task.role: score(metrics[task.role]) for task in tasks}
    return Point(alpha, scores, metrics)


def score(metrics: Mapping[str, float]) -> float:
    """The number that stands for a task: accuracy, or the mean of the six recalls.

    >>> score({"zeroshot/acc1": 0.5, "zeroshot/mean_per_class_recall": 0.25})
    0.5
    """
    if ACCURACIES[0] in metrics:
        return metrics[ACCURACIES[0]]
    return sum(metrics[name] for name in RECALLS) / len(RECALLS)


def best(points: Iterable[Point]) -> Point:
    """The point with the highest mean over the tasks; of equal ones the nearest to the start."""
    return max(points, key=lambda point: (point.mean, -point.alpha))
