"""Both towers by onnxruntime: the rows of the encoder at every batch size; and in 8 bits, what is measured of it."""

from __future__ import annotations

import json
import shutil

import dualenc.torchvision_ops  # noqa: F401

import numpy as np
import pytest
import torch

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

import onnx
from PIL import Image

from dualenc.model.encoder import DualEncoder
from dualenc.model.export import check, export_folder, export_int8, export_onnx
from dualenc.model.export import onnx as graphs
from dualenc.model.export.onnx import open_graph
from tests.model.test_export_hf import scrambled
from tests.small import loaded

FILES = {"image.onnx", "text.onnx", "preprocessing.json", "tokenizer.json", "dualenc.json"}


def tiny(name):
    made = loaded(name)
    scrambled(made.model)
    return DualEncoder(made, name, "cpu")


@pytest.fixture(scope="module")
def resnet(tmp_path_factory):
    """(ResNet encoder, its ONNX folder, what export_onnx returned): the exporter that is older gets these wrong."""
    encoder = tiny("resnet")
    folder = tmp_path_factory.mktemp("onnx") / "out"
    return encoder, folder, export_onnx(encoder, folder)


def same(encoder, folder, tolerance=1e-5):
    """Rows of both graphs are the encoder's, at batch sizes that the export did not see."""
    height, width = encoder.spec["image"]["size"]
    rng = np.random.default_rng(3)
    image, text = (open_graph(folder / f"{kind}.onnx") for kind in ("image", "text"))
    for batch in (1, 2, 3, 7):
        pixels = rng.integers(0, 256, (batch, height, width, 3), dtype=np.uint8)
        rows = image(pixels.transpose(0, 3, 1, 2))
        ours = encoder.embed_images([Image.fromarray(each) for each in pixels])
        assert rows.dtype == np.float32 and np.abs(rows - ours).max() < tolerance
        captions = [" ".join(rng.choice(["a", "red", "cat", "!"], n)) for n in rng.integers(0, 12, batch)]
        rows = text(encoder.tokenizer(captions).numpy())
        assert rows.dtype == np.float32 and np.abs(rows - encoder.embed_texts(captions)).max() < tolerance
    assert np.abs(np.linalg.norm(rows, axis=1) - 1).max() < 1e-5
    assert np.ptp(ours, axis=0).max() > 1e-3 and np.ptp(rows, axis=0).max() > 1e-3  # else any rows would do


def test_the_graphs_give_the_encoders_rows(resnet):
    encoder, folder, found = resnet
    assert {path.name for path in folder.iterdir()} == FILES
    same(encoder, folder)
    assert set(found) == {"image", "text"} and 0 < max(found.values()) < 1e-5


def test_pixels_are_bytes_and_nothing_else(resnet):
    """Floats from 0 to 1, or to 255, cannot be taken for one another: they are refused."""
    image = open_graph(resnet[1] / "image.onnx")
    with pytest.raises(Exception, match="uint8"):
        image(np.zeros((1, 3, 32, 32), np.float32))


def test_what_the_folder_says_suffices(resnet, tmp_path):
    """A picture file and a caption, with Pillow, tokenizers and onnxruntime alone."""
    from tokenizers import Tokenizer

    encoder, folder, _ = resnet
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    about = json.loads((folder / "preprocessing.json").read_text())["image"]
    assert about["resize_mode"] == "shortest" and about["dtype"] == "uint8" and about["interpolation"] == "bicubic"
    pixels = np.asarray(Image.open(tmp_path / "a.png").resize(about["size"], Image.BICUBIC)).transpose(2, 0, 1)[None]
    rows = open_graph(folder / "image.onnx")(pixels)
    assert np.abs(rows - encoder.embed_images([tmp_path / "a.png"])).max() < 1e-5
    some = ["a red circle", "", "they don't agree: 3.5 metres!", "long " * 50]
    tokens = np.array([each.ids for each in Tokenizer.from_file(str(folder / "tokenizer.json")).encode_batch(some)])
    assert np.abs(open_graph(folder / "text.onnx")(tokens) - encoder.embed_texts(some)).max() < 1e-5


def test_the_note_and_the_graphs_say_what_they_are(resnet):
    encoder, folder, found = resnet
    note = json.loads((folder / "dualenc.json").read_text())
    assert note["fingerprint"] == encoder.fingerprint and note["export"] == "onnx"
    assert note["checked"]["max_difference"] == found and note["opset"] == 18
    for kind, inner in (("image", ["pixels"]), ("text", ["tokens"])):
        model = onnx.load(folder / f"{kind}.onnx")
        assert [value.name for value in model.graph.input] == inner
        assert [value.name for value in model.graph.output] == [f"{kind}_embedding"]
        assert model.opset_import[0].version == 18


def replaced(monkeypatch, folder, **files):
    """Have these graphs instead of exporting: {"image": path}."""

    def copy(encoder, out, seen):
        for kind in ("image", "text"):
            shutil.copy(files.get(kind, folder / f"{kind}.onnx"), out / f"{kind}.onnx")

    monkeypatch.setattr(graphs, "write_graphs", copy)
    monkeypatch.setattr("dualenc.model.export.int8.write_graphs", copy)


@pytest.mark.parametrize("kind", ["image", "text"])
@pytest.mark.parametrize("export", ["onnx", "int8"])
def test_other_weights_are_found_and_nothing_is_written(resnet, tmp_path, monkeypatch, kind, export):
    encoder, folder, _ = resnet
    model = onnx.load(folder / f"{kind}.onnx")
    weights = next(w for w in model.graph.initializer if len(w.dims) == 2 and w.data_type == onnx.TensorProto.FLOAT)
    values = onnx.numpy_helper.to_array(weights) * 1.1
    weights.CopyFrom(onnx.numpy_helper.from_array(values.astype(np.float32), weights.name))
    onnx.save(model, tmp_path / "wrong.onnx")
    replaced(monkeypatch, folder, **{kind: tmp_path / "wrong.onnx"})
    with pytest.raises(ValueError, match=f"the exported {kind} tower differs from the encoder by"):
        if export == "onnx":
            export_onnx(encoder, tmp_path / "out")
        else:
            export_int8(encoder, tmp_path / "out", lambda towers: {})
    assert [path.name for path in tmp_path.iterdir()] == ["wrong.onnx"]


def test_a_tokenizer_that_differs_is_found(resnet, tmp_path, monkeypatch):
    encoder, folder, _ = resnet
    replaced(monkeypatch, folder)
    right = graphs.padded_tokenizer

    def cut(tokenizer):
        fast = right(tokenizer)
        fast.no_truncation()
        return fast

    monkeypatch.setattr(graphs, "padded_tokenizer", cut)
    with pytest.raises(ValueError, match="gives other ids"):
        export_onnx(encoder, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_tokenizer_without_a_file_is_told(resnet, tmp_path, monkeypatch, caplog):
    encoder, folder, _ = resnet
    replaced(monkeypatch, folder)
    monkeypatch.setattr(graphs, "is_clip", lambda tokenizer: False)
    export_onnx(encoder, tmp_path / "out")
    assert not (tmp_path / "out" / "tokenizer.json").exists() and "no tokenizer.json is written" in caplog.text


def test_int8(resnet, tmp_path, monkeypatch):
    """Smaller, near the encoder, unit rows, and what was measured is kept. Convolutions are as they were."""
    encoder, folder, _ = resnet
    replaced(monkeypatch, folder)
    asked = []

    def measure(towers):
        asked.append({kind: towers[kind](x) for kind, x in inputs.items()})
        assert not (tmp_path / "out").exists()
        return {"float": {"text_to_image/recall@1": 0.5}, "int8": {"text_to_image/recall@1": 0.4}}

    rng = np.random.default_rng(0)
    inputs = {
        "image": rng.integers(0, 256, (6, 3, 32, 32), dtype=np.uint8),
        "text": encoder.tokenizer(["a", "b c", "red circle"]).numpy(),
    }
    found = export_int8(encoder, tmp_path / "out", measure)
    assert {path.name for path in (tmp_path / "out").iterdir()} == FILES
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]
    with torch.no_grad():
        whole = {kind: open_graph(folder / f"{kind}.onnx")(x) for kind, x in inputs.items()}
    for kind, rows in asked[0].items():
        assert np.abs(np.linalg.norm(rows, axis=1) - 1).max() < 1e-5
        assert 0 < np.abs(rows - whole[kind]).max() < 0.1
        assert 0 < found["max_difference"][kind] < 0.1
    note = json.loads((tmp_path / "out" / "dualenc.json").read_text())
    assert note["checked"] == found and found["recall"]["int8"] == {"text_to_image/recall@1": 0.4}
    before, after = found["bytes"]["text.onnx"]
    assert before == (folder / "text.onnx").stat().st_size and after == (tmp_path / "out/text.onnx").stat().st_size
    assert after < before / 3  # the vocabulary's table is most of it
    kinds = [
        [node.op_type for node in onnx.load(path / "image.onnx").graph.node] for path in (folder, tmp_path / "out")
    ]
    assert kinds[0].count("Conv") == kinds[1].count("Conv") > 10 and "MatMulInteger" in kinds[1]


def test_a_measurement_that_fails_leaves_nothing(resnet, tmp_path, monkeypatch):
    encoder, folder, _ = resnet
    replaced(monkeypatch, folder)

    def fail(towers):
        raise ValueError("no image with a caption")

    with pytest.raises(ValueError, match="no image with a caption"):
        export_int8(encoder, tmp_path / "out", fail)
    assert list(tmp_path.iterdir()) == []


def test_folder(tmp_path):
    encoder = tiny("timm")
    found = export_folder(encoder, tmp_path / "out")
    assert max(found.values()) < 1e-6
    assert DualEncoder.load(tmp_path / "out", "cpu").fingerprint == encoder.fingerprint
    with pytest.raises(FileExistsError):
        export_folder(encoder, tmp_path / "out")
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]


def test_compare_is_strict():
    rows = np.eye(5, dtype=np.float32)
    assert check.compare("x", lambda n: rows[:n], rows) == 0
    off = rows.copy()
    off[4, 0] = 5e-5
    assert check.compare("x", lambda n: off[:n], rows) == pytest.approx(5e-5)
    off[4, 0] = 2e-4  # in the last row: only the largest batch shows it
    with pytest.raises(ValueError, match=r"the exported x tower differs from the encoder by 2\.0e-04 in a batch of 5"):
        check.compare("x", lambda n: off[:n], rows)
    for bad in (np.nan, np.inf, -1.0):
        off[1, 1] = bad
        with pytest.raises(ValueError, match="in a batch of 2"):
            check.compare("x", lambda n: off[:n], rows)
    with pytest.raises(ValueError, match=r"gives \(1, 4\) for \(1, 5\)"):
        check.compare("x", lambda n: rows[:n, :4], rows)
    with pytest.raises(ValueError, match=r"gives \(2, 5\) for \(1, 5\)"):
        check.compare("x", lambda n: rows[:2], rows)


def test_captions_of_the_probe_reach_the_context():
    seen = check.probe(tiny("vit"))
    lengths = (seen.tokens != 0).sum(1)
    assert lengths.min() == 3 and lengths.max() == seen.tokens.shape[1] and len(set(lengths.tolist())) >= 4 - 1
    assert len(seen.captions) == len(seen.pixels) == max(check.BATCHES) == 5


def test_a_missing_package_is_one_line():
    check.need("numpy")
    with pytest.raises(ImportError) as error:
        check.need("numpy", "no_such_package", "nor_this")
    assert str(error.value).startswith("no_such_package and nor_this are not installed")
    assert "pip install 'dualenc[export]'" in str(error.value)


def test_an_encoder_elsewhere_is_refused(monkeypatch):
    encoder = tiny("vit")
    encoder.device = torch.device("meta")
    with pytest.raises(ValueError, match="device='cpu'"):
        check.probe(encoder)


@pytest.mark.full
@pytest.mark.parametrize("name", ["vit", "quick_gelu", "rectangle", "timm", "timm_vit", "siglip"])
def test_every_tower(name, tmp_path):
    encoder = tiny(name)
    export_onnx(encoder, tmp_path / "out")
    same(encoder, tmp_path / "out")


@pytest.mark.full
def test_weights_beside_the_graph(tmp_path, monkeypatch):
    """As above 2 GB; also quantised, and also in another place."""
    monkeypatch.setattr(graphs, "WHOLE", 0)
    encoder = tiny("vit")
    export_onnx(encoder, tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == FILES | {"image.onnx.data", "text.onnx.data"}
    (tmp_path / "out").rename(tmp_path / "moved")
    same(encoder, tmp_path / "moved")
    found = export_int8(encoder, tmp_path / "small", lambda towers: {})
    before, after = found["bytes"]["text.onnx"]
    assert before > 49408 * 32 * 4 and after < before / 3
    (tmp_path / "small").rename(tmp_path / "there")
    same(encoder, tmp_path / "there", tolerance=0.1)
