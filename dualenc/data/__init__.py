"""Shards: packing, checking, reading, and the batches that training and embedding see."""

from dualenc.lazy import lazy_names

__getattr__, __all__ = lazy_names(
    __name__,
    {
        "PairData": "dualenc.data.module",
        "open_source": "dualenc.data.shards",
        "write_scenes": "dualenc.data.scenes",
    },
)
