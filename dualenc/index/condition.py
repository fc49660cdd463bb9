"""What a filter's SQL may say: one expression's syntax tree, as DuckDB's parser gives it; what is not named here is refused."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Any

PARTS = 1000  # columns, operators and functions of an expression: bounds what a row of it can take in memory
_ASIDE = ("query_location", "named_param_map")  # of a tree: says nothing about what it is
_NODES = {
    "COMPARISON",
    "CONJUNCTION",
    "CONSTANT",
    "COLUMN_REF",
    "BETWEEN",
    "CASE",
    "CAST",
    "FUNCTION",
    "OPERATOR",
    "TYPE",
}
_NAMED = {  # what a refusal calls others
    "SUBQUERY": "a subquery", "STAR": "* or COLUMNS()", "WINDOW": "a window function", "PARAMETER": "a parameter",
    "LAMBDA": "a lambda or ->", "POSITIONAL_REFERENCE": "a column by number",
}  # fmt: skip


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_OPERATORS = _words("""OPERATOR_NOT OPERATOR_IS_NULL OPERATOR_IS_NOT_NULL COMPARE_IN COMPARE_NOT_IN OPERATOR_COALESCE
    ARRAY_EXTRACT ARRAY_SLICE ARRAY_CONSTRUCTOR STRUCT_EXTRACT""")
# Operators (by the parser's names), text, numbers, dates, lists and structs, choice. Each gives a result no longer than
# what it is given, in time that grows with it, and the same one every time (so no replace, lpad, repeat, now, random).
FUNCTIONS = _words("""
    + - * / // % ** ^ & | << >> ~ @ || ^@ ~~ !~~ ~~* !~~* ~~~ like_escape not_like_escape ilike_escape not_ilike_escape
    lower upper lcase ucase length len strlen char_length character_length contains starts_with ends_with prefix suffix
    regexp_matches regexp_full_match regexp_extract concat substring substr left right trim ltrim rtrim reverse
    strip_accents position strpos instr string_split str_split split split_part
    abs round floor ceil ceiling trunc sign sqrt ln log log2 log10 exp pow power mod greatest least isnan isinf isfinite
    year month day hour minute second quarter week dayofweek isodow dayofyear dayname monthname last_day epoch date_trunc
    datetrunc date_part datepart date_diff datediff make_date to_years to_months to_weeks to_days to_hours to_minutes
    to_seconds
    list_contains array_contains list_has array_has list_has_any array_has_any list_has_all array_has_all list_position
    array_position array_length list_extract array_extract list_element list_value struct_extract element_at cardinality
    nullif if""")
TYPES = _words("""BOOLEAN BOOL TINYINT SMALLINT INTEGER INT BIGINT HUGEINT UTINYINT USMALLINT UINTEGER UBIGINT FLOAT REAL
    DOUBLE DECIMAL NUMERIC VARCHAR TEXT STRING CHAR DATE TIME TIMESTAMP TIMESTAMPTZ INTERVAL""") | {
    "TIMESTAMP WITH TIME ZONE"
}


class Refused(Exception):
    """Why an expression is not run."""


def check_condition(tree: dict[str, Any], frame: dict[str, Any], check_column: Callable[[str], None]) -> None:
    """Refuse a statement's tree that is anything but the frame's around one expression of allowed parts.

    check_column: refuses names that are no columns.
    """
    chosen = tree["statements"][0]["node"].get("select_list", [])
    if len(chosen) != 1 or _outline(tree) != _outline(frame):
        raise Refused("it is more than one condition; write a single one")
    parts, waiting = 0, [chosen[0]]
    while waiting:
        node = waiting.pop()
        if isinstance(node, list):
            waiting.extend(node)
        elif isinstance(node, dict):
            parts += node.get("class", "CONSTANT") not in ("CONSTANT", "TYPE")
            _check_node(node, check_column)
            waiting.extend(node.values())
    if parts > PARTS:
        raise Refused(f"it has {parts:,} parts, more than {PARTS:,}; write long lists as IN (…)")


def _check_node(node: dict[str, Any], check_column: Callable[[str], None]) -> None:
    """One node of the tree; what is within it comes later."""
    kind = node.get("class")
    if kind is not None and kind not in _NODES:
        raise Refused(f"{_NAMED.get(kind, kind)} is not allowed in a filter")
    if node.get("alias"):
        raise Refused(f"a name ({node['alias']}) for a part of it is not allowed; leave it out")
    if kind == "OPERATOR" and node["type"] not in _OPERATORS:
        raise Refused(f"{node['type']} is not allowed in a filter")
    if kind == "COLUMN_REF":
        check_column(node["column_names"][0])
    if kind == "FUNCTION":
        _check_function(node)
    if kind == "TYPE":
        _check_type(node.get("type_name", ""))
    if "cast_type" in node:  # before DuckDB 1.5
        _check_type(node["cast_type"].get("id", ""))


def _outline(tree: Any) -> Any:
    """A tree without the expressions that it selects and without places in the text."""
    if isinstance(tree, list):
        return [_outline(part) for part in tree]
    if isinstance(tree, dict):
        left = {name: part for name, part in tree.items() if not name.startswith(_ASIDE)}
        return {name: None if name == "select_list" else _outline(part) for name, part in left.items()}
    return tree


def _check_function(node: dict[str, Any]) -> None:
    name = node["function_name"].lower()
    if node.get("schema") not in ("", "main", "pg_catalog") or node.get("catalog") not in ("", "system"):
        raise Refused(f"{node['function_name']}() after a dot is not allowed; write it before its argument")
    if name not in FUNCTIONS:
        near = difflib.get_close_matches(name, FUNCTIONS, 1, 0.7)
        hint = f"; the nearest that is: {near[0]}()" if near else ""
        raise Refused(f"function {name}() is not one that a filter may use{hint}")
    if node["filter"] or node["distinct"] or node["order_bys"]["orders"]:
        raise Refused(f"{name}() with FILTER, DISTINCT or ORDER BY is not allowed in a filter")
    arguments = [part.get("expression", part) for part in node.get("arguments", node.get("children", []))]
    if name.startswith("regexp") and any(part["class"] != "CONSTANT" for part in arguments[1:]):
        raise Refused(f"{name}() takes its pattern as a text in quotes: one made anew for each row is too slow")


def _check_type(name: str) -> None:
    if name.upper() not in TYPES:
        raise Refused(f"a cast to {name} is not allowed in a filter")
