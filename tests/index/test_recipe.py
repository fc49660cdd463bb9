from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from dualenc.index import load_recipe
from dualenc.index.kinds import KINDS

FOLDER = Path(__file__).parents[2] / "index"
SHIPPED = sorted(path.stem for path in FOLDER.glob("*.yaml"))


def test_the_recipes_that_ship():
    assert SHIPPED == ["auto", "flat", "hnsw", "ivf"]
    assert set(KINDS) == set(SHIPPED) - {"auto"}


@pytest.mark.parametrize("name", SHIPPED)
@pytest.mark.parametrize("rows", [1, 38, 39, 1000, 20_000, 20_001, 10_000_000])
def test_a_shipped_recipe_resolves_whole(name, rows):
    recipe = load_recipe(name, rows)
    kind = KINDS[recipe["build"]["kind"]]
    assert set(recipe["build"]) == {"kind", *kind.settings}
    assert set(recipe["search"]) == ({kind.knob} if kind.knob else set())
    assert load_recipe({"build": recipe["build"], "search": recipe["search"]}, rows)["build"] == recipe["build"]


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_recipe_names_every_setting(name):
    """What a recipe leaves out is taken from these files, so they must leave nothing out."""
    written = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
    if name != "auto":
        assert set(written["build"]) == {"kind", *KINDS[name].settings}
        assert (FOLDER / f"{name}.yaml").read_text().count(f"--recipe {name}") == 1


def test_auto_goes_by_rows():
    chosen = {rows: load_recipe("auto", rows) for rows in (1, 20_000, 20_001, 5_000_000)}
    assert [recipe["name"] for recipe in chosen.values()] == ["flat", "flat", "ivf", "ivf"]
    assert all(recipe["asked"] == "auto" for recipe in chosen.values())


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
        ({"build": {"kind": "auto", "choose": [{"recipe": "flat", "up_to_rows": 5}]}}, "no line for 1,000 rows"),
        ({"build": {"kind": "auto", "choose": [{"recipe": "flat", "rows": 5}]}}, "did you mean|unknown setting 'rows'"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(recipe, said):
    with pytest.raises(ValueError, match=said) as error:
        load_recipe(recipe, 1000)
    assert "\n" not in str(error.value)


def test_names_that_do_not_exist_and_files_that_are_no_recipe(tmp_path):
    with pytest.raises(FileNotFoundError, match="auto, flat, hnsw, ivf"):
        load_recipe("fast", 1000)
    (tmp_path / "bad.yaml").write_text("build: [")
    with pytest.raises(ValueError, match="not a recipe") as error:
        load_recipe(tmp_path / "bad.yaml", 1000)
    assert "\n" not in str(error.value)
    with pytest.raises(FileNotFoundError, match="no such file"):  # a folder is none, and in nobody's way
        load_recipe(tmp_path, 1000)
