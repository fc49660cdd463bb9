"""Filling a kind: the same as adding all rows at once, in whatever parts, and however often it was killed."""

from __future__ import annotations

import json
import multiprocessing
import random
import subprocess
import sys
import time

import numpy as np
import pytest

from dualenc.files import sha256
from dualenc.index import fill as module
from dualenc.index.fill import fill, source_key
from dualenc.index.kinds import KINDS
from dualenc.index.threads import pools
from dualenc.index.vectors import Array
from dualenc.index.work import keep, kept
from tests.index.conftest import _make_data

N, D, PART = 3000, 16, 512
IVF = {"kind": "ivf", "nlist": 24, "codes": "float32", "dims_per_code": 2, "bits": 4}
IVF |= {"train_rows_per_list": 64, "iterations": 5, "seed": 3, "centred": True}
BUILDS = {
    "flat": {"kind": "flat"},
    "hnsw": {"kind": "hnsw", "M": 8, "efConstruction": 40, "codes": "float32"},
    "hnsw_sq8": {"kind": "hnsw", "M": 8, "efConstruction": 40, "codes": "sq8"},
    "ivf": IVF,
    "ivf_sq8": IVF | {"codes": "sq8"},
    "ivf_pq": IVF | {"codes": "pq"},
    "scan_rabitq": IVF | {"codes": "rabitq", "nlist": 1},
}
IMAGES = _make_data(N, D, 1).images
IDS = np.random.default_rng(5).permutation(10 * N)[:N].astype(np.int64)
SKIP = np.sort(np.random.default_rng(6).permutation(N)[:100])


class Slow(Array):
    """Rows that take a while to read, so that a kill can fall anywhere."""

    def take(self, rows):
        time.sleep(0.004)
        return super().take(rows)


def build_it(name, work, out):
    """What the killed processes do."""
    module.GRAPH_BLOCK = 128
    with pools(1):
        fill(BUILDS[name], Slow(IMAGES), IDS, work, SKIP, progress=False, part=PART, patience=0).write(out)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(module, "GRAPH_BLOCK", 128)
    with pools(1):  # graphs are the same to the bit with one thread only
        yield


def make(name, work=None, rows=IMAGES, ids=IDS, skip=SKIP, build=None, **options):
    options = {"progress": False, "part": PART, "patience": 0} | options
    return fill(build or BUILDS[name], Array(rows), ids, work, skip, **options)


def parts(work):
    return {path.name: path.stat().st_mtime_ns for path in work.glob("*.faiss")}


def fingerprint(build, path):
    """Of what was built: the file's, to the bit; for fast-scan codes, whose blocks end in bytes that mean nothing, that of
    everything that a search returns."""
    if build.get("codes") != "pq":
        return sha256(path)
    kind = KINDS["ivf"].read(path, build, D, N - len(SKIP), None)
    found, scores = kind.search(IMAGES[::10], 100, {"nprobe": build["nlist"]}, IDS)
    return found.tobytes() + scores.tobytes()


def same(kind, other, tmp_path):
    """Whether both hold the same to the bit."""
    kind.write(tmp_path / "one.faiss")
    other.write(tmp_path / "other.faiss")
    return fingerprint(kind.build, tmp_path / "one.faiss") == fingerprint(other.build, tmp_path / "other.faiss")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Fingerprints of uninterrupted builds."""
    folder, made = tmp_path_factory.mktemp("whole"), {}

    def hashed(name):
        if name not in made:
            make(name, folder / name).write(folder / f"{name}.faiss")
            made[name] = fingerprint(BUILDS[name], folder / f"{name}.faiss")
        return made[name]

    return hashed


@pytest.mark.parametrize("name", BUILDS)
def test_parts_are_the_same_as_adding_all_rows_at_once(name, tmp_path):
    kept = np.delete(np.arange(N), SKIP)
    build = BUILDS[name]
    mean = IMAGES[kept].astype(np.float64).mean(axis=0).astype(np.float32) if build.get("centred") else None
    sample = IMAGES[kept]  # all of them: 24 x 64 is less, but codes ask for 16,384
    if KINDS[build["kind"]].trains(build) and build["codes"] == "float32":
        sample = IMAGES[kept][np.sort(np.random.default_rng(3).permutation(len(kept))[: 24 * 64])]
    slow = KINDS[build["kind"]].new(build, D, mean, sample)
    for start in range(0, len(kept), 128 if name.startswith("hnsw") else len(kept)):
        some = kept[start : start + 128] if name.startswith("hnsw") else kept
        slow.add(IMAGES[some], IDS[some])
    kind = make(name, tmp_path / "work")
    assert kind.total == len(kept) and kind.dim == D
    assert same(kind, slow, tmp_path)
    if name.startswith("hnsw"):
        assert len(list((tmp_path / "work").glob("graph-*.faiss"))) == 1
    else:
        assert len(list((tmp_path / "work").glob("part-*.faiss"))) == 6
    assert same(make(name), slow, tmp_path)  # without a folder


@pytest.mark.parametrize("name", ["flat", "ivf"])
def test_it_finds_what_exact_search_finds_and_nothing_that_was_skipped(name, tmp_path):
    kind = make(name, tmp_path)
    kept = np.delete(np.arange(N), SKIP)
    queries = IMAGES[SKIP]
    right = np.argsort(-(queries.astype(np.float64) @ IMAGES[kept].T), axis=1)[:, :5]
    found, scores = kind.search(queries, 5, {"nprobe": 24}, IDS[kept])
    assert np.array_equal(found, IDS[kept][right])
    assert np.allclose(scores, np.take_along_axis(queries @ IMAGES[kept].T, right, 1), atol=1e-5)


def test_one_part_needs_no_folder(tmp_path):
    make("ivf", tmp_path / "work", part=N)
    assert not (tmp_path / "work").exists()
    assert make("flat", tmp_path / "work", part=N - len(SKIP) - 1).total == N - len(SKIP)
    assert len(parts(tmp_path / "work")) == 2


def test_the_sample_is_random_seeded_in_order_and_large_enough(monkeypatch):
    seen = []
    new = KINDS["ivf"].new.__func__
    monkeypatch.setattr(KINDS["ivf"], "new", classmethod(lambda *words: seen.append(words[4]) or new(*words)))
    monkeypatch.setattr(module, "CODE_ROWS", 700)
    changes = [{}, {"seed": 4}, {"train_rows_per_list": 1}, {"codes": "pq", "nlist": 1}, {"train_rows_per_list": 500}]
    for change in changes:
        make("ivf", build=IVF | change)
    assert [len(sample) for sample in seen] == [24 * 64, 24 * 64, 24, 700, N - len(SKIP)]
    kept = np.delete(np.arange(N), SKIP)
    numbers = [[int(np.flatnonzero((row == IMAGES).all(axis=1))[0]) for row in sample] for sample in seen[:4]]
    for drawn in numbers:
        assert drawn == sorted(set(drawn)) and set(drawn) <= set(kept.tolist())
        assert abs(np.mean(drawn) - N / 2) < 5 * N / np.sqrt(12 * len(drawn))  # from all over
    assert numbers[0] != numbers[1]
    make("ivf")
    assert np.array_equal(seen[-1], seen[0])


@pytest.mark.parametrize("name", ["ivf", "hnsw_sq8", "flat"])
def test_a_second_run_takes_up_what_is_there(name, tmp_path, monkeypatch):
    first = make(name, tmp_path / "work")
    before = parts(tmp_path / "work")
    taken = []
    take = Array.take
    monkeypatch.setattr(Array, "take", lambda self, rows: taken.extend(np.ravel(rows)) or take(self, rows))
    again = make(name, tmp_path / "work", source=None)
    assert parts(tmp_path / "work") == before
    assert same(first, again, tmp_path)
    rest = 2900 % 128 if name == "hnsw_sq8" else 0  # since the last checkpoint
    assert len(taken) == rest + module.PROBES  # and those that the source is recognised by


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "record", "swap"])
@pytest.mark.parametrize("victim", ["part-00002.faiss", "mean.npy", "trained.faiss"])
def test_a_damaged_file_is_noticed_and_made_again(damage, victim, tmp_path, capsys):
    work = tmp_path / "work"
    first = make("ivf_sq8", work)
    before, path = parts(work), work / victim
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[-9] ^= 1
        path.write_bytes(content)
    elif damage == "truncate":
        path.write_bytes(content[:-8])
    elif damage == "remove":
        path.unlink()
    elif damage == "record":
        (work / f"{victim}.json").write_text('{"bytes": 3')
    else:
        path.write_bytes((work / "part-00001.faiss").read_bytes())
    assert same(first, make("ivf_sq8", work), tmp_path)
    assert f"{victim} is damaged; making it again" in capsys.readouterr().err
    made = {name for name, at in parts(work).items() if before[name] != at}
    later = {f"part-{number:05d}.faiss" for number in range(6)}  # of another training: never mixed with what is new
    expected = {"part-00002.faiss": {victim}, "trained.faiss": later | {victim}, "mean.npy": later | {"trained.faiss"}}
    assert made == expected[victim]


def test_a_file_of_another_size_is_not_even_hashed(tmp_path, monkeypatch):
    keep(tmp_path, "mean.npy", lambda path: path.write_bytes(b"four"))
    assert kept(tmp_path, "mean.npy", lambda path: path.read_bytes()) == b"four"
    (tmp_path / "mean.npy").write_bytes(b"thr")
    monkeypatch.setattr("dualenc.index.work.sha256", lambda path: pytest.fail("hashed"))
    assert kept(tmp_path, "mean.npy", lambda path: path.read_bytes()) is None


def test_a_damaged_checkpoint_of_a_graph_is_not_taken_up(tmp_path, capsys):
    work = tmp_path / "work"
    first = make("hnsw", work)
    (path,) = work.glob("graph-*.faiss")
    path.write_bytes(path.read_bytes()[:-1])
    assert same(first, make("hnsw", work), tmp_path)
    assert "is damaged" in capsys.readouterr().err


CHANGED = IMAGES.copy()
CHANGED[-1] = CHANGED[0]
OTHERS = {
    "build": {"build": IVF | {"seed": 4}},
    "kind": {"build": {"kind": "flat"}},
    "ids": {"ids": IDS[::-1].copy()},
    "skip": {"skip": SKIP[1:]},
    "rows": {"rows": CHANGED},
    "number of rows": {"rows": IMAGES[:-1], "ids": IDS[:-1], "skip": SKIP[SKIP < N - 1]},
    "source": {"source": "another store"},
    "part": {"part": 600},
}


@pytest.mark.parametrize("other", OTHERS)
def test_another_plan_begins_anew_and_says_so(other, tmp_path, capsys):
    work = tmp_path / "work"
    work.mkdir()
    (work / "choice.json").write_text("{}")  # not of this module: left alone
    (work / ".part-00003.faiss.abc.tmp").write_text("half a part")
    make("ivf", work)
    assert capsys.readouterr().err == ""
    before = parts(work)
    kind = make("ivf", work, **OTHERS[other])
    assert capsys.readouterr().err == f"{work} holds the beginning of another build; beginning anew\n"
    assert same(kind, make("ivf", **OTHERS[other]), tmp_path)
    assert not before.items() & parts(work).items()
    assert {path.name for path in work.iterdir() if path.suffix in (".tmp", ".json")} >= {"choice.json"}
    assert not list(work.glob(".*.tmp"))


def test_a_damaged_plan_begins_anew(tmp_path, capsys):
    first = make("ivf", tmp_path / "work")
    before = parts(tmp_path / "work")
    (tmp_path / "work" / "plan.json").write_text("{")
    assert same(first, make("ivf", tmp_path / "work"), tmp_path)
    assert "beginning anew" in capsys.readouterr().err
    assert not before.items() & parts(tmp_path / "work").items()
    assert json.loads((tmp_path / "work" / "plan.json").read_text())["build"] == IVF


def test_a_source_is_recognised_by_its_first_and_last_row_and_many_between():
    key = source_key(Array(IMAGES))
    assert key == source_key(Array(IMAGES.copy()))
    for row in (0, N - 1):
        changed = IMAGES.copy()
        changed[row, 0] += 1e-4
        assert source_key(Array(changed)) != key
    assert source_key(Array(IMAGES[:, :8])) != key and source_key(Array(IMAGES[:-1])) != key
    changed = IMAGES.copy()
    changed[N // 3 : N // 3 + 20] = 0  # any 20 rows in sequence hold one that is looked at
    assert source_key(Array(changed)) != key


@pytest.mark.parametrize("row", [1, 2999])
@pytest.mark.parametrize("name", ["flat", "ivf", "hnsw"])
def test_a_row_that_is_not_unit_is_named_by_its_number(name, row, tmp_path):
    rows = IMAGES.copy()
    rows[row] *= 1.1
    with pytest.raises(ValueError, match=f"vectors: row {row} has length 1.1"):
        make(name, tmp_path, rows=rows, skip=None)


forked = multiprocessing.get_context("forkserver")
forked.set_forkserver_preload(["tests.index.test_fill"])


def kill_and_resume(name, seed, work, out):
    """Start it again and again, killing it after a while, until it has run through; how often it was killed."""
    rng, kills = random.Random(f"{name} {seed}"), 0
    while True:
        process = forked.Process(target=build_it, args=(name, work, out))
        process.start()
        process.join(0.02 + rng.random() * 0.25 if kills < 4 else 60)
        if process.exitcode is not None:
            assert process.exitcode == 0
            return kills
        assert kills < 4, "it hangs"
        process.kill()
        process.join()
        kills += 1


def test_a_killed_build_goes_on_and_ends_the_same(whole, tmp_path):
    kills = 0
    for name in ("ivf", "hnsw", "ivf_pq", "flat"):
        out = tmp_path / f"{name}.faiss"
        kills += kill_and_resume(name, 0, tmp_path / name, out)
        assert fingerprint(BUILDS[name], out) == whole(name), name
    assert kills >= 2


@pytest.mark.full
@pytest.mark.parametrize("seed", range(30))
def test_killed_often(seed, whole, tmp_path):
    name = list(BUILDS)[seed % len(BUILDS)]
    kill_and_resume(name, seed + 1, tmp_path / "work", tmp_path / "out.faiss")
    assert fingerprint(BUILDS[name], tmp_path / "out.faiss") == whole(name)


PEAK = """
import re, sys
from pathlib import Path
import numpy as np
from dualenc.index.fill import fill
from dualenc.index.vectors import Array
from dualenc.index.work import keep, kept
from dualenc.index.kinds import KINDS

class Random(Array):  # made when read: no memory of the source is counted
    def __init__(self, rows, dim): self.rows, self.dim = rows, dim
    def __len__(self): return self.rows
    def take(self, numbers):
        made = np.random.default_rng(int(numbers[0])).normal(size=(len(numbers), self.dim)).astype(np.float32)
        return made / np.linalg.norm(made, axis=1, keepdims=True)

def peak():  # getrusage would begin at the peak of the process that started this one
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])

build, rows, part = eval(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
fill(build, Random(8192, 256), np.arange(8192), None)  # what is loaded and kept anyway
before = peak()
fill(build, Random(rows, 256), np.arange(rows), sys.argv[4], part=part)
print((peak() - before) / (rows * 1024))
"""


@pytest.mark.full
@pytest.mark.parametrize("name", ["ivf", "flat"])
def test_peak_memory_is_the_index_and_a_part(name, tmp_path):
    """17 parts: lists and rows that double as they grow would hold nearly two indexes, the old beside the new."""
    build = BUILDS[name] if name == "flat" else IVF | {"nlist": 128}
    words = [sys.executable, "-c", PEAK, repr(build), str(17 * 16384), "16384", str(tmp_path / "work")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert 0.9 < float(done.stdout) < 1.35
