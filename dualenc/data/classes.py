"""The names of a data set's classes, where its own layout tells them."""

from __future__ import annotations

from pathlib import Path

from dualenc.data.folder_source import Folder
from dualenc.data.rows import FORMATS, kind_of
from dualenc.data.tables import guess_columns, survey


def folder_classes(path: str | Path) -> list[str] | None:
    """Class names in the order of their numbers, of an image folder by class (its sub-folders) or a table whose class
    column holds names; None for anything else. A class's number is in the metadata column `label`.

    Names that a file says, `classnames.txt`, are `dualenc.model.names.class_files`' business and come before these.
    """
    place = Path(path)
    if place.is_file() and place.suffix.lower() in FORMATS:
        kind = kind_of(place)
        columns = guess_columns(place, kind)
        return None if columns.label is None else survey(place, kind, columns).classes
    if not place.is_dir() or any(place.glob("*.tar")):
        return None
    try:
        return Folder(place).classes
    except ValueError:  # no images in it
        return None
