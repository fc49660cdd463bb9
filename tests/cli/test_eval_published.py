"""`--published`: what is not in the table is told before any work; numbers that differ make the exit code 1."""

from __future__ import annotations

import json
import types

import pytest

from dualenc.cli import main
from dualenc.evaluate import published
from dualenc.model import names
from tests.small import COLOURS, sample, write_tar

CPU = ["--workers", "0", "--accelerator", "cpu", "--batch-size", "32"]
METRICS = [f"{way}/recall@{k}" for way in ("text_to_image", "image_to_text") for k in (1, 5, 10)]


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["retrieval", "--encoder", "ViT-B-32:openai", "--published", "cocos"], "there are numbers for imagenet"),
        (["retrieval", "--encoder", "ViT-B-32:openai", "--published", "imagenet"], "run `dualenc eval zeroshot`"),
        (["zeroshot", "--encoder", "ViT-B-32:openai", "--published", "coco"], "run `dualenc eval retrieval`"),
        (["zeroshot", "--encoder", "ViT-B-32:mine", "--published", "imagenet"], "ViT-B-32:openai"),
    ],
)
def test_refused_before_any_work(words, why, capsys):
    assert main(["eval", *words, "--data", "no-such-folder"]) == 1
    error = capsys.readouterr().err
    assert why in error and error.count("\n") == 1


def test_a_difference_is_shown_and_makes_the_exit_code_1(val_shards, encoder_folder, monkeypatch, capsys):
    words = ["eval", "retrieval", "--encoder", str(encoder_folder), "--data", str(val_shards), "--json", *CPU]
    assert main(words) == 0
    report = json.loads(capsys.readouterr().out)
    sets = {"coco": published.published()["data"]["coco"]}
    assert sets["coco"]["metrics"] == METRICS
    for off, code in ((0.0, 0), (0.003, 1)):
        values = [report[metric] + (off if metric == METRICS[2] else 0) for metric in METRICS]
        table = {"data": sets, "encoders": {str(encoder_folder): {"coco": values}}}
        monkeypatch.setattr(published, "published", lambda table=table: table)
        assert main([*words, "--published", "coco"]) == code
        found = json.loads(capsys.readouterr().out)
        assert found["published/coco/agrees"] is (code == 0) and found["published/coco/differ"] == code
        assert found[f"published/coco/{METRICS[2]}/difference"] == pytest.approx(-off)


def test_a_class_that_the_list_names_twice_costs_nothing_against_what_was_published(
    tmp_path, encoder_folder, monkeypatch, capsys
):
    """As open_clip's ImageNet list, whose argmax takes the first of two equal names."""
    members = [part for i in range(16) for part in sample(f"k{i:02}", list(COLOURS)[i % 8], seed=i, cls=i % 8)]
    write_tar(tmp_path / "0.tar", members)
    monkeypatch.setenv("DUALENC_CLASSIFIERS", "off")
    words = ["eval", "zeroshot", "--encoder", str(encoder_folder), "--data", str(tmp_path), "--json", *CPU]
    assert main([*words, "--classes", ",".join(COLOURS)]) == 0
    once = json.loads(capsys.readouterr().out)["zeroshot/acc1"]
    assert once > 0
    monkeypatch.setattr(names, "_open_clip_sets", lambda: types.SimpleNamespace(IMAGENET_CLASSNAMES=[*COLOURS] * 2))
    monkeypatch.setattr(names, "check_class_names", lambda names, source: names)  # the real list has 1,000
    sets = {"imagenet": published.published()["data"]["imagenet"]}
    table = {"data": sets, "encoders": {str(encoder_folder): {"imagenet": [once]}}}
    monkeypatch.setattr(published, "published", lambda: table)
    assert main([*words, "--classes", "imagenet", "--published", "imagenet"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["published/imagenet/agrees"] and report["zeroshot/acc1"] == once
    assert report["zeroshot/duplicate_classes"] == 8
