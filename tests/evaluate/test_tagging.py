"""Scores to labels, and tables of labels that are written part by part, whatever interrupts them."""

from __future__ import annotations

import itertools
import json
import os
import signal
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dualenc.evaluate.tag import parts as tag_parts
from dualenc.evaluate.tag import tagging
from dualenc.evaluate.tag.parts import Summary, parts_folder, write_labels
from dualenc.evaluate.tag.tagging import NONE_OF_THESE, SCHEMA, UNDECIDED, Block, Rules, checked_rules, labelled

NAMES = ["cat", "dog", "owl"]
WEIGHTS = np.eye(3, 4, dtype=np.float32)  # the cosine with class c is the row's c-th value


def block(*scores, reasons=None):
    """Images whose cosines with the three classes are given."""
    rows = np.array([[*some, np.sqrt(max(0, 1 - np.square(some).sum()))] for some in scores], np.float32).reshape(-1, 4)
    n = len(rows)
    return Block([f"k{i}" for i in range(n)], [f"/p/{i}.jpg" for i in range(n)], reasons or [None] * n, rows)


def rules(**more):
    return checked_rules(Rules(NAMES, 10.0, **more))


def test_the_best_class_with_its_score_and_share():
    table = labelled(block((0.1, 0.5, 0.3), (0.6, 0.2, -0.1)), WEIGHTS, rules(top=2))
    assert table.schema == SCHEMA
    first, second = table.to_pylist()
    # exp(10 * score): e^1, e^5, e^3 and e^6, e^2, e^-1
    share = np.exp(5) / (np.exp(1) + np.exp(5) + np.exp(3))
    assert first["key"] == "k0"
    assert first["path"] == "/p/0.jpg"
    assert first["label"] == "dog"
    assert first["score"] == pytest.approx(0.5)
    assert first["probability"] == pytest.approx(share, rel=1e-5)
    assert first["reason"] is None
    assert first["labels"] == ["dog", "owl"]
    assert first["scores"] == pytest.approx([0.5, 0.3])
    assert first["probabilities"] == pytest.approx([share, share * np.exp(-2)], rel=1e-5)
    assert second["label"] == "cat"
    assert second["labels"] == ["cat", "dog"]


def test_ties_keep_their_order():
    table = labelled(block((0.2, 0.5, 0.5), (0.1, 0.1, 0.1)), WEIGHTS, rules(top=3))
    assert table["labels"].to_pylist() == [["dog", "owl", "cat"], ["cat", "dog", "owl"]]
    assert labelled(block((0.2, 0.5, 0.5)), WEIGHTS, rules())["label"].to_pylist() == ["dog"]


@pytest.mark.parametrize(
    ("given", "reasons"),
    [
        ({}, [None, None, None]),
        ({"threshold": 0.25}, [None, None, NONE_OF_THESE]),
        ({"threshold": 0.2}, [None, None, None]),
        ({"min_probability": 0.6}, [None, UNDECIDED, None]),
        ({"threshold": 0.25, "min_probability": 0.6}, [None, UNDECIDED, NONE_OF_THESE]),
        ({"threshold": 0.9, "min_probability": 0.6}, [NONE_OF_THESE, NONE_OF_THESE, NONE_OF_THESE]),
    ],
)
def test_images_of_no_class(given, reasons):
    scores = block((0.5, 0.1, 0.1), (0.5, 0.5, 0.1), (0.25, -0.3, -0.3))
    scores.rows[2, 0] = 0.2000001  # a float32 that is not below the threshold of 0.2
    table = labelled(scores, WEIGHTS, rules(**given))
    assert table["reason"].to_pylist() == reasons
    assert [label is None for label in table["label"].to_pylist()] == [reason is not None for reason in reasons]
    assert table["labels"].to_pylist() == [["cat"]] * 3  # so that other thresholds can be tried afterwards
    assert not table["score"].null_count


def test_an_image_without_an_embedding_has_no_label():
    rows = block((0.5, 0.1, 0.1), (0, 0, 0), (0.1, 0.1, 0.9), reasons=[None, "not an image", None])
    rows.rows[1] = np.nan  # nobody looks at it
    table = labelled(rows, WEIGHTS, rules(threshold=0.2))
    assert table["label"].to_pylist() == ["cat", None, "owl"]
    assert table.to_pylist()[1] == {
        **dict.fromkeys(SCHEMA.names),
        "key": "k1",
        "path": "/p/1.jpg",
        "reason": "not an image",
    }
    assert labelled(block((0, 0, 0), reasons=["zero bytes"]), WEIGHTS, rules()).num_rows == 1
    assert labelled(block(), WEIGHTS, rules()).schema == SCHEMA


def test_a_damaged_embedding_is_refused():
    rows = block((0.5, 0.1, 0.1))
    rows.rows[0] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        labelled(rows, WEIGHTS, rules())


def test_many_classes_are_scored_in_pieces(monkeypatch):
    rng = np.random.default_rng(0)
    rows, weights = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in rng.standard_normal((2, 50, 8), np.float32))
    names = [f"c{i}" for i in range(50)]
    some = Block(names, [None] * 50, ["broken" if i % 7 == 0 else None for i in range(50)], rows)
    for top in (1, 5, 49, 50):
        monkeypatch.undo()
        whole = labelled(some, weights, Rules(names, 10.0, top))
        monkeypatch.setattr(tagging, "_CELLS", 150)
        assert labelled(some, weights, Rules(names, 10.0, top)).drop("probabilities") == whole.drop("probabilities")
        for i in np.flatnonzero(np.arange(50) % 7):
            best = np.argsort(-(rows[i] @ weights.T), kind="stable")[:top]
            assert whole["labels"][i].as_py() == [names[c] for c in best]
    assert whole["path"].null_count == 50


def test_names_that_are_not_utf_8():
    some = block((0.5, 0.1, 0.1))._replace(keys=["a\udcffb"], paths=["/p/\udcff.jpg"])
    assert labelled(some, WEIGHTS, rules()).to_pylist()[0]["path"] == "/p/\ufffd.jpg"


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"top": 0}, "top 0: an image would get no class; use 1 to 3"),
        ({"top": 4}, "top 4: there are only 3 classes to name; use that many or fewer"),
        ({"threshold": 25.0}, "threshold 25.0 is no cosine"),
        ({"threshold": float("nan")}, "is no cosine"),
        ({"min_probability": 0.0}, "must be above 0"),
        ({"min_probability": 1.5}, "must be above 0"),
    ],
)
def test_rules_that_cannot_be_meant(given, says):
    with pytest.raises(ValueError, match=says):
        rules(**given)


PLAN = {"encoder": "e", "top": 1, "threshold": None}
LABELS = ["cat", "dog", None]
N = 100


def wanted(first=0, last=N):
    """Rows first .. last - 1 of a table of labels."""
    columns = {name: [None] * (last - first) for name in SCHEMA.names}
    columns["key"] = [f"k{i}" for i in range(first, last)]
    columns["label"] = [LABELS[i % 3] for i in range(first, last)]
    columns["score"] = [None if i % 3 == 2 else i / N for i in range(first, last)]
    columns["reason"] = ["not an image" if i % 3 == 2 else None for i in range(first, last)]
    return pa.table(columns, SCHEMA)


class Run:
    """Blocks of 7 rows; stops with an error before row `until`. `started`: where each run began."""

    def __init__(self, until=None):
        self.until, self.started = until, []

    def __call__(self, first):
        self.started.append(first)
        for start in range(first, N, 7):
            if self.until is not None and start >= self.until:
                raise RuntimeError("killed")
            yield wanted(start, min(start + 7, N))


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(tag_parts, "PART_ROWS", 10)  # with blocks of 7: parts of 14
    monkeypatch.setattr(tag_parts, "GROUP_ROWS", 30)


def test_all_rows_in_order_and_nothing_else_left(tmp_path):
    out = tmp_path / "new" / "labels.parquet"
    found = write_labels(out, PLAN, N, Run())
    assert pq.read_table(out).replace_schema_metadata(None) == wanted()
    assert [path.name for path in out.parent.iterdir()] == ["labels.parquet"]
    assert found.images == N
    assert found.labels == {"cat": 34, "dog": 33}
    assert found.reasons == {"not an image": 33}
    assert found.quantiles[50] == pytest.approx(0.5, abs=0.03)
    assert found.quantiles[1] < 0.03
    assert found.quantiles[95] == pytest.approx(0.94, abs=0.03)
    assert pq.ParquetFile(out).metadata.num_row_groups == 3


def test_it_goes_on_where_it_stood(tmp_path):
    out = tmp_path / "labels.parquet"
    run = Run(until=49)  # rows 0 .. 41 are in parts, 42 .. 48 in memory
    with pytest.raises(RuntimeError, match="killed"):
        write_labels(out, PLAN, N, run)
    assert not out.exists()
    run.until = 60
    with pytest.raises(RuntimeError, match="killed"):
        write_labels(out, PLAN, N, run)
    run.until = None
    write_labels(out, PLAN, N, run)
    assert run.started == [0, 42, 56]
    assert pq.read_table(out).replace_schema_metadata(None) == wanted()
    write_labels(out, PLAN, N, run)
    assert len(run.started) == 3  # finished: nothing to do


def test_parts_are_also_written_by_the_clock(tmp_path, monkeypatch):
    monkeypatch.setattr(tag_parts, "PART_ROWS", 1000)
    monkeypatch.setattr(tag_parts, "PART_SECONDS", -1.0)
    with pytest.raises(RuntimeError, match="killed"):
        write_labels(tmp_path / "out.parquet", PLAN, N, Run(until=21))
    assert len(list(parts_folder(tmp_path / "out.parquet").glob("*.parquet"))) == 3


def begun(tmp_path, until=70):
    out = tmp_path / "labels.parquet"
    with pytest.raises(RuntimeError):
        write_labels(out, PLAN, N, Run(until))
    return out, sorted(parts_folder(out).glob("*.parquet"))


def finishes(out, first):
    run = Run()
    write_labels(out, PLAN, N, run)
    assert run.started == [first]
    assert pq.read_table(out).replace_schema_metadata(None) == wanted()
    assert list(out.parent.iterdir()) == [out]


@pytest.mark.parametrize("damage", ["cut", "empty", "gone", "other rows"])
def test_a_damaged_part_is_made_anew_with_what_follows(tmp_path, damage):
    out, parts = begun(tmp_path)
    if damage == "gone":
        parts[1].unlink()
    elif damage == "other rows":
        pq.write_table(wanted(14, 27), parts[1])
    else:
        parts[1].write_bytes(parts[1].read_bytes()[:-10] if damage == "cut" else b"")
    finishes(out, 14)


def test_parts_behind_a_gap_do_not_come_back(tmp_path, caplog):
    out, parts = begun(tmp_path)  # parts of 14 rows, up to row 70
    parts[1].unlink()

    def others(first):  # meets the old parts at row 28 and then never again
        assert first == 14
        for start, end in itertools.pairwise([14, 28, *range(40, N, 12), N]):
            yield wanted(start, end)

    write_labels(out, PLAN, N, others)
    assert pq.read_table(out).replace_schema_metadata(None) == wanted()
    assert "parts: 3 finished parts are made again, from row 14 on" in caplog.text


def test_one_part_is_no_parts(tmp_path, caplog):
    out, parts = begun(tmp_path)
    parts[-1].write_bytes(b"")
    finishes(out, int(parts[-1].stem.split("-")[0]))
    assert "parts: 1 finished part is made again" in caplog.text


@pytest.mark.parametrize(
    "name", ["a-b.parquet", "0-14.parquet", "000000000070-000000000070.parquet", "mine.parquet", "copy of 0-14.parquet"]
)
def test_a_file_that_is_no_part_is_named_and_left(tmp_path, name):
    out, parts = begun(tmp_path)
    stray = parts_folder(out) / name
    stray.write_bytes(b"precious")
    run = Run()
    with pytest.raises(ValueError, match=rf"{name} is no part of these labels, .*; move it elsewhere"):
        write_labels(out, PLAN, N, run)
    assert stray.read_bytes() == b"precious" and all(path.exists() for path in parts) and not run.started
    stray.unlink()
    finishes(out, 70)


def test_a_folder_named_as_a_part_is_left(tmp_path):
    out, parts = begun(tmp_path)
    (parts_folder(out) / "000000000070-000000000080.parquet").mkdir()
    with pytest.raises(ValueError, match="is no part of these labels"):
        write_labels(out, PLAN, N, Run())
    assert all(path.exists() for path in parts)


def test_parts_that_the_system_does_not_let_read_stay(tmp_path, monkeypatch):
    out, parts = begun(tmp_path)

    def refuse(path, **_):
        raise PermissionError(13, "Permission denied", str(path))

    for reading in ("read_metadata", "read_table"):
        with monkeypatch.context() as patched, pytest.raises(PermissionError):
            patched.setattr(tag_parts.pq, reading, refuse)
            write_labels(out, PLAN, N, Run())
        assert all(path.exists() for path in parts)
    write_labels(out, PLAN, N, Run())


@pytest.mark.parametrize("damage", ["", "[]", "null", '{"top": ', None])
def test_parts_whose_plan_is_not_known_are_left(tmp_path, damage):
    out, parts = begun(tmp_path)
    plan = parts_folder(out) / "plan.json"
    whole = plan.read_text()
    plan.unlink() if damage is None else plan.write_text(damage)
    with pytest.raises(
        ValueError, match=r"plan.json is missing or damaged, .*; restore it, or remove .*parts to begin"
    ):
        write_labels(out, PLAN, N, Run())
    assert all(path.exists() for path in parts)
    plan.write_text(whole)
    finishes(out, 70)


def test_a_damaged_plan_without_parts_loses_nothing(tmp_path):
    out, parts = begun(tmp_path)
    for path in parts:
        path.unlink()
    (parts_folder(out) / "plan.json").write_text("")
    finishes(out, 0)


def test_a_plan_that_lacks_a_setting_is_another_one(tmp_path):
    out, _ = begun(tmp_path)
    (parts_folder(out) / "plan.json").write_text(json.dumps({"encoder": "e", "top": 1, "rows": N}))
    with pytest.raises(ValueError, match='threshold: "nothing" there, null now'):
        write_labels(out, PLAN, N, Run())


def test_a_bit_that_changed_in_a_part_is_found(tmp_path):
    out, parts = begun(tmp_path)
    data = bytearray(parts[2].read_bytes())
    data[data.index(b"k28")] ^= 1  # the page still unpacks: only its checksum tells
    parts[2].write_bytes(data)
    with pytest.raises(ValueError, match=r"is damaged .*, and was removed; run the same again"):
        write_labels(out, PLAN, N, Run())
    assert not out.exists()
    finishes(out, 28)


def test_killed_while_it_put_the_parts_together(tmp_path):
    out, _ = begun(tmp_path, until=98)
    (tmp_path / ".labels.parquet.abc.tmp").write_bytes(b"half")
    finishes(out, 98)


def test_killed_after_it_was_finished(tmp_path):
    out = tmp_path / "labels.parquet"
    write_labels(out, PLAN, N, Run())
    folder = parts_folder(out)
    folder.mkdir()
    (folder / "plan.json").write_text(json.dumps(PLAN | {"rows": N}))
    run = Run()
    write_labels(out, PLAN, N, run)
    assert not run.started
    assert not folder.exists()


class Killed(BaseException):
    pass


@pytest.mark.parametrize("after", range(8))  # parts
def test_killed_while_it_removed_the_parts(tmp_path, monkeypatch, after):
    """Even where the table is taken away meanwhile, what is left of the parts goes on."""
    out, unlink, left = tmp_path / "labels.parquet", Path.unlink, [after]

    def killing(path, *given, **more):
        if path.parent == parts_folder(out) and path.suffix == ".parquet":
            if not left[0]:
                raise Killed
            left[0] -= 1
        unlink(path, *given, **more)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Path, "unlink", killing)
        write_labels(out, PLAN, N, Run())
    assert out.exists()
    out.unlink()
    run = Run()
    write_labels(out, PLAN, N, run)
    assert pq.read_table(out).replace_schema_metadata(None) == wanted()
    assert run.started == ([14 * (8 - after)] if after else [])
    assert not parts_folder(out).exists()


def test_other_settings_are_noticed(tmp_path):
    out, _ = begun(tmp_path)
    with pytest.raises(ValueError, match=r"parts was begun with other settings \(threshold: null there, 0.2 now\)"):
        write_labels(out, PLAN | {"threshold": 0.2}, N, Run())
    with pytest.raises(ValueError, match=r"\(encoder: other ones\); run with those to go on, or remove it"):
        write_labels(out, PLAN | {"encoder": "f"}, N, Run())
    with pytest.raises(ValueError, match=r"\(rows: 100 there, 101 now\)"):
        write_labels(out, PLAN, N + 1, Run())
    finishes(out, 70)
    run, before = Run(), out.read_bytes()
    with pytest.raises(
        ValueError, match=r"parquet was made with other settings \(threshold: null there, 0.2 now\); name"
    ):
        write_labels(out, PLAN | {"threshold": 0.2}, N, run)
    assert not run.started and out.read_bytes() == before and not parts_folder(out).exists()


def test_a_file_that_is_no_table_of_labels_is_left_alone(tmp_path):
    out = tmp_path / "photo.jpg"
    out.write_bytes(b"precious")
    for _ in range(2):
        with pytest.raises(ValueError, match="is no table of labels, which would be lost"):
            write_labels(out, PLAN, N, Run())
        pq.write_table(pa.table({"a": [1]}), out)
    assert not parts_folder(out).exists()


def _second(out):
    try:
        write_labels(out, PLAN, N, Run())
    except BlockingIOError as error:
        os._exit(7 if "is being written by another run" in str(error) else 8)


def test_one_run_at_a_time(tmp_path):
    out = tmp_path / "labels.parquet"

    def slow(first):
        process = get_context("fork").Process(target=_second, args=(out,))
        process.start()
        process.join()
        assert process.exitcode == 7
        yield from Run()(first)

    write_labels(out, PLAN, N, slow)
    assert pq.read_table(out).num_rows == N


def test_a_process_that_a_killed_run_leaves_behind_holds_nothing(tmp_path):
    out = tmp_path / "labels.parquet"
    context = get_context("fork")
    orphan = context.Event()

    def killed(first):
        if os.fork() == 0:  # as a loader worker, which notices after seconds that its parent is gone
            orphan.wait(60)
            os._exit(0)
        os.kill(os.getpid(), signal.SIGKILL)
        yield from Run()(first)

    process = context.Process(target=write_labels, args=(out, PLAN, N, killed))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    finishes(out, 0)
    orphan.set()


def test_fewer_rows_than_were_told(tmp_path):
    with pytest.raises(ValueError, match="holds 100 rows, and there are 101 images"):
        write_labels(tmp_path / "out.parquet", PLAN, N + 1, Run())


def test_nothing_to_tag(tmp_path):
    assert write_labels(tmp_path / "out.parquet", PLAN, 0, lambda first: []) == Summary(0, {}, {}, {})
