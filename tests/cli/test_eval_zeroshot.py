"""`dualenc eval zeroshot` from end to end: where its classes come from, what it writes, and what it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pyarrow.csv
import pyarrow.parquet
import pytest

from dualenc.cli import main
from tests.small import COLOURS, png, sample, write_tar

NAMES = list(COLOURS)


@pytest.fixture(scope="module")
def made(tmp_path_factory, encoder_folder) -> Path:
    """A folder with an encoder, shards of 16 pictures by colour in CLIP_benchmark's layout, and an image folder by class."""
    folder = tmp_path_factory.mktemp("zeroshot")
    shutil.copytree(encoder_folder, folder / "encoder")
    members = []
    for i in range(16):
        more = {"light": "day" if i % 3 else "night", "many": json.dumps([i % 8, NAMES[(i + 1) % 8]]), "odd": "mauve"}
        members += sample(f"k{i:02}", NAMES[i % 8], seed=i, cls=i % 8, json=more)
    write_tar(folder / "wds" / "test" / "0.tar", members)
    (folder / "wds" / "classnames.txt").write_text("\n".join(NAMES) + "\n")
    (folder / "wds" / "zeroshot_classification_templates.txt").write_text("a {c} picture\na photo of a {c} thing\n")
    write_tar(folder / "bare" / "0.tar", members)
    for i, name in enumerate(("red", "blue", "green") * 2):
        (folder / "images" / name).mkdir(parents=True, exist_ok=True)
        (folder / "images" / name / f"{i}.png").write_bytes(png(colour=COLOURS[name], seed=i))
    return folder


@pytest.fixture
def run(made, capsys, monkeypatch):
    """The report of the command with some options."""
    monkeypatch.chdir(made)
    monkeypatch.setenv("DUALENC_CLASSIFIERS", "off")

    def one(data: str, *words: str) -> dict:
        capsys.readouterr()
        command = ["eval", "zeroshot", "--encoder", "encoder", "--data", data, "--workers", "0", "--accelerator", "cpu"]
        assert main([*command, *words, "--bootstrap", "100", "--json"]) == 0, capsys.readouterr().err
        return json.loads(capsys.readouterr().out)

    return one


@pytest.fixture
def refused(made, capsys, monkeypatch):
    monkeypatch.chdir(made)
    monkeypatch.setenv("DUALENC_CLASSIFIERS", "off")

    def one(data: str, *words: str) -> str:
        capsys.readouterr()
        assert main(["eval", "zeroshot", "--encoder", "encoder", "--data", data, "--workers", "0", *words]) != 0
        (line,) = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
        return line

    return one


def test_clip_benchmarks_layout_brings_classes_and_templates(run, made):
    report = run("wds/test", "--by", "light", "--out", "out", "--per-class", "classes.parquet")
    assert (report["zeroshot/classes"], report["zeroshot/templates"], report["zeroshot/images"]) == (8, 2, 16)
    for key in ("acc1", "acc5", "mean_per_class_recall"):
        assert report[f"zeroshot/{key}/low"] <= report[f"zeroshot/{key}"] <= report[f"zeroshot/{key}/high"]
    assert report["zeroshot/by/light/day/count"] == 10
    assert report["zeroshot/temperature"] > 0
    assert report["zeroshot/ece"] <= 1
    saved = json.loads(Path("out/report.json").read_text())
    assert {key: saved[key] for key in report} == report
    page = Path("out/report.html").read_text()
    for words in ("Is it as sure as it is right?", "Confusions, % of the right class", "Mean over classes", "light"):
        assert words in page
    assert pyarrow.parquet.read_table("classes.parquet")["class"].to_pylist() == NAMES


def test_the_whole_of_it_is_what_the_parts_are(run, made):
    """The command against `evaluate_zeroshot` on the same embedded data."""
    from dualenc.data.shards import open_source
    from dualenc.embed.run import embed_source
    from dualenc.evaluate.zeroshot.zeroshot import evaluate_zeroshot
    from dualenc.model.encoder import DualEncoder

    encoder = DualEncoder.load("encoder", device="cpu")
    embedded = embed_source(encoder, open_source("wds/test"), workers=0, accelerator="cpu")
    prompts = ["a {c} picture", "a photo of a {c} thing"]
    expected, _ = evaluate_zeroshot(encoder, embedded, NAMES, prompts, times=100)
    assert run("wds/test") == expected | {"data/dropped": 0}


def test_an_image_folder_names_its_classes_itself(run):
    report = run("images", "--per-class", "folder.csv")
    assert (report["zeroshot/classes"], report["zeroshot/images"], report["zeroshot/templates"]) == (3, 6, 1)
    table = pyarrow.csv.read_csv("folder.csv").to_pydict()
    assert table["class"] == ["blue", "green", "red"]
    assert table["images"] == [2, 2, 2]


def test_a_store_takes_the_names_beside_what_it_was_made_from(run, made):
    embed = ["embed", "--encoder", "encoder", "--data", "wds/test", "--workers", "0", "--accelerator", "cpu"]
    assert main([*embed, "--out", "store"]) == 0
    assert run("store")["zeroshot/templates"] == 2


def test_classes_from_a_file_with_prompts_of_their_own(run):
    prompts = {name: [f"a {name} thing", f"something {name}"][: 1 + i % 2] for i, name in enumerate(NAMES)}
    Path("prompts.json").write_text(json.dumps(prompts))
    report = run("bare", "--classes", "prompts.json")
    assert report["zeroshot/prompts"] == 12
    assert "zeroshot/templates" not in report


def test_classes_and_templates_from_files_and_from_the_command(run):
    Path("names.txt").write_text("\n".join(NAMES))
    Path("templates.txt").write_text("a {} thing\n{}\nsome {c}\n")
    first = run("bare", "--classes", "names.txt", "--templates", "templates.txt")
    second = run("bare", "--classes", ",".join(NAMES), "--templates", "templates.txt")
    assert first == second
    assert first["zeroshot/templates"] == 3
    assert run("wds/test", "--templates", "simple")["zeroshot/templates"] == 7


def test_a_column_of_lists_is_measured_by_average_precision(run):
    report = run("wds/test", "--labels", "many", "--by", "light", "--per-class", "many.csv")
    assert 0 < report["zeroshot/mean_average_precision"] <= 1
    harmonic = sum(1 / k for k in range(1, 17))  # 4 of 16 images hold each class
    chance = report["zeroshot/mean_average_precision/chance"]
    assert chance == pytest.approx((harmonic + 3 / 15 * (16 - harmonic)) / 16)
    assert "zeroshot/by/light/gap/mean_average_precision" in report
    assert "zeroshot/acc1" not in report
    assert pyarrow.csv.read_csv("many.csv")["images"].to_pylist() == [4] * 8


def test_data_sets_whose_folders_are_named_alike_keep_numbers_of_their_own(made, run, monkeypatch):
    from dualenc.cli.eval_zeroshot import zeroshot_part
    from dualenc.data.shards import open_source
    from dualenc.embed.run import embed_source
    from dualenc.model.encoder import DualEncoder

    shutil.copytree(made / "wds", made / "shifted", dirs_exist_ok=True)
    encoder = DualEncoder.load("encoder", device="cpu")
    embedded = embed_source(encoder, open_source("wds/test"), workers=0, accelerator="cpu")
    one, other, alone = (
        zeroshot_part(None, encoder, embedded, data, named=named, times=0)
        for data, named in (("wds/test", "wds/test"), ("shifted/test", "shifted/test"), ("wds/test", None))
    )
    assert not one[0].keys() & other[0].keys()
    assert one[0]["zeroshot/wds/test/acc1"] == other[0]["zeroshot/shifted/test/acc1"] == alone[0]["zeroshot/acc1"]
    titles = ["Zero-shot: wds/test", "Zero-shot: shifted/test", "Zero-shot classification"]
    assert [section.title for _, section in (one, other, alone)] == titles


@pytest.mark.parametrize(
    ("data", "words", "says"),
    [
        ("bare", [], "in the order of the labels, or give --classes"),
        ("wds/test", ["--classes", "red,blue,red"], "names the class 'red' 2 times"),
        ("wds/test", ["--classes", "red"], "names 1 class"),
        ("wds/test", ["--classes", "red,blue"], "2 class names for data whose labels number 8 classes"),
        ("wds/test", ["--templates", "a photo"], "no set or file of that name"),
        ("wds/test", ["--templates", "flat.txt"], "has no place for the class name"),
        ("wds/test", ["--labels", "nothing"], "no column 'nothing'"),
        ("wds/test", ["--labels", "odd"], "odd 'mauve' is none of the 8 classes"),
        ("wds/test", ["--by", "weather"], "no column 'weather'"),
        ("wds/test", ["--per-class", "table.xlsx"], ".csv or .parquet"),
        ("wds/test", ["--bootstrap", "-1"], "--bootstrap -1"),
    ],
)
def test_what_cannot_be_evaluated_is_refused_in_one_line(refused, data, words, says):
    Path("flat.txt").write_text("a {} thing\na thing\n")
    before = {path.name for path in Path().iterdir()} | {"refused"}  # made before the work, to see that it can be
    assert says in refused(data, *words, "--out", "refused")
    assert {path.name for path in Path().iterdir()} <= before
    assert not list(Path().glob("refused/*"))
