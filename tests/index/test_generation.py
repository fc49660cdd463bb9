"""An index folder on disk: damage of every kind is found, and named in one line."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from dualenc import Index
from dualenc.index import generation, info


@pytest.fixture(scope="module")
def made(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("made") / "i"
    Index.build(data.images[:300], folder, metadata=[{"n": row} for row in range(300)], recipe="ivf")
    return folder


@pytest.fixture
def folder(made, tmp_path):
    shutil.copytree(made, tmp_path / "i")
    return tmp_path / "i"


FILES = ["index.000001.faiss", "ids.000001.npy", "metadata.000001.parquet", "manifest.json"]


def test_the_files_of_a_new_index(folder):
    assert sorted(path.name for path in folder.iterdir()) == sorted(FILES)


def flipped(path: Path, reads, said: str, kind: type[Exception] = ValueError, places: int = 12) -> None:
    """One byte after another is changed by a bit, at both ends and in between; each must be noticed."""
    whole = path.read_bytes()
    rng = np.random.default_rng(len(whole))
    for place in {0, 1, len(whole) - 1, *rng.integers(0, len(whole), places).tolist()}:
        for bit in (1, 128):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ bit]) + whole[place + 1 :])
            for read in reads:
                with pytest.raises(kind, match=said) as error:
                    read()
                assert "\n" not in str(error.value)
    path.write_bytes(whole)


def test_any_flipped_byte_of_any_file_is_found_by_verify(tmp_path, data, make_store):
    """An index with every file there is: of three segments one has its rows in a store, two have them copied."""
    store = make_store(tmp_path / "store", type(data)(data.images[:300], data.texts[:50]))
    index = Index.build(store, tmp_path / "i", recipe="ivf_pq", recall=0.01)
    index.add(data.images[300:310], metadata=[{"number": row} for row in range(10)])
    index.remove([5, 300])
    index.add(data.images[310:312])
    folder = tmp_path / "i"
    reads = (lambda: Index.open(folder, verify=True), lambda: info(folder, verify=True))
    paths = sorted(path for path in folder.iterdir() if path.name != ".writer")
    roles = ("index", "ids", "vectors", "removed", "metadata", "manifest")
    assert {path.name.split(".")[0] for path in paths} == set(roles)
    assert len(paths) == 13
    for path in paths:
        flipped(path, reads, path.name)
    theirs = sorted((tmp_path / "store" / "img_emb").iterdir())
    assert len(theirs) == 2
    for path in theirs:
        flipped(path, reads, path.name)
    for read in reads:
        read()


@pytest.mark.parametrize("name", FILES)
def test_a_file_cut_off_longer_or_missing_is_found_at_once(folder, name):
    path = folder / name
    whole = path.read_bytes()
    for content in (whole[:-3], whole[: len(whole) // 2], whole + b"x", b""):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=name) as error:
            Index.open(folder)
        assert "\n" not in str(error.value)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=name):
        Index.open(folder)


def test_what_is_no_index(tmp_path, made):
    with pytest.raises(FileNotFoundError, match="no such index; build it"):
        Index.open(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match="is not an index"):
        Index.open(tmp_path)
    for content in ({"format": "dualenc-store"}, [], {}):
        (tmp_path / "manifest.json").write_text(json.dumps(content))
        with pytest.raises(ValueError, match="another program's or a store's"):
            Index.open(tmp_path)
    manifest = json.loads((made / "manifest.json").read_text())
    for version, cure in ((1, "build the index again"), (3, "update dualenc"), ("2", "update dualenc")):
        (tmp_path / "manifest.json").write_text(json.dumps({**manifest, "version": version}))
        with pytest.raises(ValueError, match=f"index version {version}, this dualenc reads 2; {cure}"):
            Index.open(tmp_path)
    for change in ({"rows": 5}, {"rows": float("inf")}, {"checksum": 5}):
        (tmp_path / "manifest.json").write_text(json.dumps({**manifest, **change}))
        with pytest.raises(ValueError, match="checksum does not fit"):
            Index.open(tmp_path)


def resign(folder: Path, change) -> None:
    """A manifest changed by somebody who knows how to sign it: checksums show damage, not malice."""
    from dualenc.index.manifest import read_manifest, write_manifest

    manifest = read_manifest(folder)
    change(manifest)
    write_manifest(folder, manifest)


def swap_ids(folder: Path, ids) -> None:
    from dualenc.index.manifest import file_entry

    np.save(folder / FILES[1], ids)
    resign(folder, lambda manifest: manifest["segments"][0]["files"].update(ids=file_entry(folder / FILES[1])))


def keep_removed(folder: Path, rows) -> None:
    """A list of removed rows that somebody else wrote."""
    entry = generation.read_manifest(folder)["segments"][0]
    new = generation.write_removed(folder, entry, 2, np.array(rows))
    resign(folder, lambda manifest: manifest.update(segments=[new]))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda f: resign(f, lambda m: m.update(rows=299)), "has 300 ids for 299 rows"),
        (
            lambda f: resign(f, lambda m: m.update(dim=31)),
            "is not the FAISS index of 300 x 31|mean is not what it should be",
        ),
        (lambda f: resign(f, lambda m: m["segments"][0].update(rows=299)), "has 300 ids for 299 rows"),
        (lambda f: swap_ids(f, np.arange(299)), "has 299 ids for 300 rows"),
        (lambda f: keep_removed(f, [300]), "has 300 ids for 300 rows"),
        (lambda f: keep_removed(f, [-1]), "has 300 ids for 300 rows"),
        (lambda f: resign(f, lambda m: m.update(segments=[])), "segments is not what it should be"),
        (lambda f: resign(f, lambda m: m["recipe"]["build"].update(kind="scann")), "kind 'scann' is unknown"),
        (lambda f: resign(f, lambda m: m["recipe"]["build"].update(kind="hnsw")), "is not the FAISS index"),
        (lambda f: resign(f, lambda m: m["recipe"]["build"].update(nlist=3)), "the manifest says 3"),
        (lambda f: swap_ids(f, np.arange(300, dtype=np.int32)), "not int64"),
        (lambda f: swap_ids(f, np.arange(300).reshape(1, 300)), "not int64"),
        (lambda f: swap_ids(f, np.array([{}], object)), "does not open"),
        (
            lambda f: resign(f, lambda m: m["segments"][0]["files"]["index"].update(name="../../index.000001.faiss")),
            "nothing",
        ),
    ],
)
def test_files_that_contradict_the_manifest(folder, spoil, said):
    spoil(folder)
    if said == "nothing":  # a name cannot lead out of the folder
        assert len(Index.open(folder)) == 300
        return
    with pytest.raises(ValueError, match=said) as error:
        Index.open(folder)
    assert "\n" not in str(error.value)


def test_a_reader_beside_a_writer_takes_the_new_generation(folder, data, monkeypatch):
    """The writer replaces the files after the reader has read the manifest, and before it opens them."""
    check_files, writer = generation.check_files, Index.open(folder)

    def overtaken(*args):
        monkeypatch.setattr(generation, "check_files", check_files)
        writer.add(data.images[300:301])
        writer.compact()
        check_files(*args)

    monkeypatch.setattr(generation, "check_files", overtaken)
    assert len(Index.open(folder)) == 301


def test_a_reader_keeps_what_it_opened(folder, data):
    reader, writer = Index.open(folder), Index.open(folder)
    before = reader.search(data.images[:20], 3)
    for _ in range(3):
        writer.remove(writer.ids[:90])
        writer.compact()
    assert len(writer) == 30
    assert len(reader) == 300
    for mine, theirs in zip(reader.search(data.images[:20], 3), before, strict=True):
        assert np.array_equal(mine, theirs)
    assert reader.rows([0]).to_pylist() == [{"n": 0}]  # read from a file that is gone from the folder
    assert reader.search(data.images[:1], 1, where="n = 0")[0].tolist() == [[0]]
    assert not (folder / FILES[2]).exists()


def test_opening_reads_no_vectors(folder, data):
    """Memory-mapped: an index of any size opens in no time. What becomes of the file later shows in the search."""
    index = Index.open(folder)
    path = folder / FILES[0]
    _, before = index.search(data.images, 10)
    with open(path, "r+b") as file:
        file.seek(path.stat().st_size // 2)
        file.write(b"\0" * (path.stat().st_size // 2))
    _, after = index.search(data.images, 10)
    assert not np.allclose(before, after)
    assert len(Index.open(folder)) == 300
    with pytest.raises(ValueError, match="altered"):
        Index.open(folder, verify=True)


def test_a_read_only_folder_can_be_searched(folder, data):
    if os.geteuid() == 0:
        pytest.skip("root writes anywhere")
    folder.chmod(0o555)
    assert len(Index.open(folder).search(data.images[:1], 1)[0]) == 1
    with pytest.raises(PermissionError):
        Index.open(folder).remove([0])
