"""dualenc: train CLIP-style dual encoders, index their embeddings, search and measure them."""

from dualenc.lazy import lazy_names

__version__ = "0.1.0"
__getattr__, __all__ = lazy_names(__name__, {"DualEncoder": "dualenc.model.encoder", "Index": "dualenc.index.index"})
