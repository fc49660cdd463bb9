"""FAISS files: opened within limits, refused in one line when damaged, taken over from other programs."""

from __future__ import annotations

from pathlib import Path

import faiss
import numpy as np
import pytest

from dualenc.index import faiss_file
from dualenc.index.kinds import Allowed
from dualenc.index.kinds.adopted import Adopted

IP, L2 = faiss.METRIC_INNER_PRODUCT, faiss.METRIC_L2
FULL = {"nprobe": 16, "efSearch": 400}
FACTORIES = [
    "Flat",
    "SQ8",
    "PQ16x4np",
    "HNSW16",
    "HNSW16,SQ8",
    "IVF16,Flat",
    "IVF16,SQ8",
    "IVF16,PQ16x4fsr",
    "IVF16_HNSW8,Flat",
]
FACTORIES += [
    "OPQ16_32,IVF16,PQ16x4np",
    "IDMap,Flat",
    "IDMap2,HNSW16",
    "IDMap,OPQ16_32,IVF16,PQ16x4fs",
    "PCAR32,Flat",
    "IVF16,RaBitQ4",
]


def built(factory, images, metric=IP, ids=None):
    index = faiss.index_factory(images.shape[1], factory, metric)
    inner = index.index if "IDMap,OPQ" in factory else index
    if "OPQ" in factory:  # as good for a test, and quick
        rotation = faiss.downcast_VectorTransform(faiss.downcast_index(inner).chain.at(0))
        rotation.niter = rotation.niter_pq = rotation.niter_pq_0 = 2
    index.train(images)
    if ids is None:
        index.add(images)
    else:
        index.add_with_ids(images, ids)
    return index


def limits():
    return faiss.get_deserialization_vector_byte_limit(), faiss.get_deserialization_loop_limit()


@pytest.mark.parametrize("mapped", [True, False])
@pytest.mark.parametrize("factory", FACTORIES)
@pytest.mark.parametrize("metric", [IP, L2])
def test_an_index_of_another_program(data, tmp_path, factory, metric, mapped):
    images, path = data.images[:1000], tmp_path / "their.index"
    ids = np.arange(1000) * 5 + 2 if "IDMap" in factory else None
    faiss_file.write(built(factory, images, metric, ids), path)
    before = limits()
    kind = Adopted.adopt(path, mapped)
    assert limits() == before
    own = np.arange(1000) if ids is None else ids
    assert (kind.own_ids() is None) == (ids is None) and (ids is None or np.array_equal(kind.own_ids(), ids))
    scores = images[:50].astype(np.float64) @ images.astype(np.float64).T
    plain = all(word not in factory for word in ("PQ", "SQ", "PCA", "RaBitQ"))
    assert kind.exact == plain and (kind.dim, kind.total) == (32, 1000)
    found, cosines = kind.search(images[:50], 100, FULL, own)
    rows = (found - 2) // 5 if ids is not None else found
    assert all(len(np.unique(row)) == 100 for row in found)
    error = np.abs(cosines - np.take_along_axis(scores, rows, 1)).max()
    assert error < (1e-6 if plain else 0.8 if "PQ" in factory or "PCA" in factory else 0.1)
    assert np.mean([own[row] in hits for row, hits in enumerate(found)]) > 0.95
    if plain:
        assert np.array_equal(kind.take(np.arange(999, -1, -3), own), images[::-3])
    else:
        with pytest.raises(ValueError, match="does not hold its rows"):
            kind.take(np.arange(3), own)
    again = Adopted.read(path, kind.build, 32, 1000, None, mapped)
    assert np.array_equal(again.search(images[:50], 100, FULL, own)[0], found)
    allowed = Allowed(np.arange(1000) % 25 == 0)
    if factory == "PQ16x4np":
        with pytest.raises(ValueError, match="build an index of your own"):
            kind.search(images[:50], 100, FULL, own, allowed)
        return
    found, _ = kind.search(images[:50], 100, {"nprobe": 1, "efSearch": 1}, own, allowed)
    assert (np.sort(found[:, :40], axis=1) == own[::25]).all() and (found[:, 40:] == -1).all()
    half = Allowed(np.arange(1000) % 2 == 0)
    found, _ = kind.search(images[:50], 10, {"nprobe": 8, "efSearch": 20}, own, half)
    assert np.isin(found, own[::2]).all()


def test_a_filter_that_leaves_a_quarter_costs_an_adopted_graph_no_recall(data, tmp_path):
    faiss_file.write(built("HNSW16", data.images), tmp_path / "their.index")
    kind, ids = Adopted.adopt(tmp_path / "their.index"), np.arange(2000)
    scores = data.texts.astype(np.float64) @ data.images.astype(np.float64).T
    quarter, recalls = ids % 4 == 0, []
    for allowed in (None, Allowed(quarter)):
        best = np.argsort(-np.where(quarter | (allowed is None), scores, -9), axis=1)[:, :5]
        found, _ = kind.search(data.texts, 5, {"efSearch": 5}, ids, allowed)
        recalls.append(np.mean([len(set(a) & set(b)) / 5 for a, b in zip(found, best, strict=True)]))
    assert 0.3 < recalls[0] < 0.97
    assert recalls[1] >= recalls[0] - 0.02


def test_an_adopted_index_says_what_it_is_and_stays_as_it_is(data, tmp_path):
    path = tmp_path / "their.index"
    index = built("OPQ16_32,IVF16,PQ16x4np", data.images)
    faiss.extract_index_ivf(index).nprobe = 5
    faiss_file.write(index, path)
    kind = Adopted.adopt(path)
    assert kind.build == {"kind": "adopted", "faiss": "LinearTransform + IndexIVFPQ of 16 lists", "knob": "nprobe"}
    assert (kind.knobs, kind.setting, kind.nlist, kind.joins) == (("nprobe",), {"nprobe": 5}, 16, False)
    assert kind.scanned({"nprobe": 4}, 2000) == 516 and kind.code_bytes == 2000 * 8
    for change in (lambda: kind.add(data.images[:1], np.zeros(1)), lambda: kind.remove(np.zeros(1)), kind.empty):
        with pytest.raises(NotImplementedError, match="searched as it is"):
            change()
    with pytest.raises(ValueError, match="is not the LinearTransform"):
        Adopted.read(path, kind.build, 32, 1999, None)
    kind.keep_setting({"nprobe": 7})
    kind.write(tmp_path / "again.index")
    assert Adopted.adopt(tmp_path / "again.index").setting == {"nprobe": 7}


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda images: built("Flat", images, faiss.METRIC_L1), "neither inner product nor L2"),
        (lambda images: built("NSG8", images), "IndexNSGFlat is not among the kinds"),
        (lambda images: built("IDMap,Flat", images, IP, np.zeros(len(images), np.int64)), "ids are not unique"),
        (lambda images: built("IVF4,Flat", images, IP, np.arange(len(images)) - 1), "ids are not unique"),
    ],
)
def test_what_cannot_be_adopted(data, tmp_path, make, said):
    faiss_file.write(make(data.images[:300]), tmp_path / "their.index")
    with pytest.raises(ValueError, match=said) as error:
        Adopted.adopt(tmp_path / "their.index")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("factory", ["IDMap,Flat", "IDMap,HNSW8,SQ8", "IVF4,Flat", "IVF4,PQ16x4fs", "IVF4,RaBitQ"])
@pytest.mark.parametrize("mapped", [True, False])
def test_a_file_cut_short(data, tmp_path, factory, mapped):
    path = tmp_path / "index.faiss"
    faiss_file.write(built(factory, data.images, IP, np.arange(2000)), path)
    whole, before = path.read_bytes(), limits()
    for size in (0, 3, 20, 41, 60, len(whole) // 2, len(whole) - 9):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match="does not open in FAISS") as error:
            faiss_file.read(path, mapped, 4)
        assert "\n" not in str(error.value) and len(str(error.value)) < 400
        assert limits() == before
    with pytest.raises(ValueError, match="is not the FAISS index of"):
        path.write_bytes(whole[:20])
        faiss_file.check_header(path, (whole[:4], b""), 2000, 32)


def test_a_length_in_a_file_is_not_believed(data, tmp_path):
    """A changed length of 8 GiB is refused before memory is asked for, and so are lists without end."""
    path = tmp_path / "index.faiss"
    faiss_file.write(built("Flat", data.images), path)
    content = bytearray(path.read_bytes())
    place = content.find((2000 * 32).to_bytes(8, "little"))
    assert place > 0
    content[place : place + 8] = (2**31).to_bytes(8, "little")
    path.write_bytes(content)
    with pytest.raises(ValueError, match="deserialization_vector_byte_limit"):
        faiss_file.read(path, mapped=False)
    faiss_file.write(built("IVF4,Flat", data.images), path)
    content = path.read_bytes()
    assert content.count((4).to_bytes(8, "little")) >= 1
    path.write_bytes(content.replace((4).to_bytes(8, "little"), (10**9).to_bytes(8, "little")))
    with pytest.raises(ValueError, match="does not open in FAISS"):
        faiss_file.read(path, mapped=False, lists=4)


def test_lists_up_to_the_number_named_are_read(data, tmp_path):
    """FAISS counts loops over lists: more than the bound is refused, and the bound follows the manifest."""
    path = tmp_path / "index.faiss"
    index = faiss.IndexIVFFlat(faiss.IndexFlatIP(1), 1, 5000, IP)
    index.own_fields = False
    faiss_file.write(index, path)
    assert faiss_file.read(path, False, 5000).nlist == 5000


def test_a_full_disk_and_a_missing_folder_are_oserrors(data, tmp_path):
    index = built("Flat", data.images)
    for path in (Path("/dev/full"), tmp_path / "none" / "index.faiss"):
        with pytest.raises(OSError) as error:
            faiss_file.write(index, path)
        assert error.value.filename == str(path)
