"""DESIGN's "Python" contract, from a caller's side: names, order of arguments, defaults, shapes, types, refusals."""

import inspect
import shutil

import numpy as np
import pyarrow as pa
import pytest

pytest.importorskip("torch")

import torch
from PIL import Image

from dualenc import DualEncoder, Index
from dualenc.data.shards import open_source
from dualenc.embed.run import write_store
from dualenc.embed.store import open_store
from dualenc.evaluate import recall_at_k, zero_shot_metrics
from dualenc.model.losses import contrastive_loss, sigmoid_loss
from tests.small import loaded, png

REQUIRED = inspect.Parameter.empty


def signature(function):
    """name -> default of each argument, in order."""
    return {n: p.default for n, p in inspect.signature(function).parameters.items() if n != "self"}


def positional(function):
    """Names of the arguments that may be given by their place; all others have a default."""
    arguments = inspect.signature(function).parameters.values()
    by_place = [p.name for p in arguments if p.kind is not p.KEYWORD_ONLY]
    assert all(p.default is not p.empty for p in arguments if p.kind is p.KEYWORD_ONLY)
    return by_place


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def vectors():
    return unit(np.random.default_rng(0).standard_normal((40, 8)))


@pytest.fixture
def index(vectors, tmp_path):
    metadata = [{"name": f"row {i}", "even": i % 2 == 0} for i in range(40)]
    Index.build(vectors, tmp_path / "index", metadata=metadata, recipe="flat", encoder="f" * 64)
    return Index.open(tmp_path / "index")


def test_the_encoder(encoder_folder, tmp_path):
    (tmp_path / "a.png").write_bytes(png())
    encoder = DualEncoder.load(str(encoder_folder))
    images = encoder.embed_images([str(tmp_path / "a.png"), tmp_path / "a.png", Image.new("RGB", (50, 40))])
    texts = encoder.embed_texts(["a red circle", "a blue square"])
    assert images.shape == (3, encoder.dim) and texts.shape == (2, encoder.dim)
    for rows in (images, texts):
        assert isinstance(rows, np.ndarray) and rows.dtype == np.float32
        assert np.abs(np.linalg.norm(rows, axis=1) - 1).max() < 1e-5
    assert isinstance(encoder.dim, int)
    assert len(encoder.fingerprint) == 64 and set(encoder.fingerprint) <= set("0123456789abcdef")
    with pytest.raises(ValueError, match="ViT-B-32:laion2b_s34b_b79k"):
        DualEncoder.load("ViT-B-32")


def test_signatures_are_those_of_the_design():
    assert signature(Index.build) == {
        "vectors_or_store": REQUIRED,
        "out": REQUIRED,
        "ids": None,
        "metadata": None,
        "recipe": "auto",
        "recall": 0.95,
        "memory": None,
        "latency": None,
        "queries": None,
        "encoder": None,
        "side": "image",
    }
    assert signature(Index.open) == {"folder": REQUIRED, "verify": False}
    assert signature(Index.search) == {"queries": REQUIRED, "k": 10, "where": None, "encoder": None}
    assert signature(Index.rows) == {"ids": REQUIRED}
    assert signature(Index.add) == {"vectors": REQUIRED, "ids": None, "metadata": None}
    assert signature(Index.remove) == {"ids": REQUIRED}
    assert signature(recall_at_k) == {"query": REQUIRED, "gallery": REQUIRED, "relevant": REQUIRED, "ks": (1, 5, 10)}
    assert list(signature(zero_shot_metrics)) == ["scores", "target"]
    assert positional(contrastive_loss) == ["image", "text", "logit_scale"]  # the rest: options, by name alone
    assert positional(sigmoid_loss) == ["image", "text", "logit_scale", "logit_bias"]


def test_searching(index, vectors):
    queries = unit(np.random.default_rng(1).standard_normal((5, 8)))
    ids, scores = index.search(queries)
    assert ids.shape == scores.shape == (5, 10) and ids.dtype == np.int64 and scores.dtype == np.float32
    cosine = queries @ vectors.T
    assert np.array_equal(ids, np.argsort(-cosine, axis=1, kind="stable")[:, :10])
    assert np.abs(scores - np.take_along_axis(cosine, ids, axis=1)).max() < 1e-6
    ids, scores = index.search(queries, k=50)
    assert (ids[:, 40:] == -1).all() and np.isneginf(scores[:, 40:]).all() and (ids[:, :40] >= 0).all()
    ids, scores = index.search(queries, k=3, where="even and name <> 'row 0'", encoder="f" * 64)
    assert (ids % 2 == 0).all() and (ids > 0).all()


def test_rows_add_remove_and_length(index, vectors):
    assert len(index) == 40
    table = index.rows(np.array([3, 1]))
    assert isinstance(table, pa.Table) and table.column("name").to_pylist() == ["row 3", "row 1"]
    index.add(-vectors[:2], metadata=[{"name": "new", "even": True}, {"name": "newer", "even": True}])
    assert len(index) == 42 and index.rows([41]).column("name").to_pylist() == ["newer"]
    index.add(vectors[2:3] * -1, ids=[1000], metadata=pa.table({"name": ["last"], "even": [False]}))
    assert index.search(-vectors[2:3], k=1)[0].tolist() == [[1000]]
    index.remove([0, 1000])
    assert len(index) == 41 and len(Index.open(index.folder)) == 41
    assert 0 not in index.search(vectors[:1], k=41)[0]


def test_an_index_knows_its_encoder(index, vectors):
    class Whose:
        fingerprint = "f" * 64

    index.search(vectors[:1], encoder=Whose())
    Whose.fingerprint = "e" * 64
    for foreign in ("e" * 64, Whose()):
        with pytest.raises(ValueError, match="holds vectors of encoder") as error:
            index.search(vectors[:1], encoder=foreign)
        assert "\n" not in str(error.value)


def test_a_row_is_unit_within_5e_3(index, vectors, tmp_path):
    index.search(vectors[:1] * 1.004)
    for factor in (1.006, 0.994, 0.0):
        with pytest.raises(ValueError):
            index.search(vectors[:1] * factor)
    with pytest.raises(ValueError):
        index.search(vectors[:1, :7])  # another D
    with pytest.raises(ValueError):
        Index.build(vectors * 1.006, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_an_index_from_a_store(encoder, shards, tmp_path):
    write_store(encoder, open_source(shards), tmp_path / "store", workers=0, accelerator="cpu")
    store = open_store(tmp_path / "store")
    images = Index.build(store, tmp_path / "images")
    texts = Index.build(store, tmp_path / "texts", side="text", recipe="flat")
    assert (len(images), len(texts)) == (24, 48) and images.fingerprint == encoder.fingerprint
    query = encoder.embed_texts(["a red picture number 0"])
    ids, _ = texts.search(query, k=1, encoder=encoder)
    assert texts.rows(ids[0]).column("caption").to_pylist() == ["a red picture number 0"]
    assert images.rows([0]).column("key").to_pylist() == ["s000"]
    other = DualEncoder(loaded("vit", seed=5), device="cpu")
    with pytest.raises(ValueError):
        images.search(query, encoder=other)


def test_opening_checks_the_folder(index, tmp_path):
    with pytest.raises(FileNotFoundError):
        Index.open(tmp_path / "nothing")
    shutil.copytree(index.folder, tmp_path / "copy")
    biggest = max((p for p in (tmp_path / "copy").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    data = bytearray(biggest.read_bytes())
    data[len(data) // 2] ^= 1
    biggest.write_bytes(data)
    with pytest.raises(ValueError) as error:
        Index.open(tmp_path / "copy", verify=True)
    assert "\n" not in str(error.value)
    biggest.write_bytes(data[:-1])
    with pytest.raises(ValueError):
        Index.open(tmp_path / "copy")


def test_recall_and_zero_shot():
    gallery = unit(np.array([[1.0, 0], [0.8, 0.6], [0, 1.0]]))
    found = recall_at_k(gallery[:2], gallery, [[0], [2]], ks=(1, 2, 3))
    assert found == {"recall@1": 0.5, "recall@2": 0.5, "recall@3": 1.0}
    with pytest.raises(ValueError):
        recall_at_k(gallery, gallery, [[0], [1], []], ks=(1,))
    scores = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]])
    assert zero_shot_metrics(scores, np.array([0, 1, 1])) == pytest.approx(
        {"acc1": 2 / 3, "acc5": None, "mean_per_class_recall": 0.75}
    )


def test_losses_take_an_exponentiated_scale():
    same = torch.eye(4, dtype=torch.float64)
    scale, bias = torch.tensor(20.0, dtype=torch.float64), torch.tensor(-10.0, dtype=torch.float64)
    soft, hard = contrastive_loss(same, same, scale), sigmoid_loss(same, same, scale, bias)
    assert soft.shape == hard.shape == ()
    assert soft.item() == pytest.approx(np.log1p(3 * np.exp(-20.0)))
    assert hard.item() == pytest.approx(4 * np.log1p(np.exp(-10.0)))  # per pair: one that fits, three that do not
