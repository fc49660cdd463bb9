"""`--published`: what is not in the table is told before any work; numbers that differ make the exit code 1."""

from __future__ import annotations

import json

import pytest

from dualenc.cli import main
from dualenc.evaluate import published

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
