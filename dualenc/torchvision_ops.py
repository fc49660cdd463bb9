"""Let `import torchvision` work beside a CPU-only torch.

PyPI's torchvision is a CUDA build. Beside a CPU torch its operator library does not load, and importing it (open_clip,
timm, Lightning and torchmetrics all do) raises "operator torchvision::nms does not exist". Naming the two operators
is enough: nothing here calls them. A torchvision whose operators do load is left alone, and so is a missing one.
Every package of ours that imports one of those libraries imports this module first.
"""

from __future__ import annotations

import contextlib
import importlib.util
from pathlib import Path


def define_missing_operators() -> None:
    """Declare `torchvision::nms` and `torchvision::qnms` where torchvision's own operator library does not load."""
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return
    import torch

    for library in Path(spec.origin).parent.glob("_C.*"):
        with contextlib.suppress(OSError):  # what importing torchvision would meet, too
            torch.ops.load_library(library)
            return
    for name in ("nms", "qnms"):
        with contextlib.suppress(RuntimeError):  # defined already, by whoever imported us
            torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


define_missing_operators()
