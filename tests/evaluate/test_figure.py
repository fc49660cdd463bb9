"""Figures: whole, in the page's colours, the same every time, and safe whatever a class is called."""

from __future__ import annotations

import doctest
import re
from xml.etree import ElementTree

import numpy as np
import pytest

from dualenc.evaluate.intervals import Interval
from dualenc.evaluate.page import figure
from dualenc.evaluate.page.figure import MOST_CELLS, bars, count, heat, heat_size, histograms, panel
from dualenc.evaluate.sections import Share

VARIABLE = re.compile(r"var\((--[a-z0-9-]+)\)")


def texts(svg):
    root = ElementTree.fromstring(svg)
    return ["".join(node.itertext()).strip() for node in root.iter() if node.tag.endswith("text")]


def test_the_examples_in_the_docstrings_hold():
    result = doctest.testmod(figure)
    assert result.failed == 0
    assert result.attempted >= 2


def test_lines_take_the_pages_colours_one_after_the_other_without_being_told():
    def draw(axes):
        for i in range(4):
            axes.plot([1, 2], [i, i + 1], label=f"line {i}")
        axes.set_xlabel("shots")
        figure.legend(axes)

    made = panel("Lines", "four lines", draw)
    assert (made.title, made.words) == ("Lines", "four lines")
    assert set(VARIABLE.findall(made.svg)) == {*(f"--line-{i}" for i in (1, 2, 3, 4)), "--quiet", "--rule"}
    assert set(re.findall(r"#[0-9a-f]{6}", made.svg)) <= {"#000000"}  # nothing is drawn in it: matplotlib's <style>
    assert {"shots", "line 0", "line 3"} <= set(texts(made.svg))
    assert made == panel("Lines", "four lines", draw)
    assert 'class="wide"' not in made.svg


def test_nothing_stays_black_on_a_dark_page():
    made = panel("Bars", "", lambda axes: bars(axes, ["a", "b"], [Share(0.5, 0.1, Interval(0.4, 0.6)), Share(1.0)]))
    styles = re.findall(r'style="([^"]*)"', made.svg)
    assert len(styles) > 5
    assert not any("#000000" in style for style in styles)
    for node in ElementTree.fromstring(made.svg).iter():
        if node.tag.endswith("text"):
            assert "var(--" in node.attrib["style"], node.attrib


def test_a_bar_says_its_number_and_its_interval_reaches_where_it_should():
    seen = {}

    def draw(axes):
        bars(axes, ["red", "blue"], [Share(0.25, 0.5, Interval(0.2, 0.4)), Share(0.0)])
        seen["bars"] = [(patch.get_width(), patch.get_y() + patch.get_height() / 2) for patch in axes.patches]
        seen["lines"] = [line.get_xdata() for line in axes.lines]
        seen["order"] = axes.get_ylim()

    made = panel("Bars", "", draw)
    assert [round(width, 6) for width, _ in seen["bars"]] == [25, 0]
    assert [list(x) for x in seen["lines"]] == [[20, 40], [50, 50]]
    assert seen["order"][0] > seen["order"][1]  # the first name on top
    assert {"red", "blue", "25.0", "0.0"} <= set(texts(made.svg))


def test_a_heat_map_is_the_stronger_the_greater_and_empty_where_nothing_is_known():
    seen = {}

    def draw(axes):
        heat(axes, [[0.0, 2.0], [np.nan, 4.0]], ["a", "b"], ["c", "d"], text="{:.0f}".format)
        seen["cells"] = {tuple(np.round(patch.get_xy())): patch.get_alpha() for patch in axes.patches}

    made = panel("Heat", "", draw, heat_size(2, 2))
    assert seen["cells"] == {(1, 0): 0.53, (1, 1): 1.0}
    assert sorted(texts(made.svg)) == ["0", "2", "4", "a", "b", "c", "d"]
    assert {"--accent", "--card", "--ink"} <= set(VARIABLE.findall(made.svg))


def test_most_fixes_what_full_strength_means():
    seen = []

    def draw(axes):
        heat(axes, [[1.0]], ["a"], ["b"], most=2.0)
        seen.extend(patch.get_alpha() for patch in axes.patches)

    panel("Heat", "", draw)
    assert seen == [0.53]


def test_an_empty_or_zero_heat_map_is_no_trouble():
    for values in (np.zeros((2, 2)), np.full((2, 2), np.nan)):
        made = panel("Heat", "", lambda axes, values=values: heat(axes, values, ["a", "b"], ["c", "d"]))
        assert "--accent" not in made.svg


def test_a_heat_map_that_nobody_could_read_is_refused():
    names = [str(i) for i in range(200)]
    with pytest.raises(ValueError, match="200 x 200 cells cannot be read"):
        panel("Heat", "", lambda axes: heat(axes, np.zeros((200, 200)), names, names))
    assert MOST_CELLS < 200 * 200


def test_histograms_share_their_bins_and_lose_nothing():
    seen = {}

    def draw(axes):
        histograms(axes, {"right": [0.5, 0.6], "wrong": [0.1, 0.2, 0.9]}, bins=4)
        seen["areas"] = [patch.get_data() for patch in axes.patches]

    panel("Scores", "", draw)
    assert [int(data.values.sum()) for data in seen["areas"]] == [2, 2, 3, 3]
    assert all(np.array_equal(data.edges, seen["areas"][0].edges) for data in seen["areas"])
    with pytest.raises(ValueError, match="5 histograms"):
        panel("Scores", "", lambda axes: histograms(axes, {str(i): [1.0] for i in range(5)}))


def test_a_wide_figure_says_so():
    made = panel("Wide", "", lambda axes: axes.plot([1, 2], [1, 2]), (8.0, 4.0))
    assert made.svg.startswith('<svg class="wide"')
    ElementTree.fromstring(made.svg)


def test_logarithmic_axes_have_plain_numbers():
    def draw(axes):
        axes.plot([80_000, 3_000_000_000], [1, 2])
        axes.set_xscale("log")

    made = panel("Log", "", draw)
    assert "mathdefault" not in made.svg
    assert {"100 k", "1 M", "1 B"} <= set(texts(made.svg))
    assert count(1_500) == "1,500"


@pytest.mark.filterwarnings("error")
def test_names_from_data_cannot_break_out_and_may_be_in_any_script():
    names = ["<script>alert(1)</script>", "$x^2$ & 100 %", "馬 孩子", "حصان", "👩‍🚀"]
    made = panel("Names", "", lambda axes: bars(axes, names, [Share(0.5)] * 5))
    root = ElementTree.fromstring(made.svg)
    assert not any(node.tag.endswith("script") for node in root.iter())
    assert "<script" not in made.svg
    assert {"馬 孩子", "حصان", "$x^2$ & 100 %"} <= set(texts(made.svg))
