"""Token ids against open_clip's SimpleTokenizer."""

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from open_clip.tokenizer import SimpleTokenizer

from dualenc.data import text
from dualenc.model.spec import tokenizer_spec

FLICKR = Path(__file__).resolve().parents[3] / "shared" / "data" / "flickr8k_160.zip"
CLEANERS = ("lower", "whitespace", "canonicalize")
PIECES = st.sampled_from(
    [
        *("&amp;", "&amp;amp;", "&lt;", "&#39;", "&", "&nbsp;", "<start_of_text>", "<end_of_text>", "<END_of_text>"),
        *("don't", "'S", "'", "İ", "ß", "ﬁ", "\u0345", "\u200d", "é", "e\u0301", "Ã©", "â€™", "“”", "½", "Ⅷ", "٣"),
        *("\x00", "\x1c", "\x85", "\u2028", "\u3000", "\t", "\n", "_", "-", "...", "😀", "👩‍👩‍👧", "漢字", "ถ", "ก็"),
        *("\ufeff", "a photo of", "RED", "x" * 40, "12345", "</w>", "Ġ", "ſ", "K"),
    ]
)
NASTY = st.text() | st.lists(PIECES | st.text(max_size=3), max_size=8).map("".join)


@pytest.fixture(scope="module", params=CLEANERS)
def both(request):
    theirs = SimpleTokenizer(context_length=24, clean=request.param)
    return text.Tokenizer(json.loads(json.dumps(tokenizer_spec(theirs, False)))), theirs  # plain JSON carries it


@given(caption=NASTY)
@example(caption="<start_of_text> a <end_of_text>")
@example(caption="&lt;start_of_text&gt;")
@example(caption="\u0345")
@example(caption="a\x00b\x1bc\x7fd")
@settings(max_examples=120)
def test_ids_equal_open_clips(both, caption):
    ours, theirs = both
    assert ours.encode(caption) == theirs.encode(caption)


@given(captions=st.lists(NASTY, min_size=1, max_size=4))
@settings(max_examples=30)
def test_rows_equal_open_clips(both, captions):
    ours, theirs = both
    assert np.array_equal(ours(captions), theirs(captions).numpy())


def test_a_long_caption_is_cut_and_counted(both):
    ours, theirs = both
    before = ours.truncated
    captions = ["cat " * 100, "cat " * 22, "cat " * 23, "a cat"]  # 22 words fill 24 places, with start and end
    assert np.array_equal(ours(captions), theirs(captions).numpy())
    assert ours.truncated - before == 2
    assert ours(captions)[0, -1] == ours.end


def test_padding_to_the_longest_leaves_out_only_padding():
    theirs = SimpleTokenizer(context_length=24)
    ours = text.Tokenizer(tokenizer_spec(theirs, True))
    captions = ["a red circle left of a blue square", "a cat", ""]
    tokens = ours(captions)
    assert tokens.shape == (3, 10) and tokens.dtype == np.int64
    assert np.array_equal(np.pad(tokens, ((0, 0), (0, 14))), theirs(captions).numpy())
    assert ours([]).shape[0] == 0 and ours([""]).tolist() == [[ours.start, ours.end]]
    assert ours(["cat " * 100]).shape == (1, 24)


def test_the_memo_is_bounded_and_changes_nothing(monkeypatch):
    theirs = SimpleTokenizer()
    monkeypatch.setattr(text, "MEMO_WORDS", 2)
    ours = text.Tokenizer(tokenizer_spec(theirs, True))
    for _ in range(2):
        assert ours.encode("one two three four") == theirs.encode("one two three four")
    assert len(ours._memo) == 2


@pytest.mark.skipif(not FLICKR.is_file(), reason=f"{FLICKR.name} is not beside this checkout, in ../shared/data")
def test_every_flickr8k_caption(request):
    with zipfile.ZipFile(FLICKR) as archive:
        name = next(n for n in archive.namelist() if n.endswith("captions.jsonl"))
        rows = [json.loads(line) for line in archive.read(name).decode().splitlines()]
    captions = [c for row in rows for c in row.get("captions", [])]
    assert len(captions) > 40_000
    theirs = SimpleTokenizer()
    ours = text.Tokenizer(tokenizer_spec(theirs, False))
    memo = {}  # open_clip's own pattern and merges, word by word: its patterns never cross white space

    def encode(caption):
        ids = []
        for word in theirs.clean_fn(caption).split(" "):
            if word not in memo:
                memo[word] = theirs.encode(word)
            ids += memo[word]
        return ids

    assert all(ours.encode(c) == encode(c) for c in captions)
    assert all(ours.encode(c) == theirs.encode(c) for c in captions[::40])
