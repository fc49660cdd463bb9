"""Prompt templates and class names by name, file or list, and the classifier they make.

open_clip ships the sets; none is copied here.

A template is a text with a place for the class name: `{}` as open_clip writes it, or `{c}` as CLIP_benchmark does.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dualenc.beside import CLASS_NAMES, TEMPLATES, class_folder

_PROMPTS_AT_ONCE = 8192  # bounds memory: 1,000 classes × 80 templates are 80,000 embeddings
_PLACE = re.compile(r"\{c?\}")
_SETS = {"imagenet": "OPENAI_IMAGENET_TEMPLATES", "simple": "SIMPLE_IMAGENET_TEMPLATES"}


def templates(source: str | Path | None = None) -> list[str]:
    """Prompt templates, each with a `{}` or `{c}` for the class name.

    source: "imagenet" (OpenAI's 80), "simple" (their best 7), "plain" or None (the class name alone); a text file with
    one template a line; or one template itself, such as "a photo of a {}.".
    ValueError: an unknown name, an empty file, a line without a place. FileNotFoundError: a missing .txt file.

    >>> fill(templates("a photo of a {}.")[0], "red circle")
    'a photo of a red circle.'
    """
    name = str(source or "plain")
    if name in _SETS:
        return [template("{}") for template in getattr(_open_clip_sets(), _SETS[name])]
    if name == "plain":
        return ["{}"]
    if os.path.isfile(name):
        lines = _lines(Path(name))
    elif _PLACE.search(name):
        lines = [name]
    elif name.endswith(".txt"):
        raise FileNotFoundError(f"{name}: no such template file; name one with a template a line, or use {_known()}")
    else:
        raise ValueError(f"templates {name!r}: no set or file of that name; use {_known()}, or a text with {{}} in it")
    for number, line in enumerate(lines, 1):
        if not _PLACE.search(line):
            raise ValueError(
                f"template {number} of {name} ({line!r}) has no place for the class name, so every class would get the "
                "same prompt; put {} or {c} into it"
            )
    return lines


def fill(template: str, class_name: str) -> str:
    """The prompt: `template` with `class_name` in each of its places; braces in the class name are left alone.

    >>> fill("a {c}, just a {c}", "cat")
    'a cat, just a cat'
    """
    return _PLACE.sub(lambda _: class_name, template)


def class_names(source: str | Path) -> list[str]:
    """Class names, in the order of their labels (0, 1, …).

    source: "imagenet" (open_clip's 1,000), a .txt file with a name a line, a .json file with a list of names, or the
    names themselves with commas between. ValueError: fewer than two, one that is empty or given twice (open_clip's own
    list has two such pairs and is taken as it is). FileNotFoundError: a missing .txt or .json file.

    >>> class_names("red circle, blue square")
    ['red circle', 'blue square']
    """
    text = str(source)
    if text == "imagenet":
        return list(_open_clip_sets().IMAGENET_CLASSNAMES)
    if os.path.isfile(text):  # unlike Path.is_file, False for a list too long for a file name
        names = _json_names(Path(text)) if text.endswith(".json") else _lines(Path(text))
    elif text.endswith((".txt", ".json")):
        raise FileNotFoundError(f"{text}: no such class file; name one that exists, or give the names as a,b,c")
    else:
        names = text.split(",")
    names = [name.strip() for name in names]
    if len(names) == 1000 and names == list(_open_clip_sets().IMAGENET_CLASSNAMES):
        return names
    return check_class_names(names, text)


def class_files(data: str | Path) -> tuple[list[str], list[str]]:
    """(class names, templates) of a data set in CLIP_benchmark's layout.

    data: the folder with `classnames.txt` and, where it is there, `zeroshot_classification_templates.txt` (else the
    plain template), or a shard or pattern of shards in that folder; or else in a folder in it, as root/test/0.tar is.
    FileNotFoundError when classes have no names.
    """
    shards = Path(data) if Path(data).is_dir() else Path(data).parent
    folder = class_folder(shards)
    if folder is None:
        raise FileNotFoundError(
            f"{shards / CLASS_NAMES}: no such class file, nor one folder up; write one, a name a line, in label order"
        )
    prompts = folder / TEMPLATES
    return class_names(folder / CLASS_NAMES), templates(prompts if prompts.is_file() else None)


def check_class_names(names: list[str], source: str = "the class list") -> list[str]:
    """`names` as they are, or ValueError for fewer than two, an empty one or one given twice; `source` names them."""
    if "" in names:
        raise ValueError(f"class {names.index('')} of {source} is empty (the first is 0); name it or remove it")
    if len(names) < 2:
        raise ValueError(f"{source} names {len(names)} class, and telling classes apart takes two or more; add classes")
    name, times = Counter(names).most_common(1)[0]
    if times > 1:
        raise ValueError(
            f"{source} names the class {name!r} {times} times, so its scores always tie; rename or merge them"
        )
    return names


def zero_shot_classifier(
    embed_texts: Callable[[list[str]], np.ndarray], names: Sequence[str], prompts: Sequence[str]
) -> np.ndarray:
    """One unit row per class, (C, D) float32: the normalised mean of its normalised prompt embeddings, as CLIP does.

    embed_texts: texts -> (N, D) rows. prompts: templates, each with a place for the name. ValueError: fewer than two
    classes, no template.
    """
    if len(names) < 2 or not prompts:
        raise ValueError(
            f"{len(names)} classes and {len(prompts)} templates; it takes two classes and one template or more"
        )
    at_once = max(1, _PROMPTS_AT_ONCE // len(prompts))
    rows = []
    for start in range(0, len(names), at_once):
        some = names[start : start + at_once]
        embedded = embed_texts([fill(template, name) for name in some for template in prompts])
        each = _unit(embedded.astype(np.float64)).reshape(len(some), len(prompts), -1)  # (classes, templates, D)
        rows.append(_unit(each.mean(axis=1)))
    return np.concatenate(rows).astype(np.float32)


def probabilities(scores: npt.ArrayLike, logit_scale: float) -> npt.NDArray[np.float32]:
    """Softmax of cosines times `logit_scale`, the encoder's own (CLIP's is 100), over classes: (N, C) float32.

    >>> probabilities([[0.3, 0.3]], 100.0)
    array([[0.5, 0.5]], dtype=float32)
    """
    logits = np.asarray(scores, np.float64) * logit_scale
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return (powers / powers.sum(axis=1, keepdims=True)).astype(np.float32)


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), np.finfo(np.float64).tiny)


def _lines(path: Path) -> list[str]:
    """The lines of a UTF-8 file, less empty ones at its end; an empty one inside would shift the labels and is kept."""
    lines = [line.strip() for line in _text(path).rstrip().split("\n")]
    if lines == [""]:
        raise ValueError(f"{path} is empty; write one entry a line")
    return lines


def _json_names(path: Path) -> list[str]:
    try:
        names = json.loads(_text(path))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not valid JSON ({error}); write a list of names") from error
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f'{path} is not a list of names; write ["cat", "dog"], in the order of the labels')
    return names


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8"
        ) from error


def _known() -> str:
    return ", ".join(sorted([*_SETS, "plain"]))


def _open_clip_sets():  # type: ignore[no-untyped-def]
    """open_clip's module of templates and class names: it takes a second to import, so only where it is asked for."""
    import dualenc.torchvision_ops  # noqa: F401, I001
    from open_clip import zero_shot_metadata

    return zero_shot_metadata
