"""The WiSE-FT curve: what is measured of each alpha, which one is chosen, and the page that says so."""

from __future__ import annotations

import json
import re
import shutil
from xml.etree import ElementTree

import pytest
import torch
from test_report import Page

from dualenc.data.shards import open_source
from dualenc.embed.run import embed_source
from dualenc.evaluate.interpolate.interpolate import (
    RECALLS,
    Ends,
    Point,
    Statistics,
    best,
    check_alphas,
    curve,
    encoder_at,
    load_ends,
    open_task,
    score,
)
from dualenc.evaluate.interpolate.plot import name_of, panels
from dualenc.evaluate.interpolate.report import section, values, write
from dualenc.evaluate.page.figure import GRID, INK, LINES
from dualenc.evaluate.retrieval import evaluate_retrieval
from dualenc.evaluate.sections import Share
from dualenc.evaluate.zeroshot.zeroshot import evaluate_zeroshot
from dualenc.model.encoder import DualEncoder
from dualenc.model.folder import fingerprint, save_folder
from dualenc.model.spec import input_spec
from tests.small import COLOURS, loaded, write_shards, write_tar

FAST = {"batch_size": 8, "workers": 0, "accelerator": "cpu"}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Folders of two encoders, (start, tuned), by architecture."""
    root = tmp_path_factory.mktemp("pairs")
    for name in ("vit", "resnet"):
        for seed in (1, 2):
            save_folder(root / name / str(seed), loaded(name, seed=seed))
    return {name: (str(root / name / "1"), str(root / name / "2")) for name in ("vit", "resnet")}


@pytest.fixture(scope="module")
def classed(val_shards, tmp_path_factory):
    """Shards with classes by colour, in CLIP_benchmark's layout."""
    folder = tmp_path_factory.mktemp("classed")
    for path in val_shards.glob("*.tar"):
        shutil.copy(path, folder)
    (folder / "classnames.txt").write_text("\n".join(COLOURS))
    (folder / "zeroshot_classification_templates.txt").write_text("a {c} picture\n")
    return folder


@pytest.fixture(scope="module")
def tasks(shards, classed):
    return [open_task("new", str(shards)), open_task("old", str(classed))]


def points(new, old=None, alphas=None):
    """A curve of given scores."""
    alphas = alphas or [i / (len(new) - 1) for i in range(len(new))]
    roles = {"new": new} | ({"old": old} if old else {})
    made = []
    for i, alpha in enumerate(alphas):
        scores = {role: some[i] for role, some in roles.items()}
        made.append(Point(alpha, scores, {role: {"zeroshot/acc1": value} for role, value in scores.items()}))
    return made


def test_a_task_is_what_its_data_allow(tasks):
    assert [(task.role, task.classes, task.templates) for task in tasks] == [
        ("new", [], []),
        ("old", list(COLOURS), ["a {c} picture"]),
    ]
    assert [task.metric for task in tasks] == ["mean of Recall@1, 5 and 10 both ways", "zero-shot accuracy"]


def test_a_point_is_what_evaluate_says_of_its_encoder(pairs, tasks, shards, classed):
    """At an alpha in between, for both kinds of tasks: the numbers of the encoder embedded and evaluated by itself."""
    ends = load_ends(*pairs["vit"], [0.3])
    (point,) = curve(ends, [0.3], tasks, **FAST)
    encoder = encoder_at(ends, 0.3, device="cpu")
    found = evaluate_retrieval(encoder, embed_source(encoder, open_source(shards), **FAST))[0]
    assert point.metrics["new"] == {name: found[name] for name in RECALLS}
    assert point.scores["new"] == pytest.approx(sum(found[name] for name in RECALLS) / 6)
    embedded = embed_source(encoder, open_source(classed), **FAST)
    report = evaluate_zeroshot(encoder, embedded, list(COLOURS), ["a {c} picture"])[0]
    assert point.scores["old"] == point.metrics["old"]["zeroshot/acc1"] == report["zeroshot/acc1"]
    assert point.mean == pytest.approx((point.scores["new"] + point.scores["old"]) / 2)


def test_the_ends_are_the_two_encoders(pairs):
    ends = load_ends(*pairs["vit"], [0, 1])
    marks = [DualEncoder.load(path, device="cpu").fingerprint for path in pairs["vit"]]
    assert [encoder_at(ends, alpha, device="cpu").fingerprint for alpha in (0, 1)] == marks
    assert [ends.names[role]["fingerprint"] for role in ("start", "tuned")] == marks
    made = encoder_at(ends, 0.5, device="cpu").provenance["interpolated"]
    assert made == {"alpha": 0.5} | ends.names


def test_statistics_are_drawn_from_all_of_the_data_and_always_the_same(pairs, shards):
    source = open_source(shards)
    tuned = loaded("resnet")
    spec = input_spec(tuned.model, tuned.tokenizer)
    drawn = [[batch["key"] for batch in Statistics(source, 2, 5, 0).loaded(spec, "exact")] for _ in range(2)]
    assert drawn[0] == drawn[1]
    assert [len(keys) for keys in drawn[0]] == [5, 5]
    assert max(key for keys in drawn[0] for key in keys) > "s015"  # not the first ten
    assert [len(b["key"]) for b in Statistics(source, 9, 100, 0).loaded(spec, "exact")] == [24]
    ends = load_ends(*pairs["resnet"], [0.5], Statistics(source, 2, 12, 0))
    encoders = [encoder_at(ends, 0.5, device="cpu") for _ in range(2)]
    assert encoders[0].fingerprint == encoders[1].fingerprint
    assert encoders[0].provenance["interpolated"]["statistics"] == {
        "data": str(shards),
        "batches": 2,
        "batch_size": 12,
    }
    state = encoders[0].model.state_dict()
    plain = 0.5 * ends.start.model.state_dict()["visual.bn1.running_mean"]  # both ends': zeros
    assert not torch.allclose(state["visual.bn1.running_mean"], plain, atol=1e-3)


def test_statistics_are_asked_for_before_anything_is_measured(pairs, shards, caplog):
    with pytest.raises(ValueError, match=r"batch norms .*--data SHARDS"):
        load_ends(*pairs["resnet"], [0, 0.5, 1])
    assert load_ends(*pairs["resnet"], [0, 1]).statistics is None
    assert caplog.text == ""
    assert load_ends(*pairs["vit"], [0.5], Statistics(open_source(shards), 2)).statistics is None
    assert "no batch-norm statistics to measure again" in caplog.text


def test_encoders_that_differ_are_refused(pairs):
    with pytest.raises(ValueError, match="differ in their architecture: vision_cfg/layers is 1 and"):
        load_ends(pairs["vit"][0], pairs["resnet"][0], [0.5])


def test_the_mean_decides_and_of_equals_the_nearest_to_the_start():
    some = points([0.2, 0.6, 0.8], [0.9, 0.8, 0.1])
    assert best(some) is some[1]
    assert best(points([0.2, 0.6, 0.8])).alpha == 1.0
    assert best(points([0.2, 0.6, 0.8])).mean == 0.8  # of one task: its score
    tied = points([0.5, 0.75, 0.75, 0.5], [0.5, 0.25, 0.25, 0.5])
    assert best(tied).alpha == 0.0
    assert best(tied[::-1]).alpha == 0.0


def test_a_score_is_one_number_per_task():
    recalls = dict(zip(RECALLS, (0.1, 0.3, 0.5, 0.2, 0.3, 0.4), strict=True))
    assert score(recalls) == pytest.approx(0.3)
    assert score({"zeroshot/acc1": 0.25, "zeroshot/acc5": 1.0}) == 0.25


def test_alphas_are_ordered_and_checked():
    assert check_alphas([1, 0, 0.5, 0.5]) == [0, 0.5, 1]
    for wrong, says in (([0, 1.5], r"alpha 1\.5 lies outside"), ([0.5, 0.5], "two points or more")):
        with pytest.raises(ValueError, match=says):
            check_alphas(wrong)


def test_data_that_cannot_be_measured_are_refused(tmp_path, classed):
    (tmp_path / "store" / "img_emb").mkdir(parents=True)
    with pytest.raises(ValueError, match="is a store, the embeddings of one encoder"):
        open_task("new", str(tmp_path / "store"))
    with pytest.raises(FileNotFoundError, match="nowhere"):
        open_task("new", str(tmp_path / "nowhere"))
    write_shards(tmp_path / "unlabelled", 3, shards=1)
    shutil.copy(classed / "classnames.txt", tmp_path / "unlabelled")
    with pytest.raises(ValueError, match=r"has class names and no KEY\.cls"):
        open_task("new", str(tmp_path / "unlabelled"))
    write_shards(tmp_path / "few", 9)
    with pytest.raises(ValueError, match=r"few: 9 images, so Recall@10"):
        open_task("new", str(tmp_path / "few"))
    write_tar(tmp_path / "mute" / "0.tar", [("a.png", b"x"), ("b.png", b"y")])
    with pytest.raises(ValueError, match=r"neither captions nor classnames\.txt"):
        open_task("new", str(tmp_path / "mute"))


def test_the_report_holds_every_number_flat(tasks, shards, classed):
    some = points([0.2, 0.6, 0.7], [0.9, 0.8, 0.1])
    report = values(some, tasks)
    assert report["best_alpha"] == 0.5
    assert report["best_alpha/chosen_by"] == "the mean of the scores on the new and the old task"
    assert (report["new/data"], report["old/data"]) == (str(shards), str(classed))
    assert report["alpha/0.5/mean"] == pytest.approx(0.7)
    assert report["alpha/0/new/score"] == 0.2
    assert report["alpha/1/old/zeroshot/acc1"] == 0.1
    assert len([key for key in report if key.startswith("alpha/")]) == 3 * 5
    assert values(points([0.2, 0.3]), tasks[:1])["best_alpha/chosen_by"] == "the score on the new task"


def test_the_page_is_whole_and_says_on_which_data_the_choice_was_made(tasks, tmp_path, shards, classed):
    some = points([0.21, 0.6, 0.7], [0.9, 0.8, 0.1])
    path = write(tmp_path / "out", some, tasks, {"command": "dualenc interpolate", "fingerprint": "f" * 64})
    html = path.read_text()
    page = Page(html)  # fails on a tag that is not closed, or out of order
    assert json.loads((tmp_path / "out" / "report.json").read_text())["best_alpha"] == 0.5
    assert f"It was chosen on {shards} and {classed}" in page.text
    for words in ("Between two encoders: α = 0.5", "Score over α, %", "New task against old task, %", "start", "tuned"):
        assert words in page.text, words
    assert len(page.all("svg")) == 2
    figures = [figure["aria-label"] for figure in page.all("figure")]
    assert figures[0] == "Scores at 3 values of α; the best is 0.5, with new task 60.0 %, old task 80.0 %, mean 70.0 %"
    assert "0: new 21.0 %, old 90.0 %" in figures[1]
    assert not re.search(r"(src|href)=\"(?!data:|#)", html)
    assert page.all("script") == []
    assert page.all("link") == [{"rel": "icon", "href": "data:,"}]
    rows = section(some, tasks).tables[0].rows
    assert [row[0] for row in rows] == ["0", "0.5", "1"]
    assert [row[-1] for row in rows] == ["start", "best", "tuned"]
    assert rows[1][1:4] == [Share(0.6), Share(0.8), Share(best(some).mean)]


def test_one_task_has_one_figure_and_no_mean(tasks, tmp_path):
    page = Page(write(tmp_path, points([0.2, 0.5, 0.4]), tasks[:1], {}).read_text())
    assert len(page.all("svg")) == 1
    assert "Old task" not in page.text and "Mean" not in page.text
    assert "by the score on the new task: α = 0.5" in page.text


def test_a_path_cannot_break_out_of_the_page(tasks, tmp_path):
    evil = [tasks[0]._replace(path="<script>alert(1)</script>")]
    page = Page(write(tmp_path, points([0.2, 0.5]), evil, {}).read_text())
    assert page.all("script") == []
    assert page.text.count("alert(1)") >= 2


@pytest.mark.parametrize("count", [2, 11, 41])
def test_figures_are_whole_and_take_the_pages_colours(count):
    new = [0.3 + 0.4 * i / (count - 1) for i in range(count)]
    for panel in panels(points(new, [1 - value for value in new])):
        root = ElementTree.fromstring(panel.svg)
        assert root.tag.endswith("svg") and "width" not in root.attrib
        assert not any(colour in panel.svg for colour in (INK, GRID, *LINES))
        assert {"var(--line-1)", "var(--quiet)", "var(--rule)"} <= set(re.findall(r"var\(--[a-z0-9-]+\)", panel.svg))
        texts = ["".join(node.itertext()) for node in root.iter() if node.tag.endswith("text")]
        assert len(texts) < 40  # not every one of 41 points has its label


def test_alphas_by_name_come_back():
    for alpha in (0, 0.1, 0.30000000000000004, 1 / 3, 1e-9, 0.123456789):
        assert float(name_of(alpha)) == alpha
    assert [name_of(alpha) for alpha in (0.0, 0.25, 1.0)] == ["0", "0.25", "1"]


def test_ends_hold_no_more_than_two_encoders(pairs, tasks):
    """A curve leaves the two ends as they were: what is measured is a copy, one at a time."""
    ends = load_ends(*pairs["vit"], [0, 0.5])
    assert isinstance(ends, Ends)
    list(curve(ends, [0, 0.5], tasks[:1], **FAST))
    for role, one in (("start", ends.start), ("tuned", ends.tuned)):
        assert fingerprint(one.model, one.tokenizer) == ends.names[role]["fingerprint"]
