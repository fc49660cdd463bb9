"""Files of class names, prompts and templates: text with an entry a line, or JSON, with one set or several by name.

FILE.json#NAME is one of several sets: CLIP_benchmark keeps all its data sets in en_classnames.json and
en_zeroshot_classification_templates.json.
"""

from __future__ import annotations

import difflib
import json
import os
from pathlib import Path
from typing import Any


def is_json(source: str) -> bool:
    """Whether a source is a .json file, or one set of it, whether or not it is there."""
    return source.endswith(".json") or ".json#" in source


def read_sets(source: str) -> Any:
    """What a .json file holds, or of an object what stands under NAME where the source is FILE.json#NAME.

    FileNotFoundError: no such file. ValueError: not UTF-8, not JSON, a name given twice, no such set.
    """
    path, _, name = (source, "", "") if os.path.isfile(source) else source.partition("#")
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{path}: no such class file or template file; check the path")
    try:
        value = json.loads(_text(Path(path)), object_pairs_hook=_each_once)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON ({error}); write a list of names, or an object") from error
    except _Twice as error:
        raise ValueError(f"{path} has {error} twice, and the first would be lost; rename or merge them") from None
    if not name:
        return value
    if not isinstance(value, dict) or name not in value:
        names = list(value) if isinstance(value, dict) else []
        near = difflib.get_close_matches(name, names, 1) or names[:8]
        raise ValueError(f"{path} has no set {name!r}; it has {', '.join(near) or 'no named sets: leave out #' + name}")
    return value[name]


def lines_of(path: Path) -> list[str]:
    """The lines of a UTF-8 file, less empty ones at its end; an empty one inside would shift the labels and is kept."""
    lines = [line.strip() for line in _text(path).rstrip().split("\n")]
    if lines == [""]:
        raise ValueError(f"{path} is empty; write one entry a line")
    return lines


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8"
        ) from error


def names_of(value: Any, source: str) -> tuple[list[str], list[list[str]] | None]:
    """Class names, and of an object {class: prompt or [prompts]} the prompts of each. ValueError: anything else."""
    if _texts(value):
        return value, None
    if isinstance(value, dict) and value and all(isinstance(prompts, dict) for prompts in value.values()):
        raise ValueError(f"{source} holds several sets ({', '.join(list(value)[:8])}); name one, as {source}#NAME")
    if not isinstance(value, dict) or not all(isinstance(p, str) or _texts(p) for p in value.values()):
        raise ValueError(
            f'{source} is not a list of names; write ["cat", "dog"] in the order of the labels, or their prompts as '
            '{"cat": ["a photo of a cat", …], …}'
        )
    if value and all(isinstance(p, str) for p in value.values()) and list(value) == [str(i) for i in range(len(value))]:
        raise ValueError(
            f'{source} gives numbers where names belong ({{"0": {next(iter(value.values()), "")!r}, …}}); write the list of '
            'names, or prompts as lists: {"0": ["a photo of a zero"], …}'
        )
    return list(value), [[prompts] if isinstance(prompts, str) else prompts for prompts in value.values()]


def templates_of(value: Any, source: str) -> list[str]:
    """The templates of a JSON list. ValueError: anything else."""
    if _texts(value) and value:
        return [line.strip() for line in value]
    if isinstance(value, dict) and "#" not in source:
        raise ValueError(f"{source} holds several sets ({', '.join(list(value)[:8])}); name one, as {source}#NAME")
    raise ValueError(
        f'{source} is not a list of templates; write ["a photo of a {{}}.", …] (prompts go to the classes)'
    )


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


class _Twice(Exception):
    pass


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise _Twice(repr(next(key for key in keys if keys.count(key) > 1)))
    return found
