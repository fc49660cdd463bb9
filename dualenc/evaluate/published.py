"""Are these the numbers that were published for this encoder? open_clip's own, in published.json: figures only.

Two evaluators of one encoder differ by 0.1 to 0.2 points (precision, image decoding); beyond TOLERANCE something else is
different, and REASONS says what it was in the cases that people have met.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from dualenc.evaluate.page.words import points
from dualenc.evaluate.sections import Section, Share, Table, listed
from dualenc.files import read_json

TOLERANCE = 0.002  # 0.2 points
SLACK = 1e-9  # of the subtraction: 0.2 points exactly are within
TABLE = Path(__file__).with_suffix(".json")
REASONS = {
    "zeroshot": (
        "other templates (those of the published numbers are named above); another split or other class names; QuickGELU: "
        "weights trained with it and loaded without lose 2 to 3 points (take the NAME-quickgelu); scores in half precision "
        "(AMP); another resize of the images"
    ),
    "retrieval": (
        "another split than Karpathy's test (all of Flickr30k gives half the recall); one caption an image kept instead of "
        "all; QuickGELU: weights trained with it and loaded without (take the NAME-quickgelu); scores in half precision "
        "(AMP), where rounding makes ties; another resize of the images"
    ),
}


def compare_published(report: Mapping[str, Any], name: str, data: str) -> tuple[dict[str, Any], Section]:
    """ "published/DATA/METRIC", "…/difference" (ours less theirs), "published/DATA/rows", "…/differ" and "…/agrees".

    report: what the evaluation reported ("zeroshot/acc1"; "text_to_image/recall@1", …). name: the encoder's NAME:TAG.
    data: imagenet, imagenetv2, cifar10, cifar100, flickr30k or coco. A row differs where it is more than 0.2 points off.
    ValueError: an encoder or a data set that is not in the table (it lists those that are), a metric that is missing from
    the report.
    """
    found = check_names(name, data)
    sets, encoders = published()["data"], published()["encoders"]
    metrics, theirs = sets[data]["metrics"], encoders[found][data]
    if missing := [metric for metric in metrics if report.get(metric) is None]:
        raise ValueError(
            f"the report has no {missing[0]}, which {data} is compared by; "
            + (
                "run `dualenc eval zeroshot`"
                if missing[0].startswith("zeroshot")
                else "run `dualenc eval retrieval --ks 1,5,10`"
            )
        )
    made: dict[str, Any] = {}
    apart = []
    for metric, value in zip(metrics, theirs, strict=True):
        difference = float(report[metric]) - value
        made |= {f"published/{data}/{metric}": value, f"published/{data}/{metric}/difference": difference}
        if abs(difference) > TOLERANCE + SLACK:
            apart.append(metric)
    made |= {f"published/{data}/rows": len(metrics), f"published/{data}/differ": len(apart)}
    made[f"published/{data}/agrees"] = not apart
    return made, _section(report, data, sets[data], found, dict(zip(metrics, theirs, strict=True)), apart)


def check_names(name: str, data: str, task: str | None = None) -> str:
    """The encoder's NAME:TAG in the table; ValueError as `compare_published`, and where `data` is for another task
    ("zeroshot" or "retrieval")."""
    sets, encoders = published()["data"], published()["encoders"]
    if data not in sets:
        raise ValueError(f"nothing is published here for the data {data!r}; there are numbers for {', '.join(sets)}")
    of = "zeroshot" if sets[data]["metrics"][0].startswith("zeroshot") else "retrieval"
    if task is not None and of != task:
        raise ValueError(f"{data} is published for {of}, and this is {task}; run `dualenc eval {of}`")
    found = {known(encoder): encoder for encoder in encoders}.get(known(name))
    if found is None:
        raise ValueError(
            f"no published numbers for the encoder {name!r}; there are some for {_nearest(name, encoders)}"
        )
    return found


@lru_cache(maxsize=1)
def published() -> dict[str, Any]:
    """The table: {"source", "data": {name: {"metrics", "sizes", "what"}}, "encoders": {NAME:TAG: {data: [values]}}}."""
    return read_json(TABLE)


def known(name: str) -> str:
    """An encoder's name in one spelling: as open_clip reads names and tags.

    >>> known("ViT-B/32:laion2B-s34B-b79K") == known("ViT-B-32:laion2b_s34b_b79k")
    True
    """
    model, _, tag = name.partition(":")
    return f"{model.replace('/', '-')}:{tag.lower().replace('-', '_')}"


def _nearest(name: str, encoders: Mapping[str, Any]) -> str:
    """The encoders of the same model first, where there are any."""
    model = known(name).partition(":")[0].lower()
    same = [encoder for encoder in encoders if encoder.partition(":")[0].lower() == model]
    return ", ".join([*same, *(encoder for encoder in encoders if encoder not in same)])


def _section(
    report: Mapping[str, Any],
    data: str,
    about: Mapping[str, Any],
    encoder: str,
    theirs: Mapping[str, float],
    apart: list[str],
) -> Section:
    rows: list[list[str | Share]] = []
    for metric, value in theirs.items():
        difference = points(report[metric] - value, digits=2)
        verdict = "differs" if metric in apart else "agrees"
        rows.append([metric, Share(float(report[metric])), f"{100 * value:.2f} %", difference, verdict])
    sizes = [
        f"{key} is {report[key]:,} here, {size:,} there"
        for key, size in about["sizes"].items()
        if report.get(key) not in (None, size)
    ]
    if apart:
        kind = "zeroshot" if next(iter(theirs)).startswith("zeroshot") else "retrieval"
        note = f"Usual reasons: {REASONS[kind]}."
        said = f"{len(apart)} of {len(theirs)} differ by more than 0.2 points: {listed(apart, 6)}."
    else:
        note, said = "", f"All {len(theirs)} agree within 0.2 points."
    if sizes:
        note = " ".join([f"What was published was measured otherwise: {'; '.join(sizes)}.", note]).strip()
    return Section(
        title=f"Against the published numbers: {data}",
        about=f"{said} open_clip's own results for {encoder} on {about['what']}.",
        tables=[Table(["Metric", "Here", "Published", "Difference", ""], rows, note)],
    )
