"""A condition in SQL, and the clauses that its outermost ANDs join, so that a report can say which of them a row fails."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from dualenc.index.where import Where

SECONDS = 600.0  # a table of many millions of pairs is looked through once, not while somebody waits for a search


class Condition(NamedTuple):
    """Where a condition is true, and where each of its clauses is: (n,) masks. clauses: SQL -> mask, two or more; or {}."""

    mask: npt.NDArray[np.bool_]
    clauses: dict[str, npt.NDArray[np.bool_]]


def condition(table: pa.Table, keep: str) -> Condition:
    """Rows of `table` for which the SQL expression `keep` is true, neither false nor null; and its clauses.

    What it may say is what `dualenc search --where` may: no files, no subqueries, functions from a list. ValueError says
    in one line what is wrong, and which columns there are.
    """
    try:
        where = Where(table)
        mask = where.mask(keep, SECONDS)
        parts = clauses(keep)
        return Condition(mask, {part: where.mask(part, SECONDS) for part in parts} if len(parts) > 1 else {})
    except ValueError as error:
        raise ValueError(str(error).replace("where=", "--keep ", 1)) from error


def clauses(keep: str) -> list[str]:
    """The clauses that AND joins at the top of an expression, as DuckDB writes them; a single one where there is no AND.

    >>> clauses("score > 0.2 and not (duplicate or words < 3)")
    ['score > 0.2', 'NOT (duplicate OR (words < 3))']
    """
    import duckdb

    with duckdb.connect(":memory:", config={"enable_external_access": "false"}) as database:

        def one(function: str, argument: str) -> Any:
            row = database.execute(f"SELECT {function}", [argument]).fetchone()
            return row[0] if row else None

        tree = json.loads(one("json_serialize_sql(?::VARCHAR)", f"SELECT\n{keep}\n"))
        chosen = tree["statements"][0]["node"]["select_list"]
        parts = chosen[0]["children"] if chosen[0]["type"] == "CONJUNCTION_AND" else chosen
        found = []
        for part in parts:
            tree["statements"][0]["node"]["select_list"] = [part]
            text = one("json_deserialize_sql(?::JSON)", json.dumps(tree)).removeprefix("SELECT ")
            found.append(text[1:-1] if _wrapped(text) else text)
        return found


def _wrapped(text: str) -> bool:
    """Whether one pair of brackets is around the whole text. Brackets within quotes only make this say no."""
    depth = 0
    for place, letter in enumerate(text):
        depth += {"(": 1, ")": -1}.get(letter, 0)
        if depth == 0 and place < len(text) - 1:
            return False
    return text.startswith("(") and depth == 0 and "'" not in text and '"' not in text[:1]
