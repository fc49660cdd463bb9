"""Store or vectors + recipe → index; search, filter, add, remove, merge, tune. Needs numpy, FAISS and pyarrow only."""

from dualenc.lazy import lazy_names

__getattr__, __all__ = lazy_names(
    __name__,
    {
        "Index": "dualenc.index.index",
        "adopt": "dualenc.index.adoption",
        "exact_search": "dualenc.index.exact",
        "info": "dualenc.index.about",
        "load_recipe": "dualenc.index.recipe",
        "merge": "dualenc.index.merging",
        "near_duplicates": "dualenc.index.duplicates",
        "open_vectors": "dualenc.index.folder",
        "pools": "dualenc.index.threads",
    },
)
