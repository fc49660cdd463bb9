"""What once went wrong: interrupted commits, lists of whole blocks, a disk that fills at the last byte, few results."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from dualenc.index import Index, info, merge
from dualenc.index.manifest import _checksum

CODED = ["ivf_sq8", "ivf_pq", "ivf_rabitq", "scan_pq", "hnsw_sq8"]


def unit(rows: int, dim: int, seed: int = 0) -> np.ndarray:
    made = np.random.default_rng(seed).normal(size=(rows, dim)).astype(np.float32)
    return made / np.linalg.norm(made, axis=1, keepdims=True)


@pytest.mark.parametrize("error", [KeyboardInterrupt, PermissionError])
@pytest.mark.parametrize("change", ["add", "remove", "compact"])
def test_an_interruption_while_old_files_are_removed(
    change: str, error: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The manifest names the new files by then; they must not go with the change that did not end."""
    index = Index.build(unit(300, 8), tmp_path / "i", recipe="ivf", recall=0.1)
    index.remove([0])

    def fails(path: Path, missing_ok: bool = False) -> None:
        if not path.exists():  # a temporary file that was renamed
            return
        raise error(13, "stopped") if error is PermissionError else error()

    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", fails)
        run = {"add": lambda: index.add(unit(200, 8, 1)), "remove": lambda: index.remove([5]), "compact": index.compact}
        try:
            run[change]()
        except error:
            assert error is KeyboardInterrupt
    rows = {"add": 499, "remove": 298, "compact": 299}[change]
    again = Index.open(tmp_path / "i", verify=True)
    assert len(again) == rows and again.search(unit(300, 8)[7:8], 1)[0].tolist() == [[7]]
    again.compact()
    assert len(Index.open(tmp_path / "i", verify=True)) == rows


@pytest.mark.parametrize(("dim", "first", "more"), [(16, 128, 100), (16, 256, 300), (64, 512, 512), (64, 1024, 40)])
@pytest.mark.parametrize("codes", [{"codes": "pq"}, {"codes": "rabitq", "bits": 1}])
def test_lists_that_end_with_a_whole_block_are_joined(
    dim: int, first: int, more: int, codes: dict[str, Any], tmp_path: Path
) -> None:
    rows = unit(first + more, dim)
    recipe = {"build": {"kind": "ivf", "nlist": 1, **codes}, "search": {"rerank": [64]}}
    index = Index.build(rows[:first], tmp_path / "i", recipe=recipe, recall=0.01)
    index.add(rows[first:])
    index.compact()
    assert len(index.manifest["segments"]) == 1
    exact = np.argsort(-(rows[::37] @ rows.T), axis=1, kind="stable")[:, :5]
    found = index.search(rows[::37], 5)[0]
    assert (found[:, 0] == exact[:, 0]).all()
    assert (found[:, :, None] == exact[:, None]).any(axis=2).mean() > 0.95


@pytest.mark.parametrize("recipe", CODED)
def test_nothing_left_is_found_and_measured_in_words(recipe: str, tmp_path: Path) -> None:
    index = Index.build(unit(60, 16), tmp_path / "i", recipe=recipe, recall=0.01)
    index.remove(index.ids)
    index.compact()
    ids, scores = index.search(unit(2, 16), 3)
    assert (ids == -1).all() and np.isneginf(scores).all()
    with pytest.raises(ValueError, match="no rows left"):
        index.tune(queries=unit(20, 16, 3))
    index.add(unit(60, 16))
    assert index.search(unit(60, 16)[:1], 1)[1][0, 0] == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("recipe", CODED)
def test_one_result_is_the_first_of_ten(recipe: str, tmp_path: Path) -> None:
    rows = unit(1000, 16)
    index = Index.build(rows, tmp_path / "i", recipe=recipe, recall=0.9, queries=unit(400, 16, 1))
    ten, one = index.search(rows[:200], 10)[0], index.search(rows[:200], 1)[0]
    assert (ten[:, 0] == one[:, 0]).mean() > 0.99


def test_a_file_that_the_disk_cuts_off_is_not_committed(tmp_path: Path) -> None:
    """FAISS's own writer forgets an error of the last bytes."""
    index = Index.build(unit(2000, 16), tmp_path / "i", recipe="flat")
    index.remove([1, 2])
    size = index.manifest["bytes"]["index"]
    script = "import sys; from dualenc.index import Index; Index.open(sys.argv[1]).compact()"

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size - 300, size - 300))

    done = subprocess.run([sys.executable, "-c", script, str(tmp_path / "i")], preexec_fn=limit, capture_output=True)
    assert done.returncode == 1 and b"OSError" in done.stderr
    again = Index.open(tmp_path / "i", verify=True)
    assert len(again) == 1998 and again.manifest["generation"] == 2


@pytest.mark.parametrize("k", [2**31, 2**63, 10**12])
def test_more_results_than_there_can_be(k: int, tmp_path: Path) -> None:
    index = Index.build(unit(50, 8), tmp_path / "i", recipe="flat")
    with pytest.raises(ValueError, match="more than the 50 rows"):
        index.search(unit(1, 8), k)


def test_queries_that_are_the_rows_are_refused_as_copies_too(tmp_path: Path) -> None:
    rows = unit(400, 16)
    with pytest.raises(ValueError, match="finds itself"):
        Index.build(rows, tmp_path / "i", recipe="ivf", queries=rows.copy())
    index = Index.build(rows, tmp_path / "i", recipe="ivf", recall=0.1)
    with pytest.raises(ValueError, match="finds itself"):
        index.tune(queries=rows.copy())


def test_merge_and_info_beside_a_writer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What they opened stays theirs, whatever a writer removes meanwhile."""
    Index.build(unit(300, 8), tmp_path / "a", recipe="ivf", recall=0.1)
    Index.build(unit(100, 8, 1), tmp_path / "b", recipe="flat")
    from dualenc.index import merging

    real = merging._check_ids

    def meanwhile(*words: Any) -> None:
        Index.open(tmp_path / "a").remove([3])
        Index.open(tmp_path / "a").compact()
        real(*words)

    monkeypatch.setattr(merging, "_check_ids", meanwhile)
    merge(tmp_path / "a", tmp_path / "b", tmp_path / "m", renumber=True)
    assert len(Index.open(tmp_path / "m", verify=True)) == 400
    assert info(tmp_path / "a", verify=True)["rows"] == 299


@pytest.mark.parametrize("wrong", [None, -1, 2**70, 1.5, "x", [], {}])
def test_a_manifest_by_somebody_else_is_refused_in_words(wrong: Any, tmp_path: Path) -> None:
    Index.build(unit(60, 8), tmp_path / "i", recipe="ivf_sq8", recall=0.01)
    path = tmp_path / "i" / "manifest.json"
    whole = json.loads(path.read_text())
    del whole["checksum"]
    refused = 0
    for name in [*whole, "segments.0", *(f"segments.0.{inner}" for inner in whole["segments"][0])]:
        manifest = json.loads(json.dumps(whole))
        *way, last = name.split(".")
        place: Any = manifest
        for step in way:
            place = place[int(step) if step.isdigit() else step]
        place[int(last) if last.isdigit() else last] = wrong
        path.write_text(json.dumps({**manifest, "checksum": _checksum(manifest)}))
        try:
            index = Index.open(tmp_path / "i")
            index.search(unit(1, 8), 3)
            info(tmp_path / "i")
        except (ValueError, FileNotFoundError) as error:
            assert "\n" not in str(error)
            refused += 1
    assert refused > 10


@pytest.mark.parametrize(
    ("column", "said"),
    [
        (pa.array([pa.scalar((1, 2, 3), pa.month_day_nano_interval())] * 20), "parquet cannot hold"),
        (pa.array([{}] * 20, pa.struct([])), "parquet cannot hold"),
    ],
)
def test_metadata_that_cannot_be_kept_is_refused_before_the_work(column: pa.Array, said: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=said):
        Index.build(unit(20, 8), tmp_path / "i", metadata=pa.table({"odd": column}), recipe="flat")
    assert not list(tmp_path.iterdir())


def test_text_views_are_kept_as_texts(tmp_path: Path) -> None:
    table = pa.table({"name": pa.array(["a", "b"] * 10, pa.string_view())})
    index = Index.build(unit(20, 8), tmp_path / "i", metadata=table, recipe="flat")
    assert index.rows([1, 2])["name"].to_pylist() == ["b", "a"]


def test_few_candidates_are_no_reason_to_read_every_list(tmp_path: Path) -> None:
    """More candidates were asked for than the lists at hand hold: they will do, as long as there are k results."""
    rows = unit(2000, 16)
    recipe = {"build": {"kind": "ivf", "codes": "sq8", "nlist": 50}, "search": {"nprobe": 1, "rerank": 64}}
    index = Index.build(rows, tmp_path / "i", recipe=recipe, recall=0.01)
    kind, ids = index._now.segments[0].kind, index._now.segments[0].ids
    wide = kind.search(rows[:50], 640, {"nprobe": 1}, ids, least=5)[0]
    assert ((wide >= 0).sum(axis=1) < 640).all() and (wide[:, :5] >= 0).all()
    assert (kind.search(rows[:50], 640, {"nprobe": 1}, ids)[0] >= 0).all()
    assert (index.search(rows[:50], 10)[0] >= 0).all()
