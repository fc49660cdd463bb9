"""Where a data set's class names lie: beside its shards, or one folder up, as in CLIP_benchmark's layout."""

from __future__ import annotations

import os
from pathlib import Path

CLASS_NAMES, TEMPLATES = "classnames.txt", "zeroshot_classification_templates.txt"


def class_folder(folder: str | Path) -> Path | None:
    """The folder that holds `classnames.txt`: `folder`, else the one above it; None where neither does."""
    here = Path(os.path.abspath(folder))
    return next((place for place in (here, here.parent) if (place / CLASS_NAMES).is_file()), None)
