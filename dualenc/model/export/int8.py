"""Both towers as ONNX graphs whose matrices are int8, by onnxruntime's dynamic quantisation: no calibration data needed.

Matrix products and the vocabulary's table become 8 bits, each output channel with its own scale. Convolutions stay float:
onnxruntime's integer convolution is slower than its float one.
"""

from __future__ import annotations

import contextlib
import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import dualenc.torchvision_ops  # noqa: F401  (before open_clip)

import numpy as np

from dualenc.files import whole_folder
from dualenc.model.encoder import DualEncoder
from dualenc.model.export.check import compare, need, probe, write_note
from dualenc.model.export.onnx import (
    GRAPHS,
    OPSET,
    PACKAGES,
    expected,
    open_graph,
    runner,
    size_of,
    write_beside,
    write_graphs,
)

QUANTISED = ("MatMul", "Gather")  # Gemm is split into MatMul and Add first
Towers = Mapping[str, Callable[[np.ndarray], np.ndarray]]


def export_int8(
    encoder: DualEncoder, out: str | Path, measure: Callable[[Towers], dict[str, dict[str, float]]]
) -> dict[str, Any]:
    """Write both graphs in 8 bits, with the files that `export_onnx` writes beside them.

    measure: {"image", "text"} -> functions from the graphs' inputs to rows (N, D), to what 8 bits cost; what it returns
    (`dualenc.evaluate.quantised.quantised_recall`) is kept in dualenc.json. Returns {"max_difference": {"image", "text"} of
    unit rows, "bytes": {"image.onnx": [float, int8], …}, "recall"}. ValueError where the float graphs differ from the
    encoder by more than 1e-4; FileExistsError when `out` holds anything; ImportError without the packages.
    """
    need(*PACKAGES)
    with whole_folder(out) as partial, tempfile.TemporaryDirectory(dir=partial) as name:
        seen, whole = probe(encoder), Path(name)
        write_graphs(encoder, whole, seen)
        gaps, sizes = {}, {}
        for kind, graph in GRAPHS.items():
            compare(kind, runner(whole / graph, seen), expected(seen, kind))
            before = size_of(whole / graph)
            quantise(whole / graph, partial / graph)
            sizes[graph] = [before, size_of(partial / graph)]
            gaps[kind] = compare(kind, runner(partial / graph, seen), expected(seen, kind), tolerance=2.0)
        recall = measure({kind: open_graph(partial / graph) for kind, graph in GRAPHS.items()})
        found = {"max_difference": gaps, "bytes": sizes, "recall": recall}
        write_beside(encoder, partial, seen)
        write_note(partial, encoder, "int8", found, opset=OPSET)
    return found


def quantise(graph: Path, out: Path) -> None:
    """`graph` with 8-bit weights at `out`; `graph` itself loses what it says of shapes."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    beside = graph.with_name(f"{graph.name}.data").exists()
    model = onnx.load(graph, load_external_data=False)
    del model.graph.value_info[:]  # the exporter's, of the weights too, which quantisation transposes
    onnx.save(model, graph)
    with _quiet():
        quantize_dynamic(
            graph,
            out,
            op_types_to_quantize=[*QUANTISED],
            per_channel=True,
            reduce_range=True,  # 7 bits: sums of products of 8 overflow on processors without VNNI
            weight_type=QuantType.QInt8,
            use_external_data_format=beside,
        )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """quantize_dynamic tells everybody through the root logger to run another tool first, which changes nothing here."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)
