"""The server's log, as text or as JSON lines: one line a request, and nothing in it that a caller could forge.

Control characters are escaped, a traceback's lines are indented; what was searched for and what follows a path's
question mark are not logged.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Any

from dualenc.serve.record import request_id

NAME = "dualenc.serve"
LONGEST = 300  # letters of a path that are logged
access = logging.getLogger(NAME + ".access")


class _Escapes(dict[int, str]):
    """For str.translate: control characters, line ends, marks that turn text round, and lone surrogates, as escapes."""

    def __missing__(self, code: int) -> str:
        letter = chr(code)
        if letter == " " or (letter.isprintable() and letter != "\\"):
            kept = letter
        elif letter == "\\":
            kept = "\\\\"
        else:
            kept = letter.encode("unicode_escape").decode("ascii")
        if code < 0x3000:  # bounded: a caller could send all of Unicode
            self[code] = kept
        return kept


_escapes = _Escapes()


def escaped(text: str) -> str:
    """One printable line, whatever was in `text`."""
    return text if text.isascii() and text.isprintable() and "\\" not in text else text.translate(_escapes)


def request_line(fields: dict[str, Any], level: int = logging.INFO) -> None:
    """Log one request. fields: id, method, path, route, status, ms, client, stages (ms by name)."""
    if access.isEnabledFor(level):
        record = logging.LogRecord(
            access.name, level, "", 0, "request", None, None
        )  # without the search for who called
        record.request = fields
        access.handle(record)


class TextFormatter(logging.Formatter):
    """2026-01-31T12:00:00.123Z INFO 1f2e… POST /search 200 12.3 ms 127.0.0.1 search=1.2"""

    def format(self, record: logging.LogRecord) -> str:
        fields = getattr(record, "request", None)
        if fields is None:
            start = f"{_when(record)} {record.levelname} {request_id()} {escaped(record.getMessage())}"
            return start + _indented(self, record)
        stages = "".join(f" {name}={ms:.1f}" for name, ms in fields["stages"].items())
        return (
            f"{_when(record)} {record.levelname} {fields['id']} {escaped(fields['method'])} "
            f"{escaped(fields['path'])} {fields['status']} {fields['ms']:.1f} ms {escaped(fields['client'])}{stages}"
        )


class JsonFormatter(logging.Formatter):
    """One object a line: time, level, id, and message or the fields of a request."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {"time": _when(record), "level": record.levelname}
        fields = getattr(record, "request", None)
        if fields is None:
            line |= {"id": request_id(), "logger": record.name, "message": record.getMessage()}
            if record.exc_info:
                line["traceback"] = self.formatException(record.exc_info)
        else:
            line |= fields
        return json.dumps(line, default=str)  # ASCII: every control character is an escape


def configure(style: str) -> None:
    """Have the server's loggers, and uvicorn's, write to standard error, as "text" or "json". Others are left alone."""
    handler = _Handler()
    handler.setFormatter(JsonFormatter() if style == "json" else TextFormatter())
    for name in (NAME, "uvicorn"):
        logger = logging.getLogger(name)
        for old in [one for one in logger.handlers if isinstance(one, _Handler)]:
            logger.removeHandler(old)
        logger.addHandler(handler)
    logging.getLogger("uvicorn").propagate = False  # a traceback may quote the request: it is escaped here alone
    if logging.getLogger(NAME).level == logging.NOTSET:
        logging.getLogger(NAME).setLevel(logging.INFO)


def say_once() -> None:
    """Of a process that does nothing else: have its general log say the warnings of libraries, and nothing of ours again."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger(NAME).propagate = False


class _Handler(logging.StreamHandler[Any]):
    """Writes to whatever standard error is now."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> Any:
        return sys.stderr


_second: tuple[int, str] = (0, "")


def _when(record: logging.LogRecord) -> str:
    """UTC with milliseconds; the second's text is made once a second."""
    global _second
    second = int(record.created)
    if _second[0] != second:
        _second = second, time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
    return f"{_second[1]}.{int(record.msecs):03d}Z"


def _indented(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    if not record.exc_info:
        return ""
    lines = formatter.formatException(record.exc_info).splitlines()
    return "".join(f"\n    | {escaped(line)}" for line in lines)
