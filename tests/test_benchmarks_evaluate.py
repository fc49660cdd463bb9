"""benchmarks/evaluate.py on toy data: each part runs, the peer is asked over files, trials leave the record alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
FAKES = {  # what the peer's script imports: the definitions, written down as briefly as they go
    "clip_benchmark/__init__.py": "",
    "clip_benchmark/metrics/__init__.py": "",
    "clip_benchmark/metrics/zeroshot_retrieval.py": """
import torch
def recall_at_k(scores, positive, k):
    return positive.gather(1, scores.topk(k, dim=1)[1]).sum(1) / positive.sum(1)
def evaluate(model, loader, tokenizer, device, amp, recall_k_list):
    images, texts, owner = [], [], []
    for numbers, captions in loader:
        images.append(model.encode_image(numbers))
        texts.append(model.encode_text(tokenizer([text for own in captions for text in own])))
        owner += [number for number, own in zip(numbers.tolist(), captions) for _ in own]
    images, texts = torch.cat(images), torch.cat(texts)
    scores = texts @ images.T
    waste = torch.zeros(16, *scores.shape)
    positive = torch.zeros_like(scores, dtype=torch.bool)
    positive[torch.arange(len(owner)), owner] = True
    print("noise on stdout")
    sides = {"image_retrieval": (scores, positive), "text_retrieval": (scores.T, positive.T)}
    return {f"{name}_recall@{k}": float((recall_at_k(*side, k) > 0).float().mean() + OFF)
            for name, side in sides.items() for k in recall_k_list}
OFF = 0.0
""",
    "clip_benchmark/metrics/zeroshot_classification.py": """
import numpy as np, torch
import torch.nn.functional as F
def zero_shot_classifier(model, tokenizer, names, templates, device, amp):
    rows = [F.normalize(model.encode_text(tokenizer(templates[name])), dim=-1).mean(0) for name in names]
    return F.normalize(torch.stack(rows), dim=-1).T
def average_precision_per_class(scores, targets):
    found = []
    for column, held in zip(scores.T, targets.T):
        held = held[column.argsort(descending=True)].double()
        found.append((held.cumsum(0) / torch.arange(1, len(held) + 1) * held).sum() / held.sum())
    return torch.stack(found)
def balanced_accuracy_score(target, predicted):
    return np.mean([(predicted[target == c] == c).mean() for c in np.unique(target)])
""",
}
VERSIONS = {"clip-benchmark": "1.6.2"}


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """The module benchmarks/evaluate.py, with a peer that is a fake."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import evaluate_side

    fakes = tmp_path / "fakes"
    for name, text in FAKES.items():
        (fakes / name).parent.mkdir(parents=True, exist_ok=True)
        (fakes / name).write_text(text)
    script = fakes / "peer.py"
    peers = ROOT / "benchmarks" / "peers"
    script.write_text(
        f"import sys; sys.path[:0] = [{str(peers)!r}]\n"
        f"import clip_benchmark_peer as peer\npeer.versions = lambda: {VERSIONS!r}\npeer.main()\n"
    )
    monkeypatch.setattr(evaluate_side, "SCRIPT", script)
    monkeypatch.setattr(evaluate_side, "interpreter", lambda folder: Path(sys.executable))
    import evaluate

    return evaluate


def options(benchmark, tmp_path: Path, part: str, *more: str):
    words = ["--only", part, "--size", "0.004", "--cases", "3", "--rounds", "1", "--threads", "1", *more]
    return benchmark.arguments([*words, "--out", str(tmp_path / "trial.json")])


def check(results: dict) -> dict[str, dict]:
    """A part's results go into JSON and come back; every goal has a figure that fits its verdict. Goals by what they say."""
    assert json.loads(json.dumps(results)) == results and results["goals"]
    for each in results["goals"]:
        sign, bound = each["wanted"].split()
        assert each["met"] == (each["measured"] >= float(bound) if sign == ">=" else each["measured"] <= float(bound))
    return {each["what"]: each for each in results["goals"]}


def test_the_same_numbers(benchmark, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import evaluate_same

    def theirs(cases: dict) -> dict:
        found = {
            f"{name}/{i}": evaluate_same.OURS[name](**case) for name in cases for i, case in enumerate(cases[name])
        }
        return found | {"recall/1": found["recall/1"] + 1e-5}

    monkeypatch.setattr(evaluate_same, "paired_difference", lambda rng: 0.0)
    results = evaluate_same.measure(options(benchmark, tmp_path, "same"))
    goals = check(results)
    assert len(goals) == 5 and all(goal["met"] for goal in goals.values()), results
    assert results["cases"] == 3 and results["versions_of_peers"] == VERSIONS
    monkeypatch.setattr(evaluate_same, "asked", lambda cases, *_: (theirs(cases), {}))
    worst = evaluate_same.measure(options(benchmark, tmp_path, "same"))["largest_difference"]
    assert worst["recall"] == pytest.approx(1e-5) and worst["balanced"] == 0


def test_what_cannot_be_compared_differs(benchmark) -> None:
    from evaluate_same import difference

    assert difference(np.zeros(3), np.zeros(2)) == difference(np.array([np.nan]), np.zeros(1)) == np.inf
    assert difference(np.array([1.0, 2.0]), np.array([1.0, 2.5])) == 0.5


@pytest.mark.full
def test_open_clips_ranks(benchmark) -> None:
    from evaluate_same import paired_difference

    assert paired_difference(np.random.default_rng(0)) == 0


def test_cases_are_as_wide_as_they_say(benchmark) -> None:
    from evaluate_same import MAKERS

    rng = np.random.default_rng(0)
    some = {name: [make(rng) for _ in range(50)] for name, make in MAKERS.items()}
    assert any(len(set(case["target"].tolist())) < case["scores"].shape[1] for case in some["balanced"]), (
        "absent classes"
    )
    assert all(case["positive"].any(axis=0).all() for case in some["precision"])
    assert all(len(np.unique(case["image_row"])) == len(case["images"]) for case in some["recall"])
    assert any(len(case["texts"]) > len(case["images"]) for case in some["recall"])


def test_retrieval(benchmark, tmp_path: Path) -> None:
    import evaluate_retrieval

    goals = check(results := evaluate_retrieval.measure(options(benchmark, tmp_path, "retrieval")))
    assert goals["largest difference of a recall"]["met"] and results["data"]["captions"] == 100
    sides = results["sides"]
    assert [len(side["rounds"]["seconds"]) for side in sides.values()] == [1, 1]
    assert sides["clip_benchmark"]["versions"] == VERSIONS
    assert 0.1 < sides["dualenc"]["metrics"]["text_to_image/recall@1"] <= 1
    three = [{"metrics": {}, "seconds": t, "extra_mib": 10 * t} for t in (3.0, 1.0, 2.0)]
    assert evaluate_retrieval.middle(three)["seconds"] == 2 and evaluate_retrieval.middle(three)["extra_mib"] == 20
    theirs, ours = sides["clip_benchmark"]["metrics"], sides["dualenc"]["metrics"]
    assert evaluate_retrieval.differs(ours, theirs | {"text_retrieval_recall@5": 2.0}) >= 1


def test_a_large_set(benchmark, tmp_path: Path) -> None:
    import evaluate_retrieval

    goals = check(results := evaluate_retrieval.measure_large(options(benchmark, tmp_path, "large")))
    assert results["data"]["images"] == 400 and results["share"] == 0.1 and len(goals) == 1
    assert results["whole_seconds"] == pytest.approx(10 * results["seconds"] + results["interval_seconds"], abs=0.06)
    assert results["held"] == [400, 2000] and "extrapolated" in results["time"]
    assert any("a tenth of either side asks all of the other; time extrapolated" in what for what in goals)


def test_classifier(benchmark, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import evaluate_classifier
    import open_clip

    class Encoder:
        dim, fingerprint = 4, "f" * 64

        def embed_texts(self, texts):
            return np.array([[len(text), text.count("a"), text.count("e"), 1.0] for text in texts], np.float32)

        def save(self, folder):
            folder.mkdir()

    class Model:
        def eval(self):
            return self

        def encode_text(self, texts, normalize):
            import torch

            assert normalize
            return torch.nn.functional.normalize(torch.from_numpy(Encoder().embed_texts(texts)), dim=-1)

    class Texts(list):
        def to(self, device):
            return self

    monkeypatch.setattr(evaluate_classifier.DualEncoder, "load", lambda *_, **__: Encoder())
    monkeypatch.setattr(open_clip, "create_model", lambda name: Model())
    monkeypatch.setattr(open_clip, "get_tokenizer", lambda name: Texts)
    goals = check(results := evaluate_classifier.measure(options(benchmark, tmp_path, "classifier", "--size", "0.1")))
    assert goals["largest difference from open_clip's"]["met"] and (results["classes"], results["templates"]) == (2, 80)
    assert len(results["kept_seconds"]) == 1 and len(goals) == 3
    assert results["whole_extrapolated_minutes"].keys() == results["seconds"].keys() == {"dualenc", "open_clip"}


ALLOCATES = """
from peak import watched
held = bytearray(b"x") * (200 << 20)
result, cost = watched(lambda: len(bytearray(b"x") * (100 << 20)))
assert result == 100 << 20 and 95 < cost["extra_mib"] < 130 and cost["peak_mib"] > 300 and len(held) == 200 << 20, cost
idle = watched(lambda: None)[1]["extra_mib"]
assert idle < 20, f"{idle} MiB: what came and went before does not count"
"""


def test_memory_beyond_what_was_held() -> None:
    """In a process of its own: in pytest's, other threads come and go, and so does their memory."""
    subprocess.run([sys.executable, "-c", ALLOCATES], cwd=ROOT / "benchmarks" / "peers", check=True)


def test_a_peer_that_fails_says_why(benchmark, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import evaluate_side

    with pytest.raises(subprocess.CalledProcessError):
        evaluate_side.run(tmp_path, "retrieval", tmp_path / "nowhere", tmp_path / "out.json", 1)
    assert "nowhere" in capsys.readouterr().err


def test_the_environment_is_made_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import evaluate_side
    import index_peers

    ran: list[list] = []
    monkeypatch.setattr(index_peers, "interpreter", lambda name, folder: folder / name / "bin" / "python")
    monkeypatch.setattr(evaluate_side.subprocess, "run", lambda command, **_: ran.append(command))
    (tmp_path / evaluate_side.PEER).mkdir()
    for _ in range(2):
        assert evaluate_side.interpreter(tmp_path).name == "python"
    assert len(ran) == 1 and "--no-deps" in ran[0] and ran[0][-1] == evaluate_side.ALONE
    assert evaluate_side.environment(3)["OMP_NUM_THREADS"] == "3" and os.environ.get("OMP_NUM_THREADS") != "3"


def test_one_part_leaves_the_others(benchmark, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    import evaluate_retrieval

    toy = [{"what": "toy", "wanted": ">= 1", "measured": 0.5, "met": False}]
    monkeypatch.setattr(evaluate_retrieval, "measure_large", lambda options: {"goals": toy})
    out = tmp_path / "trial.json"
    before = {"classifier": {"results": {"goals": []}, "date": "then"}}
    out.write_text(json.dumps(before))
    monkeypatch.setattr("sys.argv", ["evaluate.py", "--only", "large", "--rounds", "1", "--out", str(out)])
    benchmark.main()
    record = json.loads(out.read_text())
    assert list(record) == ["large", "classifier"] and record["classifier"] == before["classifier"]
    assert capsys.readouterr().out.splitlines()[-1].split() == ["large:", "toy", ">=", "1", "0.5", "MISSED"]


@pytest.mark.parametrize("words", [["--size", "0.1"], ["--cases", "5"], ["--rounds", "1"]])
def test_a_trial_does_not_overwrite_the_record(benchmark, capsys, words: list[str]) -> None:
    with pytest.raises(SystemExit):
        benchmark.arguments(words)
    assert "give --out" in capsys.readouterr().err
