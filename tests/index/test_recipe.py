from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from dualenc.index import load_recipe
from dualenc.index.kinds import KINDS

FOLDER = Path(__file__).parents[2] / "index"
SHIPPED = sorted(path.stem for path in FOLDER.glob("*.yaml"))


def knobs(build):
    return {*KINDS[build["kind"]].knobs, *(["rerank"] if build.get("codes", "float32") != "float32" else [])}


def settings(build):
    """The settings of a kind that its codes have."""
    foreign = {"dims_per_code": "pq", "bits": "rabitq"}
    codes = build.get("codes", "float32")
    return {"kind", *(one for one in KINDS[build["kind"]].settings if foreign.get(one, codes) == codes)}


def test_the_recipes_that_ship():
    coded = ["hnsw_fp16", "hnsw_sq8", "ivf_pq", "ivf_rabitq", "ivf_sq8", "scan_pq", "scan_rabitq"]
    assert sorted(["auto", "flat", "hnsw", "ivf", *coded]) == SHIPPED
    written = {name: yaml.safe_load((FOLDER / f"{name}.yaml").read_text())["build"] for name in SHIPPED}
    assert {build["kind"] for build in written.values()} == {*KINDS, "auto"} - {"adopted"}
    assert set(written["auto"]["candidates"]) == set(SHIPPED) - {"auto"}


@pytest.mark.parametrize("name", [name for name in SHIPPED if name != "auto"])
@pytest.mark.parametrize("rows", [1, 38, 39, 1000, 20_000, 20_001, 10_000_000])
def test_a_shipped_recipe_resolves_whole(name, rows):
    recipe = load_recipe(name, rows)
    assert set(recipe["build"]) == settings(recipe["build"])
    assert set(recipe["search"]) == knobs(recipe["build"])
    again = load_recipe({"build": recipe["build"], "search": recipe["search"]}, rows)
    assert (again["build"], again["search"]) == (recipe["build"], recipe["search"])
    if name.startswith("scan"):
        assert recipe["build"]["nlist"] == 1 and recipe["search"]["nprobe"] == [1]


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_recipe_names_every_setting_and_its_command(name):
    """What a recipe leaves out is taken from these files, so they must leave nothing out."""
    text = (FOLDER / f"{name}.yaml").read_text()
    written = yaml.safe_load(text)
    assert "# Cost: " in text and "ake it " in text
    if name != "auto":
        assert set(written["build"]) == settings(written["build"])
        assert set(written["search"]) == knobs(written["build"])
        assert text.count(f"dualenc index build STORE OUT --recipe {name}\n") == 1


def test_auto_comes_back_with_its_candidates(tmp_path):
    recipe = load_recipe("auto", 100_000)
    assert recipe["name"] == "auto" and recipe["search"] == {}
    assert set(recipe["build"]) == {"kind", "candidates", "flat_up_to_rows", "sample_rows"}
    assert (recipe["build"]["flat_up_to_rows"], recipe["build"]["sample_rows"]) == (20_000, 32768)
    assert load_recipe({"build": recipe["build"]}, 100_000)["build"] == recipe["build"]
    path = tmp_path / "mine.yaml"
    path.write_text("build: {kind: ivf, nlist: 7}")
    build = {"kind": "auto", "candidates": ["flat", str(path)]}
    assert load_recipe({"build": build}, 1000)["build"] == {**recipe["build"], **build}
    path.write_text("build: {kind: ivf, n_list: 7}")
    with pytest.raises(ValueError, match="mine, build: unknown setting 'n_list'"):
        load_recipe({"build": build}, 1000)


@pytest.mark.parametrize(
    ("build", "shipped"),
    [
        ({"kind": "ivf", "codes": "pq"}, "ivf_pq"),
        ({"kind": "ivf", "codes": "sq8"}, "ivf_sq8"),
        ({"kind": "ivf", "codes": "rabitq"}, "ivf_rabitq"),
        ({"kind": "hnsw", "codes": "sq8"}, "hnsw_sq8"),
    ],
)
def test_what_is_left_open_is_as_the_recipe_of_these_codes(build, shipped):
    recipe, like = load_recipe({"build": build, "search": {}}, 5000), load_recipe(shipped, 5000)
    assert recipe["build"] == like["build"] and recipe["search"] == like["search"]
    assert load_recipe({"build": build, "search": {"rerank": [8, 2]}}, 5000)["search"]["rerank"] == [2, 8]


def test_float16_is_a_coded_graph():
    recipe = load_recipe({"build": {"kind": "hnsw", "codes": "float16"}}, 5000)
    assert recipe["build"]["codes"] == "float16" and set(recipe["search"]) == {"efSearch", "rerank"}


@pytest.mark.parametrize(("rows", "nlist"), [(1, 1), (77, 1), (78, 2), (10_000, 256), (24_336, 624), (1_000_000, 4000)])
def test_lists_follow_rows(rows, nlist):
    recipe = load_recipe("ivf", rows)
    assert recipe["build"]["nlist"] == nlist
    assert recipe["search"]["nprobe"][-1] == nlist  # the last resort is exact
    assert recipe["search"]["nprobe"] == sorted(set(recipe["search"]["nprobe"]))


def test_a_recipe_of_ones_own(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("build: {kind: ivf, nlist: 7}\nsearch: {nprobe: [5, 1, 100]}\n")
    recipe = load_recipe(path, 1000)
    assert recipe["name"] == "mine"
    assert recipe["build"] == load_recipe("ivf", 1000)["build"] | {"nlist": 7}
    assert recipe["search"] == {"nprobe": [1, 5, 7]}
    assert load_recipe({"build": {"kind": "ivf"}, "search": {"nprobe": 3}}, 1000)["search"] == {"nprobe": [3]}
    assert load_recipe({"build": {"kind": "hnsw"}, "search": {"efSearch": 50}}, 1000)["search"] == {"efSearch": [50]}


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        ({"build": {"kind": "ivf", "n_list": 3}}, "unknown setting 'n_list'; did you mean 'nlist'"),
        ({"build": {"kind": "hnsw", "efconstruction": 3}}, "did you mean 'efConstruction'"),
        ({"build": {"kind": "hnsw"}, "search": {"nprobe": 3}}, "search: unknown setting 'nprobe'; known: efSearch"),
        ({"build": {"kind": "flat"}, "search": {"nprobe": 3}}, "known: none"),
        ({"build": {"kind": "flat"}, "serach": {}}, "did you mean 'search'"),
        ({"build": {"kind": "hsnw"}}, "kind 'hsnw' is unknown; did you mean 'hnsw'"),
        ({"build": {}}, "kind None is unknown; known: flat, hnsw, ivf, auto"),
        ({}, "has no `build:`"),
        ({"build": {"kind": "ivf", "nlist": 1001}}, "nlist=1001 is more than the 1000 rows"),
        ({"build": {"kind": "ivf", "nlist": 0}}, "nlist=0 does not fit"),
        ({"build": {"kind": "ivf", "nlist": "many"}}, "nlist='many' does not fit"),
        ({"build": {"kind": "ivf", "centred": 1}}, "centred=1 does not fit"),
        ({"build": {"kind": "hnsw", "M": True}}, "M=True does not fit"),
        ({"build": {"kind": "hnsw"}, "search": {"efSearch": []}}, "a whole number, or a list"),
        ({"build": {"kind": "hnsw"}, "search": {"efSearch": [0]}}, "a whole number, or a list"),
        ({"build": {"kind": "hnsw"}, "search": [1]}, "holds settings"),
        ({"build": {"kind": "hnsw", "M": 1}}, "M=1 does not fit"),
        ({"build": {"kind": "hnsw", "codes": "pq"}}, "codes 'pq' are unknown to hnsw; .*sq8"),
        ({"build": {"kind": "ivf", "codes": "sq"}}, "did you mean 'sq8'"),
        ({"build": {"kind": "ivf", "bits": 2}}, "bits is a setting of codes: rabitq, not of codes: float32"),
        ({"build": {"kind": "ivf", "codes": "rabitq", "bits": 9}}, "bits=9 does not fit"),
        ({"build": {"kind": "ivf", "codes": "pq", "dims_per_code": 0}}, "dims_per_code=0 does not fit"),
        ({"build": {"kind": "ivf", "seed": -1}}, "seed=-1 does not fit"),
        ({"build": {"kind": "ivf", "seed": 2**31}}, "seed=2147483648 does not fit"),
        ({"build": {"kind": "ivf"}, "search": {"rerank": 4}}, "unknown setting 'rerank'"),
        ({"build": {"kind": "ivf", "codes": "pq"}, "search": {"rerank": 0}}, r"rerank=\[0\]"),
        ({"build": {"kind": "adopted"}}, "dualenc index adopt"),
        ({"build": {"kind": "auto", "candidate": ["flat"]}}, "did you mean 'candidates'"),
        ({"build": {"kind": "auto", "candidates": []}}, "a list of recipes"),
        ({"build": {"kind": "auto", "candidates": "flat"}}, "a list of recipes"),
        ({"build": {"kind": "auto", "candidates": ["auto"]}}, "candidate auto is itself of kind auto"),
        ({"build": {"kind": "auto", "sample_rows": 0}}, "sample_rows=0; give a whole number"),
        ({"build": {"kind": "auto"}, "search": {"nprobe": 3}}, "known: none"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(recipe, said):
    with pytest.raises(ValueError, match=said) as error:
        load_recipe(recipe, 1000)
    assert "\n" not in str(error.value)


def test_names_that_do_not_exist_and_files_that_are_no_recipe(tmp_path):
    with pytest.raises(FileNotFoundError, match="auto, flat, hnsw, hnsw_fp16, hnsw_sq8, ivf"):
        load_recipe("fast", 1000)
    (tmp_path / "bad.yaml").write_text("build: [")
    with pytest.raises(ValueError, match="not a recipe") as error:
        load_recipe(tmp_path / "bad.yaml", 1000)
    assert "\n" not in str(error.value)
    with pytest.raises(FileNotFoundError, match="no such file"):  # a folder is none, and in nobody's way
        load_recipe(tmp_path, 1000)
