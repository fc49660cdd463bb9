"""`dualenc data score`: of each pair its similarity, how that compares, near-duplicates, lengths and sizes, as a table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from tqdm import tqdm

from dualenc.embed.store import Store
from dualenc.evaluate.quality.captions import copies, picture_size, pictures_of, token_counts, word_counts
from dualenc.evaluate.quality.relative import pair_cosines, percentile, relative_scores
from dualenc.evaluate.ranks import Floats, Ints
from dualenc.evaluate.sections import Picture
from dualenc.files import refuse_existing, whole_file
from dualenc.index.duplicates import near_duplicates
from dualenc.index.vectors import Array

THRESHOLD = 0.95
RANDOM_PAIRS = 20_000  # captions that are also paired with another image, to compare with
ROW_GROUP = 65_536
QUANTILES = (5, 25, 50, 75, 95)
COLUMNS = {
    "key": "the sample",
    "caption_number": "which of its captions, from 0",
    "caption": "its text",
    "score": "cosine of image and caption",
    "relative": "the same in standard deviations above what other pairs score (see dualenc.evaluate.quality.relative)",
    "percentile": "share of all pairs whose `relative` is smaller, 0 to 1",
    "duplicate": "whether the image is nearly the same as that of an earlier sample",
    "duplicate_of": "the key of the first of those, else null",
    "copies": "captions of the whole set that read the same, this one included",
    "words": "words of the caption",
    "tokens": "its tokens, start and end included; null without an encoder",
    "truncated": "whether they are more than the encoder reads; null without an encoder",
    "width": "of the picture in pixels; null where it cannot be read",
    "height": "of the picture in pixels",
}


class Scored(NamedTuple):
    """What `score_pairs` wrote, for a page about it."""

    table: pa.Table  # T rows: COLUMNS
    image_row: Ints  # (T,)
    pictures: list[Picture | None]  # N
    random: Floats  # cosines of captions with images that are not theirs
    report: dict[str, Any]  # flat


def score_pairs(
    store: Store,
    out: str | Path,
    *,
    threshold: float = THRESHOLD,
    spec: dict[str, Any] | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Scored:
    """Write the parquet file `out`, one row a pair of the store, in its order, columns COLUMNS; whole or not at all.

    threshold: cosine from which two images are near-duplicates, directly or through others; the first in the store's
    order is the one that is no duplicate. spec: the encoder's tokenizer (`encoder.spec["text"]`), for tokens. Embeddings
    are read by the block; the table is held in memory. The file's metadata name the store, its encoder and the threshold.
    ValueError: no images, no captions, no keys. FileExistsError: `out` is there.
    """
    out = Path(out)
    refuse_existing(out)
    images, texts = store.side("image"), store.side("text")
    if not len(images) or not len(texts):
        raise ValueError(
            f"{store.folder} has {len(images)} images and {len(texts)} captions; scores are of pairs of both"
        )
    metadata, image_row = store.metadata(), store.image_row
    keys, captions = _named(store, metadata)
    score, relative = relative_scores(images, texts, image_row)
    found = near_duplicates(images, threshold, seed, progress)
    pictures = pictures_of(metadata)
    columns = _columns(keys, captions, score, relative, image_row, found.group)
    columns |= _lengths(captions, spec, progress) | _sizes(pictures, image_row, progress)
    about: dict[str, Any] = {"store": str(store.folder), "encoder": store.encoder, "fingerprint": store.fingerprint}
    about |= {"threshold": threshold, "seed": seed}
    columns = {name: columns[name] for name in COLUMNS}
    table = pa.table(columns).replace_schema_metadata({"dualenc": json.dumps(about)})
    with whole_file(out) as partial:
        pq.write_table(table, partial, row_group_size=ROW_GROUP, compression="zstd")
    random = _random_pairs(store, image_row, seed)
    report = summary(table, len(images), random, found.recall)
    return Scored(table, image_row, pictures, random, report)


def caption_numbers(image_row: npt.ArrayLike) -> Ints:
    """Which of its image's captions each is, in their order, from 0.

    >>> caption_numbers([0, 0, 1, 0, 1])
    array([0, 1, 0, 2, 1])
    """
    row = np.asarray(image_row, np.int64)
    order = np.argsort(row, kind="stable")
    begins = np.flatnonzero(np.r_[True, np.diff(row[order]) != 0]) if len(row) else np.zeros(0, np.int64)
    number = np.empty(len(row), np.int64)
    number[order] = np.arange(len(row)) - np.repeat(begins, np.diff(np.r_[begins, len(row)]))
    return number


def summary(table: pa.Table, images: int, random: Floats, recall: float | None) -> dict[str, Any]:
    """The flat report of a table of scores: counts, and quantiles of score and relative."""
    report: dict[str, Any] = {"pairs": table.num_rows, "images": images}
    for name in ("score", "relative"):
        report |= distribution(table[name].drop_null().to_numpy(), name)
    report |= distribution(random, "random_pairs/score")
    same = table.group_by("key").aggregate([("duplicate", "max")])["duplicate_max"]
    report["duplicates"] = sum(same.to_pylist())
    report["duplicates/recall"] = recall
    report["repeated_captions"] = int((table["copies"].to_numpy() > 1).sum())
    truncated = table["truncated"]
    report["truncated_captions"] = None if truncated.null_count else sum(truncated.to_pylist())
    return report


def distribution(values: npt.ArrayLike, name: str) -> dict[str, float | None]:
    """{"NAME/mean", "NAME/p5", …, "NAME/p95"}; None where there is no value.

    >>> distribution([0.0, 1.0], "score")["score/p50"]
    0.5
    """
    values = np.asarray(values, np.float64)
    levels = np.quantile(values, np.array(QUANTILES) / 100) if len(values) else [None] * len(QUANTILES)
    found = {f"{name}/mean": float(values.mean()) if len(values) else None}
    return found | {f"{name}/p{q}": v if v is None else float(v) for q, v in zip(QUANTILES, levels, strict=True)}


def _named(store: Store, metadata: pa.Table) -> tuple[pa.ChunkedArray, pa.ChunkedArray]:
    """(N,) keys of the images and (T,) captions."""
    texts = store.text_metadata()
    if "caption" not in texts.column_names:
        raise ValueError(
            f"{store.folder} does not say what its captions are; embed the data again with `dualenc embed`"
        )
    if "key" not in metadata.column_names or metadata["key"].null_count:
        raise ValueError(f"{store.folder} does not name all of its samples (column key); embed with `dualenc embed`")
    return metadata["key"].cast(pa.string()), texts["caption"].cast(pa.string())


def _columns(
    keys: pa.ChunkedArray, captions: pa.ChunkedArray, score: Floats, relative: Floats, image_row: Ints, group: Ints
) -> dict[str, Any]:
    duplicate = (group >= 0) & (group != np.arange(len(group)))
    first = pc.if_else(pa.array(duplicate), keys.take(pa.array(np.maximum(group, 0))), pa.scalar(None, pa.string()))
    row = pa.array(image_row)
    return {
        "key": keys.take(row),
        "caption_number": pa.array(caption_numbers(image_row), pa.int32()),
        "caption": captions,
        "score": pa.array(score, pa.float32()),
        "relative": _nulls(relative),
        "percentile": _nulls(percentile(relative)),
        "duplicate": pa.array(duplicate[image_row]),
        "duplicate_of": first.take(row),
    }


def _lengths(captions: pa.ChunkedArray, spec: dict[str, Any] | None, progress: bool) -> dict[str, Any]:
    found: dict[str, Any] = {"copies": pa.array(copies(captions)), "words": pa.array(word_counts(captions))}
    if spec is None:
        nulls = len(captions)
        return found | {"tokens": pa.nulls(nulls, pa.int32()), "truncated": pa.nulls(nulls, pa.bool_())}
    tokens, truncated = token_counts([text or "" for text in captions.to_pylist()], spec, progress)
    return found | {"tokens": pa.array(tokens), "truncated": pa.array(truncated)}


def _sizes(pictures: list[Picture | None], image_row: Ints, progress: bool) -> dict[str, Any]:
    hidden = None if progress else True
    sizes = [picture_size(picture) for picture in tqdm(pictures, desc="sizes", unit="img", disable=hidden)]
    columns = {}
    for side, name in enumerate(("width", "height")):
        values = pa.array([None if size is None else size[side] for size in sizes], pa.int32())
        columns[name] = values.take(pa.array(image_row))
    return columns


def _random_pairs(store: Store, image_row: Ints, seed: int) -> Floats:
    """Cosines of some captions with an image drawn from all the others; empty where there is one image."""
    images, texts = store.side("image"), store.side("text")
    if len(images) < 2:
        return np.zeros(0)
    rng = np.random.default_rng(seed)
    chosen = np.sort(rng.permutation(len(texts))[:RANDOM_PAIRS])
    away = rng.integers(1, len(images), len(chosen))
    return pair_cosines(images, Array(texts.take(chosen)), (image_row[chosen] + away) % len(images))


def _nulls(values: Floats) -> pa.Array:
    """float32 with null for NaN: in SQL a NaN would be larger than every number."""
    return pa.array(values.astype(np.float32), mask=np.isnan(values))
