"""Encoders for other programs: an encoder folder, transformers' CLIPModel, ONNX graphs, and ONNX graphs in 8 bits."""

from dualenc.lazy import lazy_names

__getattr__, __all__ = lazy_names(
    __name__,
    {
        "export_folder": "dualenc.model.export.folder",
        "export_hf": "dualenc.model.export.hf",
        "export_int8": "dualenc.model.export.int8",
        "export_onnx": "dualenc.model.export.onnx",
    },
)
