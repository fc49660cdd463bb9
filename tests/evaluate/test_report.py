"""report.json and report.html: standard, whole, self-contained, escaped, and with nothing where there is no data."""

from __future__ import annotations

import base64
import doctest
import io
import json
import re
from html.parser import HTMLParser

import pytest
from PIL import Image

from dualenc.evaluate.composition.swaps import evaluate_composition
from dualenc.evaluate.intervals import Interval
from dualenc.evaluate.page import words as spoken
from dualenc.evaluate.page.report import FOLD, thumbnail, write_report
from dualenc.evaluate.page.words import bar, flat, interval, number, numeric, percent, values
from dualenc.evaluate.retrieval import evaluate_retrieval
from dualenc.evaluate.sections import Example, Examples, Headline, Item, Panel, Picture, Section, Share, Table
from dualenc.evaluate.zeroshot.zeroshot import evaluate_zeroshot
from tests.evaluate.everything import everything

EVIL = "<script>alert('x')</script> & \"quotes\""


class Page(HTMLParser):
    """Tags, attributes and text of a page; fails on a tag that is closed out of order."""

    VOID = ("meta", "img", "br", "link")

    def __init__(self, html):
        super().__init__()
        self.tags, self.words, self._open = [], [], []
        self.feed(html)
        assert self._open == [], f"never closed: {self._open}"

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if self._open and self._open[-1] not in ("style", "script"):
            self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def written(out):
    return json.loads((out / "report.json").read_text()), Page((out / "report.html").read_text())


@pytest.fixture
def whole(encoder, samples, tmp_path):
    """A page with all there is: retrieval, two classifications, composition, a curve, provenance."""
    texts = ["red circle", "blue square", "green star", "red square", "blue star", "green circle", "red star"]
    data = samples(
        [[text, f"picture of {text}"] for text in texts],
        label=[0, 1, 2, 0, 1, 2, 1],
        swap_attribute=["blue circle"] * 7,
        swap_relation=["x"] * 7,
    )
    data.images[[0, 1]] = data.images[[1, 0]]  # two that cannot be found
    report, sections = {}, []
    for part in (
        evaluate_retrieval(encoder, data, ks=(1, 5)),
        evaluate_zeroshot(
            encoder, data, ["red", "blue", "green"], ["{}"], name="zeroshot/colour", title="Zero-shot colour"
        ),
        evaluate_zeroshot(encoder, data, ["red", "blue", "green"], ["a {}"], name="zeroshot/again", title="Again"),
        evaluate_composition(encoder, data),
    ):
        report |= part[0]
        sections.append(part[1])
    curve = [{"step": s, "train/loss": 5 - s, "val/text_to_image/recall@1": s / 10} for s in range(4)]
    provenance = {"command": "dualenc eval retrieval", "seed": 0, "versions": {"torch": "2.13.0", "faiss": None}}
    path = write_report(tmp_path / "out", report, sections, curve, provenance, "All of it")
    assert path == tmp_path / "out" / "report.html"
    return report, *written(tmp_path / "out")


def test_json_holds_every_number_and_the_provenance_flat(whole):
    report, saved, _ = whole
    assert saved == {
        **report,
        "provenance/command": "dualenc eval retrieval",
        "provenance/seed": 0,
        "provenance/versions/torch": "2.13.0",
        "provenance/versions/faiss": None,
    }


def test_page_shows_every_evaluation(whole):
    report, _, page = whole
    for words in (
        "All of it", "Text → image R@1", "Zero-shot colour", "Again", "Swapped relation", "Loss", "Validation, %",
        "Image → text: examples", "chance", "versions", "torch 2.13.0", "dualenc eval retrieval", "Mean rank",
    ):  # fmt: skip
        assert words in page.text, words
    assert percent(report["text_to_image/recall@1"]) in "".join(page.words)
    assert len(page.all("svg")) == len(page.all("figure")) >= 2
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = {a["href"] for a in page.all("a")}
    assert targets and targets <= {f"#{name}" for name in ids}


def test_page_is_one_file_for_light_dark_and_phone(whole, tmp_path):
    _, _, page = whole
    html = (tmp_path / "out" / "report.html").read_text()
    assert page.all("script") == page.all("iframe") == []
    assert page.all("link") == [{"rel": "icon", "href": "data:,"}]  # or a browser asks for /favicon.ico
    sources = [image["src"] for image in page.all("img")]
    assert len(sources) > 10
    assert all(source.startswith("data:image/jpeg;base64,") for source in sources)
    assert not re.search(r"(src|href)=\"(?!data:|#)", html)
    assert "url(http" not in html
    assert "@import" not in html
    assert "prefers-color-scheme: dark" in html
    assert any(meta.get("name") == "viewport" for meta in page.all("meta"))


def test_right_and_wrong_are_told_by_more_than_colour(whole):
    _, _, page = whole
    marks = [attributes["aria-label"] for attributes in page.all("span") if attributes.get("class") == "mark"]
    assert set(marks) == {"right", "wrong"}
    assert "".join(page.words).count("✓") >= marks.count("right") > 0
    assert "".join(page.words).count("✗") >= marks.count("wrong") > 0
    assert "✓ found first" in page.text
    assert "✗ right one at place" in page.text


def test_thumbnails_are_the_images(whole, tmp_path):
    _, _, page = whole
    data = base64.b64decode(page.all("img")[0]["src"].split(",", 1)[1])
    image = Image.open(io.BytesIO(data))
    assert image.format == "JPEG"
    assert image.size == (40, 30)
    assert abs(image.getpixel((5, 5))[2] - 160) < 8


def test_a_large_image_is_made_small_and_a_lost_one_is_said(tmp_path):
    path = tmp_path / "big.png"
    Image.new("RGB", (1000, 500), "red").save(path)
    size = path.stat().st_size
    image = Image.open(io.BytesIO(base64.b64decode(thumbnail(Picture(str(path), 0, size)).split(",", 1)[1])))
    assert image.size == (224, 112)
    for lost in (Picture(str(tmp_path / "gone.png"), 0, 9), Picture(str(path), 0, 20), Picture(str(path), size, 10)):
        assert thumbnail(lost) is None
    item = Item("a boat", Picture(str(tmp_path / "gone.png"), 0, 9), True, right=True)
    section = Section("T", "a", examples=[Examples("e", "", [Example(item, [item], True, "found")])])
    write_report(tmp_path / "out", {}, [section])
    _, page = written(tmp_path / "out")
    assert page.text.count("picture not readable") == 2


def test_text_from_data_is_escaped_everywhere(tmp_path):
    item = Item(EVIL, right=False, note=EVIL)
    picture = Item(EVIL, None, True)
    section = Section(
        EVIL,
        EVIL,
        [Headline(EVIL, Share(0.5, 0.1), EVIL)],
        [Table([EVIL], [[EVIL, Share(0.5)]], EVIL)],
        [Examples(EVIL, EVIL, [Example(item, [picture], True, EVIL), Example(picture, [item], False, EVIL)])],
    )
    write_report(tmp_path, {EVIL: EVIL}, [section, section], [{"step": 1, f"loss {EVIL}": 1.0}], {EVIL: EVIL}, EVIL)
    _, page = written(tmp_path)
    assert page.all("script") == []
    assert page.text.count("alert('x')") >= 20
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)


def test_sections_without_data_are_absent(tmp_path):
    write_report(tmp_path, {}, title="Nothing")
    saved, page = written(tmp_path)
    assert saved == {}
    assert page.text.endswith("Nothing")
    assert page.all("section") == page.all("nav") == page.all("table") == page.all("svg") == []


def test_numbers_alone_make_a_page(tmp_path):
    write_report(tmp_path, {"text_to_image/recall@1": 0.71, "zeroshot/acc5": None})
    saved, page = written(tmp_path)
    assert saved == {"text_to_image/recall@1": 0.71, "zeroshot/acc5": None}
    assert "All 2 values of report.json" in page.text
    assert "0.7100" in page.text


@pytest.mark.parametrize("value", [float("nan"), float("inf"), [1, 2], {"a": 1}, object()])
def test_what_json_cannot_hold_is_refused_before_anything_is_written(tmp_path, value):
    with pytest.raises(ValueError, match="the report's acc1 is"):
        write_report(tmp_path / "out", {"acc1": value})
    assert not (tmp_path / "out").exists()


def test_a_report_that_fails_leaves_the_old_one(tmp_path):
    write_report(tmp_path, {"acc1": 0.5}, title="old")
    with pytest.raises(ValueError, match="has no step"):
        write_report(tmp_path, {"acc1": 0.6}, curve=[{"loss": 1.0}], title="new")
    saved, page = written(tmp_path)
    assert saved == {"acc1": 0.5}
    assert "old" in page.text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "report.json"]


def test_percent_never_rounds_a_miss_away():
    assert percent(0.99951).startswith("99.9")
    assert percent(0.0001).startswith("0.01")
    assert percent(0.000004).startswith("0.0004")
    assert percent(0.0).startswith("0\u202f")
    assert number(True) == "True"


def test_nested_provenance_becomes_flat_text():
    assert flat({"a": {"b": {"c": 1}}, "d": [1, 2]}) == {"a/b/c": 1, "d": "[1, 2]"}


def test_the_examples_in_the_docstrings_hold():
    result = doctest.testmod(spoken)
    assert result.failed == 0
    assert result.attempted >= 8


def test_a_page_of_everything_is_whole(tmp_path):
    report, sections, curve, provenance = everything(tmp_path)
    write_report(tmp_path / "out", report, sections, curve, provenance, "Everything")
    saved, page = written(tmp_path / "out")  # Page fails on a tag that is not closed, or out of order
    assert saved["provenance/data/sha256"] == provenance["data/sha256"]
    assert len(page.all("svg")) == 7
    assert len(page.all("img")) == 4 * 4 + 3 + 4 + 6 + 2 * 2
    assert page.text.count("picture not readable") == 4
    assert "Nothing" not in page.text  # examples without rows
    assert "صبي صغير يتسلق السلالم في بيت خشبي" in page.text
    ids = [attributes["id"] for name, attributes in page.tags if "id" in attributes and name == "section"]
    assert len(ids) == len(set(ids)) == 5


def test_an_interval_is_a_band_on_the_bar_and_stands_in_words():
    share = Share(0.5, 0.1, Interval(0.4, 0.65))
    assert bar(share) == (50.0, (40.0, 25.0), 10.0)
    assert interval(share) == "[40.0,\u00a065.0]"
    assert interval(Share(0.5)) == interval(Share(0.5, None, Interval(float("nan"), float("nan")))) == ""
    assert bar(Share(0.0, 0.0, Interval(0.0, 0.0))) == (0.0, (0.0, 0.0), 0.0)
    assert bar(Share(1.0, 1.0, Interval(1.0, 1.0))) == (100.0, (100.0, 0.0), 100.0)


def test_a_difference_has_its_sign_and_no_bar(tmp_path):
    share = Share(-0.021, None, Interval(-0.034, 0.001))
    assert bar(share) is None
    assert bar(Share(0.01, None, Interval(-0.02, 0.04))) is None
    assert interval(share) == "[−3.4,\u00a00.1]"
    section = Section("T", "a", [Headline("B less A", share, "of recall@1")], [Table(["d"], [[share]])])
    write_report(tmp_path, {}, [section])
    _, page = written(tmp_path)
    assert page.text.count("−2.1") == 2
    assert not any(attributes.get("class") == "bar" for attributes in page.all("span"))


def test_what_cannot_be_told_is_a_dash(tmp_path):
    table = Table(
        ["Metric", "Value"], [["acc5", Share(None)], ["ece", None], ["rank", 3], ["nan", Share(float("nan"))]]
    )
    write_report(tmp_path, {"acc5": None}, [Section("T", "a", tables=[table])])
    _, page = written(tmp_path)
    cells = page.text
    assert "acc5 – ece – rank 3 nan –" in cells


def test_long_tables_open_at_a_click_and_short_ones_are_there(tmp_path):
    rows = [[f"class {i}", str(i)] for i in range(FOLD + 1)]
    section = Section("T", "a", tables=[Table(["Class", "Images"], rows[:-1]), Table(["Class", "Images"], rows)])
    write_report(tmp_path, {}, [section])
    _, page = written(tmp_path)
    assert len(page.all("details")) == 1
    assert f"Class: {FOLD + 1} rows" in page.text
    assert page.text.count(f"class {FOLD - 1}") == 2  # both hold all of their rows


def test_numbers_stand_at_the_right_and_names_at_the_left():
    table = Table(
        ["", "Images", "Rank", "Share", "Mixed"],
        [["a 1", "1,200", "3.5 [3, 4]", Share(0.5), "12"], ["b", "–", "", Share(0.1), "x"]],
    )
    assert numeric(table) == [False, True, True, False, False]


def test_values_of_one_metric_stand_in_one_line():
    report = {"acc1/chance": 0.1, "acc1": 0.5, "acc1/low": 0.4, "acc1/high": 0.6, "x/low": 1, "acc5": None}
    lines = {line.key: line[1:] for line in values(report)}
    assert lines == {
        "acc1": ("0.5000", "0.4000 – 0.6000", "0.1000"),
        "x/low": ("1", "", ""),
        "acc5": ("–", "", ""),
    }


def test_an_example_may_be_neither_right_nor_wrong(tmp_path):
    item = Item("a boat")
    rows = [Example(item, [], None, "0.031"), Example(item, [], True, "found")]
    write_report(tmp_path, {}, [Section("T", "a", examples=[Examples("e", "", rows)])])
    _, page = written(tmp_path)
    assert "a boat 0.031" in page.text and "✗" not in page.text and "✓ found" in page.text


def test_the_page_forbids_itself_everything_but_its_own_pictures_and_style(whole):
    (policy,) = [meta["content"] for meta in whole[2].all("meta") if "content" in meta and "src" in meta["content"]]
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'unsafe-inline'")


def test_a_figure_is_drawn_as_it_is_and_told_in_words(tmp_path):
    panel = Panel("T <b>", "<svg><text>&lt;i&gt;</text></svg>", 'it says "more" & less')
    write_report(tmp_path, {}, [Section("S", "a", figures=[panel])])
    _, page = written(tmp_path)
    assert page.all("figure")[0]["aria-label"] == 'it says "more" & less'
    assert "T <b>" in page.text and page.all("b") == [] and "<i>" in page.text


def test_the_head_says_of_what_and_when(tmp_path):
    made = {"encoder": "/a/b/c/runs/mine/encoder", "data": "shards", "date": "2026-01-01 00:00:00 UTC"}
    write_report(tmp_path, {}, provenance=made)
    _, page = written(tmp_path)
    assert "…/mine/encoder shards 2026-01-01 00:00:00 UTC" in page.text
    assert page.text.count("/a/b/c/runs/mine/encoder") == 1
