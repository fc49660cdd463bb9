"""Metrics by hand, against slow definitions under ties, and against torchmetrics where nothing ties."""

from __future__ import annotations

import doctest
import importlib
import subprocess
import sys
from math import comb

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import dualenc.evaluate
from dualenc.evaluate import recall_at_k, zero_shot_metrics
from dualenc.evaluate.metrics import (
    chance_recall,
    class_ranks,
    left_out,
    per_class_recall,
    retrieval_metrics,
    retrieval_ranks,
    sides,
)
from dualenc.evaluate.ranks import ranks

GRID = st.sampled_from([-1.0, 0.0, 0.5, 1.0])


def unit(rng, *shape):
    rows = rng.standard_normal(shape).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def slow_recall(query, gallery, relevant, k):
    """Hit rate by sorting: irrelevant rows first among equals."""
    hits = 0
    for q, right in zip(query, relevant, strict=True):
        scored = sorted((-float(np.dot(q.astype(np.float64), g)), row in right) for row, g in enumerate(gallery))
        hits += any(is_right for _, is_right in scored[:k])
    return hits / len(query)


@pytest.mark.parametrize(
    "name",
    [
        "metrics",
        "ranks",
        "pairs",
        "rank_intervals",
        "retrieval",
        "composition.swaps",
        "zeroshot.zeroshot",
        "page.words",
        "page.curve",
        "page.grid",
    ],
)
def test_docstring_examples(name):
    module = importlib.import_module(f"dualenc.evaluate.{name}")
    result = doctest.testmod(module)
    assert result.failed == 0
    public = ("metrics", "ranks", "pairs", "rank_intervals", "composition.swaps", "page.words")
    assert result.attempted > 0 or name not in public


def test_importing_evaluate_loads_nothing_heavy():
    program = (
        "import sys, dualenc.evaluate.metrics, dualenc.evaluate.retrieval, dualenc.evaluate.page.report;"
        "from dualenc.evaluate import recall_at_k, zero_shot_metrics;"
        "print([m for m in ('torch', 'open_clip', 'faiss', 'matplotlib') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
    only_numpy = (
        "import sys, dualenc.evaluate.metrics; print([m for m in ('PIL', 'pyarrow', 'jinja2') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", only_numpy], capture_output=True, text=True).stdout.strip() == "[]"
    assert sorted(dualenc.evaluate.__all__) == ["recall_at_k", "zero_shot_metrics"]


def test_recall_by_hand():
    gallery = [[1.0, 0.0], [0.8, 0.6], [0.6, 0.8], [0.0, 1.0]]
    queries = [[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]  # ranks of the right rows: 0, 2, and the better of 1 and 3
    assert recall_at_k(queries, gallery, [[0], [2], [2, 0]], ks=(1, 2, 3, 4)) == {
        "recall@1": 1 / 3,
        "recall@2": 2 / 3,
        "recall@3": 1.0,
        "recall@4": 1.0,
    }


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_recall_equals_sorting_with_many_ties(data):
    width, gallery = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 8))
    rows = st.lists(GRID, min_size=width, max_size=width)
    g = np.array(data.draw(st.lists(rows, min_size=gallery, max_size=gallery)), np.float32)
    q = np.array(data.draw(st.lists(rows, min_size=1, max_size=5)), np.float32)
    one = st.sets(st.integers(0, gallery - 1), min_size=1)
    relevant = data.draw(st.lists(one, min_size=len(q), max_size=len(q)))
    k = data.draw(st.integers(1, gallery))
    assert recall_at_k(q, g, relevant, ks=(k,)) == {f"recall@{k}": pytest.approx(slow_recall(q, g, relevant, k))}


def test_recall_equals_torchmetrics_hit_rate_without_ties():
    pytest.importorskip("torch")  # `make test-python` runs without it
    importlib.import_module("dualenc.torchvision_ops")  # before torchmetrics
    import torch
    from torchmetrics.retrieval import RetrievalHitRate

    rng = np.random.default_rng(0)
    gallery = unit(rng, 80, 16)
    query = unit(rng, 40, 16)
    relevant = [rng.choice(80, int(rng.integers(1, 6)), replace=False).tolist() for _ in range(40)]
    scores = torch.tensor(query @ gallery.T).flatten()
    target = torch.tensor([[row in right for row in range(80)] for right in relevant]).flatten()
    of_query = torch.arange(40).repeat_interleave(80)
    ours = recall_at_k(query, gallery, relevant, ks=(1, 5, 10, 80))
    for k in (1, 5, 10, 80):
        theirs = RetrievalHitRate(top_k=k)(scores, target, indexes=of_query).item()
        assert ours[f"recall@{k}"] == pytest.approx(theirs, abs=1e-6)
    assert 0 < ours["recall@1"] < ours["recall@10"] < 1


def test_a_collapsed_encoder_scores_nothing():
    rows = np.tile(unit(np.random.default_rng(1), 64), (50, 1))
    assert recall_at_k(rows, rows, np.arange(50)[:, None], ks=(1, 49)) == {"recall@1": 0.0, "recall@49": 0.0}
    metrics = retrieval_metrics(rows[:10], rows, np.arange(50) // 5, ks=(1, 5))
    assert metrics == {
        "text_to_image/recall@1": 0.0,
        "text_to_image/recall@5": 0.0,
        "text_to_image/mean_rank": 10.0,
        "text_to_image/median_rank": 10.0,
        "image_to_text/recall@1": 0.0,
        "image_to_text/recall@5": 0.0,
        "image_to_text/mean_rank": 46.0,
        "image_to_text/median_rank": 46.0,
    }
    assert zero_shot_metrics(np.ones((6, 5)), [0, 1, 2, 3, 4, 0]) == {
        "acc1": 0.0,
        "acc5": 1.0,  # all five classes: nothing is left to be wrong
        "mean_per_class_recall": 0.0,
    }


@pytest.mark.parametrize("k", [0, -1, 4])
def test_a_k_outside_the_gallery_is_refused(k):
    with pytest.raises(ValueError, match=rf"k is {k}"):
        recall_at_k(np.eye(3), np.eye(3), [[0], [1], [2]], ks=(1, k))
    with pytest.raises(ValueError, match=rf"k is {k}"):
        retrieval_metrics(np.eye(3), np.eye(3), [0, 1, 2], ks=(1, k))


def test_a_k_must_fit_the_smaller_gallery():
    with pytest.raises(ValueError, match="k is 3, but the gallery has only 2 rows"):
        retrieval_metrics(np.eye(2), np.eye(2)[[0, 0, 1, 1]], [0, 0, 1, 1], ks=(3,))
    with pytest.raises(ValueError, match="k is 3, but the gallery has only 2 rows"):
        retrieval_metrics(np.eye(3), np.eye(3)[:2], [0, 1], ks=(3,), same=[-1, 4, 4])


def slow_retrieval(images, texts, image_row, ks):
    own = {image: {t for t, row in enumerate(image_row) if row == image} for image in range(len(images))}
    out = {}
    for k in ks:
        out[f"text_to_image/recall@{k}"] = slow_recall(texts, images, [{row} for row in image_row], k)
        out[f"image_to_text/recall@{k}"] = slow_recall(images, texts, list(own.values()), k)
    return out


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_retrieval_both_ways_with_several_captions_and_duplicates(data):
    rows = st.lists(GRID, min_size=2, max_size=2)
    images = np.array(data.draw(st.lists(rows, min_size=1, max_size=5)), np.float32)
    extra = data.draw(st.lists(st.integers(0, len(images) - 1), max_size=6))
    image_row = data.draw(st.permutations([*range(len(images)), *extra]))
    texts = np.array(data.draw(st.lists(rows, min_size=len(image_row), max_size=len(image_row))), np.float32)
    ks = (1, len(images))
    got = retrieval_metrics(images, texts, image_row, ks)
    for name, value in slow_retrieval(images, texts, image_row, ks).items():
        assert got[name] == pytest.approx(value), name


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_images_that_are_the_same_are_right_for_each_others_captions(data):
    rows = st.lists(GRID, min_size=2, max_size=2)
    images = np.array(data.draw(st.lists(rows, min_size=1, max_size=6)), np.float32)
    same = data.draw(st.lists(st.integers(-2, 2), min_size=len(images), max_size=len(images)))
    alike = [{j for j, b in enumerate(same) if j == i or a == b >= 0} for i, a in enumerate(same)]
    extra = data.draw(st.lists(st.integers(0, len(images) - 1), max_size=6))
    image_row = data.draw(st.permutations([*range(len(images)), *extra]))
    if len(alike[image_row[0]]) > 1 and image_row.count(image_row[0]) == 1:
        image_row = image_row[1:]  # that image has no caption but the others'
    texts = np.array(data.draw(st.lists(rows, min_size=len(image_row), max_size=len(image_row))), np.float32)
    got = retrieval_metrics(images, texts, image_row, ks=(1,), same=same)
    own = [{t for t, row in enumerate(image_row) if row in group} for group in alike]
    assert got["text_to_image/recall@1"] == pytest.approx(slow_recall(texts, images, [alike[r] for r in image_row], 1))
    assert got["image_to_text/recall@1"] == pytest.approx(slow_recall(images, texts, own, 1))
    lists = {way: side[2] for way, side in sides(images, texts, image_row, (1,), same=same).items()}
    assert [set(rows.tolist()) for rows in lists["text_to_image"]] == [alike[r] for r in image_row]
    assert [set(rows.tolist()) for rows in lists["image_to_text"]] == own


def test_a_copy_of_an_image_is_a_tie_unless_it_is_said_to_be_the_same():
    images, texts = np.eye(2)[[0, 1, 1]], np.eye(2)[[0, 1, 1]]
    assert retrieval_metrics(images, texts, [0, 1, 2], ks=(1,))["text_to_image/recall@1"] == 1 / 3
    metrics = retrieval_metrics(images, texts, [0, 1, 2], ks=(1,), same=[-1, 4, 4])
    assert [metrics[f"{way}/recall@1"] for way in ("text_to_image", "image_to_text")] == [1.0, 1.0]
    found = retrieval_ranks(images, texts[:2], [0, 1], same=[-1, 4, 4])  # image 2 has no text but its copy's
    assert found["image_to_text"].tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("same", "says"), [([0, 1], "one integer for each of 3 images"), ([0.0, 1.0, 1.0], "one integer for each")]
)
def test_what_is_the_same_must_be_numbers(same, says):
    with pytest.raises(ValueError, match=says):
        retrieval_metrics(np.eye(3), np.eye(3), [0, 1, 2], ks=(1,), same=same)


def test_classes_are_no_copies(monkeypatch):
    monkeypatch.setattr("dualenc.evaluate.pairs.MOST_PAIRS", 8)
    with pytest.raises(
        ValueError, match="9 pairs of caption and image would be right, above 8: images in 1 groups are"
    ):
        retrieval_metrics(np.eye(3), np.eye(3), [0, 1, 2], ks=(1,), same=[5, 5, 5])


def test_one_pass_gives_the_ranks_of_the_two_ways_one_by_one():
    rng = np.random.default_rng(4)
    images, image_row = unit(rng, 70, 16), np.repeat(np.arange(70), 3)
    texts = unit(rng, 210, 16) + 0.8 * images[image_row]
    found = retrieval_ranks(images, texts, image_row)
    for way, (query, gallery, relevant) in sides(images, texts, image_row, ks=()).items():
        assert found[way].tolist() == ranks(query, gallery, relevant).tolist()


def test_the_order_of_rows_changes_no_metric():
    rng = np.random.default_rng(5)
    images, image_row = unit(rng, 50, 16)[rng.integers(50, size=50)], np.arange(120) % 50  # with copies: ties
    texts = images[image_row] + 3 * unit(rng, 120, 16)
    expected = retrieval_metrics(images, texts, image_row)
    assert 0 < expected["text_to_image/recall@1"] < expected["text_to_image/recall@10"] < 1
    for seed in range(3):
        shuffle = np.random.default_rng(seed)
        i, t = shuffle.permutation(50), shuffle.permutation(120)
        assert retrieval_metrics(images[i], texts[t], np.argsort(i)[image_row[t]]) == expected


def test_ranks_count_from_one():
    images = [[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]]
    texts = [[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]]  # the second lies as near to image 0 as it gets to its own
    metrics = retrieval_metrics(images, texts, [0, 2, 1], ks=(1,))
    assert metrics["text_to_image/mean_rank"] == 2.0  # 1, 3, 2
    assert metrics["text_to_image/median_rank"] == 2.0


def test_an_image_without_text_is_refused_unless_not_strict():
    images, texts = np.eye(3), np.eye(3)[:2]
    with pytest.raises(ValueError, match="image row 2 has no text"):
        retrieval_metrics(images, texts, [0, 1], ks=(1,))
    metrics = retrieval_metrics(images, texts, [0, 1], ks=(1, 3), strict=False)
    assert metrics["image_to_text/recall@1"] == 1.0
    assert left_out(metrics, ks=(1, 3)) == ["image_to_text/recall@3"]


def test_not_strict_restricts_queries_but_not_the_gallery():
    rng = np.random.default_rng(2)
    images, texts = unit(rng, 6, 8), unit(rng, 9, 8)
    image_row = np.array([0, 0, 1, 2, -1, 4, -1, 2, 4])  # images 3 and 5 were seen without a text
    got = retrieval_metrics(images, texts, image_row, ks=(1, 2), strict=False)
    asked = image_row >= 0
    for k in (1, 2):
        right = [{row} for row in image_row[asked]]
        assert got[f"text_to_image/recall@{k}"] == slow_recall(texts[asked], images, right, k)
        right = [set(np.flatnonzero(image_row == image)) for image in (0, 1, 2, 4)]
        assert got[f"image_to_text/recall@{k}"] == slow_recall(images[[0, 1, 2, 4]], texts, right, k)
    assert left_out(got, ks=(1, 2)) == []


def test_not_strict_equals_strict_where_all_was_seen():
    rng = np.random.default_rng(3)
    images, texts, row = unit(rng, 20, 8), unit(rng, 40, 8), np.arange(40) % 20
    assert retrieval_metrics(images, texts, row, strict=False) == retrieval_metrics(images, texts, row)


@pytest.mark.parametrize(("images", "texts", "row"), [(0, 0, []), (2, 0, []), (0, 2, [-1, -1]), (2, 2, [-1, -1])])
def test_not_strict_with_nothing_to_ask_gives_nothing(images, texts, row):
    got = retrieval_metrics(np.ones((images, 4)), np.ones((texts, 4)), row, ks=(1,), strict=False)
    assert got == {}
    assert len(left_out(got, ks=(1,))) == 6


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize(
    ("row", "says"),
    [([0, 3], "spans 0..3"), ([0, -2], "spans -2..0"), ([0], "one integer for each"), ([0.0, 1.0], "integer")],
)
def test_owners_that_cannot_be_are_refused(row, says, strict):
    with pytest.raises(ValueError, match=says):
        retrieval_metrics(np.eye(3), np.eye(3)[:2], row, ks=(1,), strict=strict)


def test_nan_is_refused_also_when_not_strict():
    with pytest.raises(ValueError, match="1 of 2 rows of texts hold NaN"):
        retrieval_metrics(np.eye(2), [[0.0, np.nan], [1.0, 0.0]], [0, 1], ks=(1,), strict=False)


def test_chance_is_the_share_of_random_orders_that_hit():
    assert chance_recall([1], 1000, 1) == pytest.approx(0.001)
    for relevant, gallery, k in [(5, 25, 5), (3, 10, 8), (2, 4, 4)]:
        assert chance_recall([relevant], gallery, k) == pytest.approx(
            1 - comb(gallery - relevant, k) / comb(gallery, k)
        )
    assert chance_recall([1, 9], 10, 1) == pytest.approx((0.1 + 0.9) / 2)
    assert chance_recall([1, 9, 9, 9], 10, 1) == pytest.approx((0.1 + 3 * 0.9) / 4)


def slow_zero_shot(scores, target):
    first, five, by_class = [], [], {}
    for row, right in zip(scores, target, strict=True):
        before = sum(score >= row[right] for c, score in enumerate(row) if c != right)
        first.append(before == 0)
        five.append(before < 5)
        by_class.setdefault(right, []).append(before == 0)
    return {
        "acc1": np.mean(first),
        "acc5": np.mean(five) if len(scores[0]) >= 5 else None,
        "mean_per_class_recall": np.mean([np.mean(hits) for hits in by_class.values()]),
    }


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_zero_shot_equals_the_definition_with_many_ties(data):
    classes, rows = data.draw(st.integers(2, 7)), data.draw(st.integers(1, 12))
    row = st.lists(st.sampled_from([0.1, 0.2, 0.3]), min_size=classes, max_size=classes)
    scores = np.array(data.draw(st.lists(row, min_size=rows, max_size=rows)), np.float32)
    target = data.draw(st.lists(st.integers(0, classes - 1), min_size=rows, max_size=rows))
    got, expected = zero_shot_metrics(scores, target), slow_zero_shot(scores, target)
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        assert got[name] == (None if value is None else pytest.approx(value)), name


def test_classes_that_do_not_occur_are_left_out_of_the_mean():
    scores = np.eye(6)[[0, 0, 3]]
    scores[1] = np.eye(6)[1]  # the second row of class 0 is taken for class 1
    metrics = zero_shot_metrics(scores, [0, 0, 3])
    assert metrics == {"acc1": 2 / 3, "acc5": 2 / 3, "mean_per_class_recall": 0.75}
    recall, count = per_class_recall(class_ranks(scores, [0, 0, 3]), [0, 0, 3], 6)
    assert recall[[0, 3]].tolist() == [0.5, 1.0]
    assert np.isnan(recall[[1, 2, 4, 5]]).all()
    assert count.tolist() == [2, 0, 0, 1, 0, 0]


@pytest.mark.parametrize(
    ("scores", "target", "says"),
    [
        ([[0.1, np.nan]], [0], "NaN"),
        ([[0.1], [0.2]], [0, 0], r"\(2, 1\)"),
        (np.empty((0, 3)), [], r"\(0, 3\)"),
        ([0.1, 0.2], [0, 1], r"\(2,\)"),
        ([[0.1, 0.2]], [2], "span 2..2"),
        ([[0.1, 0.2]], [-1], "span -1..-1"),
        ([[0.1, 0.2]], [0, 1], "one integer for each of 1 rows"),
        ([[0.1, 0.2]], [0.0], "one integer"),
    ],
)
def test_scores_and_targets_that_do_not_fit_are_refused(scores, target, says):
    with pytest.raises(ValueError, match=says):
        zero_shot_metrics(scores, target)
