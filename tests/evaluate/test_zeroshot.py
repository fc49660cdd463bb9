"""Zero-shot classification on embedded samples."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from dualenc.evaluate.metrics import zero_shot_metrics
from dualenc.evaluate.zeroshot import (
    TABLE_ROWS,
    class_scores,
    classifier,
    classify,
    evaluate_zeroshot,
    labels,
)

CLASSES = ["cat", "dog", "bird"]
PROMPTS = ["a photo of a {}", "{c} outdoors"]


@pytest.fixture
def animals(encoder, samples):
    names = ["cat", "dog", "bird", "dog", "cat", "cat"]
    return samples([[f"a photo of a {name}"] for name in names], label=[0, 1, 2, 1, None, 1])


def test_report_equals_the_metrics_of_the_labelled_rows(encoder, animals):
    report, section = evaluate_zeroshot(encoder, animals, CLASSES, PROMPTS)
    rows, target = [0, 1, 2, 3, 5], [0, 1, 2, 1, 1]
    expected = zero_shot_metrics(animals.images[rows] @ classifier(encoder, CLASSES, PROMPTS).T, target)
    assert report == {
        **{f"zeroshot/{key}": value for key, value in expected.items()},
        "zeroshot/acc1/chance": 1 / 3,
        "zeroshot/mean_per_class_recall/chance": 1 / 3,
        "zeroshot/images": 5,
        "zeroshot/unlabelled": 1,
        "zeroshot/classes": 3,
        "zeroshot/templates": 2,
        "zeroshot/recall/cat": 1.0,
        "zeroshot/recall/dog": pytest.approx(2 / 3),
        "zeroshot/recall/bird": 1.0,
    }
    assert report["zeroshot/acc1"] == 0.8
    assert report["zeroshot/acc5"] is None
    by_class = section.tables[1]
    assert [row[0] for row in by_class.rows] == CLASSES
    assert [row[3] for row in by_class.rows] == ["", "cat (1×)", ""]


def test_several_evaluations_do_not_share_keys(encoder, animals):
    first, _ = evaluate_zeroshot(encoder, animals, CLASSES, PROMPTS, name="zeroshot/animal")
    second, _ = evaluate_zeroshot(encoder, animals, CLASSES, PROMPTS, name="zeroshot/other")
    assert not first.keys() & second.keys()


def test_examples_name_the_class_that_was_right(encoder, animals):
    _, section = evaluate_zeroshot(encoder, animals, CLASSES, PROMPTS, examples=5)
    rows = section.examples[0].rows
    assert [row.found for row in rows] == [True] * 4 + [False]
    assert [item.text for item in rows[-1].items if item.right] == ["dog"]
    assert rows[-1].items[0].text == "cat"
    assert rows[-1].note.startswith("dog, at place")


def test_labels_may_be_names_in_any_column(encoder, animals):
    animals.metadata = animals.metadata.append_column("kind", pa.array(["cat", None, "bird", "dog", None, "dog"]))
    row, target = labels(animals, CLASSES, "kind")
    assert row.tolist() == [0, 2, 3, 5]
    assert target.tolist() == [0, 2, 1, 1]


@pytest.mark.parametrize(
    ("column", "says"),
    [
        (pa.array([0, 1, 2, 3, 0, 0]), "label 3 is none of the 3 classes"),
        (pa.array([0, 1, 2, -1, 0, 0]), "label -1 is none of the 3 classes"),
        (pa.array(["cat", "cow", None, None, None, None]), "label 'cow' is none of the 3 classes"),
        (pa.array([0.0, 1.0, 2.0, 0.0, 0.0, 0.5]), "label 0.0 is none"),
        (pa.nulls(6, pa.int64()), "no image has a class in 'label'"),
        (None, "no column 'label'"),
    ],
)
def test_labels_outside_the_classes_are_refused(encoder, animals, column, says):
    table = animals.metadata.drop_columns(["label"])
    animals.metadata = table if column is None else table.append_column("label", column)
    with pytest.raises(ValueError, match=says):
        evaluate_zeroshot(encoder, animals, CLASSES, PROMPTS)


def test_a_long_table_shows_the_best_and_the_worst(encoder, samples):
    names = [f"name{i}" for i in range(50)]
    data = samples([[name] for name in names], label=list(range(50)))
    data.images[40:] = -data.images[40:]
    report, section = evaluate_zeroshot(encoder, data, names, ["{}"])
    table = section.tables[1]
    assert len(table.rows) == TABLE_ROWS
    assert [row[2].value for row in table.rows] == [1.0] * 20 + [0.0] * 10
    assert "50 classes" in table.note
    assert sum(key.startswith("zeroshot/recall/") for key in report) == 50
    assert report["zeroshot/acc5/chance"] == 0.1


def test_equal_names_keep_keys_of_their_own(encoder, samples):
    names = ["missile", "ship", "missile"]  # open_clip's ImageNet list holds such a pair
    data = samples([["missile"], ["ship"], ["missile"]], label=[0, 1, 2])
    report, _ = evaluate_zeroshot(encoder, data, names, ["{}"])
    assert [report[f"zeroshot/recall/{name}"] for name in ("missile (0)", "ship", "missile (2)")] == [0.0, 1.0, 0.0]


def test_a_collapsed_encoder_gets_nothing(constant_encoder, animals):
    animals.images[:] = constant_encoder.embed_texts(["x"])
    report, _ = evaluate_zeroshot(constant_encoder, animals, CLASSES, PROMPTS)
    assert report["zeroshot/acc1"] == 0.0


def test_a_tie_is_a_mistake_for_the_class_it_ties_with(encoder, samples):
    data = samples([["cat dog"], ["cat dog"], ["bird"]], label=[0, 0, 2])
    data.images[:2] = [[1.0, 1.0, *[0.0] * 30]] * 2
    twins = np.eye(3, 32, dtype=np.float32)
    twins[1, :2], twins[0, :2] = (0.0, 1.0), (1.0, 0.0)
    encoder.embed_texts = lambda texts: twins[[CLASSES.index(text) for text in texts]]
    report, section = evaluate_zeroshot(encoder, data, CLASSES, ["{}"])
    assert report["zeroshot/recall/cat"] == 0.0
    assert section.tables[1].rows[0][3] == "dog (2×)"


def test_classify_gives_the_best_name_and_cosines(encoder):
    images = encoder.embed_texts(["a photo of a dog", "bird outdoors"])
    best, scores = classify(encoder, CLASSES, PROMPTS, images)
    assert best == ["dog", "bird"]
    weights = classifier(encoder, CLASSES, PROMPTS)
    assert np.abs(scores - images.astype(np.float64) @ weights.T.astype(np.float64)).max() < 1e-6
    assert scores.dtype == np.float32


def test_scores_of_rows_that_hold_nan_are_refused():
    with pytest.raises(ValueError, match="1 of 2 rows of images hold NaN"):
        class_scores([[np.nan, 0.0], [1.0, 0.0]], np.eye(2))
