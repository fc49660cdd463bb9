"""`dualenc eval retrieval` from end to end on a store and an index of a few rows."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from dualenc.cli import main
from dualenc.cli.evaluation import classed_sets
from tests.small import png, sample, write_tar

COLOURS = ("red", "green", "blue", "yellow", "black", "white", "purple", "orange")


@pytest.fixture(scope="module")
def made(tmp_path_factory, encoder_folder) -> Path:
    """A folder with an encoder, a store of 16 images with two captions each, and an index of it."""
    folder = tmp_path_factory.mktemp("made")
    shutil.copytree(encoder_folder, folder / "encoder")
    members = []
    for i in range(16):
        colour = COLOURS[i % 8]
        captions = [f"a {colour} picture", f"{colour} number {i}"]
        members += sample(
            f"k{i:02}", colour, captions, seed=i, json={"light": "day" if i % 4 else "night", "pair": i % 8}
        )
    write_tar(folder / "shards" / "0.tar", members)
    embed = ["embed", "--encoder", str(folder / "encoder"), "--data", str(folder / "shards"), "--workers", "0"]
    assert main([*embed, "--accelerator", "cpu", "--out", str(folder / "store")]) == 0
    assert main(["index", "build", str(folder / "store"), str(folder / "index"), "--recipe", "flat"]) == 0
    return folder


@pytest.fixture
def run(made, capsys, monkeypatch):
    """The command with some options; what it prints, read as JSON where that was asked for."""
    monkeypatch.chdir(made)

    def one(*words: str) -> str:
        capsys.readouterr()
        assert main(["eval", "retrieval", "--encoder", "encoder", "--data", "store", *words]) == 0, (
            capsys.readouterr().err
        )
        return capsys.readouterr().out

    return one


@pytest.fixture
def refused(made, capsys, monkeypatch):
    monkeypatch.chdir(made)

    def one(*words: str) -> str:
        capsys.readouterr()
        assert main(["eval", "retrieval", "--encoder", "encoder", "--data", "store", *words]) != 0
        (line,) = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
        return line

    return one


def test_all_of_it_at_once(run, made, tmp_path):
    file, out = tmp_path / "queries.parquet", tmp_path / "out"
    words = ["--ks", "2,1,2", "--bootstrap", "100", "--by", "light", "--index", "index", "--per-query", str(file)]
    printed = run(*words, "--out", str(out))
    report = json.loads((out / "report.json").read_text())
    for way in ("text_to_image", "image_to_text"):
        for k in (1, 2):
            low, value, high = (report[f"{way}/recall@{k}{end}"] for end in ("/low", "", "/high"))
            assert low <= value <= high
    assert report["index/text_to_image/recall@2"] == report["text_to_image/recall@2"]  # a flat index is exact
    assert report["by/light/day/count"] == 12 and report["by/light/night/count"] == 4
    table = pq.read_table(file)
    assert table.num_rows == 32 + 16
    rank = np.array(table["rank"])[np.array(table["way"]) == "text_to_image"]
    assert (rank <= 1).mean() == report["text_to_image/recall@1"]
    assert rank.mean() == report["text_to_image/mean_rank"]
    assert "Worst group" in printed and "Gap, best less worst" in printed and "Through the index" in printed
    assert printed.index("Recall@2") < printed.index("Recall@1")  # the order in which they were asked for, each once
    assert "light" in (out / "report.html").read_text()


def test_what_is_not_asked_for_is_not_there(run):
    report = json.loads(run("--json", "--bootstrap", "0"))
    assert not [key for key in report if key.endswith(("/low", "/high")) or key.startswith(("by/", "index/"))]
    assert {"text_to_image/recall@1", "text_to_image/recall@10", "image_to_text/median_rank"} <= report.keys()
    assert "text_to_image/recall@1/low" in json.loads(run("--json"))


def test_the_same_numbers_again(run):
    words = ["--json", "--bootstrap", "100", "--by", "light"]
    assert run(*words) == run(*words)


def test_images_of_one_pair_share_their_captions(run, tmp_path):
    """Images i and i + 8 have the same colour, and first captions with the same words."""
    words = ["--ks", "1", "--json", "--bootstrap", "0"]
    alone = json.loads(run(*words))
    file = tmp_path / "queries.parquet"
    shared = json.loads(run(*words, "--same", "pair", "--index", "index", "--per-query", str(file)))
    assert shared["text_to_image/mean_rank"] < alone["text_to_image/mean_rank"]
    assert shared["text_to_image/recall@1/chance"] == pytest.approx(2 * alone["text_to_image/recall@1/chance"])
    assert shared["index/text_to_image/recall@1"] == shared["text_to_image/recall@1"]
    table = pq.read_table(file)
    assert [sum(hit["right"] for hit in hits) for hits in table["hits"].to_pylist()[:32]] != [1] * 32
    assert (np.array(table["rank"])[:32] == 1).mean() == shared["text_to_image/recall@1"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--ks", "1,x"], "--ks '1,x' is not a list of whole numbers"),
        (["--ks", ""], "--ks '' is not a list"),
        (["--ks", "17"], "k is 17, but the gallery has only 16 rows"),
        (["--ks", "0"], "k is 0"),
        (["--bootstrap", "-1"], "--bootstrap -1"),
        (["--by", "colour"], "no column 'colour' to group by; it has key"),
        (["--same", "colour"], "no column 'colour'"),
        (["--index", "nowhere"], "nowhere"),
        (["--zeroshot", "store"], "classnames.txt"),
        (["--zeroshot", "shards", "./shards"], "shards is given twice"),
        (["--per-query", "queries.csv"], "--per-query queries.csv: it is written as parquet"),
        (["--composition"], "no sample has swap_attribute"),
    ],
)
def test_refused(refused, words, says):
    assert says in refused(*words)


def test_a_cure_names_no_option_that_there_is_not(refused):
    assert refused("--zeroshot", "store").endswith("; write that file, a name a line in the order of the labels")


@pytest.fixture
def classed(made) -> list[str]:
    """Two data sets in CLIP_benchmark's layout: both folders are called test, and the second has no column `light`."""
    for name, seeds in (("one", 0), ("two", 50)):
        members = []
        for i in range(16):
            more = {"json": {"light": "day" if i % 4 else "night"}} if name == "one" else {}
            members += sample(f"{name}{i:02}", COLOURS[i % 8], [], seed=seeds + i, cls=i % 8, **more)
        write_tar(made / name / "test" / "0.tar", members)
        (made / name / "classnames.txt").write_text("\n".join(COLOURS))
    return ["one/test", "two/test"]


CPU = ["--workers", "0", "--accelerator", "cpu"]


def test_data_sets_of_one_folder_name_do_not_overwrite_each_other(run, classed):
    report = json.loads(run("--zeroshot", *classed, "--json", "--bootstrap", "100", *CPU))
    for data in classed:
        alone = json.loads(run("--zeroshot", data, "--json", "--bootstrap", "100", *CPU))
        assert report[f"zeroshot/{data}/acc1"] == alone["zeroshot/acc1"]
        assert report[f"zeroshot/{data}/acc1/low"] == alone["zeroshot/acc1/low"]


def test_draws_and_groups_reach_every_part(run, classed, made, capsys):
    words = ["--zeroshot", *classed, "--index", "index", "--json", *CPU]
    report = json.loads(run(*words, "--by", "light", "--bootstrap", "0"))
    assert not [key for key in report if key.endswith(("/low", "/high"))]
    assert "zeroshot/one/test/by/light/night/acc1" in report
    assert not [key for key in report if key.startswith("zeroshot/two/test/by/")]
    assert main(["eval", "retrieval", "--encoder", "encoder", "--data", "store", *words, "--by", "light"]) == 0
    assert "two/test: not by light: the data has no column 'light'" in capsys.readouterr().err


def test_what_is_wrong_is_told_before_the_ranks(refused, made, monkeypatch):
    from dualenc import Index
    from dualenc.embed.store import open_store

    store = open_store(made / "store")
    images = np.load(made / "store" / "img_emb" / "img_emb_0000.npy")
    Index.build(images, made / "foreign", metadata=store.metadata(), recipe="flat", encoder="b" * 64)
    Index.build(
        images,
        made / "nameless",
        metadata=store.metadata().drop_columns(["key"]),
        recipe="flat",
        encoder=store.fingerprint,
    )

    def ranks(*_args, **_more):
        raise AssertionError("ranked")

    monkeypatch.setattr("dualenc.evaluate.metrics.retrieval_ranks", ranks)
    assert "from bbbbbbbbbbbb" in refused("--index", "foreign")
    assert "no column 'key'" in refused("--index", "nameless")
    assert "no column 'colour'" in refused("--by", "colour")
    assert "no column 'colour'" in refused("--same", "colour")


def test_what_is_wrong_with_a_classified_set_is_told_before_the_work(refused, classed, made, monkeypatch):
    def embed(*_args, **_more):
        raise AssertionError("embedded")

    monkeypatch.setattr("dualenc.cli.eval_retrieval.embedded_data", embed)
    assert "one/tset: no such" in refused("--zeroshot", "two/test", "one/tset")  # one/classnames.txt is there
    write_tar(made / "bare" / "0.tar", sample("a", "red", ["a red picture"], 1))
    (made / "bare" / "classnames.txt").write_text("\n".join(COLOURS))
    assert "bare: no image has a class" in refused("--zeroshot", "two/test", "bare")
    shutil.copytree(made / "store", made / "kept")
    (made / "kept" / "classnames.txt").write_text("\n".join(COLOURS))
    assert "kept: no image has a class" in refused("--zeroshot", "kept")


def test_a_class_that_cannot_be_read_is_none_and_ends_nothing(made):
    def folder(name, count):
        for i in range(count):
            place = made / name / str(i)
            place.with_suffix(".png").parent.mkdir(exist_ok=True)
            place.with_suffix(".png").write_bytes(png(seed=i))
            place.with_suffix(".cls").write_text(f"{i}")
        (made / name / "classnames.txt").write_text("red\nblue")
        (made / name / "0.cls").unlink()
        (made / name / "0.cls").symlink_to("/proc/self/mem")  # reading it fails, whoever reads
        return str(made / name)

    assert classed_sets([folder("unreadable", 2)]) == ["unreadable"]
    with pytest.raises(ValueError, match="no image has a class"):
        classed_sets([folder("none", 1)])


def test_a_wrong_index_is_told_before_the_work(refused, monkeypatch):
    def embed(*_args, **_more):
        raise AssertionError("embedded")

    monkeypatch.setattr("dualenc.cli.eval_retrieval.embedded_data", embed)
    assert "nowhere" in refused("--index", "nowhere")


def test_the_batch_size_changes_no_number(run):
    words = ["--data", "shards", "--workers", "0", "--accelerator", "cpu", "--bootstrap", "100", "--json"]
    assert run(*words, "--batch-size", "3") == run(*words, "--batch-size", "16")
