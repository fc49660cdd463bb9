"""Recipes: what index to build (`build:`), apart from how to search it (`search:`), in one YAML per kind of index."""

from __future__ import annotations

import difflib
import math
from pathlib import Path
from typing import Any

import yaml

from dualenc.files import shipped
from dualenc.index.kinds import KINDS

FEWEST_ROWS_PER_LIST = 39  # FAISS warns below this many training rows per centroid: k-means has too little to go by


def load_recipe(recipe: str | Path | dict[str, Any], rows: int) -> dict[str, Any]:
    """Resolve a recipe for `rows` rows: {"name", "build", "search"}, with no setting left open.

    recipe: a shipped name ("auto", "flat", "hnsw", "ivf"), a path, or {"build": …, "search": …}. A setting that is not
    named keeps the shipped recipe's value. ValueError names an unknown setting and the nearest real one.
    """
    name, parts = _read(recipe)
    kind = parts["build"].get("kind")
    if kind == "auto":
        chosen = load_recipe(_choose(parts, name, rows), rows)
        return {**chosen, "asked": name}
    if kind not in KINDS:
        raise ValueError(f"recipe {name}: kind {kind!r} is unknown{_nearest(str(kind), [*KINDS, 'auto'])}")
    settings, knob = KINDS[kind].settings, KINDS[kind].knob
    _refuse_unknown(parts["build"], ("kind", *settings), f"recipe {name}, build")
    _refuse_unknown(parts["search"], (knob,) if knob else (), f"recipe {name}, search")
    defaults = yaml.safe_load(shipped("index", kind, local=False).read_text(encoding="utf-8"))
    build = {**defaults["build"], **parts["build"]}
    search = {**(defaults["search"] or {}), **parts["search"]}
    for setting in settings:
        build[setting] = _checked(name, setting, build[setting])
    if kind == "ivf":
        build["nlist"] = _lists(name, build["nlist"], rows)
    if knob:
        search[knob] = _ladder(name, knob, search[knob], build.get("nlist"))
    return {"name": name, "build": build, "search": search}


def _read(recipe: str | Path | dict[str, Any]) -> tuple[str, dict[str, dict[str, Any]]]:
    if isinstance(recipe, dict):
        name, parts = "given", recipe
    else:
        path = shipped("index", str(recipe))
        name = path.stem
        try:
            parts = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError, IsADirectoryError) as error:
            raise ValueError(f"{path} is not a recipe: {' '.join(str(error).split())}") from error
    if not isinstance(parts, dict) or not isinstance(parts.get("build"), dict):
        raise ValueError(f"recipe {name} has no `build:` with a `kind:`; see index/README.md")
    _refuse_unknown(parts, ("build", "search"), f"recipe {name}")
    search = parts.get("search") or {}
    if not isinstance(search, dict):
        raise ValueError(f"recipe {name}: `search:` holds settings, not {search!r}")
    return name, {"build": parts["build"], "search": search}


def _choose(parts: dict[str, dict[str, Any]], name: str, rows: int) -> str:
    """The recipe that `auto` takes for so many rows: the first of its lines that reaches as far."""
    _refuse_unknown(parts["build"], ("kind", "choose"), f"recipe {name}, build")
    _refuse_unknown(parts["search"], (), f"recipe {name}, search")
    for line in parts["build"].get("choose") or []:
        _refuse_unknown(line, ("recipe", "up_to_rows"), f"recipe {name}, choose")
        if line["recipe"] == name:
            raise ValueError(f"recipe {name} chooses itself; name flat, hnsw or ivf")
        if line.get("up_to_rows") is None or rows <= line["up_to_rows"]:
            return line["recipe"]
    raise ValueError(f"recipe {name} has no line for {rows:,} rows; end `choose:` with one without up_to_rows")


def _refuse_unknown(given: dict[str, Any], known: tuple[str, ...], where: str) -> None:
    for key in given:
        if key not in known:
            raise ValueError(f"{where}: unknown setting {key!r}{_nearest(str(key), list(known))}")


def _nearest(key: str, known: list[str]) -> str:
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(known) or 'none'}"


def _checked(name: str, setting: str, value: Any) -> Any:
    if setting == "centred":
        fits = isinstance(value, bool)
    elif setting == "nlist" and value == "auto":
        fits = True
    else:
        fits = _whole(value) and value >= (0 if setting == "seed" else 1)
    if not fits:
        raise ValueError(f"recipe {name}: {setting}={value!r} does not fit; see index/README.md for what it means")
    return value


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _lists(name: str, nlist: int | str, rows: int) -> int:
    """Number of inverted lists: 4 √rows, but never so many that k-means goes short of rows."""
    if nlist == "auto":
        return max(1, min(round(4 * math.sqrt(rows)), rows // FEWEST_ROWS_PER_LIST))
    if int(nlist) > rows:
        raise ValueError(f"recipe {name}: nlist={nlist} is more than the {rows} rows; nlist: auto takes 4 √rows")
    return int(nlist)


def _ladder(name: str, knob: str, values: Any, nlist: int | None) -> list[int]:
    """The settings to try, cheapest first. nprobe ends at nlist, where every list is searched: exact."""
    values = [values] if _whole(values) else values
    if not isinstance(values, list) or not values or not all(_whole(value) and value > 0 for value in values):
        raise ValueError(f"recipe {name}: {knob}={values!r}; give a whole number, or a list of them to choose from")
    ladder = sorted(set(values))
    if nlist is None:
        return ladder
    if len(ladder) == 1:
        return [min(ladder[0], nlist)]
    return [value for value in ladder if value < nlist] + [nlist]
