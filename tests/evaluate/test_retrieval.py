"""Retrieval on embedded samples: the report's keys, chance, and examples that agree with the ranks."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pytest

from dualenc.evaluate.metrics import retrieval_metrics, retrieval_ranks
from dualenc.evaluate.rank_intervals import rank_intervals
from dualenc.evaluate.retrieval import SHOWN, evaluate_retrieval, same_images
from dualenc.evaluate.sections import Picture, Share

WORDS = ["red circle", "blue square", "green star", "black ring", "pink cross", "large moon", "tiny sun", "old hat"]


def test_report_holds_the_metrics_their_chance_and_the_sizes(encoder, samples):
    data = samples([[word, f"a picture with {word}"] for word in WORDS])
    report, section = evaluate_retrieval(encoder, data, ks=(1, 3), bootstrap=0)
    metrics = retrieval_metrics(data.images, data.texts, data.image_row, ks=(1, 3))
    assert report == {
        **metrics,
        "text_to_image/recall@1/chance": 1 / 8,
        "text_to_image/recall@3/chance": 3 / 8,
        "image_to_text/recall@1/chance": 1 / 8,
        "image_to_text/recall@3/chance": pytest.approx(1 - 14 * 13 * 12 / (16 * 15 * 14)),
        "text_to_image/queries": 16,
        "text_to_image/gallery": 8,
        "image_to_text/queries": 8,
        "image_to_text/gallery": 16,
    }
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert [headline.label for headline in section.headlines] == [
        "Text → image R@1",
        "Text → image R@3",
        "Image → text R@1",
    ]
    assert section.headlines[0].share.value == metrics["text_to_image/recall@1"]


def half_right(samples):
    """40 images with two captions each: a fifth of the images have another one's place."""
    data = samples([[f"word{i} other{i}", f"word{i} more{i}"] for i in range(40)], light=["day", "night"] * 20)
    data.images[:8] = data.images[[1, 2, 3, 4, 5, 6, 7, 0]]
    return data


def test_every_number_has_its_interval(encoder, samples):
    data = half_right(samples)
    report, section = evaluate_retrieval(encoder, data, ks=(1, 5), bootstrap=200, seed=3)
    ranks = retrieval_ranks(data.images, data.texts, data.image_row)
    owner = {"text_to_image": data.image_row, "image_to_text": np.arange(40)}
    expected = rank_intervals(ranks, owner, (1, 5), 200, 3)
    assert len(expected) == 8
    for name, (low, high) in expected.items():
        assert (report[f"{name}/low"], report[f"{name}/high"]) == (low, high)
        assert low <= report[name] <= high
    assert report["text_to_image/recall@1/low"] < report["text_to_image/recall@1/high"]
    cells = [cell for row in section.tables[0].rows for cell in row if isinstance(cell, Share)]
    assert [cell.interval for cell in cells[:2]] == [
        expected["text_to_image/recall@1"],
        expected["image_to_text/recall@1"],
    ]
    assert section.headlines[0].share == cells[0]
    low, high = expected["text_to_image/mean_rank"]
    assert section.tables[0].rows[2][1] == f"{report['text_to_image/mean_rank']:.1f} [{low:.1f},\u00a0{high:.1f}]"
    assert "200 draws of images" in section.tables[0].note
    plain, bare = evaluate_retrieval(encoder, data, ks=(1, 5), bootstrap=0)
    assert not [key for key in plain if key.endswith(("/low", "/high"))]
    assert plain.items() <= report.items()
    assert bare.headlines[0].share.interval is None and "draws" not in bare.tables[0].note


def test_one_image_has_no_interval(encoder, samples):
    report, _ = evaluate_retrieval(encoder, samples([["one", "two"]]), ks=(1,))
    assert report["image_to_text/recall@1"] == 1.0
    assert not [key for key in report if key.endswith("/low")]


def test_by_group_a_caption_belongs_to_its_images_group(encoder, samples):
    data = half_right(samples)
    report, section = evaluate_retrieval(encoder, data, ks=(1, 5), bootstrap=50, by=["light", "key"])
    night = [bool(i % 2) for i in range(40)]
    ranks = retrieval_ranks(data.images, data.texts, data.image_row)
    of_text = np.array(night)[data.image_row]
    assert report["by/light/night/count"] == 20
    for k in (1, 5):
        hit = (ranks["text_to_image"] < k)[of_text].mean()
        assert report[f"by/light/night/text_to_image/recall@{k}"] == pytest.approx(hit)
    mean = (ranks["image_to_text"] + 1)[~np.array(night)].mean()
    assert report["by/light/day/image_to_text/mean_rank"] == pytest.approx(mean)
    median = np.median((ranks["text_to_image"] + 1)[of_text])
    assert report["by/light/night/text_to_image/median_rank"] == median
    assert {"by/light/gap/text_to_image/median_rank/p", "by/light/day/text_to_image/median_rank/low"} <= report.keys()
    both = [report[f"by/light/{name}/text_to_image/mean_rank"] for name in ("day", "night")]
    assert report["by/light/worst/text_to_image/mean_rank"] == max(both)  # a high rank is a bad one
    assert report["by/light/gap/text_to_image/mean_rank"] == pytest.approx(abs(both[0] - both[1]))
    assert {"by/light/gap/image_to_text/recall@1/low", "by/light/day/image_to_text/recall@5/high"} <= report.keys()
    assert [table.columns for table in section.tables[1:3]] == [
        ["light", "Images", "Text → image R@1", "R@5", "Mean rank", "Median rank"],
        ["light", "Images", "Image → text R@1", "R@5", "Mean rank", "Median rank"],
    ]
    assert report["by/key/k3/count"] == 1 and report["by/key/gap/text_to_image/recall@1"] is None
    assert json.loads(json.dumps(report, allow_nan=False)) == report


def test_images_that_share_a_value_share_their_captions(encoder, samples):
    data = samples([[word] for word in WORDS], scene=["a", "a", None, None, "b", "b", "c", "d"])
    data.images[[0, 1]] = data.images[[1, 0]]  # images 0 and 1 stand in each other's place, and show the same
    data.images[[4, 6]] = data.images[[6, 4]]  # 4 and 6 do not
    alone, _ = evaluate_retrieval(encoder, data, ks=(1,))
    report, section = evaluate_retrieval(encoder, data, ks=(1,), same="scene", examples=8)
    assert alone["text_to_image/recall@1"] == 4 / 8
    assert report["text_to_image/recall@1"] == report["image_to_text/recall@1"] == 6 / 8
    assert report["text_to_image/recall@1/chance"] == pytest.approx((4 * 2 + 4) / 8 / 8)
    assert section.about.endswith("Images with the same scene are right for each other's captions.")
    shown = next(row for row in section.examples[0].rows if row.query.text == WORDS[0])
    assert shown.found and shown.items[0].right and shown.items[0].text == WORDS[1]
    assert same_images(data, "scene").tolist() == [0, 0, -1, -1, 1, 1, 2, 3]


def test_same_images_are_those_of_one_value_not_of_one_printed_name(encoder, samples):
    ids = [1234567890.0 + i // 2 for i in range(7)] + [None]  # whole numbers with a null, as pandas gives them
    data = samples([[word] for word in WORDS], scene=ids, tenth=[0.1, 0.1 + 1e-9, 0.1, float("nan"), 1, 2, 3, 4])
    assert same_images(data, "scene").tolist() == [0, 0, 1, 1, 2, 2, 3, -1]
    assert same_images(data, "tenth").tolist() == [0, 1, 0, -1, 2, 3, 4, 5]


def test_copies_declared_the_same_are_drawn_together(encoder, samples):
    """Each image twice, and said so: nothing is surer than with each once; they are declared in no other way."""
    once = half_right(samples)
    twice = samples(
        [[f"word{i} other{i}", f"word{i} more{i}"] for i in range(40) for _ in range(2)], light=["day"] * 80
    )
    twice.images = np.repeat(once.images, 2, axis=0)
    twice.metadata = twice.metadata.append_column("copy", pa.array(np.repeat(np.arange(40), 2)))
    alone, _ = evaluate_retrieval(encoder, once, ks=(1,), by=["light"], bootstrap=100)
    report, section = evaluate_retrieval(encoder, twice, ks=(1,), by=["light"], same="copy", bootstrap=100)
    for end in ("", "/low", "/high"):
        assert report[f"text_to_image/recall@1{end}"] == pytest.approx(alone[f"text_to_image/recall@1{end}"])
    assert report["by/light/day/count"] == 40
    assert "with the same copy together, as queries; the gallery stays whole" in section.tables[0].note
    assert [table.columns[1] for table in section.tables[1:]] == ["Different images"] * 2
    assert evaluate_retrieval(encoder, once, ks=(1,), by=["light"], bootstrap=0)[1].tables[1].columns[1] == "Images"


def test_ranks_that_the_caller_has_are_not_counted_again(encoder, samples, monkeypatch):
    data = half_right(samples)
    expected = evaluate_retrieval(encoder, data)
    ranks = retrieval_ranks(data.images, data.texts, data.image_row)
    monkeypatch.setattr("dualenc.evaluate.retrieval.ranks_both_ways", None)
    assert evaluate_retrieval(encoder, data, ranks=ranks) == expected
    with pytest.raises(ValueError, match="the ranks are of other data"):
        evaluate_retrieval(encoder, data, ranks={"text_to_image": ranks["text_to_image"][1:], "image_to_text": []})


@pytest.mark.parametrize("option", [{"by": ["colour"]}, {"same": "colour"}])
def test_a_column_that_is_not_there_is_refused(encoder, samples, option):
    with pytest.raises(ValueError, match="no column 'colour' to group by; it has key, caption"):
        evaluate_retrieval(encoder, samples([[word] for word in WORDS]), ks=(1,), **option)


def test_an_image_without_a_caption_and_rows_that_are_not_finite_are_refused(encoder, samples):
    data = samples([[word] for word in WORDS])
    data.texts, data.image_row = data.texts[:7], data.image_row[:7]
    with pytest.raises(ValueError, match="image row 7 has no text"):
        evaluate_retrieval(encoder, data, ks=(1,))
    data = samples([[word] for word in WORDS])
    data.texts[3, 0] = np.nan
    with pytest.raises(ValueError, match="1 of 8 rows of texts hold NaN"):
        evaluate_retrieval(encoder, data, ks=(1,))


def test_examples_show_hits_best_first_with_the_right_ones_marked(encoder, samples):
    data = samples([[word] for word in WORDS])
    data.images[[0, 1]] = data.images[[1, 0]]  # two images stand in each other's place
    _, section = evaluate_retrieval(encoder, data, ks=(1,), examples=10)
    to_image, to_text = section.examples
    assert [row.found for row in to_image.rows] == [True] * 6 + [False] * 2
    for row in to_image.rows:
        scores = [float(item.note.split()[0]) for item in row.items]
        assert len(row.items) == SHOWN
        assert scores == sorted(scores, reverse=True)
        assert row.items[0].right is row.found
        assert all(isinstance(item.picture, Picture) for item in row.items)
        assert [item.text == row.query.text for item in row.items] == [bool(item.right) for item in row.items]
    assert to_text.rows[0].query.picture is not None
    assert to_text.rows[0].items[0].picture is None


def test_a_missed_query_shows_its_right_answer_however_far_down(encoder, samples):
    data = samples([[word] for word in WORDS])
    data.images[0] = -data.texts[0]  # nothing lies farther from text 0
    _, section = evaluate_retrieval(encoder, data, ks=(1,), examples=8)
    missed = next(row for row in section.examples[0].rows if row.query.text == WORDS[0])
    assert missed.note == "right one at place 8"
    assert [item.right for item in missed.items] == [False] * (SHOWN - 1) + [True]
    assert missed.items[-1].note == "-1.000 · place\u00a08"


def test_of_equal_scores_the_wrong_one_is_shown_first(constant_encoder, samples):
    data = samples([[word] for word in WORDS])
    data.images[:] = data.texts[:] = constant_encoder.embed_texts(["x"])
    report, section = evaluate_retrieval(constant_encoder, data, ks=(1,))
    assert report["text_to_image/recall@1"] == 0.0
    assert not any(row.items[0].right for part in section.examples for row in part.rows)


def test_examples_are_drawn_by_the_seed_and_may_be_none(encoder, samples):
    data = samples([[f"word{i} other{i}"] for i in range(40)])
    drawn = [evaluate_retrieval(encoder, data, examples=3, seed=seed)[1].examples[0].rows for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert len(drawn[0]) == 3
    assert evaluate_retrieval(encoder, data, examples=0)[1].examples == []


def test_images_whose_place_is_unknown_are_shown_without_one(encoder, samples):
    data = samples([[word] for word in WORDS])
    data.metadata = data.metadata.drop_columns(["image_path", "image_offset", "image_size", "caption"])
    _, section = evaluate_retrieval(encoder, data, ks=(1,))
    item = section.examples[0].rows[0].items[0]
    assert item.picture is None
    assert item.has_picture
    assert item.text.startswith("k")


def test_another_encoders_embeddings_are_refused(encoder, samples):
    data = samples([[word] for word in WORDS])
    data.images = np.ones((8, 7), np.float32)
    with pytest.raises(ValueError, match="7 values a row, this encoder makes 32"):
        evaluate_retrieval(encoder, data)


def test_a_k_above_the_gallery_is_refused(encoder, samples):
    with pytest.raises(ValueError, match="k is 10, but the gallery has only 8"):
        evaluate_retrieval(encoder, samples([[word] for word in WORDS]))


def test_images_of_which_none_are_the_same_are_refused(encoder, samples):
    data = samples([["a"], ["b"]], place=["here", "there"])
    with pytest.raises(ValueError, match="no two images share a place"):
        same_images(data, "place")
