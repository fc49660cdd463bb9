"""An index that changes under a reader: added to, removed from, compacted, built anew, broken for a while, gone."""

import asyncio
import logging
import os
import shutil
import weakref

import numpy as np
import pytest

from dualenc.index import Index
from dualenc.serve.live import Live
from tests.serve.fakes import DIM, small_index, small_rows


@pytest.fixture
def folder(tmp_path):
    small_index(tmp_path / "index")
    return tmp_path / "index"


async def run(function, *arguments):
    return function(*arguments)


async def nothing(index):
    pass


def look(live, prepare=nothing):
    return asyncio.run(live.look(run, prepare))


def test_it_opens_what_is_there_and_refuses_what_is_not(folder, tmp_path):
    live = Live("a", folder)
    assert len(live.index) == 50 and live.generation == 1 and not look(live)
    with pytest.raises(FileNotFoundError, match="no such index"):
        Live("a", tmp_path / "none")


def test_every_kind_of_change_is_picked_up(folder):
    live = Live("a", folder)
    writer = Index.open(folder)
    writer.add(small_rows(3, seed=1), metadata=[{"caption": "new"}] * 3)
    assert look(live) and len(live.index) == 53 and live.generation == 2
    writer.remove([0, 1])
    assert look(live) and len(live.index) == 51
    writer.compact()
    assert look(live) and len(live.index) == 51 and len(live.index.manifest["segments"]) == 1
    assert not look(live)


def test_a_folder_that_was_built_anew_is_picked_up_though_its_generation_is_the_same(folder, caplog):
    live = Live("a", folder)
    shutil.rmtree(folder)
    assert not look(live) and len(live.index) == 50  # gone: the open one still answers
    assert live.index.search(small_rows(1), k=1)[0][0, 0] == 0
    assert not look(live) and len(caplog.records) == 1 and "stays at generation 1" in caplog.text  # told once
    small_index(folder, 20, seed=5)
    assert look(live) and len(live.index) == 20 and live.generation == 1


def test_a_request_keeps_its_generation_whatever_happens_to_the_folder(folder):
    live = Live("a", folder)
    mine, query = live.index, small_rows(50)[7:8]
    writer = Index.open(folder)
    writer.remove([7])
    writer.compact()
    assert look(live)
    assert mine.search(query, k=1)[0][0, 0] == 7 and mine.rows([7])["caption"][0].as_py() == "picture number 7"
    assert live.index.search(query, k=1)[0][0, 0] != 7
    shutil.rmtree(folder)
    assert mine.search(query, k=1)[0][0, 0] == 7


def test_what_is_broken_is_told_once_and_taken_when_it_is_whole(folder, caplog):
    live = Live("a", folder)
    Index.open(folder).add(small_rows(2, seed=3))
    whole = (folder / "manifest.json").read_bytes()
    (folder / "manifest.json").write_bytes(whole[: len(whole) // 2])
    with caplog.at_level(logging.WARNING, "dualenc.serve"):
        assert not look(live) and not look(live) and not look(live)
    assert len(live.index) == 50 and len(caplog.records) == 1 and "stays at generation 1" in caplog.text
    (folder / "manifest.json").write_bytes(whole)
    assert look(live) and len(live.index) == 52


def test_a_file_that_comes_after_its_manifest_is_waited_for(folder):
    live = Live("a", folder)
    Index.open(folder).add(small_rows(2, seed=3))
    late = folder / "ids.000002.npy"
    os.rename(late, folder / "later")
    assert not look(live) and len(live.index) == 50
    os.rename(folder / "later", late)
    assert look(live) and len(live.index) == 52  # though the manifest is as it was


def test_it_is_prepared_before_it_is_swapped_in_and_a_failure_there_leaves_the_old_one(folder):
    live, seen = Live("a", folder), []

    async def prepare(index):
        seen.append((len(live.index), len(index)))
        if len(seen) == 1:
            raise RuntimeError("not yet")

    Index.open(folder).add(small_rows(2, seed=3))
    assert not look(live, prepare) and len(live.index) == 50
    assert look(live, prepare) and len(live.index) == 52
    assert seen == [(50, 52), (50, 52)]


def test_an_old_generation_is_let_go_of_at_once(folder):
    live = Live("a", folder)
    live.index.search(small_rows(1), k=3, where="colour = 'red'")
    old = weakref.ref(live.index)
    Index.open(folder).add(small_rows(2, seed=3))
    assert look(live) and old() is None  # without the garbage collector, which does not look at what is frozen


def test_watching_sees_a_change_and_an_empty_index_can_be_opened(folder):
    live = Live("a", folder)

    async def main():
        watching = asyncio.create_task(live.watch(run, nothing, 0.01))
        Index.open(folder).remove(np.arange(50))
        for _ in range(500):
            if live.generation == 2:
                break
            await asyncio.sleep(0.01)
        watching.cancel()

    asyncio.run(main())
    assert live.generation == 2 and len(live.index) == 0
    assert live.index.search(small_rows(1, DIM), k=3)[0].tolist() == [[-1, -1, -1]]
