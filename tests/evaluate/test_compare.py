"""Two encoders on the same queries: matched by name, compared query by query, symmetrical, and said on the page."""

from __future__ import annotations

import doctest
import json

import numpy as np
import pyarrow as pa
import pytest

from dualenc.evaluate.compare import compare, differences
from dualenc.evaluate.compare import figures as compare_figures
from dualenc.evaluate.compare import page as compare_page
from dualenc.evaluate.compare.compare import (
    Outcome,
    aligned,
    class_outcomes,
    compare_outcomes,
    retrieval_outcomes,
    verdict,
)
from dualenc.evaluate.compare.page import Comparison
from dualenc.evaluate.compare.significance import holm, sign_flip_test
from dualenc.evaluate.intervals import mean_intervals
from dualenc.evaluate.metrics import retrieval_metrics, retrieval_ranks
from dualenc.evaluate.page.report import write_report
from dualenc.evaluate.ranks import ranks
from tests.evaluate.test_significance import mcnemar

TIMES, PATTERNS = 100, 499  # draws: enough for what is asked here


def compared(a, b, **more) -> Comparison:
    return compare_page.evaluate_compare(a, b, times=TIMES, patterns=PATTERNS, **more)


def noisy(data, seed, noise):
    """The same samples as another encoder sees them: images further off the more noise."""
    rng = np.random.default_rng(seed)
    rows = data.images + noise * rng.standard_normal(data.images.shape).astype(np.float32) / np.sqrt(32)
    return type(data)(
        (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32),
        data.texts,
        data.image_row,
        data.metadata,
        data.text_metadata,
    )


@pytest.fixture
def pair(samples):
    """(A, B): 60 images of three captions; B is the better one."""
    data = samples([[f"word{i} thing{i} number{j}" for j in range(3)] for i in range(60)])
    return noisy(data, 1, 1.8), noisy(data, 2, 1.3)


def shuffled(data, seed=0):
    """The same data in another order of images and of captions."""
    rng = np.random.default_rng(seed)
    image, text = rng.permutation(len(data.images)), rng.permutation(len(data.texts))
    place = np.argsort(image)  # where an image is now
    return type(data)(
        data.images[image],
        data.texts[text],
        place[data.image_row[text]],
        data.metadata.take(image),
        data.text_metadata.take(text),
    )


def test_docstring_examples():
    for module in (compare, compare_page, compare_figures, differences):
        assert doctest.testmod(module).failed == 0
    assert sum(doctest.testmod(module).attempted for module in (compare_page, compare_figures, differences)) >= 3


def test_values_differences_and_counts_are_those_of_the_queries(pair):
    a, b = pair
    ks = (1, 5)
    report = compared(a, b, ks=ks).report
    each = [retrieval_metrics(some.images, some.texts, some.image_row, ks) for some in pair]
    rank = [retrieval_ranks(some.images, some.texts, some.image_row) for some in pair]
    for way, image in (("text_to_image", a.image_row), ("image_to_text", np.arange(60))):
        for name in ("recall@1", "recall@5", "mean_rank"):
            key = f"{way}/{name}"
            assert report[f"a/{key}"] == pytest.approx(each[0][key]) and report[f"b/{key}"] == pytest.approx(
                each[1][key]
            )
            assert report[f"difference/{key}"] == pytest.approx(each[1][key] - each[0][key])
        hit = [some[way] < 5 for some in rank]
        assert report[f"difference/{way}/recall@5/won"] == (hit[1] & ~hit[0]).sum()
        assert report[f"difference/{way}/recall@5/lost"] == (hit[0] & ~hit[1]).sum()
        assert report[f"difference/{way}/mean_rank/won"] == (rank[1][way] < rank[0][way]).sum()
        change = hit[1].astype(float) - hit[0]
        wanted = mean_intervals(change, image, times=TIMES)[0]
        name = f"difference/{way}/recall@5"
        assert (report[f"{name}/low"], report[f"{name}/high"]) == pytest.approx(wanted)
        assert report[f"{name}/p"] == sign_flip_test(change, image, PATTERNS)
    p = {key.removesuffix("/p"): value for key, value in report.items() if key.endswith("/p")}
    assert len(p) == report["metrics_compared"] == 6
    assert [report[f"{key}/p_holm"] for key in p] == holm(list(p.values()))
    assert report["text_to_image/queries"] == 180 and report["image_to_text/queries"] == 60
    assert json.loads(json.dumps(report, allow_nan=False)) == report


def test_one_caption_an_image_gives_mcnemars_p(samples):
    data = samples([[f"word{i} thing{i}"] for i in range(30)])
    a, b = noisy(data, 5, 1.5), noisy(data, 7, 1.2)
    report = compared(a, b, ks=(1,)).report
    name = "difference/text_to_image/recall@1"
    assert 3 < report[f"{name}/won"] + report[f"{name}/lost"] < 14  # few enough for all sign patterns
    assert report[f"{name}/p"] == pytest.approx(mcnemar(report[f"{name}/won"], report[f"{name}/lost"]))


def test_captions_of_an_image_share_a_sign():
    """What changes from caption to caption of the same images is less sure than the same change in as many images."""
    outcomes = [Outcome("m", "M", np.zeros(60), np.repeat([1.0] * 9 + [-1] * 3, 5), np.repeat(np.arange(12), 5))]
    assert compare_outcomes(outcomes)["difference/m/p"] == pytest.approx(mcnemar(9, 3))


def test_the_other_way_round_only_signs_change(pair):
    forth, back = compared(*pair).report, compared(*pair[::-1]).report
    for key in [key for key in forth if key.startswith("difference/") and key.endswith(("@1", "@5", "@10", "rank"))]:
        assert forth[key] == pytest.approx(-back[key])
        assert forth[f"{key}/low"] == pytest.approx(-back[f"{key}/high"])
        assert forth[f"{key}/p"] == back[f"{key}/p"]
        assert forth[f"{key}/won"] == back[f"{key}/lost"]


def test_the_order_of_the_second_data_does_not_matter(pair):
    a, b = pair
    mixed = shuffled(b)
    same, other = compared(a, b), compared(a, mixed)
    assert same.report == other.report
    assert same.queries.equals(other.queries)
    rows = aligned(a, mixed)
    np.testing.assert_array_equal(rows.images, b.images)
    np.testing.assert_array_equal(rows.texts, b.texts)


def test_an_encoder_against_itself_differs_in_nothing(pair):
    same = compared(pair[0], pair[0])
    for key, value in same.report.items():
        if key.startswith("difference/"):
            assert value == (1.0 if key.endswith(("/p", "/p_holm")) else 0)
    assert "Neither is better in any of 8 metrics" in same.section.about
    assert same.section.examples == [] and same.queries["change"].null_count == 240


def test_every_query_with_both_of_its_ranks(pair):
    a, b = pair
    rows = compared(a, b).queries.to_pylist()
    assert len(rows) == 240
    for i, (rank_a, rank_b) in enumerate(
        zip(*(ranks(some.texts, some.images, some.image_row[:, None]) for some in pair), strict=True)
    ):
        row = rows[i]
        change = "won" if rank_b == 0 < rank_a else "lost" if rank_a == 0 < rank_b else None
        assert row == {
            "way": "text_to_image",
            "query_row": i,
            "key": f"k{i // 3}",
            "text": f"word{i // 3} thing{i // 3} number{i % 3}",
            "rank_a": rank_a + 1,
            "rank_b": rank_b + 1,
            "change": change,
        }
    assert {row["way"] for row in rows[180:]} == {"image_to_text"} and rows[180]["text"] is None
    assert {row["change"] for row in rows} == {"won", "lost", None}


def test_examples_show_what_each_ranked_first(pair):
    section = compared(*pair, examples=3).section
    to_image, to_text = section.examples
    assert [row.found for row in to_image.rows] == [True] * 3 + [False] * 3
    for part in (to_image, to_text):
        for row in part.rows:
            assert [item.note[:2] for item in row.items] == ["A:", "B:"]
            assert [item.right for item in row.items] == [not row.found, row.found]  # one of the two alone is right
            assert row.note.startswith("won: place " if row.found else "lost: place 1 with A")
    assert all(item.has_picture for row in to_image.rows for item in row.items)
    assert all(row.query.has_picture for row in to_text.rows)
    assert compared(*pair, examples=0).section.examples == []
    assert compared(*pair, seed=1).section.examples != compared(*pair).section.examples


def test_the_page_says_who_is_better_and_renders(pair, tmp_path):
    made = compared(*pair, encoders=("runs/a", "runs/b <script>"))
    about, tables = made.section.about, made.section.tables
    assert about.startswith("A is runs/a, B is runs/b") and "180 captions and 60 images" in about
    said = [headline.meaning for headline in made.section.headlines]
    assert all(" p = " in words or " p < " in words for words in said) and all(
        words.endswith(" (Holm)") for words in said
    )
    better = [row[-1] for row in tables[0].rows]
    assert "B" in better and f"B is better in {better.count('B')} of 8 metrics" in about
    assert [row[0] for row in tables[0].rows][3] == "Text → image mean rank"
    for title, row in zip(("Text → image", "Image → text"), tables[1].rows, strict=True):
        assert row[0] == title and sum(int(cell.replace(",", "")) for cell in row[1:]) in (180, 60)
    assert len(made.section.figures) == 2
    page = write_report(tmp_path, made.report, [made.section]).read_text()
    assert "B less A" in page and "<script>" not in page.replace("&lt;script&gt;", "")


def outcome(a, b, **more):
    a, b = np.asarray(a, float), np.asarray(b, float)
    return Outcome("m", "M", a, b, np.arange(len(a)), **more)


def test_the_verdict_needs_holms_p_and_knows_which_way_is_up():
    sure = outcome([0] * 40 + [1] * 10, [1] * 50)
    report = compare_outcomes([sure])
    assert report["difference/m/p_holm"] < 0.001 and verdict(report, sure) == "B"
    assert verdict(report, sure._replace(share=False)) == "A"  # a lower rank is better
    back = compare_outcomes([outcome(sure.b, sure.a)])
    assert verdict(back, sure) == "A"
    near = outcome([0] * 7 + [1] * 43, [1] * 50)  # p = 2/128 alone
    alone = compare_outcomes([near])
    assert alone["difference/m/p"] == pytest.approx(2 / 128) and verdict(alone, near) == "B"
    several = [near, *(outcome([0, 1, 1], [1, 0, 1])._replace(key=f"n{i}") for i in range(4))]
    report = compare_outcomes(several)
    assert report["difference/m/p_holm"] == pytest.approx(5 * 2 / 128) and verdict(report, near) == ""
    assert verdict(compare_outcomes([outcome([1, 1], [1, 1])]), near) == ""


def test_a_metrics_numbers_do_not_depend_on_what_else_is_compared(pair):
    few, many = compared(*pair, ks=(1,)).report, compared(*pair, ks=(1, 2, 3)).report
    for key, value in few.items():
        if not key.endswith("p_holm") and key != "metrics_compared":
            assert many[key] == value


def test_accuracy_of_two_encoders():
    a, b = np.array([0, 0, 6, 1]), np.array([0, 3, 0, 1])
    report = compare_outcomes(class_outcomes(a, b, 10))
    assert (report["a/zeroshot/acc1"], report["b/zeroshot/acc1"]) == (0.5, 0.5)
    assert (report["a/zeroshot/acc5"], report["b/zeroshot/acc5"]) == (0.75, 1.0)
    assert report["difference/zeroshot/acc1/won"] == report["difference/zeroshot/acc1/lost"] == 1
    assert [some.key for some in class_outcomes(a, b, 4, "zeroshot/x")] == ["zeroshot/x/acc1"]


def test_images_declared_the_same_share_captions_and_a_sign(pair):
    a, b = pair
    for data in pair:
        data.metadata = data.metadata.append_column("scene", pa.array([f"{i % 12}" for i in range(60)]))
    alone, made = compared(a, b, ks=(1,)), compared(a, shuffled(b), ks=(1,), same="scene")
    expected = [
        retrieval_metrics(some.images, some.texts, some.image_row, (1,), same=np.arange(60) % 12) for some in pair
    ]
    rank = [retrieval_ranks(some.images, some.texts, some.image_row, same=np.arange(60) % 12) for some in pair]
    for way, scene in (("text_to_image", a.image_row % 12), ("image_to_text", np.arange(60) % 12)):
        key = f"{way}/recall@1"
        assert [made.report[f"{side}/{key}"] for side in "ab"] == pytest.approx([some[key] for some in expected])
        assert made.report[f"a/{key}"] > alone.report[f"a/{key}"]
        change = (rank[1][way] < 1).astype(float) - (rank[0][way] < 1)
        assert made.report[f"difference/{key}/p"] == sign_flip_test(change, scene, PATTERNS)
    for part in made.section.examples:
        for row in part.rows:
            assert [item.right for item in row.items] == [not row.found, row.found]
    assert "Images with the same scene are right for each other's captions" in made.section.about


def test_two_outcomes_of_one_key_are_refused():
    one = class_outcomes(np.array([0, 1]), np.array([0, 0]), 2)
    with pytest.raises(ValueError, match="two outcomes are called zeroshot/acc1"):
        compare_outcomes([*one, *one])


def test_accuracies_are_corrected_together_with_recall(pair):
    more = class_outcomes(np.arange(20) % 2, np.zeros(20, np.int64), 5)
    report = compared(*pair, ks=(1,), more=more).report
    p = [value for key, value in report.items() if key.endswith("/p")]
    assert len(p) == 6 and report["difference/zeroshot/acc1/p_holm"] in holm(p)


def test_queries_are_the_same_or_refused(pair):
    a, b = pair

    def less(data, image):
        keep, kept = np.arange(len(data.images)) != image, data.image_row != image
        return type(data)(
            data.images[keep],
            data.texts[kept],
            data.image_row[kept] - (data.image_row[kept] > image),
            data.metadata.filter(pa.array(keep)),
            data.text_metadata.filter(pa.array(kept)),
        )

    with pytest.raises(ValueError, match="1 of 60 images are only in the data of A, such as 'k7'"):
        compared(a, less(b, 7))
    with pytest.raises(ValueError, match="1 of 60 images are only in the data of B, such as 'k9'"):
        compared(less(a, 9), b)
    said = b.text_metadata["caption"].to_pylist()
    said[4] = "another caption"
    b.text_metadata = b.text_metadata.set_column(1, "caption", pa.array(said))
    with pytest.raises(
        ValueError, match=r"1 of 180 captions are only in the data of A, such as 'word1 .* number1' of 'k1'"
    ):
        compared(a, b)
    b.metadata = b.metadata.set_column(0, "key", pa.array(["k0"] * 60))
    with pytest.raises(ValueError, match="the key 'k0' occurs twice in the data of B \\(59 rows too many\\)"):
        compared(a, b)
    b.metadata = b.metadata.drop_columns(["key"])
    with pytest.raises(ValueError, match="the data of B has no column 'key'"):
        compared(a, b)


def test_a_caption_that_one_has_twice_is_counted(pair):
    a, b = pair
    for data in pair:
        said = data.text_metadata["caption"].to_pylist()
        said[1] = said[0]
        data.text_metadata = data.text_metadata.set_column(1, "caption", pa.array(said))
    mixed = shuffled(b)
    assert len(aligned(a, mixed).texts) == 180
    said[2] = said[0]
    b.text_metadata = b.text_metadata.set_column(1, "caption", pa.array(said))
    with pytest.raises(
        ValueError, match="1 of 180 captions are only in the data of A, such as 'word0 thing0 number2' of"
    ):
        aligned(a, b)


def test_outcomes_of_ranks():
    rank = {"text_to_image": np.array([0, 4, 1]), "image_to_text": np.array([2, 0])}
    found = {some.key: some for some in retrieval_outcomes(rank, rank, np.array([0, 0, 1]), (2,))}
    assert found["text_to_image/recall@2"].a.tolist() == [1, 0, 1]
    assert found["text_to_image/recall@2"].cluster.tolist() == [0, 0, 1]
    assert found["image_to_text/mean_rank"].b.tolist() == [3, 1] and not found["image_to_text/mean_rank"].share
    assert found["image_to_text/recall@2"].cluster.tolist() == [0, 1]
