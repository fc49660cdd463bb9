"""The published table and the comparison with it: what agrees, what differs and why, what is not in the table."""

from __future__ import annotations

import doctest

import pytest

from dualenc.evaluate import published as module
from dualenc.evaluate.published import compare_published, published

COCO = {
    "text_to_image/recall@1": 0.3934,
    "text_to_image/recall@5": 0.6543,
    "text_to_image/recall@10": 0.7561,
    "image_to_text/recall@1": 0.5632,
    "image_to_text/recall@5": 0.7984,
    "image_to_text/recall@10": 0.8712,
    "text_to_image/queries": 25010,
    "text_to_image/gallery": 5000,
}
NAME = "ViT-B-32:laion2b_s34b_b79k"


def test_docstring_examples():
    result = doctest.testmod(module)
    assert result.failed == 0 and result.attempted == 1


def test_the_table_is_whole_and_plausible():
    table = published()
    assert len(table["encoders"]) >= 20
    for encoder, numbers in table["encoders"].items():
        name, _, tag = encoder.partition(":")
        assert name and tag
        assert numbers.keys() == table["data"].keys()
        for data, values in numbers.items():
            metrics = table["data"][data]["metrics"]
            assert len(values) == len(metrics) and all(0.2 < value < 1 for value in values)
            if len(metrics) == 6:  # a hit among the first 5 is one among the first 10
                assert values[:3] == sorted(values[:3]) and values[3:] == sorted(values[3:])


@pytest.mark.parametrize(
    ("encoder", "imagenet", "coco"),  # from open_clip's own results, in percent
    [
        ("RN50:openai", 59.82, (28.54, 52.91, 64.59, 48.84, 72.78, 82.12)),
        ("ViT-B-32:laion2b_s34b_b79k", 66.56, (39.34, 65.43, 75.61, 56.32, 79.84, 87.12)),
        ("ViT-L-14:openai", 75.54, (36.51, 61.06, 71.13, 56.34, 79.38, 86.60)),
        ("ViT-B-32:laion400m_e32", 60.24, (34.31, 60.00, 70.54, 52.44, 76.42, 84.54)),
        ("ViT-B-32-quickgelu:laion400m_e32", 62.93, (35.33, 60.89, 71.65, 52.58, 76.72, 84.64)),
    ],
)
def test_rows_that_are_known_by_heart(encoder, imagenet, coco):
    row = published()["encoders"][encoder]
    assert [100 * value for value in row["imagenet"]] == pytest.approx([imagenet])
    assert [100 * value for value in row["coco"]] == pytest.approx(coco)


@pytest.mark.full
def test_the_encoders_are_open_clips():
    pretrained = pytest.importorskip("open_clip.pretrained", reason="its list of tags")
    missing = [name for name in published()["encoders"] if not pretrained.is_pretrained_cfg(*name.split(":"))]
    assert missing == []


def test_equal_numbers_agree():
    report, section = compare_published(COCO, NAME, "coco")
    assert report["published/coco/text_to_image/recall@1"] == 0.3934
    assert report["published/coco/image_to_text/recall@10/difference"] == 0
    assert report["published/coco/agrees"] is True
    assert (report["published/coco/rows"], report["published/coco/differ"]) == (6, 0)
    assert section.about.startswith("All 6 agree within 0.2 points.") and NAME in section.about
    assert [row[4] for row in section.tables[0].rows] == ["agrees"] * 6
    assert section.tables[0].note == ""


def test_two_tenths_of_a_point_agree_and_more_does_not():
    near = COCO | {"text_to_image/recall@1": 0.3934 + 0.002, "text_to_image/recall@5": 0.6543 - 0.002}
    assert compare_published(near, NAME, "coco")[0]["published/coco/agrees"] is True
    far = COCO | {"text_to_image/recall@1": 0.3934 + 0.0021, "image_to_text/recall@10": 0.8712 - 0.03}
    report, section = compare_published(far, NAME, "coco")
    assert report["published/coco/agrees"] is False and report["published/coco/differ"] == 2
    assert report["published/coco/image_to_text/recall@10/difference"] == pytest.approx(-0.03)
    assert "2 of 6 differ by more than 0.2 points: text_to_image/recall@1, image_to_text/recall@10." in section.about
    assert [row[4] for row in section.tables[0].rows] == ["differs", *["agrees"] * 4, "differs"]
    assert section.tables[0].rows[5][3] == "−3.00 points"
    for reason in ("split", "QuickGELU", "AMP"):
        assert reason in section.tables[0].note


def test_another_number_of_samples_is_said():
    _, section = compare_published(COCO | {"text_to_image/queries": 25000}, NAME, "coco")
    assert "text_to_image/queries is 25,000 here, 25,010 there" in section.tables[0].note
    assert "gallery" not in section.tables[0].note


def test_imagenet_is_compared_by_accuracy():
    report, section = compare_published({"zeroshot/acc1": 0.6024}, "ViT-B-32-quickgelu:laion400m_e32", "imagenet")
    assert report["published/imagenet/zeroshot/acc1/difference"] == pytest.approx(-0.0269)
    assert "templates" in section.tables[0].note and "80 templates" in section.about


@pytest.mark.parametrize(
    ("data", "templates"), [("imagenet", 80), ("imagenetv2", 80), ("cifar10", 18), ("cifar100", 18)]
)
def test_other_templates_are_said(data, templates):
    for here, there in ((1, f"zeroshot/templates is 1 here, {templates} there"), (templates, "")):
        _, section = compare_published({"zeroshot/acc1": 0.5, "zeroshot/templates": here}, NAME, data)
        assert there in section.tables[0].note and (" there" in section.tables[0].note) == bool(there)


def test_a_name_as_open_clip_also_takes_it():
    assert compare_published(COCO, "ViT-B/32:laion2B-s34B-b79K", "coco")[0]["published/coco/agrees"]


def test_refused():
    with pytest.raises(ValueError, match=r"'ViT-B-32:mine'; there are some for ViT-B-32:datacomp.*RN50:openai"):
        compare_published(COCO, "ViT-B-32:mine", "coco")
    with pytest.raises(ValueError, match="'runs/demo/encoder'; there are some for RN101:openai, RN50:openai, ViT"):
        compare_published(COCO, "runs/demo/encoder", "coco")
    with pytest.raises(ValueError, match=r"for the data 'mscoco'; there are numbers for imagenet, .*, coco"):
        compare_published(COCO, NAME, "mscoco")
    with pytest.raises(ValueError, match=r"has no zeroshot/acc1.*dualenc eval zeroshot"):
        compare_published(COCO, NAME, "imagenet")
    few = {key: value for key, value in COCO.items() if not key.endswith("@5")}
    with pytest.raises(ValueError, match=r"has no text_to_image/recall@5.*--ks 1,5,10"):
        compare_published(few, NAME, "coco")
