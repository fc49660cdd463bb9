"""`dualenc data mine`: hard negatives as a slow search finds them."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dualenc.cli import main
from dualenc.data.hard import read_neighbours
from dualenc.data.keys import Keys
from dualenc.train import mine as module
from dualenc.train.mine import SIDES, mine
from tests.train.stores import unit, write_store

N, D = 60, 8


@pytest.fixture(scope="module")
def rows():
    """60 images in a few directions, among them near-duplicates and equals, and 0 to 4 captions of each."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(6, D))
    images = unit(centres[rng.integers(6, size=N)] + 0.5 * rng.normal(size=(N, D)))
    images[7], images[8], images[20:30] = images[3], images[3], unit(images[19] + 0.001 * rng.normal(size=(10, D)))
    image_row = np.repeat(np.arange(N), rng.permutation(np.arange(N) % 5))
    texts = unit(images[image_row] + 0.7 * rng.normal(size=(len(image_row), D)))
    texts[5] = texts[100]
    return images.astype(np.float32), texts.astype(np.float32), image_row


@pytest.fixture(scope="module")
def store(rows, tmp_path_factory):
    folder = tmp_path_factory.mktemp("store") / "store"
    return write_store(folder, [f"k{i:02d}" for i in range(N)], *rows, parts=3)


def slowly(rows, side, neighbours, skip, threshold):
    """(other image, cosine) of each image, by the best of all pairs in float64."""
    images, texts, image_row = (np.asarray(part, np.float64 if part.dtype.kind == "f" else None) for part in rows)
    sides = {"image": (images, np.arange(N)), "text": (texts, image_row)}
    (queries, asking), (gallery, owner) = (sides[name] for name in SIDES[side])
    cosines = unit(queries) @ unit(gallery).T
    found = []
    for i in range(N):
        pairs = [(cosines[np.ix_(asking == i, owner == j)], j) for j in range(N) if j != i]
        best = sorted((-float(each.max()), j) for each, j in pairs if each.size)
        found.append([(j, -c) for c, j in best if -c < threshold][skip : skip + neighbours])
    return found


def read(path):
    table = pq.read_table(path)
    listed = [
        [(int(key[1:]), c) for key, c in zip(keys, cosines, strict=True)]
        for keys, cosines in zip(table["neighbours"].to_pylist(), table["similarities"].to_pylist(), strict=True)
    ]
    return table["key"].to_pylist(), listed


def assert_alike(found, expected):
    """The same cosines, and the same neighbours where no other is as near."""
    for one, other in zip(found, expected, strict=True):
        assert [c for _, c in one] == pytest.approx([c for _, c in other], abs=1e-5)
        for place, (j, c) in enumerate(other):
            near = [k for k, d in other if abs(c - d) < 1e-4]
            assert one[place][0] == j or len(near) > 1 or place == len(other) - 1


@pytest.mark.parametrize("side", list(SIDES))
@pytest.mark.parametrize(("neighbours", "skip", "threshold"), [(5, 0, 0.98), (3, 2, 0.9), (100, 0, 2.0), (1, 0, 0.5)])
def test_hard_negatives_are_those_of_a_slow_search(store, rows, tmp_path, side, neighbours, skip, threshold):
    out = tmp_path / "m.parquet"
    report = mine(store, out, neighbours, side, skip, threshold)
    keys, found = read(out)
    assert keys == [f"k{i:02d}" for i in range(N)]
    assert_alike(found, slowly(rows, side, neighbours, skip, threshold))
    assert report["pairs"] == sum(map(len, found)) > N / 2 and report["rows"] == N and report["exact"]
    about = json.loads(pq.read_schema(out).metadata[b"dualenc"])
    settings = {"side": side, "neighbours": neighbours, "skip": skip, "threshold": threshold}
    assert settings.items() <= about.items() <= report.items() and about["fingerprint"] == "f" * 64
    assert not list(tmp_path.glob(".*"))


def test_an_image_between_many_near_duplicates_finds_others_all_the_same(tmp_path):
    """40 images alike and 10 others: the first search brings only those."""
    rng = np.random.default_rng(1)
    centre = rng.normal(size=D)
    images = unit(np.concatenate([centre + 1e-3 * rng.normal(size=(40, D)), rng.normal(size=(10, D))]))
    store = write_store(tmp_path / "s", [f"k{i:02d}" for i in range(50)], images.astype(np.float32))
    mine(store, tmp_path / "m.parquet", neighbours=4)
    _, found = read(tmp_path / "m.parquet")
    assert all(len(one) == 4 for one in found)
    assert all(j >= 40 for one in found[:40] for j, _ in one)


@pytest.mark.parametrize("side", list(SIDES))
def test_an_index_finds_nearly_the_same(store, rows, tmp_path, side):
    report = mine(store, tmp_path / "m.parquet", 5, side, exact=10)
    assert not report["exact"]
    found, expected = read(tmp_path / "m.parquet")[1], slowly(rows, side, 5, 0, 0.98)
    right = sum(len({j for j, _ in a} & {j for j, _ in b}) for a, b in zip(found, expected, strict=True))
    assert right >= 0.9 * sum(map(len, expected))
    assert all(j != i and c < 0.98 for i, one in enumerate(found) for j, c in one)
    assert [p.name for p in tmp_path.iterdir()] == ["m.parquet"]


@given(block=st.integers(1, 70))
def test_blocks_change_nothing(store, tmp_path_factory, block):
    folder, before = tmp_path_factory.mktemp("blocks"), module.BLOCK
    try:
        mine(store, folder / "a.parquet", 4, "text")
        module.BLOCK = block
        mine(store, folder / "b.parquet", 4, "text")
    finally:
        module.BLOCK = before
    a, b = (read(folder / name) for name in ("a.parquet", "b.parquet"))
    assert a[0] == b[0]
    assert_alike(a[1], b[1])


def test_what_was_mined_is_what_training_reads(store, rows, tmp_path):
    mine(store, tmp_path / "m.parquet", 5)
    mined = read_neighbours(tmp_path / "m.parquet", Keys.of(f"k{i:02d}" for i in range(N)))
    _, found = read(tmp_path / "m.parquet")
    assert mined.found.tolist() == [j for one in found for j, _ in one]
    assert np.diff(mined.starts).tolist() == [len(one) for one in found]


def test_the_command(store, tmp_path, capsys):
    out = tmp_path / "m.parquet"
    words = ["--side", "cross", "--neighbours", "3", "--skip", "1", "--threshold", "0.9"]
    assert main(["data", "mine", str(store.folder), str(out), *words, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["side"], said["neighbours"], said["skip"], said["threshold"], said["rows"]) == ("cross", 3, 1, 0.9, N)
    assert said["pairs"] == sum(len(one) for one in read(out)[1])
    assert main(["data", "mine", str(store.folder), str(out)]) == 1
    assert "exists" in capsys.readouterr().err
    assert main(["data", "mine", str(store.folder), str(tmp_path / "n.parquet")]) == 0
    assert f"hard negatives of {N} images (image side)" in capsys.readouterr().out
    assert main(["data", "mine", str(tmp_path / "none"), str(tmp_path / "o.parquet")]) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_what_cannot_be_mined_is_refused_and_leaves_nothing(store, rows, tmp_path):
    out = tmp_path / "m.parquet"
    for settings, message in [
        ({"neighbours": 0}, "neighbours is 0"),
        ({"skip": -1}, "skip is -1"),
        ({"side": "both"}, "side 'both' is unknown; use image, text, cross"),
        ({"threshold": -1.0}, "threshold -1.0"),
        ({"threshold": float("nan")}, "threshold nan"),
    ]:
        with pytest.raises(ValueError, match=message):
            mine(store, out, **settings)
    silent = write_store(tmp_path / "silent", ["a", "b"], rows[0][:2])
    with pytest.raises(ValueError, match="holds no texts"):
        mine(silent, out, side="text")
    twice = write_store(tmp_path / "twice", ["a", "b", "a"], rows[0][:3])
    with pytest.raises(ValueError, match="has a key twice"):
        mine(twice, out)
    pq.write_table(pa.table({"name": ["a", "b"]}), tmp_path / "nameless.parquet")
    table = tmp_path / "silent" / "metadata" / "metadata_0000.parquet"
    pq.write_table(pa.table({"name": ["a", "b"]}), table)
    with pytest.raises(ValueError, match="has no key for each image"):
        mine(silent, out)
    assert not list(tmp_path.glob("*m.parquet*"))
