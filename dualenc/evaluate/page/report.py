"""report.json and report.html: the numbers for scripts, and one self-contained page for people."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from dualenc.data.shards import read_at
from dualenc.evaluate.page.curve import panels
from dualenc.evaluate.page.words import (
    bar,
    below,
    cell,
    flat,
    grouped,
    interval,
    nearest,
    number,
    numeric,
    percent,
    values,
)
from dualenc.evaluate.sections import Panel, Picture, Section, Share
from dualenc.files import whole_file, write_json
from dualenc.images import decode

THUMBNAIL = 224  # pixels on the longer side: sharp at the size the page shows it, also on a phone's dense screen
FOLD = 40  # rows; a longer table opens at a click, so that what comes after it is not pages away
TEMPLATES = Path(__file__).parent / "templates"


def write_report(
    out: str | Path,
    report: Mapping[str, Any],
    examples: Sequence[Section] = (),
    curve: str | Path | Iterable[Mapping[str, Any]] | None = None,
    provenance: Mapping[str, Any] | None = None,
    title: str = "Evaluation",
) -> Path:
    """Write `out`/report.json and `out`/report.html, each whole or not at all; returns the page's path.

    report: flat keys -> number, text or None (JSON's null). examples: what the `evaluate_*` functions returned, one
    section each, in the page's order. curve: see `curve.panels`. provenance: what was run to get the numbers (command,
    fingerprint, data, versions; may nest): shown on the page, and under "provenance/…" in report.json.
    The page loads nothing from anywhere. ValueError: a value that is no standard JSON, such as NaN.
    """
    made = flat({"provenance": provenance or {}})
    whole = {**report, **made}
    for key, value in whole.items():
        if not isinstance(value, str | int | float | None) or value != value or value in (float("inf"), float("-inf")):
            raise ValueError(
                f"the report's {key} is {value!r}, which JSON has no place for; give a finite number, text or None"
            )
    drawn = panels(curve) if curve is not None else []
    page = render(report, examples, drawn, made, title)
    write_json(Path(out) / "report.json", whole)
    path = Path(out) / "report.html"
    with whole_file(path) as partial:
        partial.write_text(page, encoding="utf-8")
    return path


def render(
    report: Mapping[str, Any],
    sections: Sequence[Section],
    curve: Sequence[Panel],
    provenance: Mapping[str, Any],
    title: str,
) -> str:
    """The page as HTML; everything that comes from data is escaped."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": percent,
        "interval": interval,
        "bar": bar,
        "number": number,
        "cell": cell,
        "numeric": numeric,
        "below": below,
        "thumbnail": thumbnail,
        "drawn": Markup,  # by us, its labels escaped by matplotlib
    }
    environment.tests["share"] = lambda value: isinstance(value, Share)
    made = {key.removeprefix("provenance/"): value for key, value in provenance.items()}
    return environment.get_template("report.html.jinja").render(
        title=title,
        subtitle=[nearest(str(made[key])) for key in ("encoder", "data", "date") if made.get(key)],
        count=len(report),
        values=values(report),
        sections=sections,
        headlines=[headline for section in sections for headline in section.headlines],
        curve=curve,
        command=made.pop("command", None),
        provenance=grouped(made),
        fold=FOLD,
    )


@lru_cache(maxsize=4096)
def thumbnail(picture: Picture, side: int = THUMBNAIL) -> str | None:
    """The image as a data: URI of a JPEG at most `side` pixels large; None where it cannot be read any more."""
    try:
        image = decode(read_at(*picture))
    except (OSError, ValueError):  # moved, or damaged since: the page says so in its place, the numbers stand
        return None
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    data = io.BytesIO()
    image.save(data, "JPEG", quality=87, subsampling=0, optimize=True)  # not subsampled: small pictures keep colours
    return "data:image/jpeg;base64," + base64.b64encode(data.getvalue()).decode("ascii")
