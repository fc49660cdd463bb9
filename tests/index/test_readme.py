"""index/README.md says what is so: its table, its fields, its examples; and the benchmark behind it runs."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest
import yaml

from dualenc import Index
from dualenc.index import load_recipe

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "index" / "README.md").read_text(encoding="utf-8")


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("index_kinds")


def test_the_table_is_the_record(benchmark):
    assert benchmark.BLOCK.search(TEXT)[0] == f"<!-- measured -->\n{benchmark.table()}<!-- /measured -->"
    assert benchmark.table().count("\n| ") == 1 + len(benchmark.RECIPES) - 1


def test_the_benchmark_runs(benchmark):
    results = benchmark.compare(*benchmark.vectors(1500, 30))
    assert list(results) == list(benchmark.RECIPES)
    assert results["flat"]["recall_texts"] == 1
    assert all(0 < row["recall_texts"] <= 1 and row["bytes_per_vector"] > 4 * benchmark.DIM for row in results.values())


def test_every_field_of_a_manifest_is_described(tmp_path, data):
    index = Index.build(data.images[:50], tmp_path / "i", metadata=[{}] * 50)
    table = TEXT[TEXT.index("| field |") :]
    described = set(
        re.findall(r"`(\w+)`", "".join(line.split("|")[1] for line in table.splitlines() if line[:3] == "| `"))
    )
    assert described == set(index.manifest) | {"checksum"}


def test_recipes_and_examples():
    table = TEXT[TEXT.index("| recipe | what") : TEXT.index("What a recipe leaves out")]
    assert set(re.findall(r"^\| `(\w+)`", table, re.M)) == {path.stem for path in (ROOT / "index").glob("*.yaml")}
    examples = re.findall(r"```yaml\n(.*?)```", TEXT, re.S)
    assert len(examples) == 1
    assert load_recipe(yaml.safe_load(examples[0]), 100_000)["search"] == {"nprobe": [8]}
