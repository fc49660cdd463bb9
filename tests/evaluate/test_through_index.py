"""Recall@K through an index: exact ones change nothing, what an approximate one loses is counted, what does not fit is
refused."""

from __future__ import annotations

import doctest

import numpy as np
import pyarrow as pa
import pytest

from dualenc import Index
from dualenc.evaluate import through_index
from dualenc.evaluate.compare import same_rows
from dualenc.evaluate.intervals import mean_intervals
from dualenc.evaluate.metrics import rank_metrics, sides
from dualenc.evaluate.ranks import ranks
from dualenc.evaluate.retrieval import evaluate_retrieval
from dualenc.evaluate.through_index import _hit, evaluate_through_index
from dualenc.evaluate.top_hits import relevant_codes
from dualenc.index.vectors import Array

OURS = "a" * 64


def noisy(samples, images=40, captions=2, seed=0, noise=0.8):
    """Images near their captions, as far off as an encoder that is right half of the time."""
    rng = np.random.default_rng(seed)
    data = samples([[f"word{i} thing{i} number{j}" for j in range(captions)] for i in range(images)])
    rows = data.images + noise * rng.standard_normal(data.images.shape).astype(np.float32) / np.sqrt(32) * 2
    data.images = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    return data


def build(folder, vectors, metadata, recipe="flat", **more):
    return Index.build(vectors, folder, metadata=metadata, recipe=recipe, encoder=OURS, **more)


def exact(encoder, data, ks):
    return evaluate_retrieval(encoder, data, ks=ks, examples=0)[0]


def test_docstring_examples():
    for module, count in ((through_index, 1), (same_rows, 2)):
        result = doctest.testmod(module)
        assert result.failed == 0 and result.attempted >= count


@pytest.mark.parametrize(("side", "way"), [("image", "text_to_image"), ("text", "image_to_text")])
def test_an_exact_index_says_what_exact_search_says(tmp_path, encoder, samples, side, way):
    data = noisy(samples)
    rows, names = (data.images, data.metadata) if side == "image" else (data.texts, data.text_metadata)
    order = np.random.default_rng(5).permutation(len(rows))  # the index has them in another order
    index = build(tmp_path / "i", rows[order], names.take(order), side=side, ids=100 + np.arange(len(rows)))
    ks = (1, 3, 10)
    report, section = evaluate_through_index(index, data, exact(encoder, data, ks), ks, encoder=OURS)
    wanted = exact(encoder, data, ks)
    assert 0.1 < wanted[f"{way}/recall@1"] < 0.9
    for k in ks:
        name = f"index/{way}/recall@{k}"
        assert report[name] == report[f"{name}/exact"] == wanted[f"{way}/recall@{k}"]
        assert report[f"{name}/difference"] == report[f"{name}/difference/low"] == 0
        assert report[f"index/{way}/ann_recall@{k}"] == 1
        assert report[f"{name}/low"] <= report[name] <= report[f"{name}/high"]
    assert report[f"index/{way}/gallery"] == len(rows) and report[f"index/{way}/rows_not_in_data"] == 0
    assert section.tables[0].rows[0][3] == "0.0 points [0.0,\u00a00.0]"


class Losing:
    """An index that finds no row of `lost`."""

    def __init__(self, index, lost):
        self.index, self.lost = index, np.asarray(lost)

    def __getattr__(self, name):
        return getattr(self.index, name)

    def __len__(self):
        return len(self.index)

    def search(self, queries, k):
        ids, scores = self.index.search(queries, k=min(k + len(self.lost), len(self)))
        kept = [[i for i in range(ids.shape[1]) if ids[q, i] not in self.lost][:k] for q in range(len(ids))]
        filled_ids, filled = np.full((len(ids), k), -1, np.int64), np.full((len(ids), k), -np.inf, np.float32)
        for q, places in enumerate(kept):
            filled_ids[q, : len(places)], filled[q, : len(places)] = ids[q, places], scores[q, places]
        return filled_ids, filled


def test_what_an_index_loses_is_counted_in_both_recalls(tmp_path, encoder, samples):
    data = noisy(samples)
    index = Losing(build(tmp_path / "i", data.images, data.metadata), [3, 4])
    ks = (1, 5)
    report, section = evaluate_through_index(index, data, exact(encoder, data, ks), ks)
    score = data.texts.astype(np.float64) @ data.images.T
    left = np.delete(np.arange(40), [3, 4])
    for k in ks:
        truth = np.argsort(-score, axis=1)[:, :k]
        found = left[np.argsort(-score[:, left], axis=1)[:, :k]]
        hit = (found == data.image_row[:, None]).any(axis=1)
        name = f"index/text_to_image/recall@{k}"
        assert report[name] == hit.mean()
        assert report[f"{name}/exact"] == (truth == data.image_row[:, None]).any(axis=1).mean()
        assert report[f"{name}/difference"] == pytest.approx(report[name] - report[f"{name}/exact"])
        ends = mean_intervals(hit.astype(float), data.image_row, shares=True)[0]  # an image with all its captions
        assert (report[f"{name}/low"], report[f"{name}/high"]) == pytest.approx(ends)
        ann = [len(set(a) & set(b)) / k for a, b in zip(truth, found, strict=True)]
        assert report[f"index/text_to_image/ann_recall@{k}"] == pytest.approx(np.mean(ann))
    assert report["index/text_to_image/recall@5/difference"] < 0
    assert report["index/text_to_image/recall@5/difference/low"] < report["index/text_to_image/recall@5/difference"]
    assert report["index/text_to_image/ann_recall@5"] != report["index/text_to_image/recall@5"]
    assert str(section.tables[0].rows[1][3]).startswith("−")


def test_a_larger_gallery_is_searched_exactly_as_well(tmp_path, encoder, samples, monkeypatch):
    data = noisy(samples)
    others = noisy(samples, images=30, seed=9).images
    names = [*data.metadata["key"].to_pylist(), *(f"other{i}" for i in range(30))]
    index = build(tmp_path / "i", np.concatenate([data.images, others]), pa.table({"key": names}))
    monkeypatch.setattr(through_index, "BLOCK", 7)  # ranks are summed over several blocks
    ks = (1, 5)
    alone = exact(encoder, data, ks)
    report, section = evaluate_through_index(index, data, alone, ks)
    wanted = rank_metrics(ranks(data.texts, np.concatenate([data.images, others]), data.image_row[:, None]), ks)
    for k in ks:
        name = f"index/text_to_image/recall@{k}"
        assert report[name] == report[f"{name}/exact"] == wanted[f"recall@{k}"] < alone[f"text_to_image/recall@{k}"]
        assert report[f"index/text_to_image/ann_recall@{k}"] == 1
    assert report["index/text_to_image/gallery"] == 70 and report["index/text_to_image/rows_not_in_data"] == 30
    assert "30 rows that are not in the data" in section.about


def test_removed_rows_are_not_found_and_not_asked_for(tmp_path, encoder, samples):
    data = noisy(samples, images=20)
    more = np.concatenate([data.images[:5][::-1], data.images])
    names = pa.table({"key": [*(f"gone{i}" for i in range(5)), *data.metadata["key"].to_pylist()]})
    index = build(tmp_path / "i", more, names)
    index.remove(np.arange(5))
    report, _ = evaluate_through_index(index, data, exact(encoder, data, (1,)), (1,))
    assert report["index/text_to_image/rows_not_in_data"] == 0
    assert report["index/text_to_image/recall@1"] == report["index/text_to_image/recall@1/exact"]


def test_equal_scores_count_against_the_index_as_they_do_in_exact_search(tmp_path, constant_encoder, samples):
    data = samples([[f"w{i}", f"v{i}"] for i in range(12)])
    data.images[:] = data.texts[:] = constant_encoder.embed_texts(["x"])
    for side, rows, names in (("image", data.images, data.metadata), ("text", data.texts, data.text_metadata)):
        index = build(tmp_path / side, rows, names, side=side)
        report, _ = evaluate_through_index(index, data, exact(constant_encoder, data, (1, 5)), (1, 5))
        found = [value for name, value in report.items() if "/recall@" in name and not name.endswith("/high")]
        assert found == [0.0] * 12
        assert report[f"index/{through_index.WAYS[side]}/ann_recall@5"] == 1  # any of the equal ones is right there


def test_a_tie_at_the_edge_is_a_miss_whichever_of_the_equal_rows_was_listed():
    """Scores of 3 values, so many ties, in any order: a hit at k where exact search has one, lists being complete."""
    rng = np.random.default_rng(0)
    for _ in range(300):
        count, right_rows, k = rng.integers(2, 12), rng.integers(1, 4), rng.integers(1, 6)
        score = rng.integers(0, 3, count) / 2
        rows = np.stack([score, np.sqrt(1 - score**2)], axis=1).astype(np.float32)
        right = rng.choice(count, min(right_rows, count), replace=False)
        rank = ranks([[1.0, 0.0]], rows, [right])
        shuffled = rng.permutation(count)
        order = shuffled[np.argsort(-score[shuffled], kind="stable")][:k]
        last = score[order[-1:]]
        codes = relevant_codes([right], int(count))
        assert _hit(np.array([[1.0, 0.0]]), Array(rows), order[None], rank, codes, last)[0] == (rank[0] < len(order))


def test_recall_at_k_does_not_depend_on_the_other_ks(tmp_path, encoder, samples):
    """A re-ranking index looks at more candidates the more rows it is asked for: each K is what a user who asks for K gets."""
    data = noisy(samples, images=600, captions=1, noise=0.5)
    recipe = {"build": {"kind": "ivf", "nlist": 4, "codes": "pq", "dims_per_code": 8}, "search": {"rerank": 2}}
    index = build(tmp_path / "i", data.images, data.metadata, recipe, recall=0.01)
    one, many = (evaluate_through_index(index, data, exact(encoder, data, ks), ks)[0] for ks in ((1,), (1, 500)))
    for name in ("recall", "ann_recall"):
        assert one[f"index/text_to_image/{name}@1"] == many[f"index/text_to_image/{name}@1"] > 0.2
    truth = np.argmax(data.texts.astype(np.float64) @ data.images.T, axis=1)
    assert one["index/text_to_image/ann_recall@1"] == (index.search(data.texts, k=1)[0][:, 0] == truth).mean() < 0.95


def test_draws_are_the_callers(tmp_path, encoder, samples):
    data = noisy(samples)
    index, given = Losing(build(tmp_path / "i", data.images, data.metadata), [3, 4]), exact(encoder, data, (1,))
    assert not [key for key in evaluate_through_index(index, data, given, (1,), times=0)[0] if key.endswith("/low")]
    pairs = np.arange(40) // 2
    report, _ = evaluate_through_index(index, data, given, (1,), times=70, cluster=pairs)
    hit = ranks(data.texts, data.images, data.image_row[:, None]) < 1
    ends = mean_intervals(hit.astype(float), pairs[data.image_row], times=70, shares=True)[0]
    exact_ends = [report[f"index/text_to_image/recall@1/exact/{end}"] for end in ("low", "high")]
    assert exact_ends == pytest.approx(ends)


def test_right_rows_and_ranks_of_the_caller(tmp_path, encoder, samples):
    data = noisy(samples, images=20, captions=1)
    pairs = [np.array([i - i % 2, i - i % 2 + 1]) for i in range(20)]
    rank = ranks(data.texts, data.images, pairs)
    given = {f"text_to_image/{name}": value for name, value in rank_metrics(rank, (1, 5)).items()}
    index = build(tmp_path / "i", data.images, data.metadata)
    for known in (None, {"text_to_image": rank}):
        report, _ = evaluate_through_index(index, data, given, (1, 5), ranks=known, relevant={"text_to_image": pairs})
        assert report["index/text_to_image/recall@1"] == given["text_to_image/recall@1"]
    with pytest.raises(ValueError, match="other right rows"):
        evaluate_through_index(index, data, given, (1, 5))


def test_an_index_of_codes_alone_is_measured_against_the_data(tmp_path, encoder, samples):
    """IVF-PQ without original rows: nothing of the index says what exact search would find."""
    data = noisy(samples, images=400, captions=1, noise=0.3)
    recipe = {"build": {"kind": "ivf", "nlist": 1, "codes": "pq", "dims_per_code": 4}, "search": {"rerank": "none"}}
    index = build(tmp_path / "i", data.images, data.metadata, recipe, recall=0.01)
    with pytest.raises(ValueError, match="original"):
        index.vectors([0])
    report, _ = evaluate_through_index(index, data, exact(encoder, data, (1, 10)), (1, 10))
    found = index.search(data.texts, k=10)[0]
    truth = np.argsort(-(data.texts.astype(np.float64) @ data.images.T), axis=1)[:, :10]
    shared = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(truth, found, strict=True)])
    assert report["index/text_to_image/ann_recall@10"] == pytest.approx(shared) and 0.2 < shared < 1
    assert report["index/text_to_image/recall@1/difference"] <= 0
    assert report["index/text_to_image/recall@1"] > 0.3


@pytest.mark.parametrize("side", ["image", "text"])
def test_a_row_that_is_missing_is_refused_by_name(tmp_path, encoder, samples, side):
    data = noisy(samples, images=20)
    rows, names = (data.images, data.metadata) if side == "image" else (data.texts, data.text_metadata)
    index = build(tmp_path / "i", rows[2:], names.slice(2), side=side)
    wanted = "'k0'" if side == "image" else "'word0 thing0 number0' of 'k0'"
    with pytest.raises(ValueError, match=f"2 of the data's (20 images|40 captions) are not in .*such as {wanted}"):
        evaluate_through_index(index, data, exact(encoder, data, (1,)), (1,))


def test_refused(tmp_path, encoder, samples):
    data = noisy(samples, images=20)
    given = exact(encoder, data, (1,))
    index = build(tmp_path / "i", data.images, data.metadata)
    with pytest.raises(ValueError, match="fingerprint bbbbbbbbbbbb"):
        evaluate_through_index(index, data, given, (1,), encoder="b" * 64)
    with pytest.raises(ValueError, match="says None for text_to_image/recall@2"):
        evaluate_through_index(index, data, given, (2,))
    with pytest.raises(ValueError, match="k is 21, but the gallery has only 20"):
        evaluate_through_index(index, data, given, (21,))
    doubled = pa.table({"key": [*data.metadata["key"].to_pylist()[:19], "k3"]})
    with pytest.raises(ValueError, match="key 'k3' occurs twice in the index"):
        evaluate_through_index(build(tmp_path / "j", data.images, doubled), data, given, (1,))
    other = build(tmp_path / "k", np.roll(data.images, 1, axis=0), data.metadata)
    with pytest.raises(ValueError, match=r"other vectors under the data's names .*20 of 20 rows"):
        evaluate_through_index(other, data, given, (1,))
    narrow = build(tmp_path / "n", data.images[:, :1] * 0 + 1, data.metadata)
    with pytest.raises(ValueError, match="1 values a row, the data 32"):
        evaluate_through_index(narrow, data, given, (1,))
    nameless = build(tmp_path / "l", data.images, None)
    with pytest.raises(ValueError, match="has no column 'key'"):
        evaluate_through_index(nameless, data, given, (1,))


def test_captions_of_the_same_images_that_the_data_lacks_are_refused(tmp_path, encoder, samples):
    data = noisy(samples, images=20)
    more = data.text_metadata.slice(0, 1).set_column(1, "caption", pa.array(["another caption of k0"]))
    rows = np.concatenate([data.texts, data.texts[:1]])
    index = build(tmp_path / "i", rows, pa.concat_tables([data.text_metadata, more]), side="text")
    with pytest.raises(ValueError, match="captions of 'k0' that the data does not"):
        evaluate_through_index(index, data, exact(encoder, data, (1,)), (1,))


def test_a_caption_that_an_image_has_twice_is_two_rows(tmp_path, encoder, samples):
    data = samples([["same", "same"], ["one", "two"], ["three", "three"]])
    index = build(tmp_path / "i", data.texts, data.text_metadata, side="text")
    report, _ = evaluate_through_index(index, data, exact(encoder, data, (1,)), (1,))
    assert report["index/image_to_text/recall@1"] == report["index/image_to_text/recall@1/exact"]
    assert len(sides(data.images, data.texts, data.image_row, (1,))["image_to_text"][0]) == 3
