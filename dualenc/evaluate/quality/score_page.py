"""The page of `dualenc data score`: how the scores are spread, and the pairs that fit worst as pictures."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dualenc.evaluate.page.figure import histograms, panel
from dualenc.evaluate.page.words import minus
from dualenc.evaluate.quality.score import QUANTILES, Scored
from dualenc.evaluate.ranks import Ints
from dualenc.evaluate.sections import Example, Examples, Headline, Item, Panel, Section, Share, Table

MIDDLE = 8  # pairs from the middle that are shown, to compare the worst with
TWINS = 8  # near-duplicates that are shown


def score_section(scored: Scored, examples: int = 24, seed: int = 0) -> Section:
    """The section of what `score_pairs` returned: headlines, quantiles, two histograms, `examples` worst pairs."""
    report, table = scored.report, scored.table
    pairs, images = report["pairs"], report["images"]
    repeated = report["repeated_captions"]
    headlines = [
        Headline("Near-duplicates", Share(report["duplicates"] / images), "of images are nearly an earlier one"),
        Headline("Repeated captions", Share(repeated / pairs), "of captions stand at other pairs too"),
    ]
    if report["truncated_captions"] is not None:
        share = Share(report["truncated_captions"] / pairs)
        headlines.append(Headline("Cut captions", share, "of captions are longer than the encoder reads"))
    if len(scored.random):
        below = float((table["score"].to_numpy() < np.median(scored.random)).mean())
        meaning = "of pairs score less than half of all random pairs do"
        headlines.append(Headline("No better than chance", Share(below, 0.5), meaning))
    return Section(
        title="How well images and captions fit",
        about=(
            f"{pairs:,} pairs of {images:,} images. Score: the cosine of image and caption. Relative: the same in standard "
            "deviations above what this image scores with other captions, and this caption with other images."
        ),
        headlines=headlines,
        tables=[_quantiles(scored)],
        figures=_figures(scored),
        examples=[part for part in _examples(scored, examples, seed) if part.rows],
    )


def _quantiles(scored: Scored) -> Table:
    named = {"Score": "score", "Score of random pairs": "random_pairs/score", "Relative": "relative"}
    names = ["mean", *(f"p{q}" for q in QUANTILES)]
    rows: list[list[str | Share]] = []
    for title, prefix in named.items():
        values = [scored.report[f"{prefix}/{name}"] for name in names]
        rows.append([title, *map(_number, values)])
    return Table(
        ["", "Mean", *(f"{q}\u202f%" for q in QUANTILES)],
        rows,
        "The value below which so many of the pairs lie. Random pairs: captions with the image of another sample.",
    )


def _figures(scored: Scored) -> list[Panel]:
    table = scored.table
    score, relative = (table[name].drop_null().to_numpy() for name in ("score", "relative"))
    shown = {"pairs": score} | ({"random pairs": _as_many(scored.random, len(score))} if len(scored.random) else {})
    words = f"Scores of pairs have the median {np.median(score):.3f}"
    words += f", those of random pairs {np.median(scored.random):.3f}." if len(scored.random) else "."

    def of_score(axes: object) -> None:
        histograms(axes, shown)
        axes.set_xlabel("score (cosine)")  # type: ignore[attr-defined]

    def of_relative(axes: object) -> None:
        histograms(axes, {"pairs": relative})
        axes.set_xlabel("relative (standard deviations)")  # type: ignore[attr-defined]

    figures = [panel("Pairs by score", words, of_score)]
    if len(relative):
        below = 100 * float((relative < 0).mean())
        words = f"{below:.1f} % of the pairs score less than the mean of other pairs."
        figures.append(panel("Pairs by relative score", words, of_relative))
    return figures


def _as_many(values: np.ndarray, count: int) -> np.ndarray:
    """The values repeated to a length near `count`: as histograms of counts the two can be compared then."""
    return np.tile(np.sort(values), max(1, round(count / len(values))))


def _examples(scored: Scored, count: int, seed: int) -> list[Examples]:
    """The worst pairs, some from the middle (between the 45th and the 55th percentile), and near-duplicates."""
    table = scored.table
    rank = table["percentile"].to_numpy(zero_copy_only=False)
    order = np.argsort(np.where(np.isnan(rank), table["score"].to_numpy(), rank), kind="stable")
    rng = np.random.default_rng(seed)
    middle = order[int(0.45 * len(order)) : int(0.55 * len(order)) + 1]
    middle = np.sort(rng.permutation(middle)[: MIDDLE if count else 0])
    note = "Lowest relative score first; beside each caption its score."
    return [
        Examples("The pairs that fit worst", note, [_pair(scored, int(t)) for t in order[:count]]),
        Examples("Pairs from the middle", "Drawn at random, to compare with.", [_pair(scored, int(t)) for t in middle]),
        Examples(
            "Near-duplicates",
            "The first of them in the data, and a later one that is nearly equal to it, by this encoder.",
            _twins(scored, rng) if count else [],
        ),
    ]


def _pair(scored: Scored, text: int) -> Example:
    row = {name: scored.table[name][text].as_py() for name in ("key", "caption", "score", "relative")}
    caption = Item(row["caption"] or "", note=_number(row["score"]))
    verdict = "not relative to any" if row["relative"] is None else f"relative {_number(row['relative'], 1)}"
    picture = Item(row["key"], scored.pictures[int(scored.image_row[text])], True, note=row["key"])
    return Example(picture, [caption], None, verdict)


def _twins(scored: Scored, rng: np.random.Generator) -> list[Example]:
    first: pa.Table = scored.table.select(["key", "duplicate_of"]).append_column("image", pa.array(scored.image_row))
    first = first.filter(pc.is_valid(first["duplicate_of"]))
    number = _image_of(scored)
    chosen = np.sort(np.unique(first["image"].to_numpy(), return_index=True)[1])
    rows = []
    for i in np.sort(rng.permutation(chosen)[:TWINS]).tolist():
        line = {name: first[name][i].as_py() for name in first.column_names}
        twin = number.get(line["duplicate_of"])
        if twin is not None:
            earlier = Item(line["duplicate_of"], scored.pictures[twin], True, note="first")
            later = Item(line["key"], scored.pictures[line["image"]], True, note="later")
            rows.append(Example(Item(""), [earlier, later], None, "near-duplicate"))
    return rows


def _image_of(scored: Scored) -> dict[str, int]:
    keys: list[str] = scored.table["key"].to_pylist()
    rows: Ints = scored.image_row
    return dict(zip(keys, rows.tolist(), strict=True))


def _number(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else minus(f"{value:.{digits}f}")
