"""`where`: one boolean SQL expression over metadata columns, evaluated by DuckDB, to the rows that may be found."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pyarrow as pa

SECONDS = 10.0  # an expression that runs longer is interrupted: DuckDB has no time limit of its own
_ROW = "dualenc row"  # not a name that metadata has by chance
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
    "lock_configuration = true",  # last: nothing can be set after it
)


class Where:
    """Filters over one table. Of the database an expression sees nothing but that table: it holds nothing to hide."""

    def __init__(self, table: pa.Table):
        import duckdb  # only a search with a filter needs it

        self._rows, self._columns = table.num_rows, table.column_names
        self._lock = threading.Lock()
        self._database = duckdb.connect(":memory:", config=_CLOSED)
        self._database.register("metadata", table.append_column(_ROW, pa.array(np.arange(table.num_rows))))
        for setting in _LOCKED:
            self._database.execute(f"SET {setting}")

    def mask(self, where: str, seconds: float = SECONDS) -> np.ndarray:
        """(N,) bool: rows for which the expression is true (neither false nor NULL). ValueError says what is wrong."""
        import duckdb

        if not isinstance(where, str) or not where.strip():
            raise ValueError(f"where={where!r} is no expression; write one over {self._names()}")
        with self._lock:
            timer = threading.Timer(seconds, self._database.interrupt)
            timer.start()
            try:
                # the relation API parses one expression: no second statement, no UNION, no ORDER BY gets through
                found: Any = self._database.view("metadata").filter(where).select(f'"{_ROW}"').fetchnumpy()[_ROW]
            except duckdb.InterruptException as error:
                raise ValueError(
                    f"where={where!r} ran longer than {seconds:g} s and was stopped; simplify it"
                ) from error
            except duckdb.Error as error:
                reason = str(error).splitlines()[0]
                raise ValueError(f"where={where!r}: {reason} (columns: {self._names()})") from error
            finally:
                timer.cancel()
        mask = np.zeros(self._rows, bool)
        mask[found] = True
        return mask

    def _names(self) -> str:
        return ", ".join(self._columns)
