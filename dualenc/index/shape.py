"""Whether a manifest holds what an index's manifest holds: anybody may have written it, with a checksum that fits."""

from __future__ import annotations

from typing import Any

_NUMBERS = ("generation", "rows", "tombstones", "dim", "next_id", "next_segment")
_TEXTS = ("fingerprint", "encoder", "source")
_TABLES = ("recipe", "search", "ann_recall", "latency", "bytes", "versions")
_LARGEST = 2**63


def misfit(manifest: dict[str, Any]) -> str | None:
    """The first field of a manifest that is not there or not what it should be; None where all are."""
    for names, fits in (
        (_NUMBERS, _count),
        (_TEXTS, lambda value: value is None or isinstance(value, str)),
        (_TABLES, lambda value: isinstance(value, dict)),
        (("side",), lambda value: value in ("image", "text")),
        (("results", "scores", "metric"), lambda value: isinstance(value, str)),
        (("spread",), lambda value: value is None or _number(value)),
        (("ann_recall",), lambda value: value.get("rows") is None or _count(value["rows"])),
        (("choice",), lambda value: value is None or isinstance(value, list)),
        (("mean",), lambda value: _mean(value, manifest["dim"])),
        (("recipe",), _recipe),
        (("search",), lambda value: _setting(value, manifest["recipe"]["search"])),
        (("segments",), lambda value: isinstance(value, list) and bool(value) and all(map(_segment, value))),
    ):
        for name in names:
            if name not in manifest or not fits(manifest[name]):
                return name
    return None


def _count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _LARGEST


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _mean(value: Any, dim: int) -> bool:
    return value is None or (isinstance(value, list) and len(value) == dim and all(map(_number, value)))


def _setting(value: Any, ladders: dict[str, Any]) -> bool:
    return value.keys() == ladders.keys() and all(_count(each) and each >= 1 for each in value.values())


def _recipe(value: Any) -> bool:
    build, search = value.get("build"), value.get("search")
    ladders = isinstance(search, dict) and all(
        isinstance(ladder, list) and ladder and all(_count(each) and each >= 1 for each in ladder)
        for ladder in search.values()
    )
    return (
        isinstance(value.get("name"), str)
        and isinstance(build, dict)
        and isinstance(build.get("kind"), str)
        and ladders
    )


def _segment(value: Any) -> bool:
    if not isinstance(value, dict) or not isinstance(value.get("files"), dict):
        return False
    counts = all(_count(value.get(name)) for name in ("number", "rows", "removed", "codes"))
    spread = value.get("spread") is None or _number(value["spread"])
    store = value.get("store")
    outside = store is None or (isinstance(store, list) and bool(store) and all(_outside(file) for file in store))
    files = {"index", "ids"} <= value["files"].keys() and all(_file(file) for file in value["files"].values())
    return counts and spread and outside and files and value["removed"] <= value["rows"]


def _file(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and isinstance(value.get("name"), str)
        and _count(value.get("bytes"))
        and isinstance(value.get("sha256"), str)
    )


def _outside(value: Any) -> bool:
    named = isinstance(value, dict) and isinstance(value.get("path"), str) and isinstance(value.get("sha256"), str)
    return named and _count(value.get("bytes")) and _count(value.get("mtime_ns"))
