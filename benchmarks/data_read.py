"""Undecoded samples (image, captions, metadata) of a local tar: ours in a random order, webdataset's one after the other."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import webdataset as wds
from timing import interleaved, medians, progress, seconds

from dualenc.data.shards import open_source


def pack(images: Iterable[tuple[Path, list[str]]], out: Path) -> int:
    """A tar of KEY.jpg, KEY.txt and KEY.json by webdataset's own writer; returns the samples."""
    count = 0
    with wds.TarWriter(str(out)) as tar:
        for number, (path, captions) in enumerate(images):
            about = {"width": 1, "height": 1, "file": path.name, "number": number}
            tar.write(
                {
                    "__key__": f"{number:06d}",
                    path.suffix[1:].lower(): path.read_bytes(),
                    "txt": "\n".join(captions),
                    "json": json.dumps(about),
                }
            )
            count += 1
    return count


def read(tar: Path, repeats: int) -> dict[str, float | int]:
    """Microseconds a sample. Every sample of the tar once, all from the system's page cache; another order each repeat."""
    first, again = seconds(lambda: open_source(tar)), seconds(lambda: open_source(tar))
    source = open_source(tar)
    rng = np.random.default_rng(0)
    same(tar)

    def ours() -> None:
        for i in rng.permutation(len(source)).tolist():
            source.sample(i)

    def theirs() -> None:
        for _ in wds.WebDataset(str(tar), shardshuffle=False):
            pass

    taken = interleaved({"ours_us": ours, "webdataset_us": theirs}, repeats, "read")
    times = medians(taken, len(source))
    return {
        "samples": len(source),
        "bytes_a_sample": round(tar.stat().st_size / len(source)),
        "open_first_ms": round(first * 1e3, 1),
        "open_again_ms": round(again * 1e3, 1),
        **times,
        "gain": round(times["webdataset_us"] / times["ours_us"], 2),
    }


def same(tar: Path) -> None:
    """Both readers give the same bytes."""
    source, count = open_source(tar), 0
    for i, theirs in enumerate(wds.WebDataset(str(tar), shardshuffle=False)):
        ours = source.sample(i)
        image = next(theirs[e] for e in ("jpg", "jpeg", "png") if e in theirs)
        assert ours.key == theirs["__key__"] and ours.parts["image"] == image, ours.key
        assert (ours.parts["txt"], ours.parts["json"]) == (theirs["txt"], theirs["json"]), ours.key
        count += 1
    assert count == len(source)
    progress(f"read: all {count:,} samples are the same bytes")
