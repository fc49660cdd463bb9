"""The cure for a torchvision whose operators do not load: declared once, and only where they are missing."""

import subprocess
import sys

import dualenc.torchvision_ops as ops

import torch

SCRIPT = """
import sys
for name in ("torchvision", "open_clip", "pytorch_lightning", "torchmetrics", "timm"):
    assert name not in sys.modules
import dualenc.torchvision_ops
import torch
assert torch.ops.torchvision.nms and "torchvision" not in sys.modules
import torchvision, torchvision.transforms
"""


def test_torchvision_imports_after_it():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_defining_again_changes_nothing():
    before = torch.ops.torchvision.nms.default._schema
    ops.define_missing_operators()
    assert str(torch.ops.torchvision.nms.default._schema) == str(before)


def test_operators_that_load_are_left_alone(monkeypatch):
    defined, library = [], []
    monkeypatch.setattr(torch.ops, "load_library", library.append)
    monkeypatch.setattr(torch.library, "define", lambda *a: defined.append(a))
    ops.define_missing_operators()
    assert bool(library) != bool(defined)  # a torchvision with a library that loads, or one without any


def test_operators_that_do_not_load_are_declared(monkeypatch):
    defined = []

    def fails(path):
        raise OSError(path)

    monkeypatch.setattr(torch.ops, "load_library", fails)
    monkeypatch.setattr(torch.library, "define", lambda name, schema: defined.append((name, schema)))
    ops.define_missing_operators()
    schema = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
    assert defined == [("torchvision::nms", schema), ("torchvision::qnms", schema)]


def test_without_torchvision_nothing_happens(monkeypatch):
    def fails(*_):
        raise AssertionError("nothing to do")

    monkeypatch.setattr(ops.importlib.util, "find_spec", lambda _: None)
    monkeypatch.setattr(torch.library, "define", fails)
    ops.define_missing_operators()
