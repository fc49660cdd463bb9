"""CLIP_benchmark's layout of a data set: shards in ROOT/test, with class names, templates and a shard count beside them.

ROOT/classnames.txt  zeroshot_classification_templates.txt  dataset_type.txt
ROOT/test/0.tar  1.tar  …  nshards.txt                        (and ROOT/train, where there is one)
"""

from __future__ import annotations

import os
from pathlib import Path

CLASS_NAMES, TEMPLATES = "classnames.txt", "zeroshot_classification_templates.txt"
TYPE, COUNT = "dataset_type.txt", "nshards.txt"
SPLIT = "test"  # what the benchmark measures on
MOST_SHARDS = 100_000  # more than any set has: a wrong number does not keep us counting


def class_folder(folder: str | Path) -> Path | None:
    """The folder that holds `classnames.txt`: `folder`, else the one above it; None where neither does."""
    here = Path(os.path.abspath(folder))
    return next((place for place in (here, here.parent) if (place / CLASS_NAMES).is_file()), None)


def shard_folder(folder: Path) -> Path:
    """Where the shards of a data set lie: `folder`, or its `test/` where `folder` is the root of CLIP_benchmark's layout.

    It is such a root when it has no shards itself, shards in test/, and one of that layout's files beside test/.
    """
    split = folder / SPLIT
    marked = any((folder / name).is_file() for name in (CLASS_NAMES, TEMPLATES, TYPE)) or (split / COUNT).is_file()
    return split if marked and not _any_tar(folder) and _any_tar(split) else folder


def shards_missing(folder: Path) -> list[str]:
    """The shards 0.tar, 1.tar, … that `folder` lacks though its nshards.txt counts them; none where it counts no more than
    there are, or says nothing."""
    try:
        count = int((folder / COUNT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    if len([*folder.glob("*.tar")]) >= count:
        return []
    numbered = (folder / f"{i}.tar" for i in range(min(count, MOST_SHARDS)))
    return [str(path) for path in numbered if not path.is_file()]


def _any_tar(folder: Path) -> bool:
    return any(path.is_file() for path in folder.glob("*.tar"))
