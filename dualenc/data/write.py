"""Samples into webdataset tars: numbered shards in a folder, the same bytes for the same samples."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import webdataset

SHARD_SAMPLES = 10_000
SHARD_BYTES = 1_000_000_000  # of image bytes and text; whichever of the two is reached first ends a shard
KEY_BYTES = 90  # a tar's plain header holds names of 100


def tar_key(text: str) -> str:
    """A key that any reader of tars takes for what it is: no dots (webdataset's key ends at one), no odd characters."""
    text = "".join(f"_{ord(c) - 0xDC00:02x}" if "\udc80" <= c <= "\udcff" else c for c in text)  # bytes, not UTF-8
    text = unicodedata.normalize("NFC", text.encode("utf-8", "replace").decode())
    parts = [part for part in text.split("/") if part not in ("", ".", "..")]
    key = "/".join(re.sub(r"[^\w\-+,()@=~#'!&]", "_", part) for part in parts) or "_"
    if re.match(r"__[^/]*__/", key):  # webdataset passes over such folders as its own
        key = "k" + key
    if len(key.encode()) <= KEY_BYTES:
        return key
    tail = "-" + hashlib.sha256(text.encode()).hexdigest()[:12]
    return key.encode()[: KEY_BYTES - len(tail)].decode(errors="ignore").rstrip("/") + tail


def encode_sample(
    key: str,
    image: bytes,
    suffix: str,
    captions: Sequence[str],
    metadata: dict[str, Any] | None = None,
    label: int | None = None,
) -> dict[str, Any]:
    """One sample as webdataset writes it: `KEY.<suffix>`, and `KEY.txt`, `KEY.json` and `KEY.cls` where given.

    suffix: jpg, jpeg, png or webp. A caption becomes one line: its white space is collapsed.
    """
    if not key or "." in key.rsplit("/", 1)[-1]:  # webdataset's key ends at the first dot of the last name
        raise ValueError(f"{key!r} cannot name a sample: readers of webdataset tars would cut it at its first dot")
    lines = "\n".join(" ".join(caption.split()) for caption in captions)
    sample: dict[str, Any] = {"__key__": key, suffix: image}
    if captions:
        sample["txt"] = lines.encode()
    if metadata is not None:
        sample["json"] = json.dumps(metadata, ensure_ascii=False, allow_nan=False).encode()
    if label is not None:
        sample["cls"] = str(label).encode()
    return sample


@contextlib.contextmanager
def shards(folder: Path, samples: int = SHARD_SAMPLES, size: int = SHARD_BYTES) -> Iterator[webdataset.ShardWriter]:
    """A writer of `folder/000000.tar`, `000001.tar`, ...: at most `samples` in each, and about `size` bytes."""
    if samples < 1 or size < 1:
        raise ValueError(f"a shard of {samples} samples and {size} bytes would hold nothing; both must be at least 1")
    folder.mkdir(parents=True, exist_ok=True)
    pattern = str(folder.resolve()).replace("%", "%%") + "/%06d.tar"
    writer = webdataset.ShardWriter(pattern, maxcount=samples, maxsize=size, verbose=0, encoder=False, mtime=0)
    with writer:
        yield writer
