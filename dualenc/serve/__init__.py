"""HTTP API and the search page, over open indexes; and a client of it."""

from dualenc.lazy import lazy_names

__getattr__, __all__ = lazy_names(__name__, {"Client": "dualenc.serve.client"})
