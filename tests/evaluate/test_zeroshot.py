"""Zero-shot classification on embedded samples."""

from __future__ import annotations

import doctest
import types

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dualenc.evaluate.groups.groups import by_group_of
from dualenc.evaluate.intervals import draws, mean_intervals, share_interval
from dualenc.evaluate.metrics import class_ranks, zero_shot_metrics
from dualenc.evaluate.page.words import below
from dualenc.evaluate.zeroshot import labels as labels_module
from dualenc.evaluate.zeroshot.calibration import (
    chance_error,
    confidences,
    cross_fitted_scales,
    expected_calibration_error,
    fitted_scale,
)
from dualenc.evaluate.zeroshot.labels import holds_lists, labels
from dualenc.evaluate.zeroshot.numbers import accuracy_intervals, by_groups, drawn_accuracies
from dualenc.evaluate.zeroshot.numbers import judge as judge_ranked
from dualenc.evaluate.zeroshot.page import TABLE_ROWS, class_table
from dualenc.evaluate.zeroshot.scale import calibrated, calibration_table, own_scale, reliability_panel
from dualenc.evaluate.zeroshot.zeroshot import (
    class_places,
    class_scores,
    classifier,
    classify,
    evaluate_zeroshot,
)
from dualenc.model.names import Classes

CLASSES = ["cat", "dog", "bird"]
PROMPTS = ["a photo of a {}", "{c} outdoors"]


def judge(row, target, scores, scale):
    return judge_ranked(row, target, scores, class_ranks(scores, target), scale)


@pytest.fixture
def animals(encoder, samples):
    names = ["cat", "dog", "bird", "dog", "cat", "cat"]
    return samples([[f"a photo of a {name}"] for name in names], label=[0, 1, 2, 1, None, 1])


def test_report_equals_the_metrics_of_the_labelled_rows(encoder, animals):
    report, section = evaluate_zeroshot(encoder, animals, CLASSES, PROMPTS, times=200)
    rows, target = [0, 1, 2, 3, 5], [0, 1, 2, 1, 1]
    expected = zero_shot_metrics(animals.images[rows] @ classifier(encoder, CLASSES, PROMPTS).T, target)
    between = {key: report.pop(key) for key in list(report) if key.endswith(("/low", "/high"))}
    assert report == {
        **{f"zeroshot/{key}": value for key, value in expected.items()},
        "zeroshot/acc1/chance": 1 / 3,
        "zeroshot/mean_per_class_recall/chance": 1 / 3,
        "zeroshot/images": 5,
        "zeroshot/unlabelled": 1,
        "zeroshot/classes": 3,
        "zeroshot/prompts": 6,
        "zeroshot/templates": 2,
        "zeroshot/absent": 0,
        "zeroshot/absent_names": None,
        "zeroshot/duplicate_classes": 0,
        "zeroshot/recall/cat": 1.0,
        "zeroshot/recall/dog": pytest.approx(2 / 3),
        "zeroshot/recall/bird": 1.0,
    }
    assert report["zeroshot/acc1"] == 0.8
    assert report["zeroshot/acc5"] is None
    assert {key.split("/")[1] for key in between} == {"acc1", "mean_per_class_recall"}
    assert between["zeroshot/acc1/low"] < 0.8 < between["zeroshot/acc1/high"]
    by_class = section.tables[1]
    assert [row[0] for row in by_class.rows] == CLASSES
    assert [row[3] for row in by_class.rows] == ["", "cat (1×)", ""]
    assert section.headlines[0].share.interval == (between["zeroshot/acc1/low"], between["zeroshot/acc1/high"])


def test_scores_are_those_of_the_labelled_rows(encoder, samples):
    data = samples([["stone"], ["dog"], ["stone"], ["cat"], ["bird"]], label=[None, 1, None, 0, 2])
    report, section = evaluate_zeroshot(encoder, data, CLASSES, ["{}"], times=0, examples=9)
    assert (report["zeroshot/acc1"], report["zeroshot/unlabelled"]) == (1.0, 2)
    shown = {example.query.text: example.items[0].text for example in section.examples[0].rows}
    assert shown == {"dog": "dog", "cat": "cat", "bird": "bird"}


def test_no_draws_no_intervals(encoder, animals):
    report, section = evaluate_zeroshot(encoder, animals, CLASSES, PROMPTS, times=0, by=["key"])
    assert not any(key.endswith(("/low", "/high")) for key in report)
    assert section.headlines[0].share.interval is None


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
    report, section = evaluate_zeroshot(encoder, data, names, ["{}"])
    assert [report[f"zeroshot/recall/{name}"] for name in ("missile (0)", "ship", "missile (2)")] == [1.0, 1.0, 0.0]
    assert report["zeroshot/duplicate_classes"] == 1
    assert "never chosen" in section.tables[0].note and section.tables[0].note.endswith(": missile (2).")
    assert section.tables[1].rows[2][3] == "missile (0) (1×)"


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(0, 3), min_size=5, max_size=12), st.integers(0, 99))
def test_places_are_those_of_a_stable_sort_where_the_list_alone_makes_ties(names, seed):
    """As argmax and top-k of open_clip and CLIP_benchmark: of equal classes the lower column first."""
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((20, 8))
    images, of_name = rows[:16], rng.standard_normal((4, 8))
    target = rng.integers(len(names), size=16)
    order = np.argsort(-(images @ of_name.T)[:, names], axis=1, kind="stable")
    expected = (order == target[:, None]).argmax(axis=1)
    noisy = of_name[names] * (1 + 1e-15 * rng.standard_normal((len(names), 1)))  # as other batches make them
    assert class_places(images, noisy, target, [[str(name)] for name in names]).tolist() == expected.tolist()


def test_what_float32_cannot_tell_apart_is_told_in_float64_and_ties_count_against_the_encoder():
    images = np.array([[0.6, 0.8, 1e-5]] * 3, np.float32)
    weights = np.array([[0.6, 0.8, 0.0], [0.6, 0.8, 1e-5], [0.6, 0.8, 0.0]], np.float32)
    target = np.array([1, 0, 2])
    assert class_ranks(class_scores(images, weights), target).tolist() == [2, 2, 2]
    assert class_places(images, weights, target, [["a"], ["b"], ["c"]]).tolist() == [0, 2, 2]
    assert class_places(images, weights, target, [["a"], ["b"], ["a"]]).tolist() == [0, 1, 2]


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


def slow_accuracies(rank, target, rows):
    """acc1, acc5 and mean-per-class recall of rows drawn with replacement, class by class."""
    rank, target = np.asarray(rank)[rows], np.asarray(target)[rows]
    recalls = [np.mean(rank[target == c] == 0) for c in set(target.tolist())]
    return [np.mean(rank < 1), np.mean(rank < 5), np.mean(recalls)]


@settings(deadline=None, max_examples=80)
@given(st.lists(st.tuples(st.integers(0, 7), st.integers(0, 4)), min_size=1, max_size=20), st.integers(0, 99))
def test_accuracies_of_a_draw_equal_those_of_the_drawn_rows(pairs, seed):
    rank, target = map(np.array, zip(*pairs, strict=True))
    rows = np.random.default_rng(seed).integers(len(rank), size=(3, len(rank)))
    counts = np.stack([np.bincount(some, minlength=len(rank)) for some in rows]).astype(float)
    expected = [slow_accuracies(rank, target, some) for some in rows]
    assert drawn_accuracies(rank, target)(counts) == pytest.approx(np.array(expected))


def test_intervals_are_the_ends_of_the_drawn_accuracies():
    rng = np.random.default_rng(0)
    rank, target = rng.integers(0, 8, 60), rng.integers(0, 5, 60)
    found = accuracy_intervals(rank, target, times=150, seed=7)
    rows = [np.repeat(np.arange(60), counts.astype(int)) for block in draws(60, 150, 7) for counts in block]
    slow = np.array([slow_accuracies(rank, target, some) for some in rows])
    values = slow_accuracies(rank, target, np.arange(60))
    expected = [share_interval(drawn, value, 60) for drawn, value in zip(slow.T, values, strict=True)]
    assert np.array(list(found.values())) == pytest.approx(np.array(expected))


def test_three_images_all_right_are_not_certain():
    for low, high in accuracy_intervals(np.zeros(3, np.int64), np.arange(3), times=100).values():
        assert low == pytest.approx(0.4385, abs=1e-4) and high == 1


def test_by_group_each_group_is_as_if_it_were_alone(encoder):
    rng = np.random.default_rng(1)
    scores = rng.standard_normal((120, 6)).astype(np.float32)
    target = rng.integers(0, 6, 120)
    judged = judge(np.arange(120), target, scores, None)
    group = [["day", "night", None][i] for i in rng.choice(3, 120, p=[0.3, 0.6, 0.1])]
    report, table = by_groups(judged, 6, group, "by/light/", times=80, seed=2)

    def metric(rows):
        names = ("acc1", "acc5", "mean_per_class_recall")
        return dict(zip(names, slow_accuracies(judged.rank, target, rows), strict=True))

    expected, _ = by_group_of(metric, group, None, 80, 2, "by/light/")
    assert report == pytest.approx(expected)
    day = [i for i, name in enumerate(group) if name == "day"]
    alone = zero_shot_metrics(scores[day], target[day])
    assert {key: report[f"by/light/day/{key}"] for key in alone} == pytest.approx(alone)
    assert table.columns == ["light", "Images", "Right at first", "Right among five", "Mean over classes"]
    own = judge(np.arange(120), target, scores, 3.0)
    report, table = by_groups(own, 6, group, "by/light/", times=80, seed=2)
    losses, squares = (values[day].mean() for values in (own.calibration.before.losses, own.calibration.before.squares))
    assert (report["by/light/day/nll"], report["by/light/day/brier"]) == pytest.approx((losses, squares))
    assert report["by/light/day/nll/low"] < losses < report["by/light/day/nll/high"]
    apart = {name: report[f"by/light/{name}/nll"] for name in ("day", "night")}
    assert report["by/light/worst_group/nll"] == max(apart, key=apart.get)
    assert table.columns[5:] == ["NLL", "Brier"]
    few = by_groups(judge(np.arange(120), target % 3, scores[:, :3], None), 3, group, "by/light/", times=0)
    assert few[1].columns == ["light", "Images", "Right at first", "Mean over classes"]


def test_groups_of_a_column_follow_the_labelled_rows(encoder, animals):
    animals.metadata = animals.metadata.append_column("light", pa.array(["day", "day", "night", None, "day", "night"]))
    report, section = evaluate_zeroshot(encoder, animals, CLASSES, PROMPTS, by=["light", "key"], times=50)
    assert report["zeroshot/by/light/day/count"] == 2  # the third has no label
    assert report["zeroshot/by/light/night/acc1"] == 0.5  # row 5 is a cat that is called a dog
    assert report["zeroshot/by/light/worst_group/acc1"] == "night"
    assert report["zeroshot/by/light/gap/acc1"] == 0.5
    assert report["zeroshot/by/light/left_out"] == 1
    assert report["zeroshot/by/key/k5/acc1"] == 0.0
    assert [table.columns[0] for table in section.tables].count("light") == 1


def test_a_group_column_that_is_not_there_is_told_before_the_work(encoder, animals):
    with pytest.raises(ValueError, match="no column 'weather'"):
        evaluate_zeroshot(encoder, animals, CLASSES, PROMPTS, by=["weather"])
    assert encoder.calls == []


def test_absent_classes_are_counted_named_and_left_out_of_the_mean(encoder, animals):
    report, section = evaluate_zeroshot(encoder, animals, [*CLASSES, "cow", "eel"], PROMPTS, times=0)
    assert (report["zeroshot/absent"], report["zeroshot/absent_names"]) == (2, "cow, eel")
    assert report["zeroshot/mean_per_class_recall"] == pytest.approx((1 + 2 / 3 + 1) / 3)
    assert "zeroshot/recall/cow" not in report
    assert "cow, eel" in section.tables[1].note


def test_classes_may_have_prompts_of_their_own(encoder, animals):
    own = Classes(["cat", "dog", "bird"], [["cat outdoors", "a photo of a cat"], ["a photo of a dog"], ["bird"]])
    report, section = evaluate_zeroshot(encoder, animals, own, times=0)
    assert sorted(encoder.calls[0]) == sorted(["cat outdoors", "a photo of a cat", "a photo of a dog", "bird"])
    assert report["zeroshot/prompts"] == 4
    assert "zeroshot/templates" not in report
    assert "by prompts of their own (1 to 2 prompts each)" in section.about
    with pytest.raises(ValueError, match="prompts of their own"):
        evaluate_zeroshot(encoder, animals, own, ["a {}"])


@pytest.mark.parametrize("name", ["classes.csv", "classes.parquet"])
def test_every_class_is_written_where_it_was_asked_for(encoder, animals, tmp_path, name):
    evaluate_zeroshot(encoder, animals, [*CLASSES, "cow"], PROMPTS, times=0, per_class=tmp_path / name)
    read = pyarrow.csv.read_csv if name.endswith("csv") else pyarrow.parquet.read_table
    table = read(tmp_path / name).to_pydict()
    assert table["class"] == [*CLASSES, "cow"]
    assert table["images"] == [1, 3, 1, 0]
    assert table["right"] == [1, 2, 1, 0]
    assert table["recall"] == [1.0, pytest.approx(2 / 3), 1.0, None]
    assert table["low"][1] == pytest.approx(0.2077, abs=1e-4)
    assert table["low"][3] is None
    assert table["mistaken_for"][1] == "cat (1×)"


def test_a_file_of_another_kind_is_refused_before_the_work(encoder, animals, tmp_path):
    with pytest.raises(ValueError, match=r"\.csv or \.parquet"):
        evaluate_zeroshot(encoder, animals, CLASSES, PROMPTS, per_class=tmp_path / "classes.xlsx")
    assert encoder.calls == []


class Scale:
    """`model.logit_scale` as torch has it."""

    def __init__(self, value):
        self.value = value

    def detach(self):
        return self

    def exp(self):
        return np.exp(self.value)


def test_calibration_at_the_encoders_own_scale_and_fitted(encoder, samples):
    """Half of the captions name another animal besides, so the encoder is not always right."""
    rng = np.random.default_rng(0)
    target = rng.integers(0, 3, 60)
    texts = [f"{CLASSES[t]} {CLASSES[rng.integers(3)]} word{i}" for i, t in enumerate(target)]
    data = samples([[text] for text in texts], label=target)
    encoder.model = types.SimpleNamespace(logit_scale=Scale(np.log(100.0)))
    assert own_scale(encoder) == pytest.approx(100)
    report, section = evaluate_zeroshot(encoder, data, CLASSES, ["{}"], times=0)
    scores = data.images @ encoder.embed_texts(CLASSES).T
    assert report["zeroshot/logit_scale"] == pytest.approx(100)
    assert 100 / report["zeroshot/temperature"] == pytest.approx(fitted_scale(scores, target), rel=1e-4)
    own = confidences(scores, target, report["zeroshot/logit_scale"])
    right = scores.argmax(axis=1) == target
    assert report["zeroshot/ece"] == pytest.approx(expected_calibration_error(own.top, right))
    assert report["zeroshot/nll"] == pytest.approx(own.nll)
    assert report["zeroshot/brier"] == pytest.approx(own.brier)
    assert report["zeroshot/nll_fitted"] < report["zeroshot/nll"]
    unseen = confidences(scores, target, cross_fitted_scales(scores, target, 100.0))  # not the images it was fitted on
    assert report["zeroshot/nll_fitted"] == pytest.approx(unseen.nll)
    assert report["zeroshot/ece_fitted"] == pytest.approx(expected_calibration_error(unseen.top, right))
    assert unseen.nll > 1.0001 * confidences(scores, target, 100 / report["zeroshot/temperature"]).nll
    assert report["zeroshot/ece_bins"] == 15
    assert report["zeroshot/ece/chance"] == chance_error(own.top)
    assert report["zeroshot/ece_fitted/chance"] == chance_error(unseen.top)
    assert "/".join(section.tables[1].note.split("about ")[1].split(" %")[0].split(" and ")) == "/".join(
        f"{100 * chance_error(some.top):.1f}" for some in (own, unseen)
    )
    assert section.tables[1].rows[1][1].chance == chance_error(unseen.top)
    drawn, _ = evaluate_zeroshot(encoder, data, CLASSES, ["{}"], times=60)
    (low, high), _ = mean_intervals(np.stack([own.losses, own.squares], axis=1), times=60)
    assert (drawn["zeroshot/nll/low"], drawn["zeroshot/nll/high"]) == pytest.approx((low, high))
    assert drawn["zeroshot/brier_fitted/low"] < drawn["zeroshot/brier_fitted"] < drawn["zeroshot/brier_fitted/high"]
    assert not any(key.startswith("zeroshot/nll/") for key in report)
    assert section.tables[1].rows[0][0] == "As it is (logit scale 100.0)"
    assert section.figures[0].title == "Is it as sure as it is right?"
    assert f"expected calibration error {100 * report['zeroshot/ece']:.1f} %" in section.figures[0].words


def test_an_encoder_without_a_scale_has_no_calibration(encoder, animals):
    report, section = evaluate_zeroshot(encoder, animals, CLASSES, PROMPTS)
    assert own_scale(encoder) is None
    assert not any("ece" in key or "temperature" in key for key in report)
    assert [panel.title for panel in section.figures] == ["Confusions, % of the right class"]


def test_the_temperature_lies_between_those_of_the_halves():
    rng = np.random.default_rng(4)
    target = rng.integers(0, 4, 200)
    scores = (0.1 * rng.standard_normal((200, 4)) + 0.1 * np.eye(4)[target]).astype(np.float32)
    found = calibrated(scores, target, scores.argmax(axis=1) == target, 100.0)
    assert found.fitted == pytest.approx(fitted_scale(scores, target), rel=1e-4)
    assert found.temperature == pytest.approx(100 / found.fitted)


@pytest.mark.parametrize(
    ("scores", "bound", "shown"),
    [([[0.1, 0.9], [0.9, 0.1]] * 4, "≥", "≥ 100,000"), ([[1e-6, 0], [0, 1e-6]] * 4, "≤", "≤ 0.001")],
)
def test_a_temperature_at_the_end_of_its_search_says_so(scores, bound, shown):
    target = np.array([0, 1] * 4)
    found = calibrated(np.array(scores, np.float32), target, np.argmax(scores, axis=1) == target, 100.0)
    assert (found.bound, found.shown) == (bound, shown)
    table = calibration_table(found, found.report("z", times=0), "z")
    assert table.rows[1][0] == f"Temperature {shown}" and "no better one was found inside" in table.note
    assert f"temperature {shown}: " in reliability_panel(found).words


def test_a_temperature_inside_its_search_is_a_number():
    found = calibrated(
        np.array([[0.9, 0.1], [0.4, 0.6], [0.6, 0.4], [0.1, 0.9]] * 9), np.array([0, 0, 1, 1] * 9), [1] * 36, 10.0
    )
    assert found.bound == "" and float(found.shown) == pytest.approx(found.temperature, rel=1e-2)
    table = calibration_table(found, found.report("z", times=0), "z")
    assert "found inside" not in table.note and below(table).endswith(" The tick on a bar is perfect calibration.")


def test_one_labelled_image_has_neither_intervals_nor_calibration(encoder, samples):
    data = samples([["cat"], ["dog"]], label=[0, None])
    encoder.model = types.SimpleNamespace(logit_scale=Scale(1.0))
    report, _ = evaluate_zeroshot(encoder, data, CLASSES, ["{}"])
    assert report["zeroshot/acc1"] == 1.0
    assert not any(key.endswith("/low") or "ece" in key for key in report)


def test_the_same_seed_gives_the_same_numbers(encoder, animals):
    encoder.model = types.SimpleNamespace(logit_scale=Scale(3.0))
    first, second, other = (
        evaluate_zeroshot(encoder, animals, CLASSES, PROMPTS, times=50, seed=seed, by=["label"])[0]
        for seed in (1, 1, 2)
    )
    assert first == second
    assert first != other


def test_numbers_and_names_are_no_lists():
    table = pa.table(
        {"number": [1, 2], "name": ["cat", None], "odd": ["[cat]", "[0]"], "none": pa.nulls(2, pa.string())}
    )
    assert not any(holds_lists(table, column) for column in [*table.column_names, "missing"])


def test_the_class_table_of_a_collapsed_encoder_says_what_ties(constant_encoder):
    judged = judge(np.arange(3), np.array([0, 1, 1]), np.full((3, 3), 0.5, np.float32), None)
    assert judged.predicted.tolist() == [1, 0, 0]
    named = types.SimpleNamespace(classes=CLASSES, unique=CLASSES)
    assert class_table(judged, named)["mistaken_for"].to_pylist() == ["dog (1×)", "cat (2×)", ""]


def test_the_examples_in_the_docstrings_hold():
    result = doctest.testmod(labels_module)
    assert result.failed == 0
    assert result.attempted > 0
