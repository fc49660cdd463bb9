"""Retrieval on embedded samples: the report's keys, chance, and examples that agree with the ranks."""

from __future__ import annotations

import json

import numpy as np
import pytest

from dualenc.evaluate.metrics import retrieval_metrics
from dualenc.evaluate.retrieval import SHOWN, evaluate_retrieval
from dualenc.evaluate.sections import Picture

WORDS = ["red circle", "blue square", "green star", "black ring", "pink cross", "large moon", "tiny sun", "old hat"]


def test_report_holds_the_metrics_their_chance_and_the_sizes(encoder, samples):
    data = samples([[word, f"a picture with {word}"] for word in WORDS])
    report, section = evaluate_retrieval(encoder, data, ks=(1, 3))
    metrics = retrieval_metrics(data.images, data.texts, data.image_row, ks=(1, 3))
    assert report == {
        **metrics,
        "text_to_image/recall@1/chance": 1 / 8,
        "text_to_image/recall@3/chance": 3 / 8,
        "image_to_text/recall@1/chance": 1 / 8,
        "image_to_text/recall@3/chance": pytest.approx(1 - 14 * 13 * 12 / (16 * 15 * 14)),
        "text_to_image/queries": 16,
        "text_to_image/gallery": 8,
        "image_to_text/queries": 8,
        "image_to_text/gallery": 16,
    }
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert [headline.label for headline in section.headlines] == [
        "Text → image R@1",
        "Text → image R@3",
        "Image → text R@1",
    ]
    assert section.headlines[0].share.value == metrics["text_to_image/recall@1"]


def test_examples_show_hits_best_first_with_the_right_ones_marked(encoder, samples):
    data = samples([[word] for word in WORDS])
    data.images[[0, 1]] = data.images[[1, 0]]  # two images stand in each other's place
    _, section = evaluate_retrieval(encoder, data, ks=(1,), examples=10)
    to_image, to_text = section.examples
    assert [row.found for row in to_image.rows] == [True] * 6 + [False] * 2
    for row in to_image.rows:
        scores = [float(item.note.split()[0]) for item in row.items]
        assert len(row.items) == SHOWN
        assert scores == sorted(scores, reverse=True)
        assert row.items[0].right is row.found
        assert all(isinstance(item.picture, Picture) for item in row.items)
        assert [item.text == row.query.text for item in row.items] == [bool(item.right) for item in row.items]
    assert to_text.rows[0].query.picture is not None
    assert to_text.rows[0].items[0].picture is None


def test_a_missed_query_shows_its_right_answer_however_far_down(encoder, samples):
    data = samples([[word] for word in WORDS])
    data.images[0] = -data.texts[0]  # nothing lies farther from text 0
    _, section = evaluate_retrieval(encoder, data, ks=(1,), examples=8)
    missed = next(row for row in section.examples[0].rows if row.query.text == WORDS[0])
    assert missed.note == "right one at place 8"
    assert [item.right for item in missed.items] == [False] * (SHOWN - 1) + [True]
    assert missed.items[-1].note == "-1.000 · place\u00a08"


def test_of_equal_scores_the_wrong_one_is_shown_first(constant_encoder, samples):
    data = samples([[word] for word in WORDS])
    data.images[:] = data.texts[:] = constant_encoder.embed_texts(["x"])
    report, section = evaluate_retrieval(constant_encoder, data, ks=(1,))
    assert report["text_to_image/recall@1"] == 0.0
    assert not any(row.items[0].right for part in section.examples for row in part.rows)


def test_examples_are_drawn_by_the_seed_and_may_be_none(encoder, samples):
    data = samples([[f"word{i} other{i}"] for i in range(40)])
    drawn = [evaluate_retrieval(encoder, data, examples=3, seed=seed)[1].examples[0].rows for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert len(drawn[0]) == 3
    assert evaluate_retrieval(encoder, data, examples=0)[1].examples == []


def test_images_whose_place_is_unknown_are_shown_without_one(encoder, samples):
    data = samples([[word] for word in WORDS])
    data.metadata = data.metadata.drop_columns(["image_path", "image_offset", "image_size", "caption"])
    _, section = evaluate_retrieval(encoder, data, ks=(1,))
    item = section.examples[0].rows[0].items[0]
    assert item.picture is None
    assert item.has_picture
    assert item.text.startswith("k")


def test_another_encoders_embeddings_are_refused(encoder, samples):
    data = samples([[word] for word in WORDS])
    data.images = np.ones((8, 7), np.float32)
    with pytest.raises(ValueError, match="7 values a row, this encoder makes 32"):
        evaluate_retrieval(encoder, data)


def test_a_k_above_the_gallery_is_refused(encoder, samples):
    with pytest.raises(ValueError, match="k is 10, but the gallery has only 8"):
        evaluate_retrieval(encoder, samples([[word] for word in WORDS]))
