"""Filtering: what a condition may say, which captions and samples go, images byte for byte, whole or not at all."""

from __future__ import annotations

import doctest
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dualenc.data.shards import open_source
from dualenc.evaluate.quality import clauses as clauses_module
from dualenc.evaluate.quality.clauses import clauses, condition
from dualenc.evaluate.quality.filter import filter_pairs, read_scores
from tests.small import sample, write_tar

SCORES = {("a", 0): 0.9, ("a", 1): 0.1, ("b", 0): 0.2, ("b", 1): 0.1, ("c", 0): 0.5, ("d", 0): 0.8}
CAPTIONS = {"a": ["a one", "a two"], "b": ["b one", "b two"], "c": ["c one"], "d": ["d one"], "silent": []}


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    members = []
    for i, (key, some) in enumerate(CAPTIONS.items()):
        more = {"json": {"n": 1.50, "z": ["ü"]}, "cls": 3} if key == "a" else {}
        members.append(sample(key, captions=some, seed=i, **more))
    members[0][-1] = ("a.json", b'{ "n": 1.50,"z":["\xc3\xbc"]}')  # not as we would write it
    write_tar(tmp_path / "in" / "0.tar", members[0] + members[1])
    write_tar(tmp_path / "in" / "1.tar", members[2] + members[3] + members[4])
    (tmp_path / "in" / "classnames.txt").write_text("x\ny\n")
    return tmp_path / "in"


def scores(**more: list) -> pa.Table:
    keys, numbers = zip(*SCORES, strict=True)
    columns = {"key": keys, "caption_number": numbers, "caption": [CAPTIONS[k][n] for k, n in SCORES]}
    duplicate = [key == "d" for key in keys]
    return pa.table(columns | {"score": list(SCORES.values()), "duplicate": duplicate} | more)


def members(folder: Path) -> dict[str, bytes]:
    found = {}
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            found |= {info.name: tar.extractfile(info).read() for info in tar}  # type: ignore[union-attr]
    return found


def test_captions_go_one_by_one_and_a_sample_with_its_last(shards: Path, tmp_path: Path) -> None:
    before = members(shards)
    keep = "score > 0.15 and not duplicate"
    report = filter_pairs(open_source(shards), scores(), keep, out=tmp_path / "out", progress=False)
    after = members(tmp_path / "out")
    assert {name for name in after if name.endswith("png")} == {"a.png", "b.png", "c.png"}
    same = ("a.png", "b.png", "c.png", "a.json", "a.cls", "c.txt")
    assert {name: after[name] for name in same} == {name: before[name] for name in same}
    assert (after["a.txt"], after["b.txt"]) == (b"a one", b"b one") and len(after) == 8
    assert (report.pairs, report.kept_pairs) == (6, 3)
    assert (report.samples, report.whole, report.fewer, report.gone, report.not_scored) == (5, 1, 2, 1, 1)
    assert report.failed == {"score > 0.15": {"pairs": 2, "alone": 2}, "NOT duplicate": {"pairs": 1, "alone": 1}}
    assert report.distribution["before/p50"] == pytest.approx(0.35)
    assert report.distribution["after/p50"] == pytest.approx(0.5)
    assert json.loads((tmp_path / "out" / "filter.json").read_text()) == report.to_json()
    assert report.shards == ["000000.tar"] and (tmp_path / "out" / "classnames.txt").read_text() == "x\ny\n"
    said = f"{report}"
    assert "kept 3 of 6 pairs (50.0 %)" in said and "2 fail score > 0.15 (2 of them nothing else)" in said
    assert (
        "kept 3 of 5 samples: 1 with all of their captions, 2 with fewer; 1 have none left, 1 were not scored" in said
    )


def test_filtered_shards_read_as_what_was_kept(shards: Path, tmp_path: Path) -> None:
    filter_pairs(open_source(shards), scores(), "true", out=tmp_path / "all", progress=False)
    source, again = open_source(shards), open_source(tmp_path / "all")
    assert list(again.keys) == ["a", "b", "c", "d"]
    for i in range(4):
        assert again.sample(i) == source.sample(i)
    filter_pairs(again, scores(), "key = 'b'", out=tmp_path / "b", progress=False)
    only = open_source(tmp_path / "b")
    assert [only.sample(i).captions() for i in range(len(only))] == [["b one", "b two"]]


def test_which_clause_a_pair_fails_alone(shards: Path, tmp_path: Path) -> None:
    keep = "score > 0.85 and not duplicate"  # d fails both
    report = filter_pairs(open_source(shards), scores(), keep, keys=tmp_path / "k", progress=False)
    assert report.failed == {"score > 0.85": {"pairs": 5, "alone": 4}, "NOT duplicate": {"pairs": 1, "alone": 0}}


def test_a_list_of_keys_instead(shards: Path, tmp_path: Path) -> None:
    source = open_source(shards)
    report = filter_pairs(source, scores(), "score >= 0.2", keys=tmp_path / "k.txt", progress=False)
    assert (tmp_path / "k.txt").read_text() == "a\nb\nc\nd\n" and (report.fewer, report.gone) == (2, 0)
    filter_pairs(source, scores(), "score >= 0.2", keys=tmp_path / "k.parquet", progress=False)
    lines = pq.read_table(tmp_path / "k.parquet").to_pylist()
    assert [(line["key"], line["caption_number"]) for line in lines] == [("a", 0), ("b", 0), ("c", 0), ("d", 0)]


def test_clauses() -> None:
    table = pa.table({"a": [1, 2, 3, None], "b": ["x and y", "(", "'", "y"]})
    found = condition(table, "a > 1 AND (a < 3 OR b = '(') and b <> 'it''s (and' and a between 0 and 9")
    assert list(found.clauses) == ["a > 1", "(a < 3) OR (b = '(')", "b != 'it''s (and'", "a BETWEEN 0 AND 9"] or all(
        clauses(text) == [text] for text in found.clauses
    )
    assert [mask.tolist() for mask in found.clauses.values()] == [
        [False, True, True, False],
        [True, True, False, False],
        [True, True, True, True],
        [True, True, True, False],
    ]
    assert found.mask.tolist() == [False, True, False, False]  # a null is not true
    assert condition(table, "a > 1 or b = 'y'").clauses == {}
    assert clauses("not (a and b)") == ["NOT (a AND b)"] and clauses("(a) and ((b))") == ["a", "b"]
    assert doctest.testmod(clauses_module) == (0, 1)


@pytest.mark.parametrize(
    ("keep", "said"),
    [
        (
            "scor > 1",
            r"--keep 'scor > 1': there is no column 'scor'; the nearest is score \(columns: key, caption_number",
        ),
        ("score", "not a condition"),
        ("score >", "does not parse"),
        ("score > (select 1)", "a subquery is not allowed"),
        ("key in (select * from read_text('/etc/passwd'))", "not allowed"),
        ("read_text('/etc/passwd') = ''", "not one that a filter may use"),
        ("score > 2", "none of 6 pairs meets it"),
        ("true; drop table metadata", "--keep"),
    ],
)
def test_conditions_that_are_refused(shards: Path, tmp_path: Path, keep: str, said: str) -> None:
    with pytest.raises(ValueError, match=said) as error:
        filter_pairs(open_source(shards), scores(), keep, out=tmp_path / "out", progress=False)
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


def test_scores_of_other_data_are_refused(shards: Path, tmp_path: Path) -> None:
    source, other = open_source(shards), scores(caption=["a two", "a one", "b one", "b two", "c one", "d one"])
    with pytest.raises(ValueError, match="a: caption 0 is not the one that was scored"):
        filter_pairs(source, other, "true", out=tmp_path / "out", progress=False)
    with pytest.raises(ValueError, match="scores of other data"):
        filter_pairs(source, scores(key=["x"] * 6), "true", out=tmp_path / "out", progress=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]
    some = scores(key=["a", "a", "b", "b", "x", "y"])
    assert filter_pairs(source, some, "true", keys=tmp_path / "k", progress=False).elsewhere == 2


def test_what_is_there_is_kept(shards: Path, tmp_path: Path) -> None:
    source = open_source(shards)
    for asked in ({"out": shards}, {"keys": shards / "0.tar"}):
        with pytest.raises(FileExistsError):
            filter_pairs(source, scores(), "true", progress=False, **asked)
    for asked in ({}, {"out": tmp_path / "x", "keys": tmp_path / "y"}):
        with pytest.raises(ValueError, match="either a folder for shards or a file"):
            filter_pairs(source, scores(), "true", progress=False, **asked)


def test_a_folder_of_images_gives_keys_alone(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name, data in sample("a", captions=CAPTIONS["a"]):
        (tmp_path / "in" / name).write_bytes(data)
    source = open_source(tmp_path / "in")
    with pytest.raises(ValueError, match="dualenc data pack"):
        filter_pairs(source, scores(), "true", out=tmp_path / "out", progress=False)
    filter_pairs(source, scores(), "score < 0.5", keys=tmp_path / "k", progress=False)
    assert (tmp_path / "k").read_text() == "a\n"


def test_reading_scores(tmp_path: Path) -> None:
    pq.write_table(scores(), tmp_path / "1.parquet")
    pq.write_table(scores(key=[f"x{key}" for key, _ in SCORES]), tmp_path / "2.parquet")
    assert read_scores([tmp_path / "1.parquet", tmp_path / "2.parquet"]).num_rows == 12
    with pytest.raises(ValueError, match="'a' is scored more than once"):
        read_scores([tmp_path / "1.parquet", tmp_path / "1.parquet"])
    pq.write_table(pa.table({"key": ["a"], "score": [1.0]}), tmp_path / "3.parquet")
    with pytest.raises(ValueError, match="no column caption_number, caption"):
        read_scores([tmp_path / "3.parquet"])
    (tmp_path / "4.parquet").write_bytes(b"PAR1 not")
    with pytest.raises(ValueError, match="does not open as parquet"):
        read_scores([tmp_path / "4.parquet"])
    with pytest.raises(FileNotFoundError, match="dualenc data score"):
        read_scores([tmp_path / "5.parquet"])


KILLED = """
import os, signal, sys
from dualenc.data.shards import open_source
from dualenc.evaluate.quality import filter
from dualenc.evaluate.quality.filter import filter_pairs, read_scores
copied, seen = filter._copied, []
def slowly(*args):
    seen.append(args)
    if len(seen) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return copied(*args)
filter._copied = slowly
filter_pairs(open_source(sys.argv[1]), read_scores([sys.argv[2]]), "true", out=sys.argv[3], progress=False)
"""


def test_a_run_that_fails_leaves_nothing(shards: Path, tmp_path: Path) -> None:
    source = open_source(shards)
    for tar in shards.glob("1.tar"):  # the second shard is cut after it was listed
        tar.write_bytes(tar.read_bytes()[:1000])
    with pytest.raises(OSError):
        filter_pairs(source, scores(), "true", out=tmp_path / "out", progress=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]


@pytest.mark.full
def test_a_killed_run_leaves_nothing_half(shards: Path, tmp_path: Path) -> None:
    pq.write_table(scores(), tmp_path / "s.parquet")
    words = [sys.executable, "-c", KILLED, str(shards), str(tmp_path / "s.parquet"), str(tmp_path / "out")]
    assert subprocess.run(words, env=os.environ).returncode == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    filter_pairs(open_source(shards), scores(), "true", out=tmp_path / "out", progress=False)
    assert len(open_source(tmp_path / "out")) == 4


def test_other_readers_of_tars_read_them(shards: Path, tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    filter_pairs(open_source(shards), scores(), "score > 0.15", out=tmp_path / "out", shard_size=2, progress=False)
    paths = sorted(str(path) for path in (tmp_path / "out").glob("*.tar"))
    assert len(paths) == 2
    read = list(webdataset.WebDataset(paths, shardshuffle=False))
    assert [(one["__key__"], one["txt"]) for one in read] == [
        ("a", b"a one"),
        ("b", b"b one"),
        ("c", b"c one"),
        ("d", b"d one"),
    ]
    assert np.asarray(pytest.importorskip("PIL.Image").open(io.BytesIO(read[0]["png"]))).shape == (32, 32, 3)


def test_class_names_of_several_folders_are_left_out_and_told(shards: Path, tmp_path: Path) -> None:
    write_tar(tmp_path / "more" / "2.tar", sample("e", captions=["e one"], seed=9))
    both = filter_pairs(open_source([shards, tmp_path / "more"]), scores(), "true", out=tmp_path / "a", progress=False)
    assert both.class_files_left_out == [str(shards)] and f"left out: {shards}" in f"{both}"
    assert not (tmp_path / "a" / "classnames.txt").exists()
    one = filter_pairs(
        open_source([shards / "0.tar", shards / "1.tar"]), scores(), "true", out=tmp_path / "b", progress=False
    )
    assert one.class_files_left_out == [] and (tmp_path / "b" / "classnames.txt").read_text() == "x\ny\n"


def test_a_score_that_is_no_number_is_refused(tmp_path):
    """DuckDB takes NaN for the largest number, so `score > 0.2` would keep it."""
    table = pa.table({"key": ["a", "b"], "caption_number": [0, 0], "caption": ["x", "y"], "score": [0.3, float("nan")]})
    pq.write_table(table, tmp_path / "scores.parquet")
    with pytest.raises(ValueError, match="1 scores are no numbers, such as that of 'b'"):
        read_scores([tmp_path / "scores.parquet"])


@pytest.mark.parametrize(
    ("name", "column", "said"),
    [
        ("score", ["good"] * 6, "column score is not float .*'good'"),
        ("caption", [["x"]] * 6, "column caption is not string"),
        ("caption_number", [0.5] * 6, "column caption_number is not int32"),
        ("caption_number", [0, None, 0, 1, 0, 0], "column caption_number is empty in 1 rows"),
        ("key", ["a", "a", None, "b", "c", "d"], "column key is empty in 1 rows"),
    ],
)
def test_a_table_that_something_else_wrote_is_told_by_its_column(tmp_path: Path, name: str, column: list, said: str):
    pq.write_table(scores(**{name: column}), tmp_path / "s.parquet")
    with pytest.raises(ValueError, match=said) as error:
        read_scores([tmp_path / "s.parquet"])
    assert "s.parquet" in str(error.value) and "\n" not in str(error.value)


def test_tables_that_hold_nothing_or_do_not_go_together(tmp_path: Path) -> None:
    pq.write_table(scores(), tmp_path / "1.parquet")
    pq.write_table(scores(duplicate=[["x"]] * 6), tmp_path / "2.parquet")
    with pytest.raises(ValueError, match=r"2\.parquet do not go together .*duplicate"):
        read_scores([tmp_path / "1.parquet", tmp_path / "2.parquet"])
    pq.write_table(scores().slice(0, 0), tmp_path / "3.parquet")
    with pytest.raises(ValueError, match=r"3\.parquet: not one row"):
        read_scores([tmp_path / "3.parquet"])
    spoiled = (tmp_path / "1.parquet").read_bytes().replace(b"a one", b"a \xff\xfee")
    (tmp_path / "4.parquet").write_bytes(spoiled)
    with pytest.raises(ValueError, match=r"4\.parquet does not open as parquet .*UTF8"):
        read_scores([tmp_path / "4.parquet"])


def test_a_caption_number_below_0_is_of_no_caption(shards: Path, tmp_path: Path) -> None:
    """Python would count it from the end, and find a caption there."""
    last = scores(caption_number=[0, -1, 0, 1, 0, 0])
    with pytest.raises(ValueError, match="a: caption -1 is not the one that was scored"):
        filter_pairs(open_source(shards), last, "true", keys=tmp_path / "k", progress=False)
