"""What is known of the request that is being answered: its id, its route, how long its stages took."""

from __future__ import annotations

import contextvars
import random
import re
from time import perf_counter

_GOOD_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")  # what may stand in a log line and a header as it is


class Record:
    """One request. `stages`: seconds by stage."""

    __slots__ = ("id", "stages", "started")

    def __init__(self, id: str):
        self.id = id
        self.started = perf_counter()
        self.stages: dict[str, float] = {}


current: contextvars.ContextVar[Record | None] = contextvars.ContextVar("dualenc_request", default=None)


def request_id() -> str:
    """The id of the request that is being answered; "-" outside of one (a thread that was not handed the context)."""
    record = current.get()
    return record.id if record else "-"


def choose_id(given: bytes | None) -> str:
    """The id that a caller gave, where it is fit for logs; else a new one."""
    if given:
        text = given.decode("latin-1")
        if _GOOD_ID.fullmatch(text):
            return text
    return f"{random.getrandbits(64):016x}"  # it names, and keeps no secret
