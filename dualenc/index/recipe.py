"""Recipes: what index to build (`build:`), apart from how to search it (`search:`), in one YAML each."""

from __future__ import annotations

import difflib
import math
from pathlib import Path
from typing import Any

import yaml

from dualenc.files import shipped
from dualenc.index.kinds import KINDS
from dualenc.index.kinds.codes import CODES

FEWEST_ROWS_PER_LIST = 39  # FAISS warns below this many training rows per centroid: k-means has too little to go by
MADE = tuple(kind for kind in KINDS if kind != "adopted")  # an adopted index is read, not made
AUTO = ("candidates", "flat_up_to_rows", "sample_rows")
_DEFAULTS = {  # the shipped recipe that says what is left open
    **{("hnsw", codes): "hnsw_sq8" for codes in ("float16", "sq8")},
    **{("ivf", codes): f"ivf_{codes}" for codes in CODES if codes != "float32"},
}
_ONLY = {"dims_per_code": "pq", "bits": "rabitq"}  # setting → the codes that have it
_LOWEST = {"seed": 0, "M": 2}
_HIGHEST = {"bits": 8, "M": 512, "efConstruction": 10_000}


def load_recipe(recipe: str | Path | dict[str, Any], rows: int) -> dict[str, Any]:
    """Resolve a recipe for `rows` rows: {"name", "build", "search"}, with no setting left open.

    recipe: a shipped name ("flat", "ivf_pq", …), a path, or {"build": …, "search": …}. A setting that is not named
    keeps the value of the shipped recipe with the same kind and codes. `kind: auto` comes back with its candidates,
    each of them a recipe that resolves; choosing among them takes trial builds. ValueError names an unknown setting
    and the nearest real one.
    """
    name, parts = _read(recipe)
    kind = parts["build"].get("kind")
    if kind == "auto":
        return _auto(name, parts, rows)
    if kind == "adopted":
        raise ValueError(f"recipe {name}: an adopted index is not built from a recipe; `dualenc index adopt` takes one")
    if kind not in MADE:
        raise ValueError(f"recipe {name}: kind {kind!r} is unknown{_nearest(str(kind), [*MADE, 'auto'])}")
    _refuse_unknown(parts["build"], ("kind", *KINDS[kind].settings), f"recipe {name}, build")
    codes = _codes(name, kind, parts["build"])
    settings = tuple(setting for setting in KINDS[kind].settings if _ONLY.get(setting, codes) == codes)
    for setting in parts["build"]:
        if setting not in ("kind", *settings):
            raise ValueError(f"recipe {name}: {setting} is a setting of codes: {_ONLY[setting]}, not of codes: {codes}")
    keeps = codes != "float32" and parts["search"].get("rerank", "") not in (None, "none")
    knobs = KINDS[kind].knobs + (("rerank",) if keeps else ())
    if codes != "float32" and not keeps:
        parts["search"] = {knob: values for knob, values in parts["search"].items() if knob != "rerank"}
    _refuse_unknown(parts["search"], knobs, f"recipe {name}, search")
    defaults = _shipped(_DEFAULTS.get((kind, codes), kind))
    build = {"kind": kind, **{key: value for key, value in defaults["build"].items() if key in settings}}
    build |= parts["build"]
    for setting in settings:
        build[setting] = _checked(name, setting, build[setting])
    if kind == "ivf":
        build["nlist"] = _lists(name, build["nlist"], rows)
    search = {**(defaults["search"] or {}), **parts["search"]}
    limits = {"nprobe": build.get("nlist")}
    return {"name": name, "build": build, "search": {k: _ladder(name, k, search[k], limits.get(k)) for k in knobs}}


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


def _shipped(name: str) -> dict[str, dict[str, Any]]:
    return yaml.safe_load(shipped("index", name, local=False).read_text(encoding="utf-8"))


def _auto(name: str, parts: dict[str, dict[str, Any]], rows: int) -> dict[str, Any]:
    """The recipe that leaves the choice to trial builds, with its candidates and bounds checked."""
    _refuse_unknown(parts["build"], ("kind", *AUTO), f"recipe {name}, build")
    _refuse_unknown(parts["search"], (), f"recipe {name}, search")
    build = {**_shipped("auto")["build"], **parts["build"]}
    candidates = build["candidates"]
    if not isinstance(candidates, list) or not candidates or not all(isinstance(one, str) for one in candidates):
        raise ValueError(f"recipe {name}: candidates={candidates!r}; give a list of recipes, by name or path")
    for candidate in candidates:
        if _read(candidate)[1]["build"].get("kind") == "auto":
            raise ValueError(
                f"recipe {name}: its candidate {candidate} is itself of kind auto; name recipes that build"
            )
        load_recipe(candidate, rows)
    for setting, lowest in (("flat_up_to_rows", 0), ("sample_rows", 1)):
        if not _whole(build[setting]) or build[setting] < lowest:
            raise ValueError(f"recipe {name}: {setting}={build[setting]!r}; give a whole number of rows")
    return {"name": name, "build": build, "search": {}}


def _refuse_unknown(given: dict[str, Any], known: tuple[str, ...], where: str) -> None:
    for key in given:
        if key not in known:
            raise ValueError(f"{where}: unknown setting {key!r}{_nearest(str(key), list(known))}")


def _nearest(key: str, known: list[str]) -> str:
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(known) or 'none'}"


def _codes(name: str, kind: str, build: dict[str, Any]) -> str:
    known = {"ivf": CODES, "hnsw": ("float32", "float16", "sq8")}.get(kind, ("float32",))
    codes = build.get("codes", "float32")
    if codes not in known:
        raise ValueError(f"recipe {name}: codes {codes!r} are unknown to {kind}{_nearest(str(codes), list(known))}")
    return codes


def _checked(name: str, setting: str, value: Any) -> Any:
    if setting == "centred":
        fits = isinstance(value, bool)
    elif setting == "codes" or (setting == "nlist" and value == "auto"):
        fits = True
    else:
        fits = _whole(value) and _LOWEST.get(setting, 1) <= value <= _HIGHEST.get(setting, 2**31 - 1)
    if not fits:
        raise ValueError(f"recipe {name}: {setting}={value!r} does not fit; see index/README.md for what it means")
    return value


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _lists(name: str, nlist: int | str, rows: int) -> int:
    """Number of inverted lists: 4 √rows, but never so many that k-means goes short of rows."""
    if nlist == "auto":
        return max(1, min(round(4 * math.sqrt(rows)), rows // FEWEST_ROWS_PER_LIST))
    if int(nlist) > max(1, rows):
        raise ValueError(f"recipe {name}: nlist={nlist} is more than the {rows} rows; nlist: auto takes 4 √rows")
    return int(nlist)


def _ladder(name: str, knob: str, values: Any, highest: int | None) -> list[int]:
    """The settings to try, cheapest first. nprobe ends at nlist, where every list is searched."""
    values = [values] if _whole(values) else values
    if not isinstance(values, list) or not values or not all(_whole(value) and value > 0 for value in values):
        raise ValueError(f"recipe {name}: {knob}={values!r}; give a whole number, or a list of them to choose from")
    ladder = sorted(set(values))
    if highest is None:
        return ladder
    if len(ladder) == 1:
        return [min(ladder[0], highest)]
    return [value for value in ladder if value < highest] + [highest]
