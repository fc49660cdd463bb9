"""open_clip's byte-pair tokenizer as a tokenizer.json, which Hugging Face's `tokenizers` reads in Rust, Python and JavaScript.

Ids equal ours on captions. What open_clip's cleaning does beyond that (ftfy's repairs, HTML entities) has no place in
such a file, save for curly quotes.
"""

from __future__ import annotations

import string
from typing import Any

import dualenc.torchvision_ops  # noqa: F401  (before open_clip)

from open_clip.tokenizer import SimpleTokenizer
from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE

from dualenc.model.spec import CLEANERS

START, END = "<|startoftext|>", "<|endoftext|>"  # OpenAI's names, which other programs look for; open_clip has its own
CURLY = {"\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"'}


def is_clip(tokenizer: Any) -> bool:
    """Whether this is open_clip's own tokenizer without extra special tokens or another way of cutting."""
    return (
        isinstance(tokenizer, SimpleTokenizer)
        and tokenizer.reduction_fn is None
        and len(tokenizer.all_special_ids) == 2
        and tokenizer.clean_fn in CLEANERS
    )


def vocabulary(tokenizer: SimpleTokenizer) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """(symbol -> id, merges in their order), with OpenAI's names for the two special tokens."""
    start, end = tokenizer.all_special_ids
    renamed = {tokenizer.decoder[start]: START, tokenizer.decoder[end]: END}
    return {renamed.get(symbol, symbol): i for symbol, i in tokenizer.encoder.items()}, [*tokenizer.bpe_ranks]


def fast_tokenizer(tokenizer: SimpleTokenizer) -> Tokenizer:
    """The tokenizer (`is_clip`) in Rust: start, ids, end; neither cut nor padded."""
    vocab, merges = vocabulary(tokenizer)
    fast = Tokenizer(BPE(vocab, merges, continuing_subword_prefix="", end_of_word_suffix="</w>", unk_token=END))
    clean = CLEANERS[tokenizer.clean_fn]
    steps: list[Any] = [normalizers.Replace(curly, plain) for curly, plain in CURLY.items()]
    if clean == "canonicalize":
        marks = "".join(f"\\{mark}" for mark in string.punctuation if mark != "_")
        steps += [normalizers.Replace("_", " "), normalizers.Replace(Regex(f"[{marks}]"), "")]
    steps += [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " ")]
    steps += [] if clean == "whitespace" else [normalizers.Lowercase()]
    fast.normalizer = normalizers.Sequence(steps)
    pattern = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
    fast.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    fast.add_special_tokens([START, END])
    fast.post_processor = processors.RobertaProcessing(
        (END, vocab[END]), (START, vocab[START]), trim_offsets=False, add_prefix_space=False
    )
    return fast


def padded_tokenizer(tokenizer: SimpleTokenizer) -> Tokenizer:
    """`fast_tokenizer`, cut at the context and filled up to it with zeros, as open_clip's own."""
    fast, context = fast_tokenizer(tokenizer), int(tokenizer.context_length)
    fast.enable_truncation(context)
    fast.enable_padding(length=context, pad_id=0, pad_token="!")
    return fast
