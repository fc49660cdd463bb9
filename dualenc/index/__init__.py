"""Store or vectors + recipe → index; search, filter, add, remove. Needs numpy, FAISS and pyarrow only."""

from dualenc.lazy import lazy_names

__getattr__, __all__ = lazy_names(
    __name__,
    {
        "Index": "dualenc.index.index",
        "exact_search": "dualenc.index.exact",
        "info": "dualenc.index.index",
        "load_recipe": "dualenc.index.recipe",
    },
)
