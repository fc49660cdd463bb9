"""Winoground: its file, the three scores by hand, and groups by tag."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dualenc.evaluate.composition.winoground import (
    PREFIX,
    Quad,
    evaluate_winoground,
    image_names,
    read_winoground,
    winoground_right,
)
from tests.evaluate.conftest import ConstantEncoder

LINE = {
    "id": 0, "image_0": "ex_0_img_0", "image_1": "ex_0_img_1", "caption_0": "a mug in grass", "caption_1": "grass in a mug",
    "tag": "Noun", "secondary_tag": "", "num_main_preds": 1, "collapsed_tag": "Object",
}  # fmt: skip
NAMES = ("text_score", "image_score", "group_score")


def test_the_layout_on_hugging_face(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "examples.jsonl").write_text(json.dumps(LINE) + "\n\n" + json.dumps(LINE | {"id": 1}) + "\n")
    quads = read_winoground(tmp_path)
    assert quads == read_winoground(tmp_path / "data") == read_winoground(tmp_path / "data" / "examples.jsonl")
    assert len(quads) == 2 and quads[1].images == ("ex_0_img_0", "ex_0_img_1")
    assert quads[0].captions == ("a mug in grass", "grass in a mug")
    assert quads[1].tags == {
        "id": 1,
        "tag": "Noun",
        "secondary_tag": "",
        "num_main_preds": 1,
        "collapsed_tag": "Object",
    }
    assert image_names(quads) == ["ex_0_img_0", "ex_0_img_1"]


@pytest.mark.parametrize("line", ["{", "[]", "3", json.dumps(LINE | {"caption_1": ""}), json.dumps({"image_0": "a"})])
def test_a_line_that_is_no_example_is_named(tmp_path, line):
    (tmp_path / "examples.jsonl").write_text(json.dumps(LINE) + "\n" + line + "\n")
    with pytest.raises(ValueError, match=r"examples\.jsonl, line 2 is no JSON object with the texts image_0"):
        read_winoground(tmp_path)


def test_what_is_not_there_says_where_it_is_had(tmp_path):
    with pytest.raises(FileNotFoundError, match="facebook/winoground"):
        read_winoground(tmp_path)
    (tmp_path / "examples.jsonl").write_text("\n")
    with pytest.raises(ValueError, match="holds no examples"):
        read_winoground(tmp_path)


@pytest.mark.parametrize(
    ("scores", "right"),  # scores[caption][image]
    [
        ([[0.9, 0.1], [0.2, 0.8]], (True, True, True)),
        ([[0.9, 0.1], [0.2, 0.15]], (True, False, False)),  # caption 1 prefers image 0
        ([[0.9, 0.1], [0.95, 0.99]], (False, True, False)),  # image 0 prefers caption 1
        ([[0.1, 0.9], [0.8, 0.2]], (False, False, False)),
        ([[0.5, 0.5], [0.2, 0.8]], (True, False, False)),  # caption 0: a tie
        ([[0.5, 0.1], [0.5, 0.8]], (False, True, False)),  # image 0: a tie
        ([[0.5, 0.5], [0.5, 0.5]], (False, False, False)),
    ],
)
def test_scores_by_hand(scores, right):
    assert tuple(bool(found[0]) for found in winoground_right([scores]).values()) == right


@given(st.lists(st.lists(st.integers(-2, 2), min_size=4, max_size=4), min_size=1, max_size=20))
def test_scores_by_brute_force(values):
    """A permutation of captions (or of images) is right when it is the only best one on every side, spelled out."""
    scores = np.array(values, float).reshape(-1, 2, 2)
    found = winoground_right(scores)
    for n, score in enumerate(scores):
        text = all(score[i, i] > score[c, i] for i in range(2) for c in range(2) if c != i)
        image = all(score[c, c] > score[c, i] for c in range(2) for i in range(2) if c != i)
        assert [bool(found[name][n]) for name in NAMES] == [text, image, text and image]


def test_chance_is_what_random_scores_get():
    right = winoground_right(np.random.default_rng(0).standard_normal((200_000, 2, 2)))
    assert [right[name].mean() for name in NAMES] == pytest.approx([1 / 4, 1 / 4, 1 / 6], abs=0.004)


@pytest.mark.parametrize(
    "scores", [np.zeros((2, 2)), np.zeros((0, 2, 2)), np.full((1, 2, 2), np.nan), np.zeros((1, 2, 3))]
)
def test_other_shapes_and_nan_are_refused(scores):
    with pytest.raises(ValueError, match="give \\(examples, 2 captions, 2 images\\)"):
        winoground_right(scores)


def quads_of(texts, **tags):
    """Example n: images k{2n}, k{2n+1} with the texts 2n, 2n+1."""
    return [
        Quad((f"k{2 * n}", f"k{2 * n + 1}.png"), (texts[2 * n], texts[2 * n + 1]), {k: v[n] for k, v in tags.items()})
        for n in range(len(texts) // 2)
    ]


TEXTS = ["cat chases dog", "dog chases cat", "red one", "blue two", "tall three", "low four", "six seven", "eight nine"]


def test_report_and_page(encoder, samples):
    data = samples([[text] for text in TEXTS])
    data.images[[4, 5]] = data.images[[5, 4]]  # the third example's images change places: all wrong
    tags = {
        "collapsed_tag": ["Object", "Both", "Object", "Both"],
        "secondary_tag": ["", "", None, ""],
        "extra": [1, 1, 2, 2],
    }
    quads = quads_of(TEXTS, **tags)
    report, section = evaluate_winoground(encoder, data, quads)
    # The first example's captions have the same words: to a bag of words a tie everywhere.
    assert [report[f"{PREFIX}/{name}"] for name in NAMES] == [0.5, 0.5, 0.5] and report[f"{PREFIX}/count"] == 4
    assert [report[f"{PREFIX}/{name}/chance"] for name in NAMES] == [1 / 4, 1 / 4, 1 / 6]
    assert 0 <= report[f"{PREFIX}/text_score/low"] < 0.5 < report[f"{PREFIX}/text_score/high"] <= 1
    assert report[f"{PREFIX}/by/collapsed_tag/Object/group_score"] == 0.0
    assert report[f"{PREFIX}/by/collapsed_tag/Both/group_score"] == 1.0
    assert report[f"{PREFIX}/by/collapsed_tag/gap/group_score"] == 1.0
    assert report[f"{PREFIX}/by/collapsed_tag/worst_group/text_score"] == "Object"
    assert not any(
        "secondary_tag" in key or "extra" in key for key in report
    )  # a tag that no example has; none of ours
    assert len(encoder.calls[-1]) == 8
    assert [headline.label for headline in section.headlines] == ["Text score", "Image score", "Group score"]
    rows = section.examples[0].rows
    assert len(rows) == 8 and [row.found for row in rows[:4]] == [True] * 4 and not any(row.found for row in rows[4:])
    assert all([item.right for item in row.items] == [row.found, not row.found] for row in rows)
    assert {row.note for row in rows[4:]} == {"a tie", "prefers the other caption"}
    other, _ = evaluate_winoground(encoder, data, quads, by=["extra"], bootstrap=0)
    assert other[f"{PREFIX}/by/extra/1/text_score"] == 0.5 and not any(key.endswith("/low") for key in other)


def test_which_score_is_which(encoder, samples):
    """Against scores made pair by pair, with rows for which text and image score differ."""
    texts = [f"w{i} v{i}" for i in range(60)]
    data = samples([[text] for text in texts])
    data.images[:] = data.images + np.random.default_rng(0).standard_normal(data.images.shape) * 1.5
    quads = quads_of(texts)
    report, _ = evaluate_winoground(encoder, data, quads, bootstrap=0)
    right = {"text_score": 0, "image_score": 0}
    for n, quad in enumerate(quads):
        (c0, c1), i0, i1 = encoder.embed_texts(quad.captions), data.images[2 * n], data.images[2 * n + 1]
        right["text_score"] += c0 @ i0 > c1 @ i0 and c1 @ i1 > c0 @ i1
        right["image_score"] += c0 @ i0 > c0 @ i1 and c1 @ i1 > c1 @ i0
    assert right["text_score"] != right["image_score"]
    assert {name: report[f"{PREFIX}/{name}"] for name in right} == {name: count / 30 for name, count in right.items()}


def test_the_order_of_examples_and_of_the_two_changes_nothing(encoder, samples):
    data = samples([[text] for text in TEXTS])
    rng = np.random.default_rng(1)
    data.images[:] = data.images + rng.standard_normal(data.images.shape)
    quads = quads_of(TEXTS)
    turned = [Quad(quad.images[::-1], quad.captions[::-1], {}) for quad in quads[::-1]]
    scores = [
        {n: evaluate_winoground(encoder, data, some)[0][f"{PREFIX}/{n}"] for n in NAMES} for some in (quads, turned)
    ]
    assert scores[0] == scores[1]


def test_refused(encoder, samples):
    data = samples([[text] for text in TEXTS[:2]])
    with pytest.raises(
        FileNotFoundError, match=r"6 of 8 images are not in --data.*\(k2, k3\.png, k4 and 3 more\).*accept"
    ):
        evaluate_winoground(encoder, data, quads_of(TEXTS))
    with pytest.raises(ValueError, match="no example has the field 'x' to group by; they have tag"):
        evaluate_winoground(encoder, data, quads_of(TEXTS[:2], tag=["Noun"]), by=["x"])
    data.images[0, 0] = np.inf
    with pytest.raises(ValueError, match="NaN or infinity"):
        evaluate_winoground(encoder, data, quads_of(TEXTS[:2]))


def test_a_collapsed_encoder_gets_nothing(samples):
    data = samples([[text] for text in TEXTS])
    data.images[:] = ConstantEncoder.dim**-0.5
    report, _ = evaluate_winoground(ConstantEncoder(), data, quads_of(TEXTS))
    assert [report[f"{PREFIX}/{name}"] for name in NAMES] == [0.0, 0.0, 0.0]


def test_one_example_has_no_interval(encoder, samples):
    quads = [Quad(("k0", "k1"), (TEXTS[2], TEXTS[3]), {})]
    report, _ = evaluate_winoground(encoder, samples([[text] for text in TEXTS[2:4]]), quads)
    assert report[f"{PREFIX}/group_score"] == 1.0 and f"{PREFIX}/group_score/low" not in report


def test_a_file_that_is_not_utf_8_is_refused(tmp_path):
    (tmp_path / "examples.jsonl").write_bytes(
        json.dumps(LINE, ensure_ascii=False).replace("mug", "m\xfcg").encode("latin-1")
    )
    with pytest.raises(ValueError, match=r"examples.jsonl is not UTF-8 .* at byte"):
        read_winoground(tmp_path)
