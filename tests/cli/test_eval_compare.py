"""`dualenc eval compare`: two tiny encoders on shards or on a store each; what does not fit is told before any work."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from dualenc.cli import main
from dualenc.model.folder import save_folder
from tests.small import COLOURS, loaded, sample, write_tar

CPU = ["--workers", "0", "--accelerator", "cpu", "--batch-size", "32"]


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """--encoder A --encoder B"""
    root = tmp_path_factory.mktemp("encoders")
    for seed in (1, 2):
        save_folder(root / str(seed), loaded("vit", seed=seed))
    return ["--encoder", str(root / "1"), "--encoder", str(root / "2")]


@pytest.fixture
def classed(val_shards: Path, tmp_path: Path) -> str:
    folder = tmp_path / "colours"
    shutil.copytree(val_shards, folder)
    (folder / "classnames.txt").write_text("\n".join(COLOURS))
    return str(folder)


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DUALENC_CLASSIFIERS", "off")


def compare(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = main(["eval", "compare", *words, *CPU])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def measured(capsys: pytest.CaptureFixture[str], verb: str, *words: str) -> dict:
    assert main(["eval", verb, *words, "--json", *CPU]) == 0
    return json.loads(capsys.readouterr().out)


def test_both_sides_are_what_eval_says_of_each(
    encoders: list[str], shards: Path, classed: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--data", str(shards), "--zeroshot", classed, "--ks", "1,3", "--out", "out", "--json"]
    code, out, err = compare(capsys, *encoders, *words)
    assert code == 0
    report = json.loads(out)
    for side in "ab":
        assert len([key for key in report if key.startswith(f"{side}/") and not key.endswith(("/low", "/high"))]) == 8
    words = ["--encoder", encoders[3], "--data", str(shards), "--ks", "1,3", "--zeroshot", classed]
    alone = measured(capsys, "retrieval", *words)
    for key in [key for key in report if key.startswith("b/") and not key.endswith(("/low", "/high"))]:
        assert report[key] == pytest.approx(alone[key[2:]]), key
    assert report["metrics_compared"] == 8
    assert 0 < report["difference/text_to_image/recall@1/p"] <= report["difference/text_to_image/recall@1/p_holm"] <= 1
    assert "queries: out/queries.parquet" in err
    written = json.loads(Path("out/report.json").read_text())
    assert {key: written[key] for key in report} == report
    for encoder in encoders[1::2]:
        assert encoder in json.dumps(written) and encoder in Path("out/report.html").read_text()
    queries = pq.read_table("out/queries.parquet").to_pylist()
    assert len(queries) == 48 + 24
    hits = sum(row["rank_b"] == 1 for row in queries if row["way"] == "text_to_image")
    assert hits / 48 == report["b/text_to_image/recall@1"]


def test_a_store_of_each_says_the_same(encoders: list[str], shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, encoder in zip("ab", encoders[1::2], strict=True):
        words = ["embed", "--encoder", encoder, "--data", str(shards), "--out", name, "--dtype", "float32"]
        assert main([*words, "--workers", "0"]) == 0
    capsys.readouterr()
    code, out, _ = compare(capsys, *encoders, "--data", "a", "--data-b", "b", "--out", "out")
    assert code == 0 and "Both answered the same 48 captions and 24 images" in out and "p (Holm)" in out
    stores = json.loads(Path("out/report.json").read_text())
    embedded = json.loads(compare(capsys, *encoders, "--data", str(shards), "--json")[1])
    for key in ("difference/text_to_image/recall@1", "difference/image_to_text/recall@5"):
        assert stores[key] == pytest.approx(embedded[key])
    code, _, err = compare(capsys, *encoders, "--data", "b", "--data-b", "a")
    assert code == 1 and "was made by" in err
    code, _, err = compare(capsys, *encoders, "--data", "a")
    assert code == 1 and "one encoder's embeddings; give the other's with --data-b" in err
    code, _, err = compare(capsys, *encoders, "--data", str(shards), "--data-b", "b")
    assert code == 1 and "--data alone is enough" in err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--encoder", "A", "--data", "no"], "--encoder is given 1 time(s), and a comparison takes two"),
        (["--encoder", "A", "--encoder", "B", "--encoder", "C", "--data", "no"], "given 3 time(s)"),
        (["--encoder", "A", "--encoder", "B", "--data", "no", "--ks", "one"], "--ks 'one' is not a list"),
        (["--encoder", "A", "--encoder", "B", "--data", "no", "--zeroshot", "there"], "there: no such file or folder"),
    ],
)
def test_what_is_wrong_with_the_options_is_told_first(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = compare(capsys, *words)
    assert code == 1 and said in err and err.count("\n") == 1 and not out


def test_a_wrong_second_encoder_is_told_before_the_first_one_works(
    encoders: list[str], shards: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("dualenc.cli.eval_compare.embedded_rows", None)
    code, _, err = compare(capsys, *encoders[:2], "--encoder", "runs/typo", "--data", str(shards))
    assert code == 1 and "runs/typo: no such encoder folder" in err


def test_a_classified_set_that_is_not_there_or_has_no_labels_is_told_before_the_work(
    encoders: list[str], shards: Path, classed: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("dualenc.cli.eval_compare.embedded_rows", None)
    words = [*encoders, "--data", str(shards), "--zeroshot", classed]
    code, _, err = compare(capsys, *words, f"{classed}/tset")
    assert code == 1 and f"{classed}/tset: no such" in err
    unlabelled = Path("unlabelled")
    write_tar(unlabelled / "0.tar", sample("a", "red", ["a red picture"], 1))
    (unlabelled / "classnames.txt").write_text("red\nblue")
    code, _, err = compare(capsys, *words, str(unlabelled))
    assert code == 1 and "unlabelled: no image has a class" in err


def test_a_column_of_images_that_are_the_same_is_refused_where_there_is_none(
    encoders: list[str], shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = compare(capsys, *encoders, "--data", str(shards), "--same", "scene")
    assert code == 1 and "no column 'scene'" in err


def test_data_sets_of_one_folder_name_do_not_overwrite_each_other(
    encoders: list[str], shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As CLIP_benchmark lays them out: wds_NAME/test."""
    sets = ("one", "two")
    for seed, name in enumerate(sets):
        members = [sample(f"{i}", colour, [], 9 * seed + i, cls=i) for i, colour in enumerate(COLOURS)]
        write_tar(tmp_path / name / "test" / "0.tar", [member for some in members[: 4 + seed] for member in some])
        (tmp_path / name / "classnames.txt").write_text("\n".join(COLOURS))
    words = ["--data", str(shards), "--ks", "1", "--json"]
    both = json.loads(compare(capsys, *encoders, *words, "--zeroshot", "one/test", "two/test")[1])
    for name in sets:
        alone = json.loads(compare(capsys, *encoders, *words, "--zeroshot", f"{name}/test")[1])
        for side in ("a", "b", "difference"):
            assert both[f"{side}/zeroshot/{name}/test/acc1"] == alone[f"{side}/zeroshot/acc1"]


def test_an_encoder_is_not_compared_with_itself_nor_embeds_anything(
    encoders: list[str], shards: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("dualenc.embed.run.embed_source", None)
    for more in ([], ["--decode", "fast"]):
        code, _, err = compare(capsys, *encoders[:2], *encoders[:2], "--data", str(shards), *more)
        assert code == 1 and "are one encoder" in err


def test_other_queries_in_the_second_store_are_refused(
    encoders: list[str], shards: Path, val_shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, encoder, data in (("a", encoders[1], shards), ("b", encoders[3], val_shards)):
        assert main(["embed", "--encoder", encoder, "--data", str(data), "--out", name, "--workers", "0"]) == 0
    code, _, err = compare(capsys, *encoders, "--data", "a", "--data-b", "b")
    assert code == 1 and "24 of 24 images are only in the data of A, such as 's000'" in err
