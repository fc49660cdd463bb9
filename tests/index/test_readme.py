"""index/README.md says what is so: its table, its fields, its examples; and the benchmark behind it runs."""

from __future__ import annotations

import hashlib
import importlib
import json
import re
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
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
    assert all(0 < row["recall_texts"] <= 1 and row["bytes_per_vector"] > 0 for row in results.values())


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


def test_an_index_is_read_by_what_the_readme_says(tmp_path, data):
    """Files, fields, checksum and the rows that count, by the text alone; and no file that it does not name."""
    index = Index.build(
        data.images[:60], tmp_path / "i", metadata=[{"n": n} for n in range(60)], recipe="ivf_sq8", recall=0.1
    )
    index.add(data.images[60:70], range(500, 510), [{"n": n} for n in range(60, 70)])
    index.remove([3, 59, 505])
    folder = tmp_path / "i"
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    signed = {key: value for key, value in manifest.items() if key != "checksum"}
    text = json.dumps(signed, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert manifest["checksum"] == hashlib.sha256(text.encode("utf-8")).hexdigest()
    assert (manifest["format"], manifest["version"]) == ("dualenc-index", 2)

    ids, numbers, rows = [], [], []
    for segment in manifest["segments"]:
        files = {role: folder / file["name"] for role, file in segment["files"].items()}
        for role, file in segment["files"].items():
            whole = files[role].read_bytes()
            assert (len(whole), hashlib.sha256(whole).hexdigest()) == (file["bytes"], file["sha256"])
        here = np.load(files["ids"])
        left = np.setdiff1d(np.arange(segment["rows"]), np.load(files["removed"]))
        assert (here.dtype, len(here), len(left)) == (np.int64, segment["rows"], segment["rows"] - segment["removed"])
        ids += here[left].tolist()
        numbers += pq.read_table(files["metadata"]).take(left)["n"].to_pylist()
        rows += np.load(files["vectors"])[left].tolist()
    assert (
        ids
        == index.ids.tolist()
        == [i for i in range(60) if i not in (3, 59)] + [i for i in range(500, 510) if i != 505]
    )
    assert numbers == index.rows(ids)["n"].to_pylist()
    assert np.allclose(rows, index.vectors(ids), atol=1e-6)
    assert (manifest["rows"], manifest["tombstones"]) == (67, 3)
    fields = re.search(r"^\| `segments` \|(.*)$", TEXT, re.M)[1]
    assert set(manifest["segments"][0]) == set(re.findall(r"`(\w+)`", re.sub(r"\(role.*?\)", "", fields)))

    listing = TEXT[TEXT.index("```\nmanifest.json") :].split("```")[1]
    forms = {re.sub(r"\d+", "0", line.split()[0]) for line in listing.strip().splitlines()}
    assert {re.sub(r"\d+", "0", path.name) for path in folder.iterdir()} == forms
