"""`dualenc data overlap`: images of a test split that are nearly in the training data, and recall with and without them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from tqdm import tqdm

from dualenc.evaluate.intervals import Interval, mean_intervals
from dualenc.evaluate.metrics import rank_metrics, sides
from dualenc.evaluate.quality.captions import pictures_of
from dualenc.evaluate.ranks import Floats, Ints, ranks
from dualenc.evaluate.retrieval import TITLES
from dualenc.evaluate.sections import Embedded, Example, Examples, Headline, Item, Section, Share, Table
from dualenc.files import whole_file
from dualenc.index.alike import above, cosines
from dualenc.index.vectors import Rows, unit_blocks

BLOCK = 4096  # rows of a block of scores: 64 MiB of float32
SCHEMA = pa.schema([("test_key", pa.string()), ("train_key", pa.string()), ("score", pa.float32())])
SETS = {
    "all": "The whole split",
    "without": "Without the overlapping images",
    "overlapping": "Overlapping images ask, whole gallery",
    "others": "All others ask, whole gallery",
}
NOTE = (
    "A test image, and the training image nearest to it by this encoder. Look whether they are the same picture: a weak "
    "encoder takes scenes that are merely alike for one."
)


class Overlap(NamedTuple):
    """What `find_overlap` found. pairs: how many at the threshold; of each test row its nearest training row so far, or -1."""

    pairs: int
    nearest: Ints  # (N,) -1 where none reaches the threshold
    score: Floats  # (N,) its cosine; 0 where there is none

    @property
    def rows(self) -> npt.NDArray[np.bool_]:
        """(N,) which test rows overlap."""
        return self.nearest >= 0


def find_overlap(train: Rows, test: npt.NDArray[np.float32], threshold: float, progress: bool = True) -> Iterator[Any]:
    """Blocks of pairs (test rows, train rows, cosines) with a cosine of at least `threshold`: every one, by comparing all.

    train (M, D) read by the block, test (N, D) in memory, both unit. Within 1e-5 of the threshold float64 decides.
    ValueError: a threshold outside 0 .. 1, other widths.
    """
    if isinstance(threshold, bool) or not 0 < threshold <= 1:
        raise ValueError(f"threshold={threshold!r}; a cosine above 0 and at most 1, like 0.95")
    if train.dim != test.shape[1]:
        raise ValueError(f"the training data have {train.dim} values a row, the test {test.shape[1]}; embed both alike")
    hidden = None if progress else True
    with tqdm(total=len(train), desc="overlap", unit="row", unit_scale=True, disable=hidden) as bar:
        for first, block in unit_blocks(train, "training images"):
            for start in range(0, len(block), BLOCK):
                here = block[start : start + BLOCK]
                for other in range(0, len(test), BLOCK):
                    there = test[other : other + BLOCK]
                    for one, two in above(there, here, threshold):
                        yield one + other, two + first + start, cosines(there, here, one, two)
                bar.update(len(here))


def overlap(
    train: Rows,
    train_keys: Sequence[str],
    test: Embedded,
    threshold: float,
    out: str | Path | None = None,
    progress: bool = True,
) -> Overlap:
    """The overlap of training rows with the images of `test`; all pairs into the parquet file `out` where it is given."""
    nearest, best = np.full(len(test.images), -1, np.int64), np.zeros(len(test.images))
    keys, named, pairs = test.metadata["key"], pa.array(train_keys, pa.string()), 0

    def found() -> Iterator[pa.Table]:
        nonlocal pairs
        for row, other, score in find_overlap(train, test.images, threshold, progress):
            pairs += len(row)
            order = np.lexsort((other, -score))  # the best first, of equal ones the first in the data
            rows, first = np.unique(row[order], return_index=True)
            chosen = order[first]
            better = score[chosen] > best[rows]
            nearest[rows[better]], best[rows[better]] = other[chosen[better]], score[chosen[better]]
            columns = [keys.take(pa.array(row)), named.take(pa.array(other)), pa.array(score, pa.float32())]
            yield pa.table(columns, schema=SCHEMA)

    if out is None:
        for _ in found():
            pass
    else:
        with whole_file(out) as partial, pq.ParquetWriter(partial, SCHEMA, compression="zstd") as writer:
            for table in found():
                writer.write_table(table)
    return Overlap(pairs, nearest, best)


def evaluate_overlap(
    test: Embedded, found: Overlap, threshold: float, ks: Sequence[int] = (1, 5, 10), seed: int = 0
) -> dict[str, Any]:
    """Flat report: counts, and recall of the test split "all/…", "without/…" its overlapping images, and by who asks.

    "without" leaves these images and their captions out altogether: recall is over a smaller gallery then, which is easier
    by itself. "overlapping" and "others" ask the whole gallery, so their difference is the images' own. Recall is over the
    images that have captions, "captioned" many, and absent where none has. Each has /low and /high, the 95 % interval over
    images; it is None where nothing asks, or k is above the gallery.
    """
    away = found.rows
    report: dict[str, Any] = {
        "images": len(away),
        "overlapping": int(away.sum()),
        "overlapping/share": float(away.mean()),
        "pairs": found.pairs,
        "threshold": threshold,
    }
    captioned, owner = np.unique(test.image_row, return_inverse=True)
    report["captioned"] = len(captioned)
    if not len(captioned):
        return report
    away, images = away[captioned], test.images[captioned]
    left, texts = np.flatnonzero(~away), ~away[owner]
    place = np.cumsum(~away) - 1
    rest = (images[left], test.texts[texts], place[owner[texts]])
    fits = fitting(ks, len(captioned))
    for way, rank, image in _ranks(images, test.texts, owner, fits):
        asked = away[image]
        for name, chosen in (("all", asked | True), ("overlapping", asked), ("others", ~asked)):
            report |= _recalls(f"{name}/{way}", rank[chosen], image[chosen], fits, seed)
    fits = fitting(ks, len(left))
    for way, rank, image in _ranks(*rest, fits):
        report |= _recalls(f"without/{way}", rank, image, fits, seed)
    missing = {f"{name}/{way}/recall@{k}": None for name in SETS for way in TITLES for k in ks}
    return missing | report


def fitting(ks: Sequence[int], images: int) -> tuple[int, ...]:
    """The k's up to so many images, each with one caption or more. ValueError: a k below 1."""
    if min(ks, default=1) < 1:
        raise ValueError(f"k is {min(ks)}; it counts gallery rows, so it must be at least 1")
    return tuple(k for k in ks if k <= images)


def _ranks(images: Any, texts: Any, row: Ints, ks: Sequence[int]) -> Iterator[tuple[str, Ints, Ints]]:
    """(way, ranks of its queries, the image of each); nothing where no k is left."""
    for way, (query, gallery, relevant) in sides(images, texts, row, ks).items() if ks else ():
        yield way, ranks(query, gallery, relevant), row if way == "text_to_image" else np.arange(len(images))


def _recalls(name: str, rank: Ints, image: Ints, ks: Sequence[int], seed: int) -> dict[str, Any]:
    if not len(rank):
        return {f"{name}/recall@{k}": None for k in ks} | {f"{name}/queries": 0}
    found: dict[str, Any] = {
        f"{name}/{key}": value for key, value in rank_metrics(rank, ks).items() if "rank" not in key
    }
    if len(np.unique(image)) > 1:
        hits = np.stack([rank < k for k in ks], axis=1)
        for k, interval in zip(ks, mean_intervals(hits, image, seed=seed, shares=True), strict=True):
            found |= {f"{name}/recall@{k}/low": interval.low, f"{name}/recall@{k}/high": interval.high}
    return found | {f"{name}/queries": len(rank)}


def overlap_section(
    report: dict[str, Any],
    test: Embedded,
    train: pa.Table,
    found: Overlap,
    ks: Sequence[int] = (1, 5, 10),
    examples: int = 24,
) -> Section:
    """The page's section: how many overlap, recall with and without them, and the nearest pairs as pictures."""
    order = np.argsort(-found.score, kind="stable")[: min(examples, int(found.rows.sum()))]
    there, here = (
        pictures_of(train.take(pa.array(found.nearest[order]))),
        pictures_of(test.metadata.take(pa.array(order))),
    )
    train_keys = train["key"].take(pa.array(found.nearest[order])).to_pylist()
    rows = []
    for i, row in enumerate(order.tolist()):
        key = test.metadata["key"][row].as_py()
        shown = [Item(key, here[i], True, note="test"), Item(train_keys[i], there[i], True, note="training")]
        rows.append(Example(Item(""), shown, None, f"cosine {found.score[row]:.3f}"))
    share = Share(report["overlapping/share"])
    return Section(
        title="Overlap of training and test data",
        about=(
            f"{report['overlapping']:,} of {report['images']:,} test images have a training image at a cosine of "
            f"{report['threshold']:g} or more ({report['pairs']:,} such pairs)."
            f"{'' if report['captioned'] else ' The test data have no captions, so no recall.'}"
        ),
        headlines=[Headline("Overlap", share, "of test images are nearly in the training data")],
        tables=[_table(report, ks)] if "all/text_to_image/queries" in report else [],
        examples=[Examples("The nearest pairs", NOTE, rows)] if rows else [],
    )


def _table(report: dict[str, Any], ks: Sequence[int]) -> Table:
    def cell(name: str) -> str | Share:
        value = report.get(name)
        if value is None:
            return "–"
        low, high = (report.get(f"{name}/{end}") for end in ("low", "high"))
        return Share(value, None, None if low is None or high is None else Interval(low, high))

    rows: list[list[str | Share]] = []
    for prefix, title in SETS.items():
        for way, said in TITLES.items():
            rows.append([f"{title}: {said}", *(cell(f"{prefix}/{way}/recall@{k}") for k in ks)])
    return Table(
        ["", *(f"Recall@{k}" for k in ks)],
        rows,
        "Without the overlapping images the gallery is smaller, which helps by itself; the last four lines ask the whole "
        "gallery. Intervals: 95 %, over images.",
    )


def shared_captions(train: pa.Table, test: pa.Table) -> int | None:
    """How many captions of `test` read the same as one of `train`, letter case aside; None where one side has none.

    >>> shared_captions(pa.table({"caption": ["A fox"]}), pa.table({"caption": ["a fox", "a dog", None]}))
    1
    """
    if not all(table.num_rows and "caption" in table.column_names for table in (train, test)):
        return None
    seen = pc.utf8_lower(pc.unique(pc.drop_null(train["caption"])))
    asked = pc.utf8_lower(pc.drop_null(test["caption"]))
    return int(pc.sum(pc.is_in(asked, value_set=seen)).as_py() or 0)
