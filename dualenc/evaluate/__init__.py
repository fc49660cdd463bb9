"""What an encoder is worth: retrieval, zero-shot classification, composition, and the page that shows them."""

from dualenc.lazy import lazy_names

__getattr__, __all__ = lazy_names(
    __name__, {"recall_at_k": "dualenc.evaluate.metrics", "zero_shot_metrics": "dualenc.evaluate.metrics"}
)
