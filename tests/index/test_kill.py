"""kill -9 at random points of every change: the index opens, is one of the two states, nothing lost, nothing doubled."""

from __future__ import annotations

import multiprocessing
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dualenc.index import Index, merge

ROWS, DIM = 3000, 16
RECIPES = {"ivf": {"build": {"kind": "ivf", "nlist": 32}}, "hnsw": "hnsw", "ivf_sq8": "ivf_sq8"}


def rows(count: int, seed: int) -> np.ndarray:
    made = np.random.default_rng(seed).normal(size=(count, DIM)) + 0.2
    return (made / np.linalg.norm(made, axis=1, keepdims=True)).astype(np.float32)


def table(count: int, first: int) -> list[dict[str, Any]]:
    return [{"key": f"k{first + row}", "n": first + row} for row in range(count)]


def build(folder: Path, recipe: Any) -> None:
    Index.build(rows(ROWS, 0), folder / "index", metadata=table(ROWS, 0), recipe=recipe, recall=0.5)


def add(folder: Path, recipe: Any) -> None:
    Index.open(folder / "index").add(rows(200, 1), metadata=table(200, ROWS))


def upsert(folder: Path, recipe: Any) -> None:
    Index.open(folder / "index").upsert(rows(200, 1), table(200, ROWS - 100))


def remove(folder: Path, recipe: Any) -> None:
    Index.open(folder / "index").remove(np.arange(0, ROWS, 7))


def compact(folder: Path, recipe: Any) -> None:
    Index.open(folder / "index").compact()


def merged(folder: Path, recipe: Any) -> None:
    merge(folder / "index", folder / "other", folder / "merged", renumber=True)


CHANGES: dict[str, Callable[[Path, Any], None]] = {
    change.__name__: change for change in (build, add, upsert, remove, compact, merged)
}


def _run(name: str, folder: Path, recipe: Any, ready: Any) -> None:
    ready.send(None)
    CHANGES[name](folder, recipe)
    ready.send("done")


def killed(name: str, folder: Path, recipe: Any, after: float | None) -> float | None:
    """Run a change in a process of its own and kill it after so many seconds; how long it took where it was done."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["dualenc.index.index", "dualenc.index.merging", "tests.index.test_kill"])
    ours, theirs = context.Pipe()
    process = context.Process(target=_run, args=(name, folder, recipe, theirs))
    process.start()
    ours.recv()
    start = time.perf_counter()
    taken = None
    if ours.poll(60 if after is None else after):
        assert ours.recv() == "done"
        taken = time.perf_counter() - start
    assert after is not None or taken is not None, f"{name} did not end"
    process.kill()
    process.join()
    return taken


def state(folder: Path) -> Any:
    """All that an index holds, read with every checksum; None where there is no index."""
    if not folder.exists():
        return None
    index = Index.open(folder, verify=True)
    ids = index.ids
    order = np.argsort(ids)
    return ids[order], index.rows(ids[order]).to_pylist(), index.vectors(ids[order]), index


def same(one: Any, other: Any) -> bool:
    if one is None or other is None:
        return one is other
    return np.array_equal(one[0], other[0]) and one[1] == other[1] and np.allclose(one[2], other[2], atol=1e-6)


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    """A folder as it is before a change: made once for each recipe and change."""
    made: dict[tuple[str, str], Path] = {}

    def folder(recipe: str, change: str) -> Path:
        if (recipe, change) not in made:
            home = tmp_path_factory.mktemp(f"{recipe}_{change}")
            if change != "build":
                build(home, RECIPES[recipe])
            if change == "compact":
                upsert(home, None)
                remove(home, None)
            if change == "merged":
                Index.build(rows(500, 5), home / "other", metadata=table(500, 9000), recipe="flat")
            made[recipe, change] = home
        return made[recipe, change]

    return folder


def check(change: str, recipe: str, home: Path, folder: Path, kills: int, seed: int) -> None:
    shutil.copytree(home, folder / "whole")
    took = killed(change, folder / "whole", RECIPES[recipe], None)
    assert took is not None
    out = "merged" if change == "merged" else "index"
    old, new = state(home / out), state(folder / "whole" / out)
    assert not same(old, new) or change == "compact"
    dice = random.Random(seed)
    for number in range(kills):
        here = folder / f"kill{number}"
        shutil.copytree(home, here)
        killed(change, here, RECIPES[recipe], dice.uniform(0, 1.1 * took))
        there = state(here / out)
        assert same(there, old) or same(there, new), f"{change} killed: neither the old index nor the new one"
        if same(there, old) and not (change == "compact" and there[3].manifest["tombstones"] == 0):
            CHANGES[change](here, RECIPES[recipe])  # and what was not done can be done: nothing is in the way
            assert same(state(here / out), new)
        left = {path.name for path in (here / out).iterdir()} - {".writer"}
        named = {
            file["name"] for part in Index.open(here / out).manifest["segments"] for file in part["files"].values()
        }
        if not same(there, new):
            assert left == named | {"manifest.json"}
        assert not list(here.glob(".*.building"))
        shutil.rmtree(here)


@pytest.mark.parametrize("change", CHANGES)
def test_a_few_kills(change: str, before: Callable, tmp_path: Path) -> None:
    check(change, "ivf", before("ivf", change), tmp_path, kills=3, seed=0)


@pytest.mark.full
@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("change", CHANGES)
def test_many_kills(change: str, recipe: str, before: Callable, tmp_path: Path) -> None:
    check(change, recipe, before(recipe, change), tmp_path, kills=8, seed=1)
