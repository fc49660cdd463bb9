"""Linear and few-shot probes against scikit-learn's figures, Newton's method and counting by hand."""

from __future__ import annotations

import doctest
import math

import numpy as np
import pyarrow as pa
import pytest
import torch

from dualenc.evaluate.page.report import write_report
from dualenc.evaluate.probe import choice as probe_choice
from dualenc.evaluate.probe import data as probe_data
from dualenc.evaluate.probe import fit as probe_fit
from dualenc.evaluate.probe import lbfgs as probe_lbfgs
from dualenc.evaluate.probe import probe
from dualenc.evaluate.probe.choice import FITS, GRID, choose, spread
from dualenc.evaluate.probe.data import Set, at_most, draw_shots, held_out, sets
from dualenc.evaluate.probe.fit import fit, loss_and_slope, principal
from dualenc.evaluate.probe.lbfgs import minimise
from dualenc.evaluate.probe.numbers import numbers
from dualenc.evaluate.zeroshot.zeroshot import evaluate_zeroshot
from dualenc.model.names import Classes
from tests.evaluate.conftest import Samples, WordEncoder

TEN = [
    *([0.9, 0.1, 0.2], [0.8, 0.3, 0.1], [0.7, 0.2, 0.5], [0.1, 0.9, 0.3], [0.2, 0.8, 0.1]),
    *([0.3, 0.6, 0.6], [0.4, 0.1, 0.9], [0.2, 0.3, 0.8], [0.5, 0.4, 0.7], [0.6, 0.6, 0.2]),
]
OF_TEN = [0, 0, 0, 1, 1, 1, 2, 2, 2, 1]
ASKED = [[0.5, 0.5, 0.5], [0.9, 0.2, 0.4]]
SKLEARN = {  # scikit-learn 1.9.1: LogisticRegression(C=…, tol=1e-12, max_iter=100000).fit(TEN, OF_TEN).predict_proba(ASKED)
    0.1: [[0.298442, 0.400991, 0.300567], [0.319312, 0.38136, 0.299328]],
    1: [[0.28594, 0.409504, 0.304556], [0.452861, 0.271075, 0.276063]],
    100: [[0.116364, 0.690899, 0.192738], [0.976285, 0.005612, 0.018103]],
    10000: [[0.010983, 0.965928, 0.02309], [0.999972, 0.0, 0.000028]],
}


def probabilities(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def clouds(n: int, dim: int, classes: int, seed: int = 0, noise: float = 2.0) -> tuple[np.ndarray, np.ndarray]:
    """Unit rows around their classes' centres, far from the origin, with axes of very different spread."""
    rng = np.random.default_rng(seed)
    width = 1 / np.arange(1, dim + 1)
    target = np.arange(n) % classes
    centres = np.random.default_rng(99).standard_normal((classes, dim)) * width
    rows = centres[target] + noise * rng.standard_normal((n, dim)) * width + 3
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32), target


def newton(rows: np.ndarray, target: np.ndarray, classes: int, strength: float) -> tuple[np.ndarray, np.ndarray]:
    """The same optimum by the whole Hessian in float64: weights (C, D), intercepts (C,), whose sum is 0."""
    n, dim = rows.shape
    x = np.hstack([rows.astype(np.float64), np.ones((n, 1))])
    penalty = np.diag([1 / (strength * n)] * dim + [1e-9])  # the sum of the intercepts is free: it is held at 0
    w = np.zeros((classes, dim + 1))
    for _ in range(60):
        p = probabilities(x @ w.T)
        slope = (p - np.eye(classes)[target]).T @ x / n + w @ penalty
        blocks = [
            [(x.T * (p[:, a] * ((a == b) - p[:, b]))) @ x / n + (a == b) * penalty for b in range(classes)]
            for a in range(classes)
        ]
        w -= np.linalg.solve(np.block(blocks), slope.ravel()).reshape(w.shape)
    return w[:, :-1], w[:, -1]


@pytest.mark.parametrize("module", [probe_lbfgs, probe_data, probe_fit])
def test_docs(module):
    assert doctest.testmod(module).failed == 0


@pytest.mark.parametrize("strength", SKLEARN)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_probabilities_are_scikit_learns(strength: float, dtype: torch.dtype):
    found, _ = fit(principal(np.array(TEN), np.array(OF_TEN), 3, dtype=dtype), strength)
    assert np.abs(probabilities(found.scores(ASKED).astype(np.float64)) - SKLEARN[strength]).max() < 1e-4
    assert found.share <= probe_fit.TOLERANCE and found.strength == strength


@pytest.mark.parametrize("strength", [0.1, 10.0, 1000.0])
def test_the_optimum_is_newtons(strength: float):
    rows, target = clouds(120, 6, 4)
    weights, intercepts = newton(rows, target, 4, strength)
    found, _ = fit(principal(rows, target, 4, dtype=torch.float64), strength, tolerance=1e-7)
    assert np.abs(found.weights - weights).max() < 1e-4 * max(1, np.abs(weights).max())
    assert np.abs((found.intercepts - found.intercepts.mean()) - (intercepts - intercepts.mean())).max() < 1e-3
    ours, theirs = probabilities(found.scores(rows)), probabilities(rows @ weights.T + intercepts)
    assert np.abs(ours - theirs).max() < 1e-5


def test_the_gradient_is_that_of_the_definition_and_ends_as_it_says():
    rows, target = clouds(90, 5, 3)
    axes = principal(rows, target, 3, dtype=torch.float64)
    found, _ = fit(axes, 50.0)
    p = probabilities(rows.astype(np.float64) @ found.weights.T + found.intercepts) - np.eye(3)[target]
    centred = rows - rows.mean(axis=0, dtype=np.float64)
    slope = np.vstack([centred.T @ p / 90 + found.weights.T / (50 * 90), p.mean(axis=0)])
    # weights are handed out as float32
    assert np.linalg.norm(slope) == pytest.approx(found.gradient, rel=0.05, abs=1e-7)
    assert found.share == pytest.approx(found.gradient / (np.linalg.norm(found.weights) / (50 * 90)), rel=1e-4)
    point = torch.randn(6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    moved = point.clone()
    moved[2, 1] += 1e-6
    difference = (loss_and_slope(axes, moved)[0] - loss_and_slope(axes, point)[0]) / 1e-6
    assert float(loss_and_slope(axes, point)[1][2, 1]) == pytest.approx(difference, abs=1e-6)


def test_neither_order_nor_blocks_nor_a_turn_nor_a_shift_matter(monkeypatch: pytest.MonkeyPatch):
    rows, target = clouds(200, 8, 3)
    expected = probabilities(fit(principal(rows, target, 3), 100.0)[0].scores(rows))
    monkeypatch.setattr(probe_fit, "ROWS", {"cpu": 7})
    order = np.random.default_rng(0).permutation(200)
    turn = np.linalg.qr(np.random.default_rng(1).standard_normal((8, 8)))[0]
    other = (rows @ turn + 0.3).astype(np.float32)
    found = fit(principal(other[order], target[order], 3), 100.0)[0]
    assert np.abs(probabilities(found.scores(other)) - expected).max() < 2e-4


def test_a_start_elsewhere_ends_at_the_same_optimum():
    rows, target = clouds(150, 10, 3)
    axes = principal(rows, target, 3)
    cold, weights = fit(axes, 30.0)
    warm, _ = fit(axes, 30.0, start=fit(axes, 3000.0)[1])
    again, _ = fit(axes, 30.0, start=weights)
    assert again.steps <= 1 and np.abs(probabilities(warm.scores(rows)) - probabilities(cold.scores(rows))).max() < 1e-4


def test_wide_axes_do_not_slow_it_down():
    rows, target = clouds(400, 64, 5)
    axes = principal(rows, target, 5)
    steps = fit(axes, 1000.0)[0].steps
    assert float(axes.variance.max() / axes.variance.min()) > 1000 and steps < 200
    few = fit(axes, 1000.0, steps=3)[0]
    assert few.steps == 3 and few.share > probe_fit.TOLERANCE, "it says so where it was cut short"


def test_fewer_rows_than_values_and_values_that_never_change():
    rows, target = clouds(6, 20, 2)
    rows[:, 3] = 0.25
    axes = principal(rows, target, 2)
    assert axes.rows.shape[1] <= 5 and axes.rows.shape[1] >= 4
    found = fit(axes, 100.0)[0]
    assert np.abs(found.weights[:, 3]).max() < 1e-5 and (found.scores(rows).argmax(axis=1) == target).all()


def test_what_cannot_be_fitted_is_refused():
    rows, target = clouds(10, 4, 2)
    with pytest.raises(ValueError, match="NaN"):
        principal(np.where(rows == rows[0, 0], np.nan, rows), target, 2)
    with pytest.raises(ValueError, match="1 of them without a row"):
        principal(rows, target, 3)
    with pytest.raises(ValueError, match="two classes or more"):
        principal(rows, np.zeros(10, int), 1)
    with pytest.raises(ValueError, match="from 0 on"):
        principal(rows, target + 1, 2)
    with pytest.raises(ValueError, match="are equal"):
        principal(np.ones((4, 3)), np.array([0, 1, 0, 1]), 2)


def test_minimise_goes_down_steep_and_flat_ways_and_stops_where_there_is_none():
    bend = torch.logspace(0, 4, 12, dtype=torch.float64)

    def bowl(x: torch.Tensor) -> tuple[float, torch.Tensor]:
        return float((bend * (x - 3) ** 2).sum()) / 2, bend * (x - 3)

    def near(_: torch.Tensor, slope: torch.Tensor) -> bool:
        return bool(slope.norm() < 1e-7)

    found = minimise(bowl, torch.zeros(12, dtype=torch.float64), near, 300)
    assert found.steps < 100 and (found.point - 3).abs().max() < 1e-6

    def far(x: torch.Tensor) -> tuple[float, torch.Tensor]:  # nearly straight, its minimum at about 4,500
        return float(torch.log1p(torch.exp(-x)).sum() + 1e-9 * (x**2).sum()), -torch.sigmoid(-x) + 2e-9 * x

    assert minimise(far, torch.zeros(1, dtype=torch.float64), near, 300).point.item() > 10
    broken = minimise(lambda x: (math.nan, torch.ones(2)), torch.zeros(2), lambda x, g: False, 50)
    assert broken.steps == 0 and (broken.point == 0).all()

    def walled(x: torch.Tensor) -> tuple[float, torch.Tensor]:  # NaN from 1 on, its minimum at 2/3
        return float((-torch.log(1 - x) - 3 * x).sum()), 1 / (1 - x) - 3

    found = minimise(walled, torch.zeros(1, dtype=torch.float64), near, 50)
    assert found.point.item() == pytest.approx(2 / 3, abs=1e-6), "the first step leads beyond the wall"
    flat = minimise(lambda x: (1.0, torch.zeros(2)), torch.zeros(2), lambda x, g: False, 50)
    assert flat.steps == 0


def choice_of(monkeypatch: pytest.MonkeyPatch, accuracy, loss=lambda power: 0.0):
    """(choice, powers tried in their order) where validation gives what `accuracy` and `loss` say of a power of ten."""
    rows, target = clouds(20, 4, 2)
    axes = principal(rows, target, 2)
    tried: list[float] = []

    def fake(axes, strength, start, tolerance, steps, tell):
        tried.append(round(math.log10(strength * spread(axes)), 6))
        return tried[-1], torch.zeros(1)

    monkeypatch.setattr(probe_choice, "fit", fake)
    monkeypatch.setattr(probe_choice, "_judged", lambda power, val: (accuracy(power), loss(power)))
    return choose(axes, Set(np.arange(20), rows, target)), tried


@pytest.mark.parametrize("peak", [-6.0, -3.3, 0.0, 1.07, 4.99, 6.0])
def test_the_choice_comes_near_the_peak(monkeypatch: pytest.MonkeyPatch, peak: float):
    found, tried = choice_of(monkeypatch, lambda power: -abs(power - peak))
    assert abs(found.power - peak) <= 0.0625 and len(tried) == len(set(tried)) <= FITS
    assert [each.power for each in found.tried] == sorted(tried) and min(tried) >= GRID[0] and max(tried) <= GRID[-1]
    assert max(tried) <= peak + 6, "the weakest penalties are left out once two were worse"


def test_ties_go_to_the_lower_loss_and_then_to_the_stronger_penalty(monkeypatch: pytest.MonkeyPatch):
    assert choice_of(monkeypatch, lambda power: 1.0, lambda power: abs(power - 2.5))[0].power == 2.5
    found, tried = choice_of(monkeypatch, lambda power: 1.0)
    assert found.power == -6 and max(tried) < 0


def test_the_choice_is_by_accuracy_on_validation():
    rows, target = clouds(300, 16, 3, noise=4)
    val = Set(np.arange(150), *clouds(150, 16, 3, seed=1, noise=4))
    axes = principal(rows, target, 3)
    found = choose(axes, val)
    best = {each.power: each.accuracy for each in found.tried}[found.power]
    assert best == max(each.accuracy for each in found.tried)
    again = fit(axes, 10**found.power / spread(axes), tolerance=1e-2, steps=200)[0]
    assert (again.scores(val.rows).argmax(axis=1) == val.target).mean() == pytest.approx(best, abs=0.02)


def test_strengths_mean_the_same_for_rows_of_another_scale():
    rows, target = clouds(60, 5, 2)
    one, other = principal(rows, target, 2), principal(rows * 40, target, 2)
    assert spread(other) == pytest.approx(1600 * spread(one), rel=1e-4)
    assert spread(one) == pytest.approx(rows.var(axis=0, dtype=np.float64).mean(), rel=1e-5)


def samples(labels: list, dim: int = 4, **columns) -> Samples:
    rows = np.random.default_rng(len(labels)).standard_normal((len(labels), dim)).astype(np.float32)
    table = {"key": [f"k{i}" for i in range(len(labels))], "label": labels, **columns}
    return Samples(rows, rows[:0], np.zeros(0, np.int64), pa.table(table), pa.table({"key": pa.array([], pa.string())}))


def test_sets_are_matched_by_number_or_where_lists_differ_by_name():
    train, test = samples([5, 3, None, 3]), samples([3, 3, 5])
    found, unlabelled = sets({"train": train, "val": None, "test": test}, {})
    assert found.classes == ["3", "5"] and found.train.target.tolist() == [1, 0, 0] and found.val is None
    assert found.train.row.tolist() == [0, 1, 3] and (found.train.rows == train.images[[0, 1, 3]]).all()
    assert found.test.target.tolist() == [0, 0, 1] and unlabelled == {"train": 1, "test": 0}
    names = {"train": ["a", "b", "c"], "test": ["c", "a"]}
    found, _ = sets({"train": samples([2, 0, 0]), "val": None, "test": samples([0, 1])}, names)
    assert found.classes == found.label == ["a", "c"] and found.train.target.tolist() == [1, 0, 0]
    assert found.test.target.tolist() == [1, 0], "their number 0 is c"
    same = {"train": ["crane", "dog", "crane"], "test": ["crane", "dog", "crane"]}
    found, _ = sets({"train": samples([2, 0, 1]), "val": None, "test": samples([0])}, same)
    assert found.classes == ["crane (0)", "dog", "crane (2)"] and found.train.target.tolist() == [2, 0, 1]
    words = {"train": samples(["b", "a"]), "val": samples(["a"]), "test": samples(["b"])}
    found, _ = sets(words, {})
    assert found.classes == ["a", "b"] and found.val is not None and found.val.target.tolist() == [0]


@pytest.mark.parametrize(
    ("labels", "names", "what"),
    [
        (([0, 1], None, [0, 2]), {}, "test has classes that train has not.*: 2"),
        (([0, 1], [3], [0]), {}, "val has classes that train has not"),
        (([0, 0], None, [0]), {}, "train holds 1 class"),
        (([0, 1], None, [0, 1]), {"train": ["a", "b"], "test": ["a", "c"]}, "test has classes.*: c"),
        (([0, 1], [0], [0]), {"train": ["a", "b"], "test": ["b", "a"]}, "matched by name only where each set has"),
        (([0, 1], None, [0]), {"train": ["a", "a"], "test": ["b", "a"]}, "none of them twice"),
        (([0, 7], None, [0]), {"train": ["a", "b"], "test": ["a", "b"]}, "holds 7, but its classes are numbered 0..1"),
        (([None, None], None, [0]), {}, "no image of train has a class"),
        (([0.5, 1.5], None, [0.5]), {}, "holds float values"),
        (([[0], [1]], None, [[0]]), {}, "several classes an image"),
    ],
)
def test_labels_that_do_not_fit_are_refused(labels: tuple, names: dict, what: str):
    train, val, test = labels
    given = {"train": samples(train), "val": None if val is None else samples(val), "test": samples(test)}
    if labels[0] == [None, None]:
        given["train"] = given["train"].__class__(
            **vars(given["train"]) | {"metadata": pa.table({"label": pa.nulls(2)})}
        )
    with pytest.raises(ValueError, match=what):
        sets(given, names)


def test_a_missing_column_lists_those_there_are():
    with pytest.raises(ValueError, match=r"train has no column 'colour'.*key, label"):
        sets({"train": samples([0, 1]), "val": None, "test": samples([0])}, {}, "colour")


def test_a_fifth_of_each_class_is_held_out():
    target = np.repeat([0, 1, 2, 3], [50, 10, 2, 1])
    kept, out = held_out(target, seed=3)
    assert np.bincount(target[out], minlength=4).tolist() == [10, 2, 1, 0]
    assert sorted([*kept, *out]) == list(range(63)) and not set(kept) & set(out)
    assert (held_out(target, seed=3)[1] == out).all() and not np.array_equal(held_out(target, seed=4)[1], out)
    with pytest.raises(ValueError, match="give --val"):
        held_out(np.array([0, 1]))


def test_shots_are_so_many_of_each_class_and_more_hold_the_fewer():
    target = np.array([0, 1] * 20 + [2] * 5)
    drawn = {count: draw_shots(target, count, "abc", seed=1) for count in (1, 3, 5)}
    for count, rows in drawn.items():
        assert np.bincount(target[rows]).tolist() == [count] * 3
    assert set(drawn[1]) < set(drawn[3]) < set(drawn[5])
    assert not np.array_equal(draw_shots(target, 3, "abc", seed=2), drawn[3])
    with pytest.raises(ValueError, match="6 shots a class, but train has 5 images of 'c'"):
        draw_shots(target, 6, "abc")
    assert np.bincount(target[at_most(target, 6)]).tolist() == [6, 6, 5]


def test_numbers_by_hand():
    target = np.array([0, 0, 0, 1])
    columns = {"probe/": np.array([True, True, False, True]), "probe/zeroshot/": np.array([1, 0, 0, 0])}
    found = numbers(columns, target, 5, times=0, seed=0)
    assert found["probe/acc1"] == 0.75 and found["probe/mean_per_class_recall"] == pytest.approx((2 / 3 + 1) / 2)
    assert found["probe/zeroshot/acc1"] == 0.25 and found["probe/acc1/chance"] == 0.2
    assert found["probe/gain/acc1"] == 0.5 and found["probe/gain/mean_per_class_recall"] == pytest.approx(2 / 3)
    assert "probe/acc1/low" not in found and "probe/gain/acc1/chance" not in found


def test_intervals_are_those_of_drawing_images_anew():
    rng = np.random.default_rng(0)
    target = rng.choice(5, 80, p=[0.6, 0.2, 0.1, 0.06, 0.04])
    right = rng.random(80) < 0.7
    found = numbers({"probe/": right}, target, 5, times=300, seed=5)
    from dualenc.evaluate.intervals import draws, share_interval

    means, recalls = [], []
    for counts in np.concatenate(list(draws(80, 300, 5))).astype(int):
        rows = np.repeat(np.arange(80), counts)
        means.append(right[rows].mean())
        recalls.append(np.mean([right[rows][target[rows] == c].mean() for c in set(target[rows].tolist())]))
    for key, values in (("acc1", means), ("mean_per_class_recall", recalls)):
        expected = share_interval(np.array(values), found[f"probe/{key}"], 80)
        assert [found[f"probe/{key}/{end}"] for end in ("low", "high")] == pytest.approx(list(expected))


COLOURS = ["red", "green", "blue"]


def coloured(count: int, seed: int, noise: float = 0.35, **columns) -> Samples:
    """Images near the words of their colours."""
    rng = np.random.default_rng(seed)
    target = rng.permutation(np.arange(count) % 3)
    rows = WordEncoder().embed_texts([COLOURS[c] for c in target]) + noise * rng.standard_normal((count, 32))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    table = {
        "key": [f"k{i}" for i in range(count)],
        "caption": [COLOURS[c] for c in target],
        "label": target,
        **columns,
    }
    texts = pa.table({"key": pa.array([], pa.string())})
    return Samples(
        rows.astype(np.float32), np.zeros((0, 32), np.float32), np.zeros(0, np.int64), pa.table(table), texts
    )


def test_the_whole_evaluation(tmp_path):
    train, val, test = coloured(60, 1), coloured(30, 2), coloured(90, 3, place=["in", "out", None] * 30)
    words = {"classes": Classes(COLOURS), "shots": (1, 4), "seeds": 2, "by": ["place"], "times": 50}
    names = dict.fromkeys(("train", "val", "test"), COLOURS)
    report, section = probe.evaluate_probe(WordEncoder(), train, test, val, names, **words)
    zero, _ = evaluate_zeroshot(WordEncoder(), test, COLOURS, times=0)
    assert report["probe/zeroshot/acc1"] == zero["zeroshot/acc1"] > 1 / 3
    assert report["probe/acc1"] > report["probe/shots/4/acc1"] - 0.1 > report["probe/acc1/chance"]
    assert report["probe/acc1/low"] < report["probe/acc1"] < report["probe/acc1/high"]
    assert report["probe/gain/acc1"] == pytest.approx(report["probe/acc1"] - zero["zeroshot/acc1"])
    assert section.tables[0].columns[3] == "Over zero-shot" and section.tables[0].rows[0][3] == "–"
    gains = [100 * report[f"probe/gain/acc1{end}"] for end in ("", "/low", "/high")]
    assert section.tables[0].rows[-1][3] == "{:+.1f} points [{:+.1f},\u00a0{:+.1f}]".format(*gains).replace("-", "−")
    one = [report[f"probe/shots/1/acc1/seed{i}"] for i in range(2)]
    assert report["probe/shots/1/acc1"] == pytest.approx(np.mean(one))
    assert report["probe/shots/1/acc1/std"] == pytest.approx(abs(one[0] - one[1]) / math.sqrt(2)) != 0
    assert [report[f"probe/{name}"] for name in ("train", "val", "images", "classes", "held_out")] == [60, 30, 90, 3, 0]
    assert report["probe/by/place/in/count"] == 30 and report["probe/by/place/left_out"] == 30
    recalls = [report[f"probe/recall/{name}"] for name in COLOURS]
    assert np.mean(recalls) == pytest.approx(report["probe/mean_per_class_recall"])
    assert 0 < report["probe/gradient"] < 1e-3 and report["probe/gradient/share"] <= probe_fit.TOLERANCE
    assert report["probe/validation/acc1"] == max(v for k, v in report.items() if "validation/acc1/1e" in k)
    assert [row[0] for row in section.tables[0].rows] == [
        "Zero-shot",
        "1 image a class",
        "4 images a class",
        "All of train",
    ]
    assert [figure.title for figure in section.figures] == ["Few-shot probes", "Choice of the penalty"]
    assert "zero-shot" in section.figures[0].words
    again, _ = probe.evaluate_probe(WordEncoder(), train, test, val, names, **words)
    assert again == report
    page = write_report(tmp_path, report, [section]).read_text()
    assert "Few-shot probes" in page and "4 images a class" in page


def test_the_probe_that_is_measured_learns_from_validation_too_and_shots_from_themselves(monkeypatch):
    seen: list[np.ndarray] = []
    principal_of, choose_on = probe.principal, probe.choose
    pools: list[list[int]] = []

    def noted(rows, target, classes, device):
        seen.append(rows)
        return principal_of(rows, target, classes, device)

    def noted_too(axes, val, *more):
        pools.append(np.bincount(val.target).tolist())
        return choose_on(axes, val, *more)

    monkeypatch.setattr(probe, "principal", noted)
    monkeypatch.setattr(probe, "choose", noted_too)
    train, test = coloured(90, 1), coloured(12, 3)
    report, section = probe.evaluate_probe(WordEncoder(), train, test, shots=(2, 8), seeds=1, times=0)
    assert [len(rows) for rows in seen] == [72, 90, 6, 24] and pools == [[6] * 3, [2] * 3, [4] * 3]
    assert (np.sort(seen[1], axis=0) == np.sort(train.images, axis=0)).all(), "all of train, the held-out part too"
    assert report["probe/held_out"] == 1 and report["probe/val"] == 18 and "probe/zeroshot/acc1" not in report
    assert report["probe/shots/8/acc1/std"] is None and "probe/acc1/low" not in report
    assert [row[0] for row in section.tables[0].rows] == ["2 images a class", "8 images a class", "All of train"]
    words = section.figures[0].words
    assert f"all {100 * report['probe/acc1']:.1f}" in words or report["probe/acc1"] == 1
    report, section = probe.evaluate_probe(WordEncoder(), train, test, shots=(), times=0)
    assert len(section.figures) == 1 and len(section.tables[0].rows) == 1


def test_shots_that_train_has_too_few_images_for_are_left_out_unless_they_were_asked_for():
    train, test = coloured(18, 1), coloured(30, 3)  # six images a class, of which one is held out
    report, section = probe.evaluate_probe(WordEncoder(), train, test, seeds=1, times=0)
    assert [count for count in probe.SHOTS if f"probe/shots/{count}/acc1" in report] == [1, 2, 4]
    assert report["probe/shots/left_out"] == "8, 16"
    assert (
        "Left out, as train has not so many images of every class beside those held out to validate on: 8, 16 a class."
        in section.tables[0].note
    )
    _, section = probe.evaluate_probe(WordEncoder(), train, test, coloured(30, 2), seeds=1, times=0)
    assert "Left out, as train has not so many images of every class: 8, 16 a class." in section.tables[0].note
    with pytest.raises(ValueError, match="8 shots a class, but train has 5 images"):
        probe.evaluate_probe(WordEncoder(), train, test, shots=(4, 8), seeds=1, times=0)
    large, section = probe.evaluate_probe(WordEncoder(), coloured(60, 1), test, seeds=1, times=0)
    assert "probe/shots/16/acc1" in large and "probe/shots/left_out" not in large
    assert "Left out" not in section.tables[0].note


def test_classes_that_test_has_not_are_named_and_counted_nowhere():
    train, test = coloured(60, 1), coloured(30, 3)
    kept = np.flatnonzero(np.array(test.metadata["label"]) != 1)
    test.images, test.metadata = test.images[kept], test.metadata.take(kept)
    names = dict.fromkeys(("train", "test"), COLOURS)
    report, section = probe.evaluate_probe(WordEncoder(), train, test, None, names, shots=(2,), seeds=1, times=20)
    assert report["probe/absent"] == 1 and report["probe/absent_names"] == "green"
    recalls = [report[f"probe/recall/{name}"] for name in ("red", "blue")]
    assert "probe/recall/green" not in report
    assert report["probe/mean_per_class_recall"] == pytest.approx(np.mean(recalls))
    assert "Without a test image, and counted nowhere: green." in section.tables[0].note
    whole, section = probe.evaluate_probe(WordEncoder(), train, coloured(30, 3), None, names, shots=(), times=0)
    assert whole["probe/absent_names"] is None and "counted nowhere" not in section.tables[0].note


def test_class_names_take_the_order_of_the_datas_own():
    train, test, names = coloured(30, 1), coloured(60, 3), {"train": COLOURS, "test": COLOURS}
    words = {"shots": (), "times": 0}
    turned, _ = probe.evaluate_probe(
        WordEncoder(), train, test, names=names, classes=Classes(COLOURS[1:] + COLOURS[:1]), **words
    )
    expected, _ = evaluate_zeroshot(WordEncoder(), test, COLOURS, times=0)
    assert turned["probe/zeroshot/acc1"] == expected["zeroshot/acc1"] > 1 / 3
    with pytest.raises(ValueError, match="4 class names for data"):
        probe.evaluate_probe(WordEncoder(), train, test, names=names, classes=Classes([*COLOURS, "grey"]), **words)


def test_test_images_that_are_in_train_are_told(tmp_path):
    train, val, test = coloured(30, 1), coloured(30, 2), coloured(60, 3)
    report, section = probe.evaluate_probe(WordEncoder(), train, test, shots=(), times=0)
    assert report["probe/test_in_train"] == 0 and "too, which flatters" not in section.about
    test.images[:6], test.images[6:9] = train.images[:6], val.images[:3]
    report, section = probe.evaluate_probe(WordEncoder(), train, test, val, shots=(), times=0)
    assert report["probe/test_in_train"] == 0.15 and "of the test images are in train or val too" in section.about
    with pytest.raises(ValueError, match="every test image is in train or val"):
        probe.evaluate_probe(WordEncoder(), train, train, val, shots=(), times=0)


def test_zero_shot_is_among_the_classes_that_train_holds():
    names = ["grey", "blue", "pink", "green", "red"]
    train, test = coloured(30, 1), coloured(60, 3)
    for each in (train, test):
        label = [names.index(COLOURS[c]) for c in each.metadata["label"].to_pylist()]
        place = each.metadata.column_names.index("label")
        each.metadata = each.metadata.set_column(place, "label", pa.array(label))
    found, _ = probe.evaluate_probe(WordEncoder(), train, test, classes=Classes(names), shots=(), times=0)
    expected, _ = evaluate_zeroshot(WordEncoder(), coloured(60, 3), COLOURS, times=0)
    assert found["probe/zeroshot/acc1"] == expected["zeroshot/acc1"] and found["probe/classes"] == 3


@pytest.mark.parametrize(
    ("words", "what"),
    [
        ({"shots": (1, 17)}, "17 shots a class, but train has 16 images of '0' beside those held out"),
        ({"shots": (0,)}, "from 1 on"),
        ({"shots": (2, 2)}, "once"),
        ({"seeds": 0}, "seeds is 0"),
        ({"by": ["place"]}, "no column 'place'"),
        ({"classes": Classes(["red", "green"])}, "none of the 2 class names"),
        ({"label": "colour"}, "no column 'colour'"),
    ],
)
def test_refused_before_the_work(words: dict, what: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(probe, "principal", None)
    with pytest.raises(ValueError, match=what):
        probe.evaluate_probe(WordEncoder(), coloured(60, 1), coloured(12, 3), **words)


def test_data_of_another_width_is_refused():
    other = coloured(12, 3)
    other.images = other.images[:, :8]
    with pytest.raises(ValueError, match="embedded with 8 values"):
        probe.evaluate_probe(WordEncoder(), coloured(60, 1), other)


def test_scikit_learn_agrees_where_it_is_installed():
    linear_model = pytest.importorskip("sklearn.linear_model")
    rows, target = clouds(500, 32, 6)
    for strength in (0.1, 10.0, 1000.0):
        theirs = linear_model.LogisticRegression(C=strength, tol=1e-9, max_iter=100_000).fit(rows.astype(float), target)
        ours = fit(principal(rows, target, 6), strength)[0]
        assert np.abs(probabilities(ours.scores(rows)) - theirs.predict_proba(rows.astype(float))).max() < 1e-4
