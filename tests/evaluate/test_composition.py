"""True captions against swapped ones."""

from __future__ import annotations

import numpy as np
import pytest

from dualenc.evaluate.composition import composition_metrics, evaluate_composition


def test_by_hand_and_a_tie_is_wrong():
    images = [[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [1.0, 0.0]]
    true = [[1.0, 0.0], [0.0, 1.0], [0.6, 0.8], [0.8, 0.6]]
    swapped = [[0.0, 1.0], [1.0, 0.0], [0.6, 0.8], [0.6, 0.8]]
    assert composition_metrics(images, true, swapped) == {"accuracy": 0.5, "count": 4}


def test_captions_equal_but_for_rounding_do_not_depend_on_blas():
    rng = np.random.default_rng(0)
    images, texts = (
        rng.standard_normal((200, 300)).astype(np.float32),
        rng.standard_normal((200, 300)).astype(np.float32),
    )
    assert composition_metrics(images, texts, texts.copy())["accuracy"] == 0.0
    assert composition_metrics(images, texts, np.nextafter(texts, -np.sign(images) * 9))["accuracy"] == 1.0


@pytest.mark.parametrize(
    ("true", "swapped", "says"),
    [
        (np.eye(2), np.eye(3), "images are \\(2, 2\\) and their texts \\(3, 3\\)"),
        (np.eye(2), np.eye(2) * np.nan, "swapped texts hold NaN"),
        (np.eye(2)[:1], np.eye(2), "their texts \\(1, 2\\)"),
    ],
)
def test_refused(true, swapped, says):
    with pytest.raises(ValueError, match=says):
        composition_metrics(np.eye(2), true, swapped)


TRUE = ["red circle left of blue square", "green star above pink ring", "black cross below red moon"]


def test_kinds_are_counted_apart_over_the_samples_that_have_them(encoder, samples):
    data = samples(
        [[text, "another caption"] for text in TRUE],
        swap_attribute=["blue circle left of red square", None, "red cross below black sky"],
        swap_relation=[None, "green star below pink ring", ""],
    )
    data.images[2] = encoder.embed_texts(["red cross below black sky"])[0]
    report, section = evaluate_composition(encoder, data)
    # A bag of words cannot tell the first swap from the truth: the same words, a tie, wrong.
    assert report == {
        "composition/attribute/accuracy": 0.0,
        "composition/attribute/accuracy/chance": 0.5,
        "composition/attribute/count": 2,
        "composition/relation/accuracy": 1.0,
        "composition/relation/accuracy/chance": 0.5,
        "composition/relation/count": 1,
    }
    assert [headline.label for headline in section.headlines] == ["Swapped attributes", "Swapped relation"]
    wrong, right = section.examples
    assert [item.right for item in wrong.rows[0].items] == [False, True]
    assert [item.right for item in right.rows[0].items] == [True, False]
    assert right.rows[0].items[0].text == TRUE[1]


def test_a_kind_that_no_sample_has_is_absent(encoder, samples):
    data = samples([[text] for text in TRUE], swap_relation=["x y", "x z", "y z"])
    report, section = evaluate_composition(encoder, data)
    assert set(report) == {f"composition/relation/{key}" for key in ("accuracy", "accuracy/chance", "count")}
    assert len(section.tables[0].rows) == 1


@pytest.mark.parametrize("columns", [{}, {"swap_attribute": [None, None, None]}])
def test_data_without_swaps_is_refused(encoder, samples, columns):
    with pytest.raises(ValueError, match="no sample has swap_attribute or swap_relation"):
        evaluate_composition(encoder, samples([[text] for text in TRUE], **columns))
