"""True captions against swapped ones."""

from __future__ import annotations

import numpy as np
import pytest

from dualenc.evaluate.composition import caption_pairs
from dualenc.evaluate.composition.swaps import composition_metrics, evaluate_composition
from dualenc.evaluate.intervals import wilson


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
        "composition/attribute/accuracy/low": 0.0,
        "composition/attribute/accuracy/high": pytest.approx(wilson([0], [2])[1].item()),
        "composition/attribute/accuracy/chance": 0.5,
        "composition/attribute/count": 2,
        "composition/relation/accuracy": 1.0,  # one image: no interval, and nothing to be worse than
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
    ends = ("accuracy", "accuracy/chance", "accuracy/low", "accuracy/high", "count")
    assert set(report) == {f"composition/relation/{key}" for key in ends}
    assert set(evaluate_composition(encoder, data, bootstrap=0)[0]) == {
        f"composition/relation/{key}" for key in ends if key[-3:] not in ("low", "igh")
    }
    assert len(section.tables[0].rows) == 1


@pytest.mark.parametrize("columns", [{}, {"swap_attribute": [None, None, None]}])
def test_data_without_swaps_is_refused(encoder, samples, columns):
    with pytest.raises(ValueError, match="no sample has swap_attribute or swap_relation"):
        evaluate_composition(encoder, samples([[text] for text in TRUE], **columns))


def test_two_kinds_have_a_worst_and_a_gap_and_columns_make_groups(encoder, samples):
    texts = [f"word{i} left of thing{i}" for i in range(8)]
    data = samples(
        [[text] for text in texts],
        swap_attribute=[text.replace("left", "right") for text in texts],  # another word: told apart
        swap_relation=[" ".join(reversed(text.split())) if i < 4 else "other words" for i, text in enumerate(texts)],
        place=["in", "in", "in", "in", "out", "out", "out", None],
    )
    report, section = evaluate_composition(encoder, data, by=["place"])
    assert report["composition/attribute/accuracy"] == 1.0 and report["composition/relation/accuracy"] == 0.5
    assert report["composition/worst_group/accuracy"] == "relation" and report["composition/gap/accuracy"] == 0.5
    low, high = (report[f"composition/relation/accuracy/{end}"] for end in ("low", "high"))
    assert 0 < low < 0.5 < high < 1
    # Of the four images inside: all attributes, no relation; outside everything.
    assert report["composition/by/place/in/accuracy"] == 0.5 and report["composition/by/place/out/accuracy"] == 1.0
    assert report["composition/by/place/worst_group/accuracy"] == "in" and report["composition/by/place/left_out"] == 1
    assert [table.columns[0] for table in section.tables] == ["", "place"]
    assert [row[0] for row in section.tables[0].rows][-2:] == ["Gap, best less worst", "Gap of random groups"]
    with pytest.raises(ValueError, match="no column 'plaice' to group by"):
        evaluate_composition(encoder, data, by=["plaice"])


def test_another_encoders_rows_are_refused(encoder, samples):
    data = samples([["a"]], images=[[1.0, 0.0]], swap_relation=["b"])
    with pytest.raises(ValueError, match="embedded with 2 values a row, this encoder makes 32"):
        evaluate_composition(encoder, data)


def test_each_text_is_embedded_once(encoder, samples, monkeypatch):
    monkeypatch.setattr(caption_pairs, "TEXTS", 3)
    texts = ["a b", "c d", "a b", "e f", "g h"]
    rows, at = caption_pairs.embed_once(encoder, texts)
    assert encoder.calls == [["a b", "c d", "e f"], ["g h"]] and at.tolist() == [0, 1, 0, 2, 3]
    assert np.array_equal(rows[at], encoder.embed_texts(texts))
