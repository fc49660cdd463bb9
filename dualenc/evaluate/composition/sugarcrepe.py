"""SugarCrepe: an image of COCO with its caption and a fluent wrong one, in seven kinds of change.

Hsieh et al., SugarCrepe: Fixing Hackable Benchmarks for Vision-Language Compositionality (NeurIPS 2023). A file a kind,
{"0": {"filename", "caption", "negative_caption"}, …}; numbers may be missing from the sequence.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dualenc.data.known_sets import COCO_VAL2017
from dualenc.data.lookup import find
from dualenc.evaluate.composition.caption_pairs import CHANCE, Compared, Pairs, compare, judge, kind_rows, share_of
from dualenc.evaluate.groups.groups import Report
from dualenc.evaluate.intervals import TIMES, draws, share_interval
from dualenc.evaluate.ranks import Floats
from dualenc.evaluate.sections import Embedded, Headline, Section, Share, Table, TextEncoder, check_dim, listed

FAMILIES = {"replace": "Replaced", "swap": "Swapped", "add": "Added"}
KINDS = {
    "replace_obj": "Replaced object",
    "replace_att": "Replaced attribute",
    "replace_rel": "Replaced relation",
    "swap_obj": "Swapped objects",
    "swap_att": "Swapped attributes",
    "add_obj": "Added object",
    "add_att": "Added attribute",
}
PREFIX = "composition/sugarcrepe"
FILES = "https://github.com/RAIVNLab/sugar-crepe, folder data"
IMAGES = f"SugarCrepe's are COCO's val2017: {COCO_VAL2017}"


class Pair(NamedTuple):
    """An image's file name, its caption, and the wrong one."""

    filename: str
    caption: str
    negative: str


def read_sugarcrepe(path: str | Path) -> dict[str, list[Pair]]:
    """Pairs by kind, of `sugarcrepe_files`. ValueError names the file and the entry that is wrong."""
    return {file.stem: _read(file) for file in sugarcrepe_files(path)}


def sugarcrepe_files(path: str | Path) -> list[Path]:
    """path: one file, whose name is its kind, or the folder (or its `data`) with the kinds' files, of which those that are
    there are read. FileNotFoundError says where they are had."""
    place = Path(path)
    files = [place] if place.is_file() else []
    for folder in (place, place / "data"):
        files = files or [folder / f"{kind}.json" for kind in KINDS if (folder / f"{kind}.json").is_file()]
    if not files:
        raise FileNotFoundError(
            f"{place}: neither a file nor a folder with {', '.join(f'{kind}.json' for kind in KINDS)}, so there are no "
            f"captions to compare; get them from {FILES}"
        )
    return files


def _read(file: Path) -> list[Pair]:
    try:
        whole = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is not JSON in UTF-8 ({error}); get it again from {FILES}") from None
    entries = whole.items() if isinstance(whole, dict) else enumerate(whole) if isinstance(whole, list) else ()
    pairs = [_pair(entry, f"{file}, entry {name}") for name, entry in entries]
    if not pairs:
        raise ValueError(f"{file} holds no entries, so nothing can be compared; get it again from {FILES}")
    return pairs


def _pair(entry: Any, place: str) -> Pair:
    names = ("filename", "caption", "negative_caption")
    fields: list[Any] = [entry.get(name) for name in names] if isinstance(entry, dict) else []
    if not fields or not all(isinstance(field, str) and field.strip() for field in fields):
        raise ValueError(f"{place} is no JSON object with the texts {', '.join(names)}; correct it")
    return Pair(*fields)


def image_names(kinds: Mapping[str, Sequence[Pair]]) -> list[str]:
    """The file names of the images, each once."""
    return list(dict.fromkeys(pair.filename for pairs in kinds.values() for pair in pairs))


def evaluate_sugarcrepe(
    encoder: TextEncoder,
    embedded: Embedded,
    kinds: Mapping[str, Sequence[Pair]],
    examples: int = 2,
    seed: int = 0,
    bootstrap: int = TIMES,
    by: Sequence[str] = (),
) -> tuple[Report, Section]:
    """Flat report and page section: "composition/sugarcrepe/swap_att/accuracy", "…/low", "…/high", "…/count", ….

    Besides each kind, the mean of the kinds, as the benchmark reports it: "…/replace/accuracy", "…/swap/…", "…/add/…",
    and "composition/sugarcrepe/accuracy" of all; the worst kind and the gap. embedded: the images, found by their keys
    (`lookup.find`). by: metadata columns of the images; the rest as `caption_pairs.compare`. ValueError: an image that
    is not in `embedded`, no such column, another encoder's `embedded`.
    """
    check_dim(encoder, embedded)
    names = image_names(kinds)
    found = dict(zip(names, find(embedded.metadata["key"].to_pylist(), names).tolist(), strict=True))
    refuse_missing([name for name, row in found.items() if row < 0], len(names), IMAGES)
    flat = [(found[pair.filename], pair.caption, pair.negative, kind) for kind, some in kinds.items() for pair in some]
    row, right, wrong, kind = zip(*flat, strict=True)
    pairs = Pairs(np.array(row, np.int64), list(right), list(wrong), list(kind))
    judged = judge(encoder, embedded, pairs)
    titles = {**KINDS, **{name: name for name in kinds if name not in KINDS}}
    compared = compare(embedded, pairs, judged, titles, PREFIX, by, bootstrap, seed, examples)
    means = _means(pairs, judged.won.astype(np.float64), bootstrap, seed)
    report = means | compared.report
    return report, _section(report, compared, titles, len(names), len(flat))


def refuse_missing(missing: Sequence[str], of: int, where: str) -> None:
    """FileNotFoundError that counts and names the images without which the numbers would be of a part of the set alone."""
    if missing:
        raise FileNotFoundError(
            f"{len(missing):,} of {of:,} images are not in --data, or do not decode ({listed(missing, 3)}), so the numbers "
            f"would be of a part of the set alone; {where}"
        )


def _means(pairs: Pairs, won: Floats, bootstrap: int, seed: int) -> Report:
    """The mean accuracy of all kinds, and of each family with two kinds or more; intervals by draws of images, one for all
    kinds, since an image has pairs of several."""
    kinds = list(dict.fromkeys(pairs.kind))
    family = [kind.partition("_")[0] for kind in kinds]
    members = {f"/{name}": [k for k, one in enumerate(family) if one == name] for name in FAMILIES}
    members = {"": [*range(len(kinds))]} | {name: some for name, some in members.items() if len(some) > 1}
    image, number = np.unique(pairs.row, return_inverse=True)
    own = np.array([kinds.index(kind) for kind in pairs.kind])
    cell = number * len(kinds) + own
    shape = len(image), len(kinds)
    right = np.bincount(cell, won, np.prod(shape)).reshape(shape)  # (images, kinds)
    count = np.bincount(cell, minlength=np.prod(shape)).reshape(shape).astype(np.float64)

    def statistics(drawn: Floats) -> Floats:
        with np.errstate(invalid="ignore"):  # a kind of which no image was drawn: NaN, a draw left out
            accuracy = (drawn @ right) / (drawn @ count)
        return np.stack([accuracy[:, some].mean(axis=1) for some in members.values()], axis=1)

    value = statistics(np.ones((1, len(image))))[0]
    several = bootstrap and len(image) > 1
    drawn = np.concatenate([statistics(counts) for counts in draws(len(image), bootstrap, seed)]) if several else None
    report: Report = {}
    for i, (name, some) in enumerate(members.items()):
        key = f"{PREFIX}{name}/accuracy"
        report |= {key: float(value[i]), f"{key}/chance": CHANCE}
        if drawn is not None:
            low, high = share_interval(drawn[:, i], float(value[i]), int(count[:, some].any(axis=1).sum()))
            report |= {f"{key}/low": low, f"{key}/high": high}
    return report


def _section(report: Report, compared: Compared, titles: Mapping[str, str], images: int, pairs: int) -> Section:
    rows = kind_rows(compared, titles, PREFIX)
    families = {
        word: share_of(report, f"{PREFIX}/{name}/accuracy", CHANCE)
        for name, word in FAMILIES.items()
        if f"{PREFIX}/{name}/accuracy" in report
    }
    overall = share_of(report, f"{PREFIX}/accuracy", CHANCE)
    several = len(compared.kinds) > 1
    if several:
        means: list[list[str | Share]] = [[f"{word}, mean of its kinds", "", share] for word, share in families.items()]
        rows[len(compared.kinds) : len(compared.kinds)] = [*means, ["Mean of all kinds", f"{pairs:,}", overall]]
    absent = [kind for kind in KINDS if kind not in compared.kinds]
    note = "Ties count as wrong. Chance is 50\u202f%; of the gap, what random kinds of these sizes give."
    if absent:
        note += f" Without {', '.join(absent)}: no mean of all kinds that others report."
    said = "of images prefer their true caption" + (f", mean of {len(compared.kinds)} kinds" if several else "")
    head = [Headline("SugarCrepe", overall, said)]
    head += [Headline(word, share, "mean of its kinds") for word, share in families.items()]
    return Section(
        title="Composition: SugarCrepe",
        about=f"{images:,} images with a true caption against a fluent wrong one, {pairs:,} times.",
        headlines=head,
        tables=[Table(["", "Pairs", "Right"], rows, note), *compared.tables],
        examples=compared.examples,
    )
