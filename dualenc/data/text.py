"""Captions to token ids, from a plain spec: loader workers need neither open_clip nor its classes.

Ids equal those of open_clip's SimpleTokenizer on any string: the same cleaning (ftfy, html, lower case), the same
token pattern (the `regex` library) and the same merges; or those of its HFTokenizer, by the library that one calls.
The spec is `dualenc.model.spec.tokenizer_spec`'s.
"""

from __future__ import annotations

import html
import string
from collections.abc import Callable, Sequence
from typing import Any

import ftfy
import numpy as np
import regex
import tokenizers
from tokenizers.models import BPE

MEMO_WORDS = 200_000  # bounds the memory of a vocabulary of junk


def _basic(text: str) -> str:
    return " ".join(html.unescape(html.unescape(ftfy.fix_text(text))).split())


def _lower(text: str) -> str:
    if text.isascii() and "&" not in text and text.isprintable():  # ftfy and html leave such text as it is
        return " ".join(text.split()).lower()
    return _basic(text).lower()


def _canonicalize(text: str) -> str:
    return " ".join(_basic(text).replace("_", " ").translate(str.maketrans("", "", string.punctuation)).lower().split())


CLEANERS: dict[str, Callable[[str], str]] = {"lower": _lower, "whitespace": _basic, "canonicalize": _canonicalize}


def make_tokenizer(spec: dict[str, Any]) -> Tokenizer | FastTokenizer:
    """The tokenizer of a spec: captions to (B, L) int64, with a count `truncated` of those that were cut."""
    return FastTokenizer(spec) if "json" in spec else Tokenizer(spec)


class Tokenizer:
    """Byte-pair encoding with a memo per word.

    spec: {"context_length": int, "pad_to_longest": bool, "clean": a key of CLEANERS, "pattern": what a token matches,
    "symbols": the vocabulary in the order of its ids, "bytes": the symbol of each byte value, "merges": pairs of
    symbols in the order in which they merge, "specials": [start, end, ...]}.
    """

    def __init__(self, spec: dict[str, Any]):
        self.context_length = spec["context_length"]
        self.pad_to_longest = spec["pad_to_longest"]
        self.truncated = 0  # captions cut at the context length, ever
        self._clean = CLEANERS[spec["clean"]]
        self._pattern = regex.compile(spec["pattern"], regex.IGNORECASE)
        self._bytes: list[str] = spec["bytes"]
        vocabulary = {symbol: i for i, symbol in enumerate(spec["symbols"])}
        self.start, self.end = (vocabulary[special] for special in spec["specials"][:2])
        self._specials = {special: vocabulary[special] for special in spec["specials"]}
        self._merges = BPE(vocabulary, [tuple(merge) for merge in spec["merges"]], end_of_word_suffix="</w>")
        self._memo: dict[str, list[int]] = {}

    def encode(self, text: str) -> list[int]:
        """Token ids of one caption, without start and end."""
        ids: list[int] = []
        for word in self._clean(text).split(" "):
            known = self._memo.get(word)
            if known is None:
                known = [i for piece in self._pattern.findall(word) for i in self._piece(piece)]
                if len(self._memo) < MEMO_WORDS:
                    self._memo[word] = known
            ids += known
        return ids

    def _piece(self, piece: str) -> list[int]:
        if piece in self._specials:
            return [self._specials[piece]]
        return [token.id for token in self._merges.tokenize("".join(self._bytes[b] for b in piece.encode()))]

    def __call__(self, captions: Sequence[str]) -> np.ndarray:
        """(B, L) int64: start, ids, end, zeros; L is the longest of them, or the context length for towers that see padding."""
        rows = []
        for caption in captions:
            ids = [self.start, *self.encode(caption), self.end]
            if len(ids) > self.context_length:
                self.truncated += 1
                ids = [*ids[: self.context_length - 1], self.end]
            rows.append(ids)
        width = max(map(len, rows), default=2) if self.pad_to_longest else self.context_length
        tokens = np.zeros((len(rows), width), dtype=np.int64)
        for row, ids in zip(tokens, rows, strict=True):
            row[: len(ids)] = ids
        return tokens


class FastTokenizer:
    """A fast Hugging Face tokenizer, padded to the context length.

    spec: {"context_length": int, "clean": a key of CLEANERS, "json": the tokenizer as the `tokenizers` library writes it,
    "pad": id, "pad_side" and "cut_side": "left" or "right", "blank": an id that becomes 0, or None}.
    """

    def __init__(self, spec: dict[str, Any]):
        self.context_length = spec["context_length"]
        self.truncated = 0  # captions cut at the context length, ever
        self._clean = CLEANERS[spec["clean"]]
        self._pad, self._pad_left, self._blank = spec["pad"], spec["pad_side"] == "left", spec["blank"]
        self._fast = tokenizers.Tokenizer.from_str(spec["json"])
        self._fast.no_padding()
        self._fast.enable_truncation(self.context_length, direction=spec["cut_side"])

    def __call__(self, captions: Sequence[str]) -> np.ndarray:
        """(B, L) int64: ids, special tokens included, and padding; L is the context length."""
        tokens = np.full((len(captions), self.context_length), self._pad, dtype=np.int64)
        for row, caption in zip(tokens, captions, strict=True):
            encoded = self._fast.encode(self._clean(caption))  # one at a time: batches would start threads in workers
            self.truncated += bool(encoded.overflowing)
            row[slice(-len(encoded.ids), None) if self._pad_left else slice(len(encoded.ids))] = encoded.ids
        if self._blank is not None:
            tokens[tokens == self._blank] = 0
        return tokens
