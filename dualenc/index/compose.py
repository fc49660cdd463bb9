"""Several weighted queries in one line, `2*"red car" + photo.jpg - "night"`: read, and made one query of."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
FORM = """2*"red car" + photo.jpg - "night" + 0.5*#17"""
CANCELLED = 1e-3  # a sum this short, per weight, is what rounding to float16 leaves of x - x
UNIT = 5e-3  # how far from 1 the length of a unit row may be
_WEIGHT = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?\s*\*\s*")
_QUOTED = re.compile(r'"((?:[^"]|"")*)"')
_ROW = re.compile(r"#([0-9]+)(?!\w)")
_WORD = re.compile(r"\S+")
_SPACE = re.compile(r"\s*")
_BETWEEN = re.compile(r"(?:^|\s)[+-]\s")


class Term(NamedTuple):
    """One part of a query: how much it counts, and what it is (the words, the image's path, the row's id)."""

    weight: float
    kind: Literal["text", "image", "id"]
    value: str | int


def parse(text: str) -> list[Term]:
    """The terms of a query. A text that is no expression is one term of weight 1, as it stands.

    It is an expression when one of its terms (what stands between ` + ` and ` - `) begins, after an optional NUMBER*,
    with a double quote or #NUMBER, or ends in an image's suffix. Then each term must be text in double quotes (a quote
    within is written twice), an image's path (quoted where it has spaces or a sign before it), or # and a row's id; a
    quoted part that ends in an image's suffix is an image. ValueError shows the place and the right form.
    """
    if not text.strip():
        raise ValueError(f"the query {text!r} is empty; write what to look for, or an expression: {FORM}")
    return _Reader(text).terms() if _is_expression(text) else [Term(1.0, "text", text)]


def _is_expression(text: str) -> bool:
    for piece in _BETWEEN.split(text):
        term = piece.strip()
        term = term[1:].lstrip() if term[:1] in ("+", "-") else term
        weight = _WEIGHT.match(term)
        term = term[weight.end() :] if weight else term
        if term.startswith('"') or _ROW.match(term) or _is_image(term) or _joined(term):
            return True
    return False


def _joined(term: str) -> bool:
    """Whether a sign stands in a term after an image or before a quote: `a.jpg+b.jpg`, `night -"day"`."""
    suffixes = "|".join(re.escape(suffix) for suffix in SUFFIXES)
    return bool(re.search(rf'(?i)(?:{suffixes})\s*[+-]|\s[+-](?:"|#[0-9])', term))


def _is_image(value: str) -> bool:
    return value.lower().endswith(SUFFIXES) and value.lower() not in SUFFIXES


class _Reader:
    """Reads an expression from left to right."""

    def __init__(self, text: str):
        self.text, self.place = text, 0

    def terms(self) -> list[Term]:
        """All terms, in order."""
        self._skip()
        terms = [self._term(self._sign(needed=False))]
        while self.place < len(self.text):
            terms.append(self._term(self._sign(needed=True)))
        return terms

    def _skip(self) -> None:
        self.place = _SPACE.match(self.text, self.place).end()  # type: ignore[union-attr]

    def _take(self, pattern: re.Pattern[str]) -> re.Match[str] | None:
        match = pattern.match(self.text, self.place)
        self.place = match.end() if match else self.place
        return match

    def _sign(self, needed: bool) -> float:
        sign = self.text[self.place]
        if sign not in "+-":
            if needed:
                raise self._error("has no + or - before it")
            return 1.0
        self.place += 1
        self._skip()
        return -1.0 if sign == "-" else 1.0

    def _term(self, sign: float) -> Term:
        start = self.place
        weight = self._take(_WEIGHT)
        size = float(weight[0].rstrip("* \t\r\n")) if weight else 1.0
        if size == float("inf"):
            self.place = start
            raise self._error("has a weight that is no finite number")
        kind, value = self._part()
        self._skip()
        return Term(sign * size, kind, value)

    def _part(self) -> tuple[Literal["text", "image", "id"], str | int]:
        start = self.place
        if quoted := self._take(_QUOTED):
            value = quoted[1].replace('""', '"')
            if not value.strip():
                self.place = start
                raise self._error("has nothing in its quotes")
            return ("image" if _is_image(value) else "text"), value
        if row := self._take(_ROW):
            if int(row[1][:20]) >= 2**63:
                self.place = start
                raise self._error("is larger than any id")
            return "id", int(row[1])
        word = _WORD.match(self.text, self.place)
        if word and _is_image(word[0]) and '"' not in word[0]:
            self.place = word.end()
            return "image", word[0]
        if word and word[0].startswith('"'):
            raise self._error("has no closing quote")
        raise self._error("is neither text in double quotes, an image's path without spaces, nor #ID")

    def _error(self, what: str) -> ValueError:
        rest = " ".join(self.text[self.place :].split())
        part = f"{rest[:24]}…" if len(rest) > 24 else rest
        place = f"`{part}` (character {self.place + 1})" if rest else "the end"
        whole = '"' + self.text.strip().replace('"', '""') + '"'
        cure = (
            f", or for these words as they are: {whole}"
            if len(whole) <= 80 and whole.isprintable() and not _is_image(whole[1:-1])
            else ""
        )
        return ValueError(f"the query is read as several terms, but {place} {what}; write {FORM}{cure}")


def combine(rows: np.ndarray, weights: Sequence[float] | np.ndarray) -> np.ndarray:
    """(D,) unit float32: the normalised sum of weight x row, over unit rows (T, D) and weights (T,).

    ValueError: shapes that do not fit, a row that is not unit, weights that are not finite or all zero, parts that cancel.
    """
    parts, sizes = np.asarray(rows, np.float64), np.asarray(weights, np.float64)
    if parts.ndim != 2 or not len(parts) or sizes.shape != parts.shape[:1]:
        raise ValueError(f"rows {parts.shape} and weights {sizes.shape}; give rows (T, D) and one weight each, T >= 1")
    if not np.isfinite(sizes).all():
        raise ValueError(f"weights {sizes.tolist()} are not all finite; give plain numbers")
    lengths = np.linalg.norm(parts, axis=1)
    if not (np.abs(lengths - 1) <= UNIT).all():
        raise ValueError(f"row {np.argmax(~(np.abs(lengths - 1) <= UNIT))} is not of length 1; normalise it first")
    if not sizes.any():
        raise ValueError("all weights are 0: nothing is looked for; give one of the terms another weight")
    sizes = sizes / np.abs(sizes).max()
    total = sizes @ parts
    length = np.linalg.norm(total)
    if length <= CANCELLED * np.abs(sizes).sum():
        raise ValueError("the parts cancel out: no direction is left to search in; change a weight or leave a term out")
    return (total / length).astype(np.float32)
