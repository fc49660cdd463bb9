"""torch.compile for the towers."""

from __future__ import annotations

from typing import Any

import torch._dynamo
from torch import nn


def compile_towers(model: Any, backend: str = "inductor") -> None:
    """Compile both towers in place: the names in `state_dict` stay as they are, so checkpoints and folders do too.

    The image tower as a whole; of the text tower its blocks, whose length changes with the batch: the second length that
    is met compiles them once more, for any length, and the full context length once more; no other does. Evaluation and
    batches of another size compile anew. ValueError where torch cannot compile here.

    backend: torch.compile's; its default needs a C++ compiler on a CPU.
    """
    if not torch._dynamo.is_dynamo_supported():
        raise ValueError("model.compile is set, but torch.compile does not work on this system; leave it out")
    model.visual.compile(backend=backend)
    blocks = _text_blocks(model)
    blocks.compile(backend=backend, dynamic=None)  # lengths become symbols once they differ


def _text_blocks(model: Any) -> nn.Module:
    """The text tower's transformer: open_clip's own, or the one of a Hugging Face tower."""
    return getattr(model, "text", model).transformer
