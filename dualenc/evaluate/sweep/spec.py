"""What a sweep's YAML says: encoders, data sets, templates; checked whole before any work.

    encoders:                          # a name or path, or an entry with more to say
      - ViT-B-32:laion2b_s34b_b79k
      - {name: ours, path: runs/flickr8k/encoder}
      - {name: big, path: ViT-L-14:openai, samples_seen: 12800000000}
    data:
      - {name: flickr8k, path: shards/flickr8k/test}               # retrieval, both ways
      - {name: cifar10, path: shards/cifar10/test, task: zeroshot} # classes: a file, or classnames.txt beside the data
    templates: [plain, simple, "a photo of a {}."]                 # of zeroshot; default: those beside the data
    ks: [1, 5, 10]                                                 # of retrieval

Paths are relative to where the command runs.
"""

from __future__ import annotations

import contextlib
import difflib
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import yaml

TASKS = ("retrieval", "zeroshot")


class Encoder(NamedTuple):
    """One row of `encoders`. samples_seen: in training, where the encoder itself does not know."""

    name: str
    path: str
    samples_seen: int | None = None


class Data(NamedTuple):
    """One row of `data`. templates: of this data set alone, instead of the sweep's."""

    name: str
    path: str
    task: str = "retrieval"
    classes: str | None = None
    label: str = "label"
    templates: tuple[str, ...] | None = None


class Sweep(NamedTuple):
    encoders: list[Encoder]
    data: list[Data]
    templates: tuple[str, ...] | None = None
    ks: tuple[int, ...] = (1, 5, 10)


class Combination(NamedTuple):
    """One row of the result. templates: None for retrieval, and for those that lie beside the data."""

    encoder: Encoder
    data: Data
    templates: str | None


class _Loader(yaml.SafeLoader):
    """YAML whose mappings have each key once, as YAML says itself; PyYAML would keep the last and tell nobody."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.YAMLError(
                    f"{key.value!r} is there twice, and only line {key.start_mark.line + 1} would count"
                )
            seen.add(str(key.value))
        return node


def read_sweep(path: str | Path) -> Sweep:
    """The sweep of a YAML file. ValueError names the first setting that is wrong, and the nearest one that exists."""
    try:
        found = yaml.load(Path(path).read_text(encoding="utf-8"), _Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid YAML ({' '.join(str(error).split())}); correct it") from error
    try:
        return _sweep(found)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def combinations(sweep: Sweep) -> list[Combination]:
    """Every encoder on every data set, zero-shot with every template, in the order of the file."""
    return [
        Combination(encoder, data, templates)
        for encoder in sweep.encoders
        for data in sweep.data
        for templates in _templates(sweep, data)
    ]


def _templates(sweep: Sweep, data: Data) -> tuple[str | None, ...]:
    if data.task == "retrieval":
        return (None,)
    if data.templates is None and data.classes is not None and _own_prompts(data.classes):
        return (None,)
    return data.templates or sweep.templates or (None,)


def _own_prompts(classes: str) -> bool:
    from dualenc.model.names import read_classes

    return read_classes(classes).prompts is not None


def _sweep(found: Any) -> Sweep:
    made = _fields(found, "the file", {"encoders": list, "data": list, "templates": list, "ks": list})
    encoders = [_encoder(value, f"encoders[{i}]") for i, value in enumerate(_some(made, "encoders"))]
    data = [_data(value, f"data[{i}]") for i, value in enumerate(_some(made, "data"))]
    for what, entries in (("encoders", encoders), ("data", data)):
        name, times = Counter(entry.name for entry in entries).most_common(1)[0]
        if times > 1:
            raise ValueError(f"{times} of {what} are named {name!r}, so their rows look alike; give each a `name`")
    ks = made.get("ks", [1, 5, 10])
    if not ks or not all(type(k) is int and k > 0 for k in ks):
        raise ValueError(f"ks is {ks!r}, which are no ranks; write whole numbers from 1, such as [1, 5, 10]")
    sweep = Sweep(encoders, data, _texts(made, "templates", "templates"), tuple(dict.fromkeys(ks)))
    _check_prompts(sweep)
    return sweep


def _encoder(value: Any, where: str) -> Encoder:
    if isinstance(value, str):
        return Encoder(value, value)
    made = _fields(value, where, {"name": str, "path": str, "samples_seen": int | float | str}, needs="path")
    seen = _samples(made["samples_seen"], where) if "samples_seen" in made else None
    return Encoder(made.get("name", made["path"]), made["path"], seen)


def _samples(value: int | float | str, where: str) -> int:
    with contextlib.suppress(ValueError, OverflowError):
        if 1 <= (seen := float(value)) < 2**63:  # YAML 1.1 takes 12.8e9 for text
            return int(seen)
    raise ValueError(
        f"samples_seen of {where} is {value!r}, which counts no samples: it could not be drawn; write a number from 1 to "
        "9e18, such as 12.8e9, or leave it out"
    )


def _data(value: Any, where: str) -> Data:
    if isinstance(value, str):
        return Data(value, value)
    known = {"name": str, "path": str, "task": str, "classes": str, "label": str, "templates": list}
    made = _fields(value, where, known, needs="path")
    task = made.get("task", "retrieval")
    if task not in TASKS:
        near = difflib.get_close_matches(task, TASKS, 1)
        hint = f"did you mean {near[0]}?" if near else f"use {' or '.join(TASKS)}"
        raise ValueError(f"{where}: there is no task {task!r}; {hint}")
    for name in ("classes", "label", "templates"):
        if task == "retrieval" and name in made:
            raise ValueError(f"{where}: {name} would not be used by retrieval; add `task: zeroshot`, or leave it out")
    return Data(
        made.get("name", made["path"]),
        made["path"],
        task,
        made.get("classes"),
        made.get("label", "label"),
        _texts(made, "templates", f"{where}: templates"),
    )


def _check_prompts(sweep: Sweep) -> None:
    """Classes and templates that cannot be read are told before any encoder is loaded."""
    from dualenc.model.names import Classes, class_prompts, read_classes, templates

    for data in sweep.data:
        for source in _templates(sweep, data):
            chosen = None if source is None else templates(source)
            if data.classes is not None:
                class_prompts(read_classes(data.classes), chosen)
            elif chosen is not None:
                class_prompts(Classes(["a", "b"]), chosen)
    for source in sweep.templates or ():
        templates(source)


def _fields(value: Any, where: str, known: dict[str, Any], needs: str | None = None) -> dict[str, Any]:
    """`value` as a dict of known keys whose values have the known types."""
    if not isinstance(value, dict):
        raise ValueError(f"{where} is {value!r}, where a mapping with {', '.join(known)} belongs; write it as such")
    for key, inner in value.items():
        if key not in known:
            near = difflib.get_close_matches(str(key), known, 1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ValueError(f"{where} has {key!r}, which means nothing here; {hint}(known: {', '.join(known)})")
        if not isinstance(inner, known[key]) or isinstance(inner, bool):
            kind = {str: "text", list: "a list"}.get(known[key], "a number")
            raise ValueError(f"{key} of {where} is {inner!r}, which means nothing here; write {kind}")
    if needs is not None and not value.get(needs):
        raise ValueError(f"{where} has no {needs}, so there is nothing to open; add it")
    return value


def _some(made: dict[str, Any], name: str) -> list[Any]:
    if not made.get(name):
        raise ValueError(f"there are no {name}, so there is nothing to measure; add a list of them")
    return list(made[name])


def _texts(made: dict[str, Any], name: str, where: str) -> tuple[str, ...] | None:
    if name not in made:
        return None
    values = made[name]
    if not values or not all(isinstance(value, str) for value in values):
        raise ValueError(f"{where} is {values!r}; write a list of texts, such as [plain, imagenet], or leave it out")
    if len(set(values)) < len(values):
        raise ValueError(f"{where} has {Counter(values).most_common(1)[0][0]!r} twice; keep one of them")
    return tuple(values)
