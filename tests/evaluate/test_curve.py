"""The training curve: what is read, what is drawn, and that the page's colours take over."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from dualenc.evaluate.page.curve import MOST_POINTS, panels, read_series, thinned
from dualenc.evaluate.page.figure import GRID, INK, LINES

CSV = """epoch,step,train/loss,val/text_to_image/recall@1,val/mean_recall
0,9,5.5,,
0,19,4.25,,
0,20,,0.125,0.2
1,29,nan,,
1,39,3.0,,
1,40,,0.5,0.6
"""


def test_a_lightning_log_gives_its_columns_without_empty_cells(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text(CSV)
    series = read_series(path)
    assert series["train/loss"] == ([9, 19, 39], [5.5, 4.25, 3.0])
    assert series["val/text_to_image/recall@1"] == ([20, 40], [0.125, 0.5])
    assert series.keys() == {"train/loss", "val/text_to_image/recall@1", "val/mean_recall"}
    assert [panel.title for panel in panels(path)] == ["Loss", "Validation, %"]


def test_rows_in_any_order_are_drawn_by_step():
    rows = [{"step": 30, "loss": 1.0}, {"step": 10, "loss": 3.0}, {"step": 20, "loss": None}]
    assert read_series(rows) == {"loss": ([10, 30], [3.0, 1.0])}


def test_panels_without_data_are_absent():
    assert panels([]) == []
    assert panels([{"step": 1, "lr": 0.1}]) == []
    assert [panel.title for panel in panels([{"step": 1, "val/acc1": 0.5}])] == ["Validation, %"]


def test_the_svg_is_whole_takes_the_pages_colours_and_names_its_lines():
    rows = [{"step": s, "val/acc1": s / 100, "val/text_to_image/recall@1": s / 200} for s in range(0, 100, 10)]
    (panel,) = panels(rows)
    root = ElementTree.fromstring(panel.svg)
    assert root.tag.endswith("svg")
    assert "width" not in root.attrib
    assert "viewBox" in root.attrib
    assert not any(colour in panel.svg for colour in (INK, GRID, *LINES))
    assert {"var(--line-1)", "var(--line-2)", "var(--quiet)", "var(--rule)"} <= set(
        re.findall(r"var\(--[a-z0-9-]+\)", panel.svg)
    )
    texts = ["".join(node.itertext()) for node in root.iter() if node.tag.endswith("text")]
    assert {"text → image R@1", "acc1", "optimizer steps"} <= set(texts)
    assert panel.words == "Validation, % over 90 steps: text → image R@1 ends at 45.0 %, acc1 ends at 90.0 %"


def test_at_most_four_scores_the_most_wanted_first():
    names = [f"val/{way}/recall@{k}" for way in ("text_to_image", "image_to_text") for k in (10, 5, 1)]
    (panel,) = panels([{"step": 1, **dict.fromkeys(names, 0.5)}])
    drawn = re.findall(r"(\w+ → \w+ R@\d+) ends", panel.words)
    assert drawn[:3] == ["text → image R@1", "text → image R@5", "image → text R@1"]
    assert len(drawn) == 4


def test_a_name_from_the_log_cannot_break_out_of_the_svg():
    name = "loss <script>alert(1)</script> $x^2$ & more"
    (panel,) = panels([{"step": 1, name: 1.0, "loss b": 2.0}, {"step": 2, name: 0.5, "loss b": 1.0}])
    root = ElementTree.fromstring(panel.svg)
    assert not any(node.tag.endswith("script") for node in root.iter())
    assert "<script" not in panel.svg


def test_long_series_are_averaged():
    assert thinned([1.0, 2.0, 3.0]) == [1.0, 2.0, 3.0]
    values = thinned(range(1, 10_001))
    assert len(values) <= MOST_POINTS
    assert values[0] == pytest.approx(sum(range(1, 35)) / 34)
    assert thinned([]) == []


@pytest.mark.parametrize(
    ("rows", "says"),
    [([{"loss": 1.0}], "has no step"), ([{"step": 1, "loss": "high"}], "loss in the training curve is 'high'")],
)
def test_rows_that_cannot_be_drawn_are_refused(rows, says):
    with pytest.raises(ValueError, match=says):
        panels(rows)
