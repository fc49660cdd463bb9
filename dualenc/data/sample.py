"""One sample as it lies in its shard: undecoded bytes, and what they say apart from pixels."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from typing import Any

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")
KINDS = ("image", "txt", "json", "cls")  # what is read of a sample; an image's extension may be any of the above
CHANGED = "changed shard"  # why a sample is left out whose shard is no longer the one that was listed
UNREADABLE = "unreadable file"  # why a sample whose file is gone, or not ours to read, is left out


class BadSample(ValueError):
    """A sample that cannot be used; its text is the reason under which it is counted."""


@dataclasses.dataclass(frozen=True, slots=True)
class Sample:
    """The bytes of one sample, by kind (KINDS)."""

    key: str
    parts: dict[str, bytes]

    def captions(self, field: str = "txt") -> list[str]:
        """Its captions: of KEY.txt one a line, or those of a field of KEY.json, a string or a list of them.

        [] where there are none. Where KEY.json's `caption` equals the text (what img2dataset writes), the whole text is
        one caption. BadSample when the text is not UTF-8 or KEY.json is not a JSON object.
        """
        if field != "txt":
            value = self.json().get(field)
            return _lines(value if isinstance(value, list) else [value])
        try:
            text = self.parts.get("txt", b"").decode("utf-8-sig")
        except UnicodeDecodeError:
            raise BadSample("caption is not UTF-8") from None
        whole = "\n" in text.strip() and self.json().get("caption") == text
        return _lines([text] if whole else text.split("\n"))

    def label(self) -> int | None:
        """Its class number, if it has one. BadSample when KEY.cls holds no integer."""
        raw = self.parts.get("cls")
        if raw is None:
            return None
        if not re.fullmatch(rb"\s*[+-]?\d{1,18}\s*", raw):  # what an int64 holds
            raise BadSample("class is not an integer")
        return int(raw)

    def metadata(self) -> dict[str, Any]:
        """KEY.json's scalar fields; NaN and the infinities become None. BadSample when it is not a JSON object."""
        scalars = {k: v for k, v in self.json().items() if isinstance(v, str | int | float | bool)}
        return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in scalars.items()}

    def json(self) -> dict[str, Any]:
        """KEY.json; {} without one. BadSample when it is not a JSON object."""
        raw = self.parts.get("json")
        try:
            value = {} if raw is None else json.loads(raw)
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict):
            raise BadSample("metadata is not a JSON object")
        return value


def _lines(texts: list[Any]) -> list[str]:
    """Captions with white space collapsed, without the empty ones and what is no text."""
    return [caption for text in texts if isinstance(text, str) and (caption := " ".join(text.split()))]
