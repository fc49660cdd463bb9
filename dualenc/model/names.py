"""Prompt templates and class names by name, file or list, and the classifier they make.

open_clip ships the sets; none is copied here.

A template is a text with a place for the class name: `{}` as open_clip writes it, or `{c}` as CLIP_benchmark does.
A prompt is a whole text for one class: a template with the name in it, or written for that class alone.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from dualenc.beside import CLASS_NAMES, TEMPLATES, class_folder
from dualenc.model.name_files import is_json, lines_of, names_of, read_sets, templates_of

_PROMPTS_AT_ONCE = 8192  # bounds memory: 1,000 classes × 80 templates are 80,000 embeddings
_PLACE = re.compile(r"\{c?\}")
_SETS = {"imagenet": "OPENAI_IMAGENET_TEMPLATES", "simple": "SIMPLE_IMAGENET_TEMPLATES"}
_PLAIN = ["{}"]


class Classes(NamedTuple):
    """Class names in the order of their labels, and the prompts of each where they were written for it alone."""

    names: list[str]
    prompts: list[list[str]] | None = None  # None: templates make them


def templates(source: str | Path | None = None) -> list[str]:
    """Prompt templates, each with a `{}` or `{c}` for the class name.

    source: "imagenet" (OpenAI's 80), "simple" (their best 7), "plain" or None (the class name alone); a text file with
    one template a line; a .json file with a list of them, or FILE.json#NAME (`dualenc.model.name_files`); or one template
    itself, such as "a photo of a {}.".
    ValueError: an unknown name, an empty file, a line without a place. FileNotFoundError: a missing .txt or .json file.

    >>> fill(templates("a photo of a {}.")[0], "red circle")
    'a photo of a red circle.'
    """
    name = str(source or "plain")
    if name in _SETS:
        return [template("{}") for template in getattr(_open_clip_sets(), _SETS[name])]
    if name == "plain":
        return list(_PLAIN)
    if is_json(name):
        lines = templates_of(read_sets(name), name)
    elif os.path.isfile(name):
        lines = lines_of(Path(name))
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


def read_classes(source: str | Path) -> Classes:
    """Classes in the order of their labels (0, 1, …).

    source: "imagenet" (open_clip's 1,000), a .txt file with a name a line, or the names themselves with commas between;
    a .json file with a list of names, or with an object {class: prompt or [prompts]}, whose prompts are used as they are
    (a `{}` or `{c}` in one stands for its class's name); FILE.json#NAME for one of several sets.
    ValueError: fewer than two classes, one that is empty or given twice (open_clip's own list has two such pairs and is
    taken as it is), a class without prompts, an empty prompt. FileNotFoundError: a missing .txt or .json file.

    >>> read_classes("red circle, blue square")
    Classes(names=['red circle', 'blue square'], prompts=None)
    """
    text, prompts = str(source), None
    if text == "imagenet":
        return Classes(list(_open_clip_sets().IMAGENET_CLASSNAMES))
    if is_json(text):
        names, prompts = names_of(read_sets(text), text)
    elif os.path.isfile(text):  # unlike Path.is_file, False for a list too long for a file name
        names = lines_of(Path(text))
    elif text.endswith(".txt"):
        raise FileNotFoundError(f"{text}: no such class file; name one that exists, or give the names as a,b,c")
    else:
        names = text.split(",")
    names = [name.strip() for name in names]
    if len(names) != 1000 or names != list(_open_clip_sets().IMAGENET_CLASSNAMES):
        check_class_names(names, text)
    return Classes(names, None if prompts is None else _checked_prompts(names, prompts, text))


def class_names(source: str | Path) -> list[str]:
    """The names of `read_classes`, for those who have templates. ValueError also: prompts instead of names alone.

    >>> class_names("red circle, blue square")
    ['red circle', 'blue square']
    """
    names, prompts = read_classes(source)
    if prompts is not None:
        raise ValueError(f"{source} has prompts for each class, where names alone are wanted; write a list of names")
    return names


def class_prompts(classes: Classes, templates: Sequence[str] | None = None) -> list[list[str]]:
    """The prompts of each class: its own, or every template with its name in it (None: the name alone).

    ValueError: templates for classes that have prompts of their own, for they would not be used; fewer than two
    classes; no template.

    >>> class_prompts(Classes(["cat", "dog"]), ["a {}", "the {c}"])
    [['a cat', 'the cat'], ['a dog', 'the dog']]
    """
    templates = _PLAIN if templates is None else list(templates)
    if len(classes.names) < 2 or not templates:
        raise ValueError(
            f"{len(classes.names)} classes and {len(templates)} templates; it takes two classes and one template or more"
        )
    if classes.prompts is None:
        return [[fill(template, name) for template in templates] for name in classes.names]
    if templates != _PLAIN:
        raise ValueError(
            f"the classes have prompts of their own ({classes.prompts[0][0]!r}, …), to which templates do not apply; leave "
            "the templates out, or give the class names alone"
        )
    return classes.prompts


def in_order_of(chosen: Classes, own: Sequence[str]) -> Classes:
    """`chosen` in the order of the names that the data's own labels number: prompts go with their names.

    Other names, as many, are taken by number: they rename the classes. ValueError: another number of names.

    >>> in_order_of(Classes(["owl", "cat"], [["an owl"], ["a cat"]]), ["cat", "owl"])
    Classes(names=['cat', 'owl'], prompts=[['a cat'], ['an owl']])
    >>> in_order_of(Classes(["Eule", "Katze"]), ["cat", "owl"]).names
    ['Eule', 'Katze']
    """
    if len(chosen.names) != len(own):
        raise ValueError(
            f"{len(chosen.names)} class names for data whose labels number {len(own)} classes ({', '.join(own[:3])}, …); "
            "give as many, or leave them out"
        )
    if sorted(chosen.names) != sorted(own):
        return chosen
    by_name = sorted(range(len(own)), key=chosen.names.__getitem__)  # a name that is given twice keeps its order
    number = np.empty(len(own), np.int64)
    number[sorted(range(len(own)), key=own.__getitem__)] = by_name
    prompts = None if chosen.prompts is None else [chosen.prompts[i] for i in number]
    return Classes([chosen.names[i] for i in number], prompts)


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


def first_alike(prompts: Sequence[Sequence[str]]) -> npt.NDArray[np.int64]:
    """For each class the first with the same prompts, (C,): itself, but for a list that names a class twice.

    >>> first_alike([["a missile"], ["a ship"], ["a missile"]])
    array([0, 1, 0])
    """
    first: dict[tuple[str, ...], int] = {}
    return np.array([first.setdefault(tuple(own), c) for c, own in enumerate(prompts)])


def twins_behind(first: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """For each class the number of those after it with the same prompts, (C,): their scores are its own, and as in an argmax
    it stands before them. first: of `first_alike`.

    >>> twins_behind([0, 1, 0])
    array([1, 0, 0])
    """
    first = np.asarray(first)
    return np.array([(first[c + 1 :] == one).sum() for c, one in enumerate(first)])


def zero_shot_classifier(
    embed_texts: Callable[[list[str]], np.ndarray], names: Sequence[str], prompts: Sequence[str]
) -> np.ndarray:
    """`classifier_of` the names in each of the prompts: templates, each with a place for the name.

    ValueError: fewer than two classes, no template.
    """
    return classifier_of(embed_texts, class_prompts(Classes(list(names)), prompts))


def classifier_of(embed_texts: Callable[[list[str]], np.ndarray], prompts: Sequence[Sequence[str]]) -> np.ndarray:
    """One unit row per class, (C, D) float32: the normalised mean of its normalised prompt embeddings, as CLIP does.

    embed_texts: texts -> (N, D) rows; it gets each prompt once, thousands at a time, whosesoever they are. prompts: of
    each class, one or more. ValueError: a class without any.
    """
    if empty := [number for number, own in enumerate(prompts) if not own]:
        raise ValueError(f"class {empty[0]} has no prompt (the first is 0), so nothing can be told of it; give it one")
    block = np.cumsum([0, *map(len, prompts)])[:-1] // _PROMPTS_AT_ONCE  # classes by where their first prompt lies
    parts = np.split(np.arange(len(prompts)), np.flatnonzero(np.diff(block)) + 1)
    return np.concatenate([_means(embed_texts, [prompts[c] for c in part]) for part in parts]).astype(np.float32)


def _means(embed_texts: Callable[[list[str]], np.ndarray], prompts: Sequence[Sequence[str]]) -> np.ndarray:
    """(C, D) float64: the unit mean of the unit rows of each class's prompts."""
    place = {prompt: row for row, prompt in enumerate(dict.fromkeys(p for own in prompts for p in own))}
    each = _unit(embed_texts(list(place)).astype(np.float64))  # (different prompts, D)
    return _unit(np.stack([each[[place[prompt] for prompt in own]].mean(axis=0) for own in prompts]))


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


def _checked_prompts(names: list[str], prompts: list[list[str]], source: str) -> list[list[str]]:
    """Each class's prompts with its name in their places; ValueError where a class has none, or an empty one, or all
    those of another."""
    filled = [[fill(p.strip(), name) for p in own] for name, own in zip(names, prompts, strict=True)]
    first: dict[tuple[str, ...], str] = {}
    for name, own in zip(names, filled, strict=True):
        if not own or "" in own:
            raise ValueError(f"class {name!r} of {source} has {'an empty' if own else 'no'} prompt; write one for it")
        if (other := first.setdefault(tuple(sorted(own)), name)) != name:
            raise ValueError(
                f"classes {other!r} and {name!r} of {source} have the same prompts, so their scores always tie; write "
                "others, or merge them"
            )
    return filled


def _known() -> str:
    return ", ".join(sorted([*_SETS, "plain"]))


def _open_clip_sets():  # type: ignore[no-untyped-def]
    """open_clip's module of templates and class names: it takes a second to import, so only where it is asked for."""
    import dualenc.torchvision_ops  # noqa: F401, I001
    from open_clip import zero_shot_metadata

    return zero_shot_metadata
