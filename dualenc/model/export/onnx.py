"""Both towers as ONNX graphs, which run without PyTorch.

`image.onnx`: `pixels` uint8 (N, 3, H, W), RGB, resized and cut as preprocessing.json says, to `image_embedding` float32
(N, D). Normalisation is a part of the graph: uint8 cannot be scaled wrongly, as floats are time and again.
`text.onnx`: `tokens` int64 (N, context), filled up as tokenizer.json says, to `text_embedding` float32 (N, D).
Rows are unit; N is free.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dualenc.torchvision_ops  # noqa: F401  (before open_clip)

import numpy as np
import torch
from torch import Tensor, nn

from dualenc.files import whole_folder, write_json
from dualenc.model.encoder import DualEncoder
from dualenc.model.export.check import Probe, compare, need, probe, write_note
from dualenc.model.export.tokenizer import is_clip, padded_tokenizer
from dualenc.model.folder import preprocess_of, tokenizer_of
from dualenc.model.towers import image_features, text_features

log = logging.getLogger("dualenc")

OPSET = 18
PACKAGES = ("onnx", "onnxruntime", "onnxscript")
WHOLE = 1_900_000_000  # bytes; protobuf ends at 2 GiB, above this the weights lie beside the graph
GRAPHS = {"image": "image.onnx", "text": "text.onnx"}
INPUTS = {"image": "pixels", "text": "tokens"}


class Tower(nn.Module):
    """What goes into a tower to unit rows (N, D): uint8 pixels (N, 3, H, W), or token ids (N, context)."""

    def __init__(self, model: nn.Module, features: Callable[[Any, Tensor], Tensor]):
        super().__init__()
        self.model, self.features = model, features

    def forward(self, rows: Tensor) -> Tensor:
        return self.features(self.model, rows)


def export_onnx(encoder: DualEncoder, out: str | Path) -> dict[str, float]:
    """Write both graphs with preprocessing.json and tokenizer.json, and compare them with the encoder by onnxruntime.

    Returns the largest |difference| of unit rows: {"image", "text"}. ValueError where it is above 1e-4;
    FileExistsError when `out` holds anything; ImportError without the packages.
    """
    need(*PACKAGES)
    with whole_folder(out) as partial:
        seen = probe(encoder)
        write_graphs(encoder, partial, seen)
        found = {kind: compare(kind, runner(partial / GRAPHS[kind], seen), expected(seen, kind)) for kind in GRAPHS}
        write_beside(encoder, partial, seen)
        write_note(partial, encoder, "onnx", {"max_difference": found}, opset=OPSET)
    return found


def write_graphs(encoder: DualEncoder, folder: Path, seen: Probe) -> None:
    """image.onnx and text.onnx, by torch's exporter that starts from torch.export: the older one is wrong for ResNets."""
    towers: dict[str, nn.Module] = {
        "image": Tower(encoder.model, image_features),
        "text": Tower(encoder.model, text_features),
    }
    size = sum(t.numel() * t.element_size() for t in encoder.model.state_dict().values())
    for kind, tower in towers.items():
        example = (seen.pixels if kind == "image" else seen.tokens)[:2]  # a batch of 1 would be taken for a constant
        with warnings.catch_warnings(), _quiet(), torch.no_grad():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                tower.eval(),
                (example,),
                folder / GRAPHS[kind],
                dynamo=True,
                dynamic_shapes=({0: torch.export.Dim.DYNAMIC},),
                input_names=[INPUTS[kind]],
                output_names=[f"{kind}_embedding"],  # "embedding" alone is the name of a node
                opset_version=OPSET,
                external_data=size > WHOLE,
                verbose=False,
            )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter's optimiser remarks on what it leaves as it is."""
    loggers = [logging.getLogger(name) for name in ("onnxscript", "onnx_ir", "torch.onnx")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def write_beside(encoder: DualEncoder, folder: Path, seen: Probe) -> None:
    """preprocessing.json, and the tokenizer's own files where it has any that other programs read."""
    image = preprocess_of(encoder.model)
    text = tokenizer_of(encoder.tokenizer) | {"input": INPUTS["text"], "dtype": "int64"}
    if is_clip(encoder.tokenizer):
        fast = padded_tokenizer(encoder.tokenizer)
        ids = [fast.encode(caption).ids for caption in seen.captions]
        if not np.array_equal(ids, seen.tokens.numpy()):
            raise ValueError(
                "the exported tokenizer gives other ids than the encoder's, so nothing was written; report it"
            )
        fast.save(str(folder / "tokenizer.json"))
    elif hasattr(encoder.tokenizer, "save_pretrained"):
        encoder.tokenizer.save_pretrained(folder)
    else:
        log.warning(
            "%s has no form that other programs read: no tokenizer.json is written; make token ids with dualenc",
            type(encoder.tokenizer).__name__,
        )
    about = {"input": INPUTS["image"], "dtype": "uint8", "layout": "NCHW", "normalised_by": "the graph"}
    write_json(folder / "preprocessing.json", {"image": image | about, "text": text})


def size_of(graph: Path) -> int:
    """Bytes of a graph with the weights that may lie beside it."""
    return sum(path.stat().st_size for path in graph.parent.glob(f"{graph.name}*"))


def runner(path: Path, seen: Probe) -> Any:
    """n -> rows of the first n inputs of `seen` by the graph at `path`."""
    run = open_graph(path)
    return lambda n: run((seen.pixels if path.name == GRAPHS["image"] else seen.tokens)[:n].numpy())


def expected(seen: Probe, kind: str) -> np.ndarray:
    """What the encoder makes of `seen`: (N, D)."""
    return seen.image_rows if kind == "image" else seen.text_rows


def open_graph(path: Path) -> Any:
    """A graph as a function from its input, as an array, to its rows (N, D) float32; on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    (name,) = (value.name for value in session.get_inputs())
    return lambda values: session.run(None, {name: values})[0]
