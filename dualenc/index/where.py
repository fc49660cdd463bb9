"""`where`: one boolean SQL expression over metadata columns, evaluated by DuckDB, to the rows that may be found.

The expression's syntax tree is checked before it runs: what is not named here is refused. What runs is the very text that
DuckDB's parser made the tree of, in a database that holds the table alone and reaches neither files nor network.
"""

from __future__ import annotations

import contextlib
import difflib
import json
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from dualenc.index.condition import Refused, check_condition

SECONDS = 10.0  # an expression that runs longer is interrupted: DuckDB has no time limit of its own
LONGEST = 200_000  # characters
BRACKETS = 1000  # where none is closed, the parser's time grows with their square and cannot be interrupted
DEPTH = 100  # of the tree
MASKS, MASK_BYTES = 64, 256 << 20  # kept for the next search with the same text
SHOWN = 20  # columns that a message lists
_CLOSED: dict[str, str | bool | int | float | list[str]] = {
    "autoinstall_known_extensions": False,
    "autoload_known_extensions": False,
    "allow_community_extensions": False,
}
_LOCKED = (
    "enable_external_access = false",  # no files, no network
    "python_enable_replacements = false",  # no Python variables
    "memory_limit = '1GB'",
    "threads = 2",
    f"max_expression_depth = {DEPTH}",
    "lock_configuration = true",  # last: nothing can be set after it
)
_FROM = 'FROM metadata AS "dualenc metadata"'  # a name that no column has by chance
_NUMBERS = ("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "HUGEINT", "U", "FLOAT", "DOUBLE", "DECIMAL", "NUMBER")


class Where:
    """Filters over one table. Of the database an expression sees nothing but that table: it holds nothing to hide."""

    def __init__(self, table: pa.Table):
        import duckdb  # only a search with a filter needs it

        self._columns, self._unread = table.column_names, dict[str, str]()
        self._running, self._keeping = threading.Lock(), threading.Lock()
        self._masks: OrderedDict[str, np.ndarray] = OrderedDict()
        self._database = duckdb.connect(":memory:", config=_CLOSED)
        try:
            self._database.register("metadata", table)
        except duckdb.Error:  # it cannot read a column: the others can be filtered by
            self._unread = _unread(self._database, table)
            rows = pa.array(np.arange(table.num_rows))  # so that there is a column at all
            self._database.register(
                "metadata", table.append_column("dualenc row", rows).drop_columns(list(self._unread))
            )
        for setting in _LOCKED:
            self._database.execute(f"SET {setting}")
        self._frame = self._parsed(f"SELECT\ntrue\n{_FROM}")

    def mask(self, where: str, seconds: float = SECONDS) -> np.ndarray:
        """(N,) bool, read-only: rows for which the expression is true (neither false nor NULL); the last few are kept.

        seconds: waiting for the filters before it and running together. ValueError says what is wrong in one line.
        """
        key = _text(where, self._names())
        if (kept := self._kept(key)) is not None:
            return kept
        shown, end = _shown(key), time.monotonic() + seconds
        if not self._running.acquire(timeout=seconds):
            raise ValueError(f"where={shown} waited {seconds:g} s for the filters before it; try again")
        try:
            if (kept := self._kept(key)) is not None:  # somebody else's search has made it meanwhile
                return kept
            mask = self._run(key, max(0.0, end - time.monotonic()))
        except Refused as error:
            raise ValueError(f"where={shown}: {error} (columns: {self._names()})") from error.__cause__
        finally:
            self._running.release()
        mask.flags.writeable = False
        self._keep(key, mask)
        return mask

    def _run(self, text: str, seconds: float) -> np.ndarray:
        import duckdb

        query = f"SELECT\n{text}\n{_FROM}"
        try:
            with _interrupted_after(self._database, seconds):
                check_condition(self._parsed(query), self._frame, self._check_column)
                running = self._database.execute(query)  # rows are made as they are fetched: the type comes before them
                kind = str(running.description[0][1]).upper()  # type: ignore[index]
                if kind not in ("BOOLEAN", "BOOL"):
                    raise Refused(f"it is {_called(kind)}, not a condition; compare it with something")
                found: Any = next(iter(running.fetchnumpy().values()))
        except duckdb.InterruptException as error:
            raise Refused(f"it ran longer than {seconds:.2g} s and was stopped; simplify it") from error
        except duckdb.OutOfMemoryException as error:
            raise Refused("it needs more memory than a filter may use; simplify it") from error
        except duckdb.Error as error:
            raise Refused(" ".join(str(error).split("\n\n")[0].split())) from error
        except RecursionError as error:
            raise Refused("it is nested too deeply; simplify it") from error
        return np.ma.filled(found, False).astype(bool, copy=True)

    def _parsed(self, query: str) -> dict[str, Any]:
        row = self._database.execute("SELECT json_serialize_sql(?::VARCHAR)", [query]).fetchone()
        tree: dict[str, Any] = json.loads(row[0])  # type: ignore[index]
        if tree["error"]:
            raise Refused(f"it does not parse: {' '.join(tree['error_message'].split())}")
        return tree

    def _check_column(self, name: str) -> None:
        lower = [column.lower() for column in self._columns]
        if lower.count(name.lower()) > 1:
            raise Refused(f"column {name!r} is there more than once but for upper and lower case; rename one")
        if name.lower() not in lower:
            near = difflib.get_close_matches(name.lower(), lower, 1, 0.5)
            hint = f"; the nearest is {self._columns[lower.index(near[0])]}" if near else ""
            raise Refused(f"there is no column {name!r}{hint}")
        if (column := self._columns[lower.index(name.lower())]) in self._unread:
            raise Refused(f"column {name!r} is {self._unread[column]}, a type that filters cannot read")

    def _kept(self, key: str) -> np.ndarray | None:
        with self._keeping:
            if key in self._masks:
                self._masks.move_to_end(key)
            return self._masks.get(key)

    def _keep(self, key: str, mask: np.ndarray) -> None:
        with self._keeping:
            self._masks[key] = mask
            most = min(MASKS, MASK_BYTES // max(1, mask.nbytes))  # all masks are of one size
            while len(self._masks) > most:
                self._masks.popitem(last=False)

    def _names(self) -> str:
        more = len(self._columns) - SHOWN
        return ", ".join(self._columns[:SHOWN]) + (f" and {more} more" if more > 0 else "")


def _text(where: Any, names: str) -> str:
    """The expression's text, checked as far as it can be without parsing."""
    if not isinstance(where, str) or not where.strip():
        raise ValueError(f"where={where!r} is no expression; write one over (columns: {names})")
    text = where.strip()
    if len(text) > LONGEST:
        raise ValueError(f"where={_shown(text)} has {len(text):,} characters, more than {LONGEST:,}; shorten it")
    if "\0" in text or any("\ud800" <= letter <= "\udfff" for letter in text):
        raise ValueError(f"where={_shown(text)} holds a zero or half a character; leave it out (columns: {names})")
    if sum(map(text.count, "([{")) > BRACKETS:
        raise ValueError(f"where={_shown(text)} has more than {BRACKETS} brackets; write long lists as IN (…)")
    return text


def _shown(text: str) -> str:
    return repr(text if len(text) <= 200 else f"{text[:200]}…")


def _called(kind: str) -> str:
    """What a person calls a value of a DuckDB type."""
    if kind.endswith("]"):
        return f"a list ({kind})"
    if kind.startswith(("VARCHAR", "STRING")):
        return "a text"
    if kind.startswith(_NUMBERS) and not kind.startswith(("UUID", "UNION")):
        return f"a number ({kind})"
    return "NULL" if "NULL" in kind else f"a value of type {kind}"


def _unread(database: Any, table: pa.Table) -> dict[str, str]:
    """Columns of types that DuckDB cannot read, such as float16, with their types."""
    import duckdb

    left = {}
    for field in table.schema:
        try:
            database.register("metadata", pa.table({field.name: pa.array([], field.type)}))
        except duckdb.Error:
            left[field.name] = str(field.type)
    return left


@contextlib.contextmanager
def _interrupted_after(database: Any, seconds: float) -> Iterator[None]:
    """Interrupt what runs in a database after so many seconds, again and again: one between two queries is lost."""
    done = threading.Event()

    def watch() -> None:
        patience = seconds
        while not done.wait(patience):
            database.interrupt()
            patience = 0.02

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()
