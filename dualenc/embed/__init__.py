"""Encoder and shards in, store out; and the store's format, which needs neither torch nor open_clip."""

from dualenc.lazy import lazy_names

__getattr__, __all__ = lazy_names(
    __name__,
    {
        "Embedded": "dualenc.embed.run",
        "Store": "dualenc.embed.store",
        "StoreWriter": "dualenc.embed.store_writer",
        "embed_source": "dualenc.embed.run",
        "open_store": "dualenc.embed.store",
        "write_store": "dualenc.embed.run",
    },
)
