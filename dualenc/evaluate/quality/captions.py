"""What a caption and a picture say of themselves without an encoder: words, tokens, how often it occurs, pixels."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image
from tqdm import tqdm

from dualenc.data.shards import read_at
from dualenc.data.text import make_tokenizer
from dualenc.evaluate.sections import Picture

HEAD = 64 << 10  # bytes of a file in which its header nearly always ends; all are read where it does not
FORMATS = ("JPEG", "PNG", "WEBP")  # what a shard may hold
ORIENTATION, SIDEWAYS = 0x0112, (5, 6, 7, 8)
BLOCK = 10_000  # captions cut into tokens between two steps of the bar


def word_counts(captions: pa.ChunkedArray) -> npt.NDArray[np.int32]:
    """(T,): parts between white space; 0 for null.

    >>> word_counts(pa.chunked_array([["a red  fox", "", None]]))
    array([3, 0, 0], dtype=int32)
    """
    text = pc.utf8_trim_whitespace(pc.fill_null(captions, ""))
    words = pc.list_value_length(pc.utf8_split_whitespace(text)).to_numpy()
    return np.where(pc.equal(text, "").to_numpy(), 0, words).astype(np.int32)


def copies(captions: pa.ChunkedArray) -> npt.NDArray[np.int32]:
    """(T,): how many captions read the same but for upper and lower case, itself included.

    >>> copies(pa.chunked_array([["A fox", "a fox", "a dog"]]))
    array([2, 2, 1], dtype=int32)
    """
    text = pc.utf8_lower(pc.fill_null(captions, "")).combine_chunks()
    number = pc.dictionary_encode(text).indices.to_numpy()
    return np.bincount(number, minlength=1)[number].astype(np.int32)


def token_counts(
    captions: Sequence[str], spec: dict[str, Any], progress: bool = True
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.bool_]]:
    """(tokens with start and end, whether the encoder sees only the first of them) of each caption.

    spec: a tokenizer's, `DualEncoder.spec["text"]`. Hugging Face tokenizers cut while they count, so of a caption that is
    cut the count is what is left of it; CLIP's counts all.
    """
    tokenizer = make_tokenizer(spec)
    count, cut = np.zeros(len(captions), np.int32), np.zeros(len(captions), bool)
    encode, padding = getattr(tokenizer, "encode", None), spec.get("pad", 0)
    padding = 0 if padding == spec.get("blank") else padding
    hidden = None if progress else True
    with tqdm(total=len(captions), desc="tokens", unit="caption", unit_scale=True, disable=hidden) as bar:
        for i, caption in enumerate(captions):
            if encode is not None:
                count[i] = len(encode(caption)) + 2
                cut[i] = count[i] > tokenizer.context_length
            else:
                before = tokenizer.truncated
                count[i] = (tokenizer([caption])[0] != padding).sum()
                cut[i] = tokenizer.truncated > before
            if (i + 1) % BLOCK == 0:
                bar.update(BLOCK)
        bar.update(len(captions) % BLOCK)
    return count, cut


def picture_size(picture: Picture | None) -> tuple[int, int] | None:
    """(width, height) as the file's header says, of a JPEG upright; None where it cannot be read."""
    if picture is None:
        return None
    for size in dict.fromkeys((min(picture.size, HEAD), picture.size)):
        try:
            with Image.open(io.BytesIO(read_at(picture.path, picture.offset, size)), formats=FORMATS) as image:
                turned = image.format in ("JPEG", "MPO") and image.getexif().get(ORIENTATION) in SIDEWAYS
                return image.size[::-1] if turned else image.size
        except Exception:  # a damaged or a cut header makes Pillow's readers raise almost anything
            continue
    return None


def pictures_of(metadata: pa.Table) -> list[Picture | None]:
    """Where the image of each metadata row lies; None where the table does not say."""
    names = ("image_path", "image_offset", "image_size")
    if not set(names) <= set(metadata.column_names):
        return [None] * metadata.num_rows
    columns = (metadata[name].to_pylist() for name in names)
    return [None if None in place else Picture(*place) for place in zip(*columns, strict=True)]
