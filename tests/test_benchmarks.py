"""benchmarks/data.py on toy data: each section runs, its figures are those that the targets name, and it keeps the others."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
CAPTIONS = [
    "a red circle",
    "two dogs run across the wet sand near the sea",
    "a child",
    "blue and yellow squares in a row",
]


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch):
    """The module benchmarks/data.py."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    import data

    return data


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """12 small photos with captions, as the data sets hold them."""
    (tmp_path / "toy" / "images").mkdir(parents=True)
    rng = np.random.default_rng(0)
    lines = []
    for number in range(12):
        file = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)).resize((300, 240)).save(file, "JPEG")
        (tmp_path / "toy" / "images" / f"{number}.jpg").write_bytes(file.getvalue())
        some = {"caption": CAPTIONS[0]} if number % 2 else {"captions": CAPTIONS}
        lines.append(json.dumps({"image": f"{number}.jpg", **some}))
    (tmp_path / "toy" / "captions.jsonl").write_text("\n".join(lines))
    return tmp_path / "toy"


def figures(benchmark, section: str) -> list[str]:
    return [figure for name, figure, *_ in benchmark.TARGETS if name == section]


@pytest.mark.parametrize("section", ["read", "text", "loader", "memory"])
def test_a_section(benchmark, photos: Path, section: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import data_loader

    monkeypatch.setattr(data_loader, "BATCH", 4)
    monkeypatch.setattr(benchmark, "COPIES", 2)
    if section == "memory":
        monkeypatch.setattr(data_loader.memory, "__defaults__", (3, 4))
    if section == "loader":
        monkeypatch.setattr(data_loader.loader, "__defaults__", (4,))
    found = benchmark.measure(section, str(photos), 1)
    assert figures(benchmark, section) and json.loads(json.dumps(found)) == found
    for figure in figures(benchmark, section):
        assert figure in found
    if section == "memory":
        assert len(found["mib"]) == len(found["open_files"]) == 3 and all(mib > 10 for mib in found["mib"])
    else:
        assert all(found[figure] > 0 for figure in figures(benchmark, section))


def test_the_text_tower(benchmark) -> None:
    import data_text

    found = data_text.tower(CAPTIONS, 1, batch=2, several=4)
    assert found["largest_difference"] <= 1e-5 and set(figures(benchmark, "tower")) <= found.keys()


def test_ids_that_differ_are_found(benchmark, monkeypatch: pytest.MonkeyPatch) -> None:
    import data_text

    from dualenc.data.text import Tokenizer

    encode = Tokenizer.encode
    monkeypatch.setattr(Tokenizer, "encode", lambda self, caption: encode(self, caption.replace("dogs", "dog")))
    with pytest.raises(AssertionError):
        data_text.text(CAPTIONS, 1)


def test_one_section_leaves_the_others(benchmark, photos: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    import record

    for module in (record, benchmark):
        monkeypatch.setattr(module, "RESULTS", tmp_path)
    before = {"memory": {"growth": 0.2}, "tower": {"gain_longest": 2.5, "gain_sorted": 5.0}}
    (tmp_path / "data.json").write_text(json.dumps({"results": before}))
    words = ["data.py", "--flickr8k", str(photos), "--only", "read", "--repeats", "1"]
    monkeypatch.setattr("sys.argv", words)
    benchmark.main()
    entry = json.loads((tmp_path / "data.json").read_text())
    assert list(entry["results"]) == ["read", "tower", "memory"] and entry["results"]["read"]["samples"] == 12
    assert {name: entry["results"][name] for name in before} == before
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5 and lines[-1].endswith("MISSED") and not any(line.endswith("MISSED") for line in lines[2:-1])


def test_a_section_without_its_data_is_refused(benchmark, monkeypatch, capsys) -> None:
    monkeypatch.setattr("sys.argv", ["data.py", "--only", "loader"])
    with pytest.raises(SystemExit):
        benchmark.main()
    assert "loader needs --photos" in capsys.readouterr().err
