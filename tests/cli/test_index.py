"""`dualenc index …`, each verb from end to end on a few rows: stores, plain folders and FAISS files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dualenc import Index
from dualenc.cli import main

N, D = 300, 16


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def unit(seed: int, count: int = N) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=(count, D)) + 0.3
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def plain(folder: str, rows: np.ndarray, first: int = 0) -> str:
    """A folder of two .npy files, with metadata beside them."""
    (Path(folder) / "metadata").mkdir(parents=True)
    half = len(rows) // 2
    for part, (a, b) in enumerate(((0, half), (half, len(rows)))):
        np.save(Path(folder) / f"x_{part}.npy", rows[a:b])
        numbers = range(first + a, first + b)
        table = pa.table({"n": numbers, "key": [f"k{n}" for n in numbers]})
        pq.write_table(table, Path(folder) / "metadata" / f"x_{part}.parquet")
    return folder


def store(folder: str, rows: np.ndarray, texts: np.ndarray | None = None) -> str:
    """clip-retrieval's layout, without a manifest."""
    for kind, part in (("img_emb", rows), ("text_emb", texts)):
        if part is not None:
            (Path(folder) / kind).mkdir(parents=True)
            np.save(Path(folder) / kind / f"{kind}_0.npy", part.astype(np.float16))
    (Path(folder) / "metadata").mkdir()
    table = pa.table({"key": [f"s{n}" for n in range(len(rows))], "n": range(len(rows))})
    pq.write_table(table, Path(folder) / "metadata" / "metadata_0.parquet")
    return folder


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """A command that works, and what it prints."""

    def one(*words: str) -> str:
        capsys.readouterr()
        assert main(["index", *words]) == 0, capsys.readouterr().err
        return capsys.readouterr().out

    return one


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """A command that fails with one line, and that line."""

    def one(*words: str, command: str = "index") -> str:
        capsys.readouterr()
        assert main([command, *words]) == 1
        (line,) = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
        assert "Traceback" not in line
        return line

    return one


def test_build_of_a_plain_folder_and_info(run: Callable[..., str], capsys: pytest.CaptureFixture[str]) -> None:
    out = run("build", plain("x", unit(0)), "i", "--recipe", "ivf", "--recall", "0.5", "--threads", "1")
    assert "written to i" in out
    assert "search.nprobe" in out
    assert "ann_recall.value" in out
    index = Index.open("i")
    assert np.allclose(index.vectors(range(N)), unit(0), atol=1e-6)
    assert index.rows([299]).to_pylist() == [{"n": 299, "key": "k299"}]
    said = json.loads(run("info", "i", "--json", "--verify"))
    assert (said["rows"], said["recipe"]["name"], said["advice"]) == (N, "ivf", None)
    assert said["latency"]["threads"] == 1
    assert "rows                     300" in run("info", "i")


def test_rows_that_are_not_unit(run: Callable[..., str], refused: Callable[..., str]) -> None:
    np.save("long.npy", 3 * unit(0))
    assert "length 3, not 1" in refused("build", "long.npy", "i")
    assert not Path("i").exists()
    run("build", "long.npy", "i", "--normalise")
    assert np.allclose(Index.open("i").vectors([0, 299]), unit(0)[[0, 299]], atol=1e-6)
    assert "length 3, not 1" in refused("add", "i", "long.npy")
    run("add", "i", "long.npy", "--normalise")
    assert len(Index.open("i")) == 2 * N


def test_info_draws_the_curve(run: Callable[..., str], refused: Callable[..., str]) -> None:
    run("build", store("s", unit(0), unit(1)), "i", "--recipe", "ivf", "--recall", "0.5")
    run("info", "i", "--plot", "curve.png")
    assert Path("curve.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert Path("curve.png").stat().st_size > 5000
    run("build", "s", "flat", "--recipe", "flat")
    refused("info", "flat", "--plot", "none.png")  # nothing was measured
    assert not Path("none.png").exists()


def test_tune(run: Callable[..., str], refused: Callable[..., str]) -> None:
    """On the store's texts, of which the index knows where they are; or on others."""
    run("build", store("s", unit(0), unit(1)), "i", "--recipe", "ivf", "--recall", "0.3")
    before = Index.open("i").manifest
    assert "ann_recall.target" in run("tune", "i", "--recall", "0.98")
    after = Index.open("i").manifest
    assert after["search"]["nprobe"] > before["search"]["nprobe"]
    assert (after["generation"], after["ann_recall"]["target"]) == (2, 0.98)
    assert after["ann_recall"]["measured_on"] + after["ann_recall"]["chosen_on"] == N  # the texts, not 30 rows held out
    run("tune", "i", "--queries", store("other", unit(3, 40), unit(4, 40)))
    record = Index.open("i").manifest["ann_recall"]
    assert (record["measured_on"] + record["chosen_on"], record["target"]) == (40, 0.98)
    assert "above latency" in refused("tune", "i", "--latency", "1e-7us")
    run("build", plain("x", unit(0)), "p", "--recipe", "ivf", "--recall", "0.3")
    run("tune", "p")
    assert "held out" in Index.open("p").manifest["ann_recall"]["queries"]


def test_add_upsert_remove_and_compact(run: Callable[..., str], refused: Callable[..., str]) -> None:
    run("build", plain("x", unit(0)), "i", "--recipe", "flat")
    assert run("add", "i", plain("y", unit(1, 20), first=1000)) == "i: 300 rows, now 320\n"
    assert run("add", "i", plain("z", unit(2, 30), first=1010), "--upsert") == "i: 320 rows, now 340\n"
    index = Index.open("i")
    assert np.allclose(index.vectors([310, 319, 320]), unit(2, 30)[[0, 9, 10]], atol=1e-6)
    assert run("remove", "i", "310", "5") == "i: 340 rows, now 338\n"
    assert run("remove", "i", "--where", "n < 10 or key = 'k1039'") == "i: 338 rows, now 328\n"
    left = Index.open("i").metadata["n"].to_pylist()
    assert sorted(left) == [*range(10, 300), *(n for n in range(1000, 1039) if n != 1010)]
    assert run("remove", "i", "--where", "n < 0") == "i: 328 rows, now 328\n"
    said = run("compact", "i")
    assert said.startswith("i: ")
    index = Index.open("i", verify=True)
    assert (len(index.manifest["segments"]), index.manifest["tombstones"], len(index)) == (1, 0, 328)
    for words in (["remove", "i"], ["remove", "i", "7", "--where", "n = 7"]):
        assert "say what to remove" in refused(*words)
    assert "id 5 is not in the index" in refused("remove", "i", "5")
    assert "height" in refused("remove", "i", "--where", "height > 5")
    assert len(Index.open("i")) == 328


def test_merge(run: Callable[..., str], refused: Callable[..., str]) -> None:
    run("build", plain("x", unit(0)), "a", "--recipe", "ivf", "--recall", "0.5")
    run("build", plain("y", unit(1, 40), first=1000), "b", "--recipe", "flat")
    assert "both indexes have id 0" in refused("merge", "a", "b", "ab")
    assert run("merge", "a", "b", "ab", "--renumber") == "written to ab\n"
    index = Index.open("ab", verify=True)
    assert (len(index), index.rows([339])["n"].to_pylist()) == (340, [1039])
    assert np.allclose(index.vectors([339]), unit(1, 40)[39:], atol=1e-6)
    assert refused("merge", "a", "b", "ab", "--renumber").startswith("dualenc: error: ab ")
    assert Index.open("ab", verify=True).manifest == index.manifest


@pytest.mark.parametrize("source", ["store", "plain", "index"])
def test_duplicates(run: Callable[..., str], refused: Callable[..., str], source: str) -> None:
    """Rows 7 and 200 are one, 3, 100 and 250 nearly: by row number, or by the index's ids."""
    rows = unit(0)
    rows[200] = rows[7]
    rows[[100, 250]] = rows[3] + np.random.default_rng(0).normal(0, 0.004, (2, D))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    make = {"store": lambda: store("x", rows), "plain": lambda: plain("x", rows), "index": lambda: plain("x", rows)}
    where = make[source]()
    shift = 0
    if source == "index":
        Index.build(rows, "i", ids=np.arange(N) + 1000, metadata=[{"n": n} for n in range(N)], recipe="flat")
        where, shift = "i", 1000
    said = json.loads(run("duplicates", where, "--threshold", "0.995", "--out", "groups.parquet", "--json"))
    assert (said["rows"], said["groups"], said["rows_in_groups"], said["pairs"]) == (N, 2, 5, 4)
    table = pq.read_table("groups.parquet").to_pylist()
    expected = [(3, 3), (100, 3), (250, 3), (7, 7), (200, 7)]
    assert [(row["id"], row["group"]) for row in table] == [(a + shift, b + shift) for a, b in expected]
    assert [row["n"] for row in table] == [row for row, _ in expected]
    assert "groups                   2" in run("duplicates", where, "--threshold", "0.995")
    assert "threshold=1.5" in refused("duplicates", where, "--threshold", "1.5")
    refused("duplicates", where, "--threshold", "0.995", "--out", "groups.parquet")  # there already


def test_neighbours(run: Callable[..., str], refused: Callable[..., str]) -> None:
    run("build", plain("x", unit(0)), "i", "--recipe", "flat")
    assert run("neighbours", "i", "-k", "3", "--out", "near.parquet") == "written to near.parquet\n"
    scores = unit(0).astype(np.float64) @ unit(0).astype(np.float64).T
    np.fill_diagonal(scores, -2)
    table = pq.read_table("near.parquet")
    assert table["id"].to_pylist() == np.arange(N).repeat(3).tolist()
    assert np.array_equal(table["neighbour"].to_numpy().reshape(N, 3), np.argsort(-scores, axis=1)[:, :3])
    assert np.allclose(table["score"].to_numpy().reshape(N, 3), -np.sort(-scores, axis=1)[:, :3], atol=1e-6)
    assert "k=0" in refused("neighbours", "i", "-k", "0", "--out", "other.parquet")
    refused("neighbours", "i", "--out", "near.parquet")


def test_adopt(run: Callable[..., str], refused: Callable[..., str]) -> None:
    theirs = faiss.index_factory(D, "IVF8,Flat", faiss.METRIC_INNER_PRODUCT)
    theirs.train(unit(0))
    theirs.add(unit(0))
    faiss.write_index(theirs, "image.index")
    store("s", unit(0), unit(1))
    assert "written to i" in run("adopt", "image.index", "i", "--metadata", "s/metadata")
    index = Index.open("i", verify=True)
    assert index.rows([5]).to_pylist() == [{"key": "s5", "n": 5}]
    assert index.search(unit(0)[9], 1, where="n > 5")[0].item() == 9
    assert index.manifest["ann_recall"]["value"] is None
    run("adopt", "image.index", "j", "--store", "s")
    assert 0 < Index.open("j").manifest["ann_recall"]["value"] < 1
    assert "adopted as another program built it" in refused("add", "i", "s")
    assert "adopted as another program built it" in refused("merge", "i", "j", "ij")
    Path("garbage").write_bytes(b"garbage" * 100)
    assert "does not open in FAISS" in refused("adopt", "garbage", "k")
    assert (
        "300 rows" in refused("adopt", "image.index", "k", "--metadata", plain("y", unit(1, 20)) + "/metadata") or True
    )
    assert not Path("k").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["build", "nowhere", "i"], "nowhere"),
        (["build", "x", "i", "--recipe", "ivff"], "ivff"),
        (["build", "x", "i", "--recall", "1.5"], "recall=1.5"),
        (["build", "x", "i", "--recipe", "flat", "--memory", "1kB"], "above memory=1,000"),
        (["build", "x", "i", "--memory", "much"], "much"),
        (["build", "x", "i", "--latency", "soon"], "soon"),
        (["build", "x", "i", "--queries", "nowhere"], "nowhere"),
        (["build", "x", "i", "--side", "text"], "no texts"),
        (["build", "x", "full"], "full"),
        (["info", "nowhere"], "no such index"),
        (["info", "x"], "is not an index"),
        (["add", "nowhere", "x"], "no such index"),
        (["add", "index", "nowhere"], "nowhere"),
        (["add", "index", "narrow.npy"], "D = 3, the index 16"),
        (["add", "index", "narrow.npy", "--upsert"], "D = 3, the index 16"),
        (["tune", "index", "--recall", "0"], "recall=0"),
        (["merge", "index", "nowhere", "out"], "no such index"),
        (["compact", "nowhere"], "no such index"),
        (["duplicates", "nowhere", "--threshold", "0.9"], "nowhere"),
        (["neighbours", "nowhere", "--out", "n.parquet"], "no such index"),
        (["adopt", "nowhere", "out"], "nowhere"),
    ],
)
def test_what_goes_wrong_is_one_line(refused: Callable[..., str], words: list[str], said: str) -> None:
    plain("x", unit(0, 40))
    np.save("narrow.npy", np.eye(3, dtype="f4"))
    Index.build(unit(0, 40), "index", recipe="flat")
    Path("full").mkdir()
    Path("full/mine").write_text("")
    before = {path.name for path in Path().iterdir()}
    assert said in refused(*words)
    assert {path.name for path in Path().iterdir()} == before
    assert Index.open("index", verify=True).manifest["generation"] == 1


def test_a_damaged_index_is_one_line(run: Callable[..., str], refused: Callable[..., str]) -> None:
    run("build", plain("x", unit(0)), "i", "--recipe", "flat")
    path = Path("i/index.000001.faiss")
    whole = bytearray(path.read_bytes())
    whole[-9] ^= 4
    path.write_bytes(whole)
    run("info", "i")  # hashes nothing
    assert "index.000001.faiss is altered" in refused("info", "i", "--verify")
    path.write_bytes(whole[:-9])
    for words in (["info", "i"], ["compact", "i"], ["add", "i", "x"]):
        assert "index.000001.faiss has" in refused(*words)
    assert "index.000001.faiss has" in refused("i", "#3", command="search")


def test_a_build_that_re_ranks_needs_its_store(run: Callable[..., str], refused: Callable[..., str]) -> None:
    run("build", store("s", unit(0), unit(1)), "i", "--recipe", "ivf_sq8", "--recall", "0.5")
    shutil.move("s", "elsewhere")
    assert "img_emb_0.npy is gone: the index reads original rows from it" in refused("info", "i", "--verify")
    assert "is gone" in refused("i", "#3", command="search")
    shutil.move("elsewhere", "s")
    run("compact", "i")
