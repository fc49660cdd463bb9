"""Overlap of splits: every pair, each image's nearest twin, recall with and without them against a loop."""

from __future__ import annotations

import doctest
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dualenc.evaluate.metrics import retrieval_metrics
from dualenc.evaluate.page.report import write_report
from dualenc.evaluate.quality import overlap as module
from dualenc.evaluate.quality.overlap import evaluate_overlap, find_overlap, overlap, overlap_section, shared_captions
from dualenc.index.vectors import Array

NAMES = ["red circle", "blue square", "green star", "black ring", "pink cross", "large moon"]


def unit_rows(count: int, seed: int, dim: int = 4) -> np.ndarray:
    some = np.random.default_rng(seed).standard_normal((count, dim))
    return (some / np.linalg.norm(some, axis=1, keepdims=True)).astype(np.float32)


@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 500), st.sampled_from([1, 3, 100]))
def test_every_pair_is_found(many: int, few: int, seed: int, block: int) -> None:
    train, test = unit_rows(many, seed), unit_rows(few, seed + 1000)
    test[: min(few, many) // 2] = train[: min(few, many) // 2]  # equal rows, too
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BLOCK", block)
        found = [
            pair for part in find_overlap(Array(train), test, 0.5, progress=False) for pair in zip(*part, strict=True)
        ]
    cosine = test.astype(np.float64) @ train.astype(np.float64).T
    expected = {(i, j): cosine[i, j] for i, j in np.argwhere(cosine >= 0.5)}
    assert {(i, j) for i, j, _ in found} == set(expected) and len(found) == len(expected)
    for i, j, score in found:
        assert score == pytest.approx(expected[i, j], abs=1e-6)


@given(st.integers(0, 200), st.sampled_from([1, 2, 100]))
def test_the_nearest_is_kept_and_of_equal_ones_the_first(samples_seed: int, block: int) -> None:
    train = unit_rows(9, samples_seed, dim=2)
    train[5] = train[2]
    test = Few(np.concatenate([train[[2]], unit_rows(4, samples_seed + 1, dim=2)]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BLOCK", block)
        found = overlap(Array(train), [f"t{i}" for i in range(9)], test, 0.9, progress=False)  # type: ignore[arg-type]
    cosine = test.images.astype(np.float64) @ train.astype(np.float64).T
    lengths = np.linalg.norm(test.images.astype(np.float64), axis=1)[:, None]
    cosine /= lengths * np.linalg.norm(train.astype(np.float64), axis=1)
    expected = np.where(cosine.max(axis=1) >= 0.9, cosine.argmax(axis=1), -1)
    assert found.nearest[0] == 2 and found.nearest.tolist() == expected.tolist()
    assert found.pairs == (cosine >= 0.9).sum()


class Few:
    def __init__(self, images: np.ndarray):
        self.images = images
        self.metadata = pa.table({"key": [f"k{i}" for i in range(len(images))]})


def test_recall_with_and_without(encoder, samples, tmp_path: Path) -> None:
    data = samples([[name, f"{name} {i}"] for i, name in enumerate(NAMES)])
    data.images[[2, 3]] = data.images[[3, 2]]  # two are always missed at 1
    train = np.concatenate([unit_rows(3, 1, encoder.dim), data.images[[2, 5]]])
    found = overlap(Array(train), [f"t{i}" for i in range(5)], data, 0.95, tmp_path / "pairs.parquet", progress=False)
    assert found.nearest.tolist() == [-1, -1, 3, -1, -1, 4]
    lines = pq.read_table(tmp_path / "pairs.parquet").to_pylist()
    assert [(line["test_key"], line["train_key"]) for line in lines] == [("k2", "t3"), ("k5", "t4")]
    report = evaluate_overlap(data, found, 0.95, ks=(1, 3))
    assert (report["images"], report["overlapping"], report["pairs"]) == (6, 2, 2)
    kept = np.array([0, 1, 3, 4])
    texts = np.flatnonzero(np.isin(data.image_row, kept))
    place = {int(row): i for i, row in enumerate(kept)}
    without = retrieval_metrics(
        data.images[kept], data.texts[texts], [place[int(r)] for r in data.image_row[texts]], ks=(1, 3)
    )
    whole = retrieval_metrics(data.images, data.texts, data.image_row, ks=(1, 3))
    for way in ("text_to_image", "image_to_text"):
        assert report[f"all/{way}/queries"] == report[f"overlapping/{way}/queries"] + report[f"others/{way}/queries"]
        for k in (1, 3):
            name = f"{way}/recall@{k}"
            assert report[f"all/{name}"] == whole[name] and report[f"without/{name}"] == without[name]
            asked = [report[f"{part}/{way}/queries"] * report[f"{part}/{name}"] for part in ("overlapping", "others")]
            assert sum(asked) == pytest.approx(report[f"all/{name}"] * report[f"all/{way}/queries"])
            assert report[f"all/{name}/low"] <= report[f"all/{name}"] <= report[f"all/{name}/high"]
    assert report["overlapping/image_to_text/recall@1"] == 0.5  # of images 2 and 5 the second has its caption first
    assert report["others/image_to_text/recall@1"] == 0.75
    section = overlap_section(report, data, _named(5, data), found, ks=(1, 3))
    first = section.examples[0].rows[0]
    assert [item.text for item in first.items] == ["k2", "t3"] and first.note == "cosine 1.000"
    assert first.found is None
    page = write_report(tmp_path / "page", report, [section]).read_text()
    assert "Without the overlapping images: Text → image" in page and page.count("data:image/jpeg;base64") == 4
    assert "✗" not in page and "<q" not in page and "no captions" not in page


def _named(count: int, data) -> pa.Table:
    places = data.metadata.select(["image_path", "image_offset", "image_size"]).slice(0, count)
    return places.append_column("key", pa.array([f"t{i}" for i in range(count)]))


@pytest.mark.parametrize("which", ["none", "all", "all but one"])
def test_ends(samples, which: str, tmp_path: Path) -> None:
    data = samples([[name] for name in NAMES])
    train = {"none": -data.images[:1], "all": data.images, "all but one": data.images[1:]}[which]
    found = overlap(Array(train), [f"t{i}" for i in range(len(train))], data, 0.99, progress=False)
    report = evaluate_overlap(data, found, 0.99, ks=(1, 5))
    assert report["overlapping"] == {"none": 0, "all": 6, "all but one": 5}[which]
    assert report["all/text_to_image/recall@5"] == 1
    if which == "none":
        assert report["without/text_to_image/recall@5"] == 1 and report["overlapping/text_to_image/recall@5"] is None
    else:
        assert report["without/text_to_image/recall@5"] is None
        assert report["without/text_to_image/recall@1"] == (None if which == "all" else 1)
    json.dumps(report, allow_nan=False)
    section = overlap_section(report, data, _named(len(train), data), found, ks=(1, 5))
    assert len(section.examples) == (which != "none")
    write_report(tmp_path, report, [section])


def test_images_alone_are_compared_all_the_same(samples) -> None:
    data = samples([[name] for name in NAMES])
    data.texts, data.image_row = data.texts[:0], data.image_row[:0]
    found = overlap(Array(data.images[:2]), ["a", "b"], data, 0.99, progress=False)
    report = evaluate_overlap(data, found, 0.99)
    counted = {"images": 6, "overlapping": 2, "overlapping/share": 1 / 3, "pairs": 2, "threshold": 0.99}
    assert report == counted | {"captioned": 0}
    section = overlap_section(report, data, _named(2, data), found)
    assert "no captions, so no recall" in section.about and not section.tables


def test_what_cannot_be_compared_is_refused() -> None:
    rows = unit_rows(3, 0)
    for threshold in (0, 1.1, float("nan"), True):
        with pytest.raises(ValueError, match="threshold"):
            list(find_overlap(Array(rows), rows, threshold, progress=False))
    with pytest.raises(ValueError, match="have 3 values a row, the test 4"):
        list(find_overlap(Array(rows[:, :3]), rows, 0.9, progress=False))


def test_captions_that_read_the_same() -> None:
    train, test = (pa.table({"caption": some}) for some in (["A fox", "x", None], ["a fox", "a fox", "dog", None]))
    assert shared_captions(train, test) == 2
    assert shared_captions(train, test.slice(0, 0)) is None is shared_captions(pa.table({"key": ["a"]}), test)
    assert doctest.testmod(module).failed == 0


def test_recall_is_over_images_with_captions_and_k_within_them(samples) -> None:
    data = samples([[name] for name in NAMES])
    whole = evaluate_overlap(
        data, overlap(Array(data.images[4:]), ["a", "b"], data, 0.99, progress=False), 0.99, (1, 4)
    )
    data.images = np.concatenate([data.images, unit_rows(2, 3, data.images.shape[1])])[[6, 0, 1, 2, 7, 3, 4, 5]]
    data.image_row = np.array([1, 2, 3, 5, 6, 7])
    data.metadata = pa.table({"key": [f"k{i}" for i in range(8)]})
    found = overlap(Array(data.images[[6, 7]]), ["a", "b"], data, 0.99, progress=False)
    report = evaluate_overlap(data, found, 0.99, (1, 4, 7))
    assert (report["images"], report["captioned"], report["overlapping"]) == (8, 6, 2)
    assert {key: report[key] for key in whole if "/recall" in key or "queries" in key} == {
        key: value for key, value in whole.items() if "/recall" in key or "queries" in key
    }
    assert report["all/text_to_image/recall@7"] is None and report["without/text_to_image/recall@4"] is not None
    assert evaluate_overlap(data, found, 0.99, (7,))["all/image_to_text/recall@7"] is None
    with pytest.raises(ValueError, match="k is 0"):
        evaluate_overlap(data, found, 0.99, (0, 1))
