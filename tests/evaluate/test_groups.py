"""Metrics by group: by hand, against a bootstrap that draws rows one by one, and what a gap is compared with."""

from __future__ import annotations

import datetime
import doctest
import json
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import pytest

from dualenc.evaluate.groups import groups
from dualenc.evaluate.groups import split as group_split
from dualenc.evaluate.groups.gap import SHUFFLES, TABLE_ROWS, _spread
from dualenc.evaluate.groups.groups import MOST_GROUPS, Measure, by_group, by_group_of, groups_of
from dualenc.evaluate.intervals import share_interval, wilson
from dualenc.evaluate.sections import Share


@pytest.mark.parametrize("module", [groups, group_split])
def test_docstring_examples(module):
    result = doctest.testmod(module)
    assert result.failed == 0 and result.attempted >= 1


def test_by_hand():
    group = ["a", "a", "b", "b", "b", "c", "c", None]
    values = {"hit": [1, 0, 1, 1, 0, 0, 0, 1], "rank": [1, 3, 2, 2, 5, 9, 8, 1]}
    rank = Measure("Rank", lower=True, share=False)
    report, table = by_group(values, group, times=0, prefix="by/kind/", measures={"rank": rank})
    assert report == {
        "by/kind/b/count": 3,
        "by/kind/b/hit": pytest.approx(2 / 3),
        "by/kind/b/rank": 3.0,
        "by/kind/a/count": 2,
        "by/kind/a/hit": 0.5,
        "by/kind/a/rank": 2.0,
        "by/kind/c/count": 2,
        "by/kind/c/hit": 0.0,
        "by/kind/c/rank": 8.5,
        "by/kind/worst/hit": 0.0,
        "by/kind/worst_group/hit": "c",
        "by/kind/gap/hit": pytest.approx(2 / 3),
        "by/kind/worst/rank": 8.5,
        "by/kind/worst_group/rank": "c",
        "by/kind/gap/rank": 6.5,
        "by/kind/left_out": 1,
    }
    assert table.columns == ["kind", "Images", "hit", "Rank"]
    assert [row[:2] for row in table.rows] == [["b", "3"], ["a", "2"], ["c", "2"], ["Worst group", ""], [_GAP, ""]]
    assert table.rows[0][2:] == [Share(2 / 3), "3.00"]
    assert table.rows[3][2:] == ["c", "c"]
    assert table.rows[4][2:] == ["+66.7 points", "6.50"]
    assert table.note == "The largest group stands first. Images without a value, which are left out: 1."


_GAP, _RANDOM = "Gap, best less worst", "Gap of random groups"


def cases(seed, groups=4, images=60, captions=3):
    """(Q, 2) values, a group and a cluster for each query; groups differ in size; the rows are in no order."""
    rng = np.random.default_rng(seed)
    of_image = rng.choice(groups, images, p=np.arange(1, groups + 1) / (groups * (groups + 1) / 2))
    image = rng.permutation(np.repeat(np.arange(images), captions))
    values = (rng.random(images)[image] < 0.2 + 0.15 * of_image[image]).astype(float)
    other = rng.random(len(image))
    return np.stack([values, other], axis=1), [f"g{g}" for g in of_image[image]], image * 7 + 100


def slow_draws(values, group, cluster, times, seed):
    """Group (largest first) -> (times, M) means: clusters drawn one by one with a generator of each group's own."""
    names = sorted(set(group), key=lambda n: (-len({c for c, g in zip(cluster, group, strict=True) if g == n}), n))
    out = {}
    for place, name in enumerate(names):
        rows = {c: [] for c in sorted({c for c, g in zip(cluster, group, strict=True) if g == name})}
        for i, (c, g) in enumerate(zip(cluster, group, strict=True)):
            if g == name:
                rows[c].append(i)
        rng = np.random.default_rng(int(np.random.SeedSequence([seed, place]).generate_state(1)[0]))
        own = list(rows.values())
        drawn = [[i for c in rng.integers(len(own), size=len(own)) for i in own[c]] for _ in range(times)]
        out[name] = np.stack([values[some].mean(axis=0) for some in drawn])
    return out


@pytest.mark.parametrize("seed", [0, 1])
def test_intervals_are_those_of_drawing_images_one_by_one(seed):
    values, group, cluster = (part[:-40] for part in cases(seed))  # images with one, two and three captions
    report, table = by_group({"hit": values[:, 0], "rank": values[:, 1]}, group, cluster, times=300, seed=seed)
    slow = slow_draws(values, group, cluster, 300, seed)
    for m, metric in enumerate(("hit", "rank")):
        for name, drawn in slow.items():
            ends = [report[f"by/{name}/{metric}/{end}"] for end in ("low", "high")]
            wanted = share_interval(drawn[:, m], report[f"by/{name}/{metric}"], report[f"by/{name}/count"])
            np.testing.assert_allclose(ends, wanted, atol=1e-12)
            assert report[f"by/{name}/{metric}"] == pytest.approx(values[np.array(group) == name, m].mean())
        worst, best = sorted(slow, key=lambda name, m=metric: report[f"by/{name}/{m}"])[:: len(slow) - 1]
        gaps = slow[best][:, m] - slow[worst][:, m]
        ends = [report[f"by/gap/{metric}/{end}"] for end in ("low", "high")]
        np.testing.assert_allclose(ends, np.quantile(gaps, [0.025, 0.975]), atol=1e-12)
    assert [row[0] for row in table.rows[:4]] == list(slow)
    assert table.rows[0][2].interval == (report[f"by/{table.rows[0][0]}/hit/low"], report["by/g3/hit/high"])


def test_the_two_ways_agree_on_means():
    values, group, cluster = cases(2)

    def mean(rows):
        return {"hit": float(values[rows, 0].mean()), "rank": float(values[rows, 1].mean())}

    rank = {"rank": Measure("Rank", lower=True, share=False)}
    one = by_group({"hit": values[:, 0], "rank": values[:, 1]}, group, cluster, times=50, measures=rank)[0]
    other = by_group_of(mean, group, cluster, times=50, measures=rank)[0]
    assert list(one) == list(other)
    for key, value in one.items():
        assert value == (other[key] if isinstance(value, str) else pytest.approx(other[key])), key


def test_the_order_of_rows_changes_nothing():
    values, group, cluster = cases(3)
    order = np.random.default_rng(0).permutation(len(group))
    one = by_group({"hit": values[:, 0]}, group, cluster, times=80)[0]
    other = by_group({"hit": values[order, 0]}, [group[i] for i in order], cluster[order], times=80)[0]
    assert {key: pytest.approx(value) if isinstance(value, float) else value for key, value in one.items()} == other


def test_copies_of_a_row_make_nothing_surer():
    values, group, cluster = cases(4, captions=1)
    order = np.argsort(cluster)
    values, group, cluster = values[order, 0], [group[i] for i in order], cluster[order]
    one = by_group({"hit": values}, group, cluster, times=100)[0]
    names = [name for name in group for _ in range(5)]
    five = by_group({"hit": np.repeat(values, 5)}, names, np.repeat(cluster, 5), times=100)[0]
    assert {key: pytest.approx(value) if isinstance(value, float) else value for key, value in one.items()} == five


def test_random_groups_show_the_gap_of_chance():
    rng = np.random.default_rng(5)
    gaps, chances = [], []
    for seed in range(20):
        values = (rng.random(240) < 0.4).astype(float)
        group = [f"g{g}" for g in rng.integers(6, size=240)]
        report, table = by_group({"hit": values}, group, times=60, seed=seed)
        gaps.append(report["by/gap/hit"])
        chances.append(report["by/gap/hit/chance"])
        assert table.rows[-1] == [_RANDOM, "", f"+{100 * report['by/gap/hit/chance']:.1f} points"]
        assert report["by/gap/hit/low"] <= report["by/gap/hit"] <= report["by/gap/hit/high"]
    assert np.mean(chances) == pytest.approx(np.mean(gaps), abs=0.03)
    assert 0.1 < np.mean(chances) < 0.3
    true = by_group({"hit": [1.0] * 50 + [0.0] * 50}, ["a"] * 50 + ["b"] * 50, times=60)[0]
    assert true["by/gap/hit"] == 1.0 and true["by/gap/hit/chance"] < 0.15


def test_groups_of_one_size_are_drawn_independently():
    """With one and the same draw for two equal groups their gap would be 0 in every draw."""
    values = list(np.arange(30) % 2) * 2
    report = by_group({"hit": values}, ["a"] * 30 + ["b"] * 30, times=100)[0]
    assert report["by/gap/hit"] == 0.0
    assert report["by/gap/hit/high"] > 0.1


def test_a_group_of_one_sample_has_no_interval_and_is_not_compared():
    values = {"hit": [1, 1, 0, 0, 1, 1]}
    report, table = by_group(values, ["a", "a", "a", "one", "b", "b"], [0, 1, 2, 5, 8, 9], times=20)
    assert report["by/one/hit"] == 0.0
    assert "by/one/hit/low" not in report
    assert report["by/worst_group/hit"] == "a"
    assert report["by/gap/hit"] == pytest.approx(1 / 3)
    five = by_group({"hit": [0] * 5 + [1] * 6}, ["one"] * 5 + ["b"] * 6, [3] * 5 + [0, 0, 0, 1, 1, 1], times=20)[0]
    assert (five["by/one/count"], five["by/b/count"], five["by/gap/hit"]) == (1, 2, None)
    assert json.loads(json.dumps(five, allow_nan=False)) == five
    assert [row[0] for row in table.rows[-2:]] == [_GAP, _RANDOM]


def test_one_group_has_no_gap():
    report, table = by_group({"hit": [1, 0, 1]}, ["a"] * 3, times=10)
    assert {key: report[f"by/{key}/hit"] for key in ("gap", "worst", "worst_group")} == dict.fromkeys(
        ("gap", "worst", "worst_group")
    )
    assert "by/gap/hit/chance" not in report
    assert len(table.rows) == 1 and "by/a/hit/high" in report
    assert table.note == ""  # nothing of a gap, and nothing of an order
    lone = by_group({"hit": [1, 0, 1]}, ["a", "a", "b"], times=10)[1]
    assert "gap" not in lone.note and lone.rows[-1] == [_GAP, "", "–"]  # b is one image, so there is none either


def test_a_cluster_may_lie_in_two_groups():
    report = by_group({"hit": [1, 1, 0, 0]}, ["a", "b", "a", "b"], [1, 1, 2, 2], times=10)[0]
    assert (report["by/a/hit"], report["by/b/hit"], report["by/a/count"]) == (0.5, 0.5, 2)


def test_a_metric_that_a_draw_leaves_undefined():
    label = np.array([0, 0, 0, 1, 1, 1, 0, 0])
    group = ["a"] * 6 + ["b"] * 2
    calls = []

    def share_of_ones(rows):
        calls.append(rows)
        return {"defined": float(label[rows].mean()), "ones": 1.0 if label[rows].any() else None}

    report, table = by_group_of(share_of_ones, group, times=300)
    assert report["by/a/ones"] == report["by/a/ones/high"] == 1.0  # a draw of zeros alone is left out
    assert report["by/a/ones/low"] == pytest.approx(wilson([6], [6])[0].item())
    assert report["by/b/ones"] is None
    assert "by/b/ones/low" not in report
    assert report["by/gap/ones"] is None
    assert report["by/gap/defined"] == 0.5
    assert table.rows[1][3] == "–"
    assert len(calls) == 1 + 2 + 2 * 300 + 2 * SHUFFLES
    assert json.loads(json.dumps(report, allow_nan=False)) == report


def test_a_spread_takes_two_values():
    nan = np.nan
    found = _spread(np.array([[1.0, nan, nan], [3.0, 2.0, nan], [nan, nan, nan]]))
    np.testing.assert_array_equal(found, [2.0, nan, nan])


def test_medians_are_those_of_drawing_images_one_by_one():
    values, group, cluster = cases(7)
    values = np.round(values * 50)
    ranks = {"mean": Measure("Mean", share=False), "middle": Measure("Median", share=False)}
    report, _ = by_group(
        {"mean": values[:, 0]}, group, cluster, times=60, measures=ranks, medians={"middle": values[:, 1]}
    )

    def slow(rows):
        return {"mean": float(values[rows, 0].mean()), "middle": float(np.median(values[rows, 1]))}

    other = by_group_of(slow, group, cluster, times=60, measures=ranks)[0]
    assert list(report) == list(other)
    for key, value in report.items():
        assert value == (other[key] if isinstance(value, str) else pytest.approx(other[key])), key


def test_a_gap_is_compared_with_those_of_random_groups():
    true, _ = by_group({"hit": [1.0] * 50 + [0.0] * 50}, ["a"] * 50 + ["b"] * 50, times=1000)
    assert true["by/gap/hit/p"] == 1 / (1 + SHUFFLES)
    none, table = by_group({"hit": np.arange(40) % 2}, ["a"] * 20 + ["b"] * 20, times=20)
    assert none["by/gap/hit"] == 0.0 and none["by/gap/hit/p"] == 1.0
    assert "p, how often random groups have a gap as large: hit 1.000." in table.note
    rng = np.random.default_rng(8)
    p = [
        by_group({"hit": rng.random(60)}, [f"g{g}" for g in rng.integers(3, size=60)], times=99, seed=seed)[0][
            "by/gap/hit/p"
        ]
        for seed in range(60)
    ]
    assert 0.35 < np.mean(p) < 0.65 and min(p) < 0.15 and max(p) > 0.85  # even, where groups mean nothing


def test_a_group_that_the_gap_leaves_out_is_left_out_of_random_ones():
    """Of c nothing is known: among random groups of three, one of which holds less, the gap would be a larger one."""
    value = np.array([*([1.0, 0.0] * 30), *([np.nan] * 2)])
    group = ["a"] * 30 + ["b"] * 30 + ["c"] * 2

    def mean(rows):
        known = value[rows][~np.isnan(value[rows])]
        return {"mean": float(known.mean()) if len(known) else None}

    with_c = by_group_of(mean, group, times=200)[0]["by/gap/mean/chance"]
    without = by_group_of(mean, group[:60], times=200)[0]["by/gap/mean/chance"]
    assert with_c == pytest.approx(without, rel=0.15)


def test_what_is_left_out_is_counted_in_images():
    report = by_group({"hit": [1, 1, 0, 0, 0]}, ["a", "a", None, None, None], [1, 2, 3, 3, 4], times=0)[0]
    assert report["by/left_out"] == 2


def test_the_reports_own_words_are_no_groups_names():
    report = by_group({"hit": [1, 1, 0, 0]}, ["gap", "gap", "worst", "worst"], times=0, prefix="by/c/")[0]
    assert report["by/c/gap (group)/hit"] == 1.0
    assert report["by/c/gap/hit"] == 1.0
    assert report["by/c/worst_group/hit"] == "worst"


def test_groups_that_would_part_a_key_have_one_of_their_own():
    names = ["a/b", "a%2Fb", "gap", "gap (group)", "count", "None"]
    group = [name for name in names for _ in range(2)]
    report, table = by_group({"hit": [1, 1] * 5 + [0, 0]}, group, times=0, prefix="by/c/")
    keys = [key.removeprefix("by/c/").removesuffix("/count") for key in report if key.endswith("/count")]
    assert sorted(keys) == sorted(["a%2Fb", "a%252Fb", "gap (group)", "gap (group) (group)", "count", "None"])
    assert all(report[f"by/c/{key}/hit"] == (key != "None") for key in keys)
    assert {row[0] for row in table.rows[:6]} == set(names)
    assert {unquote(key) for key in keys if "%" in key} == {"a/b", "a%2Fb"}
    worst, shown = by_group({"hit": [1, 1, 0, 0]}, ["a", "a", "x/y", "x/y"], times=0)
    assert worst["by/worst_group/hit"] == "x/y" and worst["by/x%2Fy/hit"] == 0
    assert shown.rows[2] == ["Worst group", "", "x/y"]


def test_what_is_counted_is_named():
    table = by_group({"hit": [1, 0, 1]}, ["a", "a", None], times=0, counted="examples")[1]
    assert table.columns[1] == "Examples" and table.note == "Examples without a value, which are left out: 1."


def test_a_table_shows_the_largest_of_many_groups():
    group = [f"g{i}" for i in range(40) for _ in range(2 + (i == 39))]
    report, table = by_group({"hit": np.ones(len(group))}, group, times=0)
    assert len(table.rows) == TABLE_ROWS + 2
    assert table.rows[0][:2] == ["g39", "3"]
    assert "30 largest of 40 groups" in table.note
    assert report["by/g38/hit"] == 1.0


def test_numbers_that_are_no_shares_show_their_interval_in_words():
    measures = {"rank": Measure("Rank", lower=True, share=False)}
    report, table = by_group({"rank": [1, 2000, 3, 4]}, ["a", "a", "b", "b"], times=100, measures=measures)
    assert table.rows[0] == ["a", "2", "1,000.5 [1.00,\u00a02,000.0]"]
    assert table.rows[-1] == [_RANDOM, "", f"{report['by/gap/rank/chance']:,.1f}"]
    assert table.rows[-2][2].startswith("997.0 [−") and report["by/gap/rank/low"] < 0


@pytest.mark.parametrize(
    ("values", "group", "says"),
    [
        ([1, 0], [None, None], "the column is empty in all 2 samples"),
        ([1, 0], ["a"], "2 values for 1 groups"),
        ([1, np.nan], ["a", "b"], "1 of them NaN"),
        (np.ones(MOST_GROUPS + 1), [f"{i}" for i in range(MOST_GROUPS + 1)], "1,001 groups of 1,001 samples"),
    ],
)
def test_refused(values, group, says):
    with pytest.raises(ValueError) as error:
        by_group({"hit": values}, group)
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_a_column_as_groups():
    table = pa.table(
        {
            "text": ["red", "", None],
            "number": [3, None, 10],
            "real": [0.5, float("nan"), 2.0],
            "truth": [True, False, None],
            "list": [["a"], [], None],
            "day": [datetime.date(2020, 1, 1), None, None],
        }
    )
    assert groups_of(table, "text") == ["red", None, None]
    assert groups_of(table, "number") == ["3", None, "10"]
    assert groups_of(table, "real") == ["0.5", None, "2"]
    exact = pa.table({"id": [1234567890.0, 1234567891.0, None], "single": pa.array([0.1, 2, 0.25], pa.float32())})
    assert groups_of(exact, "id") == ["1234567890", "1234567891", None]
    assert groups_of(exact, "single") == ["0.1", "2", "0.25"]
    assert groups_of(table, "truth") == ["yes", "no", None]
    for column in ("list", "day"):
        with pytest.raises(ValueError, match=rf"'{column}' holds (list|date) values"):
            groups_of(table, column)
    with pytest.raises(
        ValueError,
        match=r"no column 'colour' to group by; it has text, number, real, truth, list, day .*lists, objects or .* null",
    ):
        groups_of(table, "colour")


@pytest.mark.parametrize("values", [pa.nulls(3), [None, float("nan"), None], ["", "", None]])
def test_a_column_without_a_value_is_named(values):
    with pytest.raises(ValueError, match="column 'x' is empty in all 3 samples"):
        groups_of(pa.table({"x": values}), "x")


def test_many_real_numbers_are_cut_into_parts_of_one_size():
    real = [*np.random.default_rng(6).permutation(100) / 100, None, float("nan")]
    groups = groups_of(pa.table({"x": real}), "x")
    assert groups[100:] == [None, None]
    parts = {
        name: [x for x, own in zip(real[:100], groups[:100], strict=True) if own == name] for name in set(groups[:100])
    }
    assert {name: (min(own), max(own), len(own)) for name, own in parts.items()} == {
        "0 to 0.2475": (0.0, 0.24, 25),
        "0.2475 to 0.495": (0.25, 0.49, 25),
        "0.495 to 0.7425": (0.5, 0.74, 25),
        "0.7425 to 0.99": (0.75, 0.99, 25),
    }
    assert len(set(groups_of(pa.table({"x": real}), "x", cut=False))) == 101
    assert len(set(groups_of(pa.table({"n": range(100)}), "n"))) == 100  # whole numbers may be classes
    twice = groups_of(pa.table({"x": [0.5] * 80 + [x / 100 for x in range(21)]}), "x")
    assert len(set(twice)) <= 4 and None not in twice  # quantiles that coincide are one end


def test_the_page_tells_how_to_read_a_gap():
    assert "apart by chance alone, as random groups do" in by_group({"hit": [1, 0, 1, 0]}, [*"aabb"], times=5)[1].note


def test_groups_that_are_all_alike_have_no_worst_one():
    report, table = by_group({"hit": [1.0] * 4}, [*"aabb"], times=5)
    assert report["by/gap/hit"] == 0 and table.rows[2] == ["Worst group", "", "–"]
