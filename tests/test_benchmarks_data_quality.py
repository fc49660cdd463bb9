"""The benchmark of data quality on toy data: which captions move, what is found of them, and the whole of it end to end."""

from __future__ import annotations

import doctest
import json
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import dualenc.torchvision_ops  # noqa: F401  (before open_clip)

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dualenc.data.shards import open_source
from tests.small import write_shards

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory: pytest.TempPathFactory):
    """The modules; what they record goes to a folder of its own, and `dualenc` runs in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        patch.setenv("OMP_NUM_THREADS", "1")
        import data_quality
        import data_quality_noise
        import record
        import train_flickr8k

        from dualenc.cli import main

        results = tmp_path_factory.mktemp("results")
        patch.setattr(record, "RESULTS", results)
        called: list[list[str]] = []

        def run(command: list[str], **_) -> subprocess.CompletedProcess:
            called.append(command[3:])
            done = main(command[3:])
            assert done == 0, command
            return subprocess.CompletedProcess(command, done, stdout="")

        patch.setattr(data_quality, "subprocess", SimpleNamespace(run=run, PIPE=subprocess.PIPE))
        modules = {"quality": data_quality, "noise": data_quality_noise, "flickr": train_flickr8k}
        yield SimpleNamespace(**modules, results=results, called=called)


@given(st.lists(st.integers(0, 5), min_size=2, max_size=12), st.floats(0, 0.5), st.integers(0, 99))
def test_captions_change_places(benchmark, counts: list[int], share: float, seed: int) -> None:
    captions = [[f"{i}.{number}" for number in range(count)] for i, count in enumerate(counts)]
    flat = [(i, number) for i, some in enumerate(captions) for number in range(len(some))]
    try:
        moved, slots = benchmark.noise.shuffle(captions, share, seed)
    except ValueError as error:
        assert "cannot change places" in str(error)
        return
    assert len(slots) == round(share * len(flat)) == len(set(slots))
    assert sorted(text for some in moved for text in some) == sorted(text for some in captions for text in some)
    for i, number in flat:
        own = int(moved[i][number].split(".")[0]) == i
        assert own == ((i, number) not in slots)
        assert (moved[i][number] == captions[i][number]) == own
    assert benchmark.noise.shuffle(captions, share, seed) == (moved, slots)


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=2, max_size=15))
def test_how_well_scores_tell_by_hand(benchmark, rows: list[tuple[int, bool]]) -> None:
    value, wrong = np.array([v for v, _ in rows], float), np.array([w for _, w in rows])
    if wrong.all() or not wrong.any():
        return
    found = benchmark.noise.detection(value, wrong)
    pairs = [(b > a) + (b == a) / 2 for a in value[wrong] for b in value[~wrong]]
    assert found["roc_auc"] == pytest.approx(np.mean(pairs))
    order = sorted(range(len(rows)), key=lambda i: (value[i], wrong[i]))
    seen = [sum(wrong[i] for i in order[: n + 1]) / (n + 1) for n in range(len(order)) if wrong[order[n]]]
    assert found["average_precision"] == pytest.approx(np.mean(seen))


def test_two_normals_meet_where_they_are_equally_likely(benchmark) -> None:
    rng = np.random.default_rng(0)
    low, high = rng.normal(0, 1, 4_000), rng.normal(4, 1, 16_000)
    border = benchmark.noise.two_normals(np.concatenate([low, high]))
    assert border == pytest.approx(2 + np.log(0.2 / 0.8) / 4, abs=0.1)  # 0.2 N(x; 0, 1) = 0.8 N(x; 4, 1)
    assert doctest.testmod(benchmark.noise).failed == 0 and doctest.testmod(benchmark.noise).attempted >= 3


def test_noisy_shards_and_their_halves(benchmark, tmp_path: Path) -> None:
    clean = write_shards(tmp_path / "clean", 24, shards=2)
    benchmark.noise.write_noisy(clean, tmp_path / "data")
    source, noisy = open_source(clean), open_source(tmp_path / "data" / "noisy" / "train")
    halves = [open_source(tmp_path / "data" / half / "train") for half in benchmark.noise.HALVES]
    assert list(noisy.keys) == list(source.keys)
    assert sorted([*halves[0].keys, *halves[1].keys]) == sorted(source.keys) and len(halves[0]) == 12
    own = {key: source.sample(i).captions() for i, key in enumerate(source.keys)}
    there = {key: noisy.sample(i).captions() for i, key in enumerate(noisy.keys)}
    for half in halves:
        assert {key: half.sample(i).captions() for i, key in enumerate(half.keys)}.items() <= there.items()
        assert all(half.read(i) == source.read(list(source.keys).index(key)) for i, key in enumerate(half.keys))
    keys, numbers = [key for key in own for _ in range(2)], [0, 1] * 24
    wrong = benchmark.noise.shuffled_of(tmp_path / "data", keys, numbers)
    differs = [there[key][number] != own[key][number] for key, number in zip(keys, numbers, strict=True)]
    assert wrong.tolist() == differs and wrong.sum() == round(0.2 * 48)


def test_the_whole_of_it(benchmark, encoder_folder: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    """All but the training itself, which is train_flickr8k.py's, with tests of its own: a run leaves a tiny encoder here."""
    for name, count in {"train": 40, "val": 12, "test": 16}.items():
        write_shards(tmp_path / "splits" / name, count, shards=1, prefix=name)
    runs, trained = tmp_path / "runs", []

    def train(run, shards: Path, threads: int) -> None:
        trained.append((run.folder.name, shards.name, run.seed, run.shown, threads))
        assert len(open_source(shards / "train")) > 0 and len(open_source(shards / "val")) == 12
        shutil.copytree(encoder_folder, run.folder / "encoder")
        run.folder.with_suffix(".seconds").write_text("2.0")

    monkeypatch.setattr(benchmark.flickr, "train", train)
    monkeypatch.setattr(benchmark.flickr, "PLAIN", ["--data.batch_size=8"])
    words = ["--data", str(tmp_path / "splits"), "--runs", str(runs), "--samples", "40", "--seeds", "0"]
    monkeypatch.setattr("sys.argv", ["data_quality.py", *words])
    with pytest.raises(SystemExit):
        benchmark.quality.main()
    assert "--samples makes a trial; give --out" in capsys.readouterr().err
    words += ["--out", str(tmp_path / "trial.json")]
    (tmp_path / "trial.json").write_text(
        json.dumps({"results": {"samples": 9, "training": {"noisy": {"runs": {"7": 1}}}}})
    )
    monkeypatch.setattr("sys.argv", ["data_quality.py", *words, "--only-record"])
    benchmark.quality.main()
    assert not benchmark.called and not trained  # nothing is there to record
    monkeypatch.setattr("sys.argv", ["data_quality.py", *words])
    benchmark.quality.main()
    kinds = ("noisy", "clean", "filtered")
    names = [("half0", 0), ("half1", 0), *((kind, 0) for kind in kinds)]
    data = {"filtered": "filtered-40"}  # a whole run's is another
    assert [run[:3] for run in trained] == [(f"{name}-seed{seed}", data.get(name, name), seed) for name, seed in names]
    assert benchmark.quality.folder_of("filtered", runs, 51_000) == runs / "data" / "filtered"
    assert [" ".join(words[:2]) for words in benchmark.called] == ["data score", "data score", "data filter"]
    assert not (benchmark.results / "data_quality.json").exists()
    found = json.loads((tmp_path / "trial.json").read_text())["results"]
    assert found["samples"] == 40
    assert {kind: len(entry["runs"]) for kind, entry in found["training"].items()} == dict.fromkeys(kinds, 1)
    check_detection(found["detection"], runs)
    for half, other in (("half0", "half1"), ("half1", "half0")):  # each by the one that has not seen it
        scored = next(words for words in benchmark.called if words[:2] == ["data", "score"] and half in words[2])
        assert scored[scored.index("--encoder") + 1] == str(runs / "40" / f"{other}-seed0" / "encoder")
    benchmark.quality.main()
    assert len(trained) == 5 and len(benchmark.called) == 3  # nothing is done twice
    assert "filtered   R@10" in capsys.readouterr().out


def test_means_and_spreads_over_seeds(benchmark, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(benchmark.flickr, "score", lambda encoder, _: {"recall@10": 0.1 * int(encoder.parts[-2][-1])})
    results: dict = {}
    for seed in (1, 3):
        folder = tmp_path / f"noisy-seed{seed}"
        folder.with_suffix(".seconds").write_text("60.0")
        benchmark.quality.note_run(results, "noisy", seed, folder, tmp_path)
    entry = results["training"]["noisy"]
    assert entry["recall@10"] == 0.2 and entry["standard_deviation"] == pytest.approx(2**0.5 / 10, abs=1e-6)
    assert entry["runs"]["3"][
        "seconds"
    ] == 60 and "noisy      R@10 20.00 ± 14.14  (2 seeds)" in benchmark.quality.table(results)


def check_detection(detection: dict, runs: Path) -> None:
    assert (detection["pairs"], detection["wrong"]) == (80, 16)
    rule = detection["rules"]["percentile >= 0.2"]
    assert rule == detection["by_share_dropped"]["0.2"] and rule["dropped"] == 16
    kept = open_source(runs / "data" / "filtered-40" / "train")
    moved = {tuple(slot) for slot in json.loads((runs / "data" / "shuffled.json").read_text())}
    noisy = open_source(runs / "data" / "noisy" / "train")
    wrong = {
        (key, noisy.sample(i).captions()[n]) for i, key in enumerate(noisy.keys) for n in (0, 1) if (key, n) in moved
    }
    left = [(key, caption) for i, key in enumerate(kept.keys) for caption in kept.sample(i).captions()]
    assert len(left) == detection["kept"]["kept_pairs"] == 64
    assert detection["kept"]["wrong_share"] == pytest.approx(sum(pair in wrong for pair in left) / 64)
    assert rule["recall"] == pytest.approx(1 - sum(pair in wrong for pair in left) / 16)
