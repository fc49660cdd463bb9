"""What a data set holds, and what in it is broken: every image decoded, every caption read."""

from __future__ import annotations

import array
import collections
import dataclasses
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from dualenc.beside import CLASS_NAMES, class_folder
from dualenc.data.sample import UNREADABLE, BadSample, Sample
from dualenc.data.shards import Source, open_source
from dualenc.images import BadImage, decode_fully

SHOWN = 3  # names per reason in the printed report


@dataclasses.dataclass
class Spread:
    """Least, middle and greatest of some counts; None when there are none."""

    least: float
    median: float
    most: float

    @classmethod
    def of(cls, values: Sequence[int]) -> Spread | None:
        return cls(min(values), statistics.median(values), max(values)) if values else None

    def __str__(self) -> str:
        return f"{self.least:g} to {self.most:g}, median {self.median:g}"


@dataclasses.dataclass
class CheckReport:
    """`problems`: names by reason; `repairs`: how many images readers must convert, by reason; sizes in pixels by format."""

    source: str
    samples: int
    images: int  # that decode
    captions: int
    classes: int
    formats: dict[str, dict[str, Any]]
    captions_per_image: Spread | None
    caption_words: Spread | None
    caption_characters: Spread | None
    repairs: dict[str, int]
    problems: dict[str, list[str]]

    @property
    def broken(self) -> bool:
        return bool(self.problems)

    def to_json(self) -> dict[str, Any]:
        """Plain types."""
        return dataclasses.asdict(self) | {"broken": self.broken}

    def __str__(self) -> str:
        rows = [("source", self.source), ("samples", self.samples), ("images that decode", self.images)]
        for name, sizes in self.formats.items():
            rows.append((f"  {name}", sizes["count"]))
            rows += [(f"    {side}, pixels", sizes[side]) for side in ("width", "height")]
        rows += [(f"  to convert: {reason}", count) for reason, count in self.repairs.items()]
        rows.append(("captions", self.captions))
        if self.captions:
            rows += [("  per image", self.captions_per_image), ("  words", self.caption_words)]
            rows.append(("  characters", self.caption_characters))
        if self.classes:
            rows.append(("classes", self.classes))
        for reason, names in sorted(self.problems.items(), key=lambda item: -len(item[1])):
            more = f", and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
            rows.append((f"broken: {reason}", f"{len(names)} ({', '.join(names[:SHOWN])}{more})"))
        rows.append(("result", "broken" if self.broken else "whole"))
        width = max(len(label) for label, _ in rows)
        return "\n".join(f"{label:<{width}}  {value}" for label, value in rows)


def check(source: str | Path | Sequence[str | Path] | Source, *, progress: bool = True) -> CheckReport:
    """Read every sample of shards or of a folder of images. What is broken is listed by reason and never raised;
    FileNotFoundError when there is nothing at the path, ValueError when it holds neither shards nor images."""
    if not isinstance(source, Source):
        source = open_source(source, strict=False)
    problems: dict[str, list[str]] = collections.defaultdict(list)
    for reason, names in source.problems.items():
        problems[reason] += names
    counts = _Counts()
    names_of_classes = _class_names(source)
    bar = range(len(source))
    for i in tqdm(bar, desc="checking", unit="img", disable=None if progress else True):
        for reason in _check_sample(source, i, counts, names_of_classes):
            problems[reason].append(source.keys[i])
    if not len(source):
        problems["no samples"].append(source.path)
    return counts.report(source, dict(problems))


class _Counts:
    def __init__(self) -> None:
        self.sizes: dict[str, tuple[array.array, array.array]] = collections.defaultdict(
            lambda: (array.array("i"), array.array("i"))
        )
        self.repairs: collections.Counter[str] = collections.Counter()
        self.per_image, self.words, self.characters = array.array("i"), array.array("i"), array.array("i")
        self.labels: set[int] = set()

    def report(self, source: Source, problems: dict[str, list[str]]) -> CheckReport:
        formats: dict[str, dict[str, Any]] = {
            name: {"count": len(widths), "width": Spread.of(widths), "height": Spread.of(heights)}
            for name, (widths, heights) in sorted(self.sizes.items())
        }
        return CheckReport(
            source.path,
            samples=len(source),
            images=sum(len(widths) for widths, _ in self.sizes.values()),
            captions=len(self.words),
            classes=len(self.labels),
            formats=formats,
            captions_per_image=Spread.of(self.per_image),
            caption_words=Spread.of(self.words),
            caption_characters=Spread.of(self.characters),
            repairs=dict(self.repairs),
            problems=problems,
        )


def _check_sample(source: Source, i: int, counts: _Counts, class_names: int | None) -> list[str]:
    """Count one sample; return the reasons for which it is broken."""
    try:
        sample = source.sample(i)
    except OSError:
        return [UNREADABLE]
    reasons = []
    try:
        decoded = decode_fully(sample.parts["image"])
        for sizes, side in zip(counts.sizes[decoded.format], decoded.image.size, strict=True):
            sizes.append(side)
        counts.repairs.update(decoded.repairs)
    except BadImage as error:
        reasons.append(str(error))
    return reasons + _check_words(sample, counts, class_names)


def _check_words(sample: Sample, counts: _Counts, class_names: int | None) -> list[str]:
    reasons = []
    label = None
    try:
        label = sample.label()
        if label is not None:
            counts.labels.add(label)
            if label < 0 or (class_names is not None and label >= class_names):
                reasons.append("class without a name")
    except BadSample as error:
        reasons.append(str(error))
    try:
        captions = sample.captions()
        counts.per_image.append(len(captions))
        counts.words.extend(len(caption.split()) for caption in captions)
        counts.characters.extend(map(len, captions))
        if not captions and label is None:
            reasons.append("missing caption")
        sample.metadata()
    except BadSample as error:
        reasons.append(str(error))
    return reasons


def _class_names(source: Source) -> int | None:
    """How many names the data set's `classnames.txt` lists, or None without it."""
    place = source.location(0) if len(source) else None
    folder = class_folder(Path(place[0]).parent) if place else None
    if folder is None:
        return None
    return len((folder / CLASS_NAMES).read_text(encoding="utf-8", errors="replace").rstrip().split("\n"))
