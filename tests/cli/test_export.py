"""`dualenc export`: what it prints, what it leaves, what it refuses before any work."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import tempfile
from pathlib import Path

import dualenc.torchvision_ops  # noqa: F401

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dualenc.cli import main
from dualenc.cli.export import _source
from dualenc.data.shards import open_source
from dualenc.embed.run import write_store
from dualenc.model.encoder import DualEncoder
from dualenc.model.folder import preprocess_of
from tests.small import loaded, png, write_shards


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """Run a command that must fail with one line and leave nothing; returns the line."""
    before = sorted(Path().rglob("*"))
    try:
        code = main(["export", *words])
    except SystemExit as exit_:
        code = int(exit_.code or 0)
    error = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert code != 0 and len(error) == 1 and "Traceback" not in error[0], error
    assert "report it" not in error[0]
    assert sorted(Path().rglob("*")) == before
    return error[0]


def test_a_checkpoint_becomes_a_folder(encoder: DualEncoder, capsys: pytest.CaptureFixture[str]) -> None:
    about = {"model_cfg": encoder.model_cfg, "preprocess_cfg": preprocess_of(encoder.model), "training": {"steps": 7}}
    about["preprocess_cfg"]["size"] = 32
    state = {f"model.{name}": tensor for name, tensor in encoder.model.state_dict().items()}
    torch.save({"dualenc": about, "state_dict": state}, "last.ckpt")
    assert main(["export", "last.ckpt", "out", "--to", "folder"]) == 0
    shown = capsys.readouterr().out
    assert encoder.fingerprint[:12] in shown and "16 dimensions" in shown and "allowed: 1e-04" in shown
    again = DualEncoder.load("out", "cpu")
    assert again.fingerprint == encoder.fingerprint and again.provenance == {"steps": 7}
    assert sorted(p.name for p in Path().iterdir()) == ["last.ckpt", "out"]


def test_hf(encoder_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    transformers = pytest.importorskip("transformers")
    assert main(["export", str(encoder_folder), "out", "--to", "hf"]) == 0
    shown = capsys.readouterr()
    assert "images" in shown.out and "see differs in out/dualenc.json" in shown.out
    assert "Loading" not in shown.err  # no progress bars of others
    assert transformers.CLIPModel.from_pretrained("out", local_files_only=True).config.projection_dim == 16
    assert "out exists and is not empty" in refused(capsys, str(encoder_folder), "out", "--to", "hf")


def test_int8_of_a_store_prints_what_it_costs(
    encoder: DualEncoder, encoder_folder: Path, shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    write_store(encoder, open_source(shards), "store", workers=0, accelerator="cpu")
    assert main(["export", str(encoder_folder), "out", "--to", "int8", "--data", "store", "--workers", "0"]) == 0
    lines = capsys.readouterr().out.splitlines()
    checked = json.loads(Path("out/dualenc.json").read_text())["checked"]
    recall = checked["recall"]
    table = [line.split() for line in lines if " R@" in line]
    assert [row[3] for row in table] == ["R@1", "R@5", "R@10"] * 2
    for way, rows in (("text_to_image", table[:3]), ("image_to_text", table[3:])):
        for row in rows:
            a, b = (100 * recall[kind][f"{way}/recall@{row[3][2:]}"] for kind in ("float", "int8"))
            assert row[4] == f"{a:.1f}" and row[6] == f"{b:.1f}" and row[8] == f"{b - a:+.1f}"
    (sizes,) = [line for line in lines if line.startswith("text.onnx")]
    before, after = checked["bytes"]["text.onnx"]
    assert f"{before / 1e6:.1f} MB in float32, {after / 1e6:.1f} MB in int8" in sizes
    assert sorted(p.name for p in Path().iterdir()) == ["out", "store"]


def test_a_stores_pixels_are_where_it_was_made_from(encoder: DualEncoder, tmp_path: Path) -> None:
    write_shards(Path("data"), 6)
    write_store(encoder, open_source("data"), "store", workers=0, accelerator="cpu")
    assert len(_source(["store"])) == 6
    shutil.rmtree("data")
    write_shards(Path("data"), 60)
    with pytest.raises(ValueError, match="which has changed since"):
        _source(["store"])
    shutil.rmtree("data")
    with pytest.raises(FileNotFoundError):
        _source(["store"])


def test_a_store_of_a_folder_of_pictures_has_pixels_too(encoder: DualEncoder) -> None:
    Path("pictures").mkdir()
    for i in range(3):
        (Path("pictures") / f"{i}.png").write_bytes(png(seed=i))
        (Path("pictures") / f"{i}.txt").write_text(f"number {i}")
    write_store(encoder, open_source("pictures"), "store", workers=0, accelerator="cpu")
    assert _source(["store"]).keys == open_source("pictures").keys


def test_a_store_of_others_does_not_say_where_its_pixels_are() -> None:
    Path("store/img_emb").mkdir(parents=True)
    Path("store/metadata").mkdir()
    np.save("store/img_emb/img_emb_0.npy", np.eye(3, 4, dtype=np.float32))
    pq.write_table(pa.table({"caption": ["a", "b", "c"]}), "store/metadata/metadata_0.parquet")
    with pytest.raises(ValueError, match="does not say what it was made from"):
        _source(["store"])


def test_what_needs_no_encoder_is_refused_first(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*_: object, **__: object) -> None:
        raise AssertionError("loaded before the check")

    monkeypatch.setattr(DualEncoder, "load", load)
    assert "is measured; name some pairs" in refused(capsys, "e", "out", "--to", "int8")
    assert "has no effect with --to onnx" in refused(capsys, "e", "out", "--to", "onnx", "--data", "x")
    assert "x" in refused(capsys, "e", "out", "--to", "int8", "--data", "x")
    assert "--to" in refused(capsys, "e", "out")
    assert "invalid choice: 'tflite'" in refused(capsys, "e", "out", "--to", "tflite")
    Path("file").write_text("mine")
    assert "exists" in refused(capsys, "e", "file", "--to", "folder")


@pytest.mark.parametrize(
    ("to", "package"), [("hf", "transformers"), ("onnx", "onnxscript"), ("onnx", "onnx"), ("int8", "onnxruntime")]
)
def test_a_missing_package_is_told_before_any_work(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, to: str, package: str
) -> None:
    from dualenc.model.export import check

    found = check.importlib.util.find_spec
    monkeypatch.setattr(check.importlib.util, "find_spec", lambda name: None if name == package else found(name))
    data = ["--data", "nowhere"] if to == "int8" else []
    line = refused(capsys, "nowhere/encoder", "out", "--to", to, *data)
    assert f"{package} is not installed" in line and "pip install 'dualenc[export]'" in line


def test_a_refusal_after_loading_leaves_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("transformers")
    DualEncoder(loaded("resnet"), "tiny", "cpu").save("resnet")
    assert "no ModifiedResNet image tower" in refused(capsys, "resnet", "out", "--to", "hf")


ENCODERS = [
    "nowhere/e",
    "ViT-B-32",
    "ViT-B-32:no_such_tag",
    "last.ckpt",
    "broken",
    "",
    "no-such-model:random",
    "file.txt",
]


@given(
    encoder=st.sampled_from(ENCODERS),
    to=st.sampled_from(["folder", "hf", "onnx", "int8", "HF", ""]),
    data=st.sampled_from([[], ["--data"], ["--data", "nowhere"], ["--data", "broken", "nowhere"]]),
    more=st.sampled_from([[], ["--batch-size", "x"], ["--workers", "-1"], ["--recall"], ["third"]]),
)
def test_bad_words_are_one_line_and_leave_nothing(encoder: str, to: str, data: list[str], more: list[str]) -> None:
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        patch.chdir(name)
        Path("last.ckpt").write_bytes(b"PK junk")
        Path("file.txt").write_text("x")
        Path("broken").mkdir()
        Path("broken/open_clip_config.json").write_text("{}")
        before, said = sorted(Path().rglob("*")), io.StringIO()
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            try:
                code = main(["export", encoder, "out", "--to", to, *more, *data])
            except SystemExit as exit_:
                code = int(exit_.code or 0)
        lines = [line for line in said.getvalue().splitlines() if "error:" in line]
        assert code in (1, 2) and len(lines) == 1, said.getvalue()
        assert "Traceback" not in said.getvalue() and "report it" not in lines[0]
        assert sorted(Path().rglob("*")) == before
