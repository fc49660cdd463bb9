"""Sweeps: the YAML's checks, what is measured again and what is not, failures, the table, the page."""

from __future__ import annotations

import csv
import doctest
import hashlib
import json
import re
import shutil
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from dualenc.data.shards import open_source
from dualenc.embed import run as embed_run
from dualenc.embed.describe import describe
from dualenc.embed.store_writer import StoreWriter
from dualenc.evaluate.page.provenance import Checksum
from dualenc.evaluate.retrieval import evaluate_retrieval
from dualenc.evaluate.sections import Share
from dualenc.evaluate.sweep import evidence
from dualenc.evaluate.sweep import plot as sweep_plot
from dualenc.evaluate.sweep.evidence import Facts, Outcome
from dualenc.evaluate.sweep.plot import panels, sections, shares, values
from dualenc.evaluate.sweep.spec import Combination, Data, Encoder, combinations, read_sweep
from dualenc.evaluate.sweep.sweep import label, run_sweep
from dualenc.evaluate.sweep.table import table, write_table
from dualenc.evaluate.zeroshot.zeroshot import evaluate_zeroshot
from dualenc.model.encoder import DualEncoder
from tests.small import COLOURS, write_shards


class Words:
    """An encoder of fixed random vectors: what a sweep needs of one, and no towers."""

    dim = 8

    def __init__(self, path):
        self.path = str(path)
        seed = (Path(path) / "seed").read_text()
        if not seed.isdigit():
            raise ValueError(f"{path}: damaged; restore it")
        self.fingerprint = hashlib.sha256(seed.encode()).hexdigest()
        self.provenance = {"samples_seen": 1000 * int(seed)}
        self.model = SimpleNamespace(parameters=lambda: [SimpleNamespace(numel=lambda: 5)] * 2)

    def embed_texts(self, texts):
        seeds = [hashlib.sha256((self.fingerprint + text).encode()).digest()[:4] for text in texts]
        rows = np.stack([np.random.default_rng(int.from_bytes(seed, "little")).standard_normal(8) for seed in seeds])
        return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def write_words(encoder, source, out, dtype, dropped=None, **_):
    """`write_store` with the vectors of keys and captions. dropped: what is said to be left out."""
    metadata, captions = describe(source, np.arange(len(source)))
    row = np.repeat(np.arange(len(source)), [len(some) for some in captions])
    flat = [text for some in captions for text in some]
    texts = pa.table({"key": [source.keys[i] for i in row], "caption": flat, "image_row": row})
    plan = {"bounds": [0, len(source)], "dim": 8, "dtype": dtype, "fingerprint": encoder.fingerprint}
    writer = StoreWriter(out, plan | {"encoder": encoder.path})
    writer.write_part(0, encoder.embed_texts(source.keys), encoder.embed_texts(flat), metadata, texts, dropped)
    writer.finish()


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two encoders, six pairs, eight labelled images with their classes' names beside them."""
    root = tmp_path_factory.mktemp("sweep")
    for seed in (1, 2):
        (root / f"e{seed}").mkdir()
        (root / f"e{seed}" / "seed").write_text(str(seed))
    write_shards(root / "pairs", 6, shards=1)
    write_shards(root / "classed", 8, shards=1, prefix="c", cls=lambda i: i)
    (root / "classed" / "classnames.txt").write_text("\n".join(COLOURS))
    return root


@pytest.fixture
def settings(folders):
    return {
        "encoders": [{"name": "one", "path": str(folders / "e1")}, {"name": "two", "path": str(folders / "e2")}],
        "data": [
            {"name": "pairs", "path": str(folders / "pairs")},
            {"name": "classed", "path": str(folders / "classed"), "task": "zeroshot"},
        ],
        "templates": ["plain", "a photo of a {}."],
        "ks": [1, 5],
    }


@pytest.fixture(autouse=True)
def work(monkeypatch):
    """What was loaded and embedded, in order."""
    done = []

    def load(name, **_):
        done.append(f"load {Path(name).name}")
        return Words(name)

    def write(encoder, source, out, **more):
        done.append(f"embed {Path(encoder.path).name} {Path(source.path).parent.name}")
        write_words(encoder, source, out, **more)

    monkeypatch.setattr(DualEncoder, "load", load)
    monkeypatch.setattr(embed_run, "write_store", write)
    return done


def swept(settings, out):
    out.mkdir(exist_ok=True)
    (out / "sweep.yaml").write_text(yaml.safe_dump(settings, allow_unicode=True))
    return run_sweep(read_sweep(out / "sweep.yaml"), out)


def read(text, tmp_path):
    (tmp_path / "s.yaml").write_text(text)
    return read_sweep(tmp_path / "s.yaml")


def test_a_sweep_is_read_whole(tmp_path):
    found = read(
        """
        encoders: [ViT-B-32:openai, {name: mine, path: runs/e, samples_seen: 1.2e+6}]
        data: [a/test, {name: b, path: b/test, task: zeroshot, classes: "cat,dog", templates: [plain]}]
        templates: ["a {}.", simple]
        """,
        tmp_path,
    )
    assert found.encoders == [Encoder("ViT-B-32:openai", "ViT-B-32:openai"), Encoder("mine", "runs/e", 1_200_000)]
    assert found.data == [Data("a/test", "a/test"), Data("b", "b/test", "zeroshot", "cat,dog", "label", ("plain",))]
    assert found.ks == (1, 5, 10)
    assert [label(one) for one in combinations(found)] == [
        "ViT-B-32:openai · a/test", "ViT-B-32:openai · b · plain", "mine · a/test", "mine · b · plain",
    ]  # fmt: skip


def test_every_template_for_zeroshot_and_own_prompts_for_classes_that_have_them(tmp_path):
    (tmp_path / "c.json").write_text('{"cat": ["my cat"], "dog": "my dog"}')
    found = read(
        f"{{encoders: [e], templates: [plain, simple], data: [{{path: a, task: zeroshot}}, "
        f"{{path: b, task: zeroshot, classes: {tmp_path}/c.json}}]}}",
        tmp_path,
    )
    assert [(one.data.name, one.templates) for one in combinations(found)] == [
        ("a", "plain"), ("a", "simple"), ("b", None),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("encodes: [a]\ndata: [b]", "'encodes', which means nothing here; did you mean 'encoders'?"),
        ("encoders: [{nmae: x, path: a}]\ndata: [b]", r"encoders\[0\] has 'nmae'.*did you mean 'name'"),
        ("encoders: [a]\ndata: [{path: b, tempaltes: [plain]}]", r"data\[0\] has 'tempaltes'.*'templates'"),
        ("encoders: [a]\ndata: [{path: b, task: zero-shot}]", "no task 'zero-shot'; did you mean zeroshot"),
        ("encoders: [a]\ndata: [{path: b, classes: 'x,y'}]", "classes would not be used by retrieval"),
        ("encoders: [a]\ndata: [{path: b, task: zeroshot, classes: x.txt}]", "x.txt: no such class file"),
        ("encoders: [a]\ndata: [b]\ntemplates: [imagnet]", "templates 'imagnet'"),
        ("encoders: [a]\ndata: [b]\ntemplates: []", r"templates is \[\]"),
        ("encoders: [a]\ndata: [b]\ntemplates: [plain, plain]", "has 'plain' twice"),
        ("encoders: [a]\ndata: [b]\nks: [0]", r"ks is \[0\]"),
        ("encoders: [a]\ndata: [b]\nks: [true, 5]", r"ks is \[True, 5\]"),
        ("encoders: [a]\ndata: [b]\nks: 5", "ks of the file is 5, which means nothing here; write a list"),
        ("encoders: [a]\ndata: [b]\nks: [1]\ndata: [c]", "'data' is there twice, and only line 4 would count.*correct"),
        ("encoders: [{path: a, path: b}]\ndata: [b]", "'path' is there twice, and only line 1 would count"),
        ("encoders: [a]", "there are no data"),
        ("encoders: []\ndata: [b]", "there are no encoders"),
        ("encoders: [a, {name: a, path: b}]\ndata: [b]", "2 of encoders are named 'a'"),
        ("encoders: [{name: a}]\ndata: [b]", r"encoders\[0\] has no path"),
        ("encoders: [{path: a, samples_seen: many}]\ndata: [b]", "samples_seen of .* is 'many', which counts no"),
        ("encoders: [{path: a, samples_seen: 1e+30}]\ndata: [b]", "could not be drawn; write a number from 1 to 9e18"),
        ("encoders: [3]\ndata: [b]", r"encoders\[0\] is 3"),
        ("just text", "the file is 'just text'"),
        ("a: [", "is not valid YAML"),
    ],
)
def test_what_is_wrong_is_told_before_any_work(text, says, tmp_path, work):
    with pytest.raises((ValueError, FileNotFoundError), match=says):
        read(text, tmp_path)
    assert work == []


def test_a_sweep_loads_and_embeds_once_and_repeats_nothing(settings, tmp_path, work):
    first = swept(settings, tmp_path)
    assert [label(one.combination) for one in first] == [
        "one · pairs", "one · classed · plain", "one · classed · a photo of a {}.",
        "two · pairs", "two · classed · plain", "two · classed · a photo of a {}.",
    ]  # fmt: skip
    assert all(one.measured and one.error is None for one in first)
    assert work == [
        "load e1", "embed e1 pairs", "embed e1 classed", "load e2", "embed e2 pairs", "embed e2 classed",
    ]  # fmt: skip
    work.clear()
    again = swept(settings, tmp_path)
    assert work == []
    assert [one._replace(measured=True) for one in again] == first


def test_the_numbers_are_those_of_the_evaluations_themselves(settings, folders, tmp_path):
    outcomes = {label(one.combination): one for one in swept(settings, tmp_path)}
    model, embedded = Words(folders / "e1"), {}
    for name in ("pairs", "classed"):
        write_words(model, open_source(folders / name), tmp_path / "own" / name, "float32")
        embedded[name] = embed_run.read_embedded(tmp_path / "own" / name)
    assert outcomes["one · pairs"].report == evaluate_retrieval(model, embedded["pairs"], (1, 5))[0]
    expected = evaluate_zeroshot(model, embedded["classed"], list(COLOURS), ["a photo of a {}."])[0]
    found = outcomes["one · classed · a photo of a {}."].report
    assert {f"zeroshot/{key}": value for key, value in found.items()} == expected
    assert outcomes["one · pairs"].facts == (model.fingerprint, 10, 1000)
    assert outcomes["one · pairs"].report != outcomes["two · pairs"].report


def test_only_what_changed_is_measured_again(settings, folders, tmp_path, work):
    swept(settings, tmp_path)
    work.clear()
    settings["templates"].append("one {}")
    again = swept(settings, tmp_path)
    assert [label(one.combination) for one in again if one.measured] == [
        "one · classed · one {}", "two · classed · one {}",
    ]  # fmt: skip
    assert work == ["load e1", "load e2"]  # the embeddings were there
    settings["ks"] = [1, 2]
    assert [label(one.combination) for one in swept(settings, tmp_path) if one.measured] == [
        "one · pairs",
        "two · pairs",
    ]
    settings["encoders"][0]["name"] = "another name"
    assert not any(one.measured for one in swept(settings, tmp_path))


def test_other_data_and_another_encoder_under_the_same_name_are_measured(settings, folders, tmp_path):
    for name in ("pairs", "e1"):
        shutil.copytree(folders / name, tmp_path / name)
    settings["data"] = [{"name": "pairs", "path": str(tmp_path / "pairs")}]
    settings["encoders"] = [{"name": "one", "path": str(tmp_path / "e1")}]
    (first,) = swept(settings, tmp_path / "out")
    write_shards(tmp_path / "pairs", 7, shards=1)
    (other_data,) = swept(settings, tmp_path / "out")
    assert other_data.measured and other_data.data.samples == 7
    shutil.rmtree(tmp_path / "e1")
    (tmp_path / "e1").mkdir()
    (tmp_path / "e1" / "seed").write_text("55")
    (other_encoder,) = swept(settings, tmp_path / "out")
    assert other_encoder.measured and other_encoder.facts.fingerprint != first.facts.fingerprint


def test_damaged_or_removed_evidence_is_made_again(settings, tmp_path, work):
    settings["encoders"] = settings["encoders"][:1]
    first = swept(settings, tmp_path)
    rows = sorted((tmp_path / "rows").iterdir())
    rows[0].write_text('{"key": ')
    (tmp_path / "encoders.json").write_text("[]")
    shutil.rmtree(tmp_path / "embedded")
    again = swept(settings, tmp_path)
    assert sum(one.measured for one in again) == 1
    assert [one._replace(measured=True) for one in again] == first


def test_evidence_of_another_row_is_not_taken(settings, tmp_path):
    settings["encoders"], settings["data"] = settings["encoders"][:1], settings["data"][1:]
    swept(settings, tmp_path)
    one, other = sorted((tmp_path / "rows").iterdir())
    shutil.copy(one, other)
    assert sum(outcome.measured for outcome in swept(settings, tmp_path)) == 1


def test_what_fails_is_told_and_tried_again_and_the_rest_goes_on(settings, folders, tmp_path, work, caplog):
    shutil.copytree(folders / "e1", tmp_path / "broken")
    (tmp_path / "broken" / "seed").write_text("no\nnumber")
    settings["encoders"].insert(0, {"name": "broken", "path": str(tmp_path / "broken")})
    settings["data"].insert(0, {"name": "gone", "path": str(tmp_path / "gone")})
    settings["templates"] = ["plain"]
    found = {label(one.combination): one for one in swept(settings, tmp_path / "out")}
    failed = {name: one.error for name, one in found.items() if one.error}
    assert sorted(failed) == sorted(
        ["broken · gone", "broken · pairs", "broken · classed · plain", "one · gone", "two · gone"]
    )
    assert "no such file or folder" in failed["one · gone"]
    assert failed["broken · pairs"].endswith("broken: damaged; restore it")
    assert all("\n" not in error for error in failed.values())
    assert "two · gone: " in caplog.text
    assert all(found[name].report for name in found.keys() - failed.keys())
    work.clear()
    (tmp_path / "broken" / "seed").write_text("7")
    write_shards(tmp_path / "gone", 4, shards=1)
    settings["ks"] = [1, 3]  # of 4 images
    again = swept(settings, tmp_path / "out")
    assert [one.error for one in again] == [None] * 9
    assert [label(one.combination) for one in again if not one.measured] == [
        "one · classed · plain",
        "two · classed · plain",
    ]


def test_one_combination_may_fail_for_itself(settings, tmp_path):
    settings["ks"] = [1, 1000]
    settings["encoders"] = settings["encoders"][:1]
    found = swept(settings, tmp_path)
    assert [one.error is None for one in found] == [False, True, True]
    assert "1000" in found[0].error


def test_rows_that_are_there_stay_when_their_encoder_cannot_be_loaded(settings, tmp_path, monkeypatch):
    settings["encoders"] = settings["encoders"][:1]
    swept(settings, tmp_path)
    settings["templates"].append("one {}")

    def full(*_, **__):
        raise RuntimeError("out of\nmemory")

    monkeypatch.setattr(DualEncoder, "load", full)
    found = swept(settings, tmp_path)
    assert [one.error for one in found] == [None, None, None, "RuntimeError: out of memory"]
    assert [one.report is not None for one in found] == [True, True, True, False]


def test_a_store_takes_the_place_of_its_data_for_its_own_encoder(settings, folders, tmp_path, work):
    write_words(Words(folders / "e1"), open_source(folders / "pairs"), tmp_path / "store", "float16")
    settings["data"] = [{"name": "store", "path": str(tmp_path / "store")}]
    one, two = swept(settings, tmp_path / "out")
    assert one.report and one.data.samples == 6
    assert "another encoder" in two.error
    assert work == ["load e1", "load e2"]


def test_what_was_left_out_is_in_the_rows(settings, tmp_path, monkeypatch):
    lossy = partial(write_words, dropped={"zero bytes": 2, "truncated image": 1})
    monkeypatch.setattr(embed_run, "write_store", lossy)
    settings["encoders"] = settings["encoders"][:1]
    found = swept(settings, tmp_path)
    assert table(found)["dropped"].to_pylist() == [3, 3, 3]
    assert table(swept(settings, tmp_path)) == table(found)
    assert [line[4] for line in sections(found)[1].tables[1].rows] == ["3", "3"]
    assert values(found)["one/pairs/dropped"] == 3


def test_rows_from_before_samples_left_out_were_counted_stay(settings, tmp_path):
    swept(settings, tmp_path)
    for path in (tmp_path / "rows").iterdir():
        there = json.loads(path.read_text())
        path.write_text(json.dumps({key: there[key] for key in ("key", "report", "seconds")}))
    again = swept(settings, tmp_path)
    assert not any(one.measured for one in again)
    write_table(again, tmp_path)
    with open(tmp_path / "results.csv", newline="", encoding="utf-8") as file:
        assert [line["dropped"] for line in csv.DictReader(file)] == [""] * 6


def test_a_k_that_is_repeated_counts_once(tmp_path):
    assert read("encoders: [a]\ndata: [b]\nks: [5, 1, 5]", tmp_path).ks == (5, 1)


def test_a_row_has_one_bar(settings, tmp_path):
    retrieval, zeroshot, *_ = sections(swept(settings, tmp_path))[0].tables
    for drawn, bar in ((retrieval, "Text → image R@1"), (zeroshot, "Acc@1")):
        assert len(drawn.rows) >= 2
        for cells in drawn.rows:
            assert [name for name, cell in zip(drawn.columns, cells, strict=True) if isinstance(cell, Share)] == [bar]
    told = dict(zip(retrieval.columns, retrieval.rows[0], strict=True))["Image → text R@5"].replace("\u202f", " ")
    assert re.fullmatch(r"[\d.]+ % \[[\d.]+,\u00a0[\d.]+\]", told)


def made(name, parameters, seen, acc1, templates="plain", error=None):
    report = None if error else {"acc1": acc1, "acc1/low": acc1 - 0.1, "acc1/high": acc1 + 0.1, "acc1/chance": 0.1}
    if report:
        report |= {"acc5": None, "recall/cat": 0.5, "by/size/large/acc1": 0.1, "templates": 1, "absent_names": None}
    combination = Combination(Encoder(name, f"runs/{name}"), Data("cifar", "c", "zeroshot"), templates)
    return Outcome(combination, Facts(name * 8, parameters, seen), Checksum("c" * 64, 50, "bytes"), {}, report, error)


def test_the_table_is_tidy_in_both_formats(tmp_path):
    outcomes = [made("a", 10, None, 0.5), made("b", 20, 100, 0.6, error='no such thing, "really"\u2028')]
    write_table(outcomes, tmp_path)
    saved = pq.read_table(tmp_path / "results.parquet")
    assert saved.column_names == [
        "encoder", "fingerprint", "parameters", "samples_seen", "data", "data_sha256", "samples", "dropped", "task",
        "templates", "prompts", "acc1", "acc1/low", "acc1/high", "error",
    ]  # fmt: skip
    assert saved["acc1"].to_pylist() == [0.5, None]
    assert saved["acc1/high"].to_pylist() == [0.6, None]
    assert saved.schema.field("parameters").type == "int64" and saved.schema.field("acc1").type == "double"
    with open(tmp_path / "results.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(one["encoder"], one["samples_seen"], one["acc1"]) for one in rows] == [("a", "", "0.5"), ("b", "100", "")]
    assert rows[1]["error"] == outcomes[1].error
    assert saved["error"].to_pylist() == [None, outcomes[1].error]


def test_the_sweep_says_what_the_encoder_does_not_know():
    outcome = made("a", 10, None, 0.5)
    told = outcome._replace(combination=outcome.combination._replace(encoder=Encoder("a", "runs/a", 777)))
    assert table([outcome, told])["samples_seen"].to_pylist() == [None, 777]


def test_figures_are_drawn_where_encoders_differ():
    same = [made("a", 10, None, 0.5), made("b", 10, None, 0.6)]
    assert panels(same) == []
    drawn = panels([*same, made("c", 20, 5000, 0.7), made("d", 30, 9000, 0.2, error="broken")])
    assert [panel.title for panel in drawn] == ["cifar: %, over parameters"]
    words = drawn[0].words.replace("\u202f", " ")
    assert "c Acc@1, plain 70.0 %" in words and "d " not in words
    assert len(panels([made("a", 10, 0, 0.5), made("b", 20, 200, 0.6)])) == 1  # 0 has no place over samples seen
    both = panels([made("a", 10, 100, 0.5), made("b", 20, 200, 0.6), made("b", 20, 200, 0.4, templates="simple")])
    assert [panel.title for panel in both] == ["cifar: %, over parameters", "cifar: %, over samples seen in training"]
    assert "Acc@1, simple" in both[0].svg and "var(--line-2)" in both[0].svg


def test_the_page_has_every_row_what_failed_and_the_best(tmp_path):
    outcomes = [made("a", 10, None, 0.5), made("b", 20, 100, 0.6), made("c", 5, 5, 0, error="out of memory")]
    rows, known = sections(outcomes)
    assert [line[0] for line in rows.tables[0].rows] == ["a", "b"]
    assert rows.tables[1].rows == [["c", "cifar", "plain", "out of memory"]]
    assert rows.headlines[0].label == "cifar: Acc@1"
    assert rows.headlines[0].share == shares(outcomes[1])["Acc@1"]
    assert "the best of 2: b · plain" in rows.headlines[0].meaning
    assert "3 encoders on 1 data set: 3 combinations, of which 1 failed" in rows.about
    assert [line[1] for line in known.tables[0].rows] == ["runs/a", "runs/b", "runs/c"]
    report = values(outcomes)
    assert report["a/cifar/plain/acc1"] == 0.5
    assert report["c/cifar/plain/error"] == "out of memory"
    assert json.dumps(report, allow_nan=False)


def test_nothing_but_failures_is_a_page_too():
    outcomes = [made("a", 10, None, 0.5, error="no")._replace(facts=None, data=None)]
    rows, _ = sections(outcomes)
    assert rows.tables[0].rows == [] and rows.headlines == [] and rows.figures == []
    assert table(outcomes)["fingerprint"].to_pylist() == [None]


def test_the_examples_in_the_docstrings_hold():
    assert doctest.testmod(sweep_plot).failed == 0


@pytest.mark.parametrize(("said", "seen"), [("12.8e9", 12_800_000_000), ("1.28e+10", 12_800_000_000), ("5", 5)])
def test_samples_seen_as_people_write_it(said, seen, tmp_path):
    assert read(f"encoders: [{{path: x, samples_seen: {said}}}]\ndata: [y]", tmp_path).encoders[0].samples_seen == seen


@pytest.mark.parametrize("said", ["many", ".inf", ".nan", "nan", "-5", "0", "1e30", "9" * 400, "true"])
def test_samples_seen_that_are_no_number(said, tmp_path):
    with pytest.raises(ValueError, match=r"samples_seen of encoders\[0\] is .*, which .*; write a number"):
        read(f"encoders: [{{path: x, samples_seen: {said}}}]\ndata: [y]", tmp_path)


def test_classes_without_names_are_to_be_named_in_the_yaml(settings, folders, tmp_path):
    settings["data"] = [{"name": "pairs", "path": str(folders / "pairs"), "task": "zeroshot"}]
    errors = {one.error for one in swept(settings, tmp_path)}
    assert len(errors) == 1 and errors.pop().endswith("labels, or name them with `classes:`")


def test_classes_take_the_order_of_the_datas_own(settings, folders, tmp_path):
    settings["encoders"], settings["data"] = settings["encoders"][:1], settings["data"][1:]
    own = [one.report for one in swept(settings, tmp_path / "own")]
    settings["data"][0]["classes"] = ",".join(reversed(COLOURS))
    assert [one.report for one in swept(settings, tmp_path / "given")] == own
    settings["data"][0]["classes"] = "a,b"
    assert all("2 class names for data" in one.error for one in swept(settings, tmp_path / "few"))


def test_an_encoder_on_the_hub_is_known_by_its_cached_revision(tmp_path, monkeypatch):
    import huggingface_hub

    def identity(revision):
        there = revision and str(tmp_path / "snapshots" / revision / "open_clip_config.json")
        monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_: there)
        return evidence._identity(Encoder("x", "hf-hub:org/repo"), "exact")

    assert len({identity("a"), identity("b"), identity(None)}) == 3 and identity("a") == identity("a")
