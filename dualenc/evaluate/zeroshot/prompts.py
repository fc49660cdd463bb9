"""Which classes and templates a data set is judged by: those a user names, or those that its own layout says."""

from __future__ import annotations

import functools
import logging
from pathlib import Path

from dualenc.beside import CLASS_NAMES, class_folder
from dualenc.data.classes import folder_classes
from dualenc.model.name_files import lines_of
from dualenc.model.names import Classes, check_class_names, class_files, in_order_of, read_classes, templates

log = logging.getLogger("dualenc")


def read_prompts(
    data: str, classes: str | None = None, prompts: str | None = None, label: str = "label", cure: str = ""
) -> tuple[Classes, list[str] | None]:
    """(Classes, templates) by what the user said of them, in the order of the data's labels; else what lies beside the
    data, or is its folders' names.

    Templates are None where classes have prompts of their own. FileNotFoundError where nothing names the classes; cure:
    what else the caller's user can do then.
    """
    if classes is not None:
        chosen = chosen_classes(classes, data, label)
        return chosen, None if prompts is None and chosen.prompts else templates(prompts)
    for place in _places(Path(data)):
        try:
            names, beside = class_files(place)
        except FileNotFoundError:
            folders = folder_classes(place)
            if folders is None:
                continue
            names, beside = check_class_names(folders, str(place)), templates()
        return Classes(names), templates(prompts) if prompts else beside
    raise FileNotFoundError(
        f"{data}: no classnames.txt in it or one folder up, and no folders by class, so classes have no names; "
        f"write that file, a name a line in the order of the labels{cure and f', or {cure}'}"
    )


def chosen_classes(source: str, data: str, label: str = "label") -> Classes:
    """`read_classes(source)`, `in_order_of` the names that `data` itself says, if any; other names are told once.

    label: the metadata column with the classes; in any but "label" the data's own names number nothing.
    """
    chosen, own = read_classes(source), own_names(data) if label == "label" else None
    if own is None:
        return chosen
    found = in_order_of(chosen, own)
    if sorted(found.names) != sorted(own):
        first = next(i for i, (one, other) in enumerate(zip(found.names, own, strict=True)) if one != other)
        _tell(f"{data} has class names of its own; those given take their place by number: {first} is "
              f"{found.names[first]!r}, there {own[first]!r}")  # fmt: skip
    return found


def own_names(data: str | Path) -> list[str] | None:
    """The names of a data set's classes in the order of its numbers: classnames.txt beside it, or those of its folders or
    its table; of a store, of what it was embedded from. None where nothing says them."""
    for place in _places(Path(data)):
        folder = class_folder(place if place.is_dir() else place.parent)
        if folder is not None:
            return lines_of(folder / CLASS_NAMES)
        if (found := folder_classes(place)) is not None:
            return found
    return None


def _places(data: Path) -> list[Path]:
    """The data, and what a store was embedded from, where it says so and that is there still."""
    from dualenc.embed.store import is_store, open_store

    if not is_store(data):
        return [data]
    source = (open_store(data).manifest.get("plan") or {}).get("source")
    return [data, Path(source)] if source and Path(source).exists() else [data]


@functools.cache  # whoever asks for the classes of the same data again knows it
def _tell(what: str) -> None:
    log.warning("%s", what)
