"""Shards: packing, checking, reading, and the batches that training and embedding see."""

from dualenc.lazy import lazy_names

__getattr__, __all__ = lazy_names(
    __name__,
    {
        "PairData": "dualenc.data.module",
        "check": "dualenc.data.check",
        "open_source": "dualenc.data.shards",
        "pack": "dualenc.data.pack",
        "write_scenes": "dualenc.data.scenes",
    },
)
