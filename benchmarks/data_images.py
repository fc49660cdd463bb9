"""Training pixels per second, ours against open_clip's transform: python benchmarks/data_images.py FOLDER_OR_ZIP

One thread, 224 px, open_clip's default augmentation, from JPEG bytes in memory: ours (`training`, the fast path),
open_clip's own (`Image.open` and `image_transform_v2(is_train=True)`) and decoding alone (`Image.open` and
`convert("RGB")`), once at the photos' own size and once enlarged to 1,024 px (shorter side, JPEG quality 90). The ways
take turns; figures are medians. benchmarks/data.py records them.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"  # before torch loads

import dualenc.torchvision_ops  # noqa: F401  (before open_clip)

import numpy as np
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from timing import interleaved, medians

from dualenc.data.transforms import Augment, training
from dualenc.images import decode
from dualenc.pixels import evaluation

SIDE, LARGE, REPEATS = 224, 1024, 7
SPEC = {"size": [SIDE, SIDE], "interpolation": "bicubic", "resize_mode": "shortest", "fill_color": 0}


def photos(source: str | Path, count: int | None = None) -> list[bytes]:
    """The JPEG files of a folder or a zip file, by name; evenly spread ones where `count` are enough."""
    if Path(source).is_dir():
        files = sorted(p for p in Path(source).rglob("*") if p.suffix.lower() in (".jpg", ".jpeg"))
        found = [p.read_bytes() for p in files]
    else:
        with zipfile.ZipFile(source) as archive:
            found = [archive.read(n) for n in sorted(archive.namelist()) if n.lower().endswith((".jpg", ".jpeg"))]
    if not found:
        raise ValueError(f"{source} holds no .jpg or .jpeg file, so there is nothing to decode")
    return found if count is None else found[:: max(len(found) // count, 1)][:count]


def enlarged(data: bytes, side: int = LARGE) -> bytes:
    """A JPEG whose shorter side has `side` pixels."""
    image = decode(data)
    scale = side / min(image.size)
    buffer = io.BytesIO()
    image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC).save(
        buffer, "JPEG", quality=90
    )
    return buffer.getvalue()


def transforms() -> dict[str, Callable[[bytes], Any]]:
    """What is compared: functions of a file's bytes."""
    train = image_transform_v2(PreprocessCfg(size=SIDE), is_train=True)
    rng, augment = np.random.default_rng(0), Augment()
    return {
        "ours": lambda data: training(data, SPEC, augment, rng),
        "ours_exact": lambda data: training(data, SPEC, augment, rng, "exact"),
        "open_clip": lambda data: train(Image.open(io.BytesIO(data))),
        "decode_alone": lambda data: Image.open(io.BytesIO(data)).convert("RGB"),
    }


def compare(files: Sequence[bytes], repeats: int = REPEATS) -> dict[str, float]:
    """Samples per second of every way, and ours against open_clip and against decoding alone."""

    def over_all(way: Callable[[bytes], Any]) -> Callable[[], None]:
        def once() -> None:
            for data in files:
                way(data)

        return once

    ways = {name: over_all(way) for name, way in transforms().items()}
    for way in ways.values():
        way()  # does not count
    taken = medians(interleaved(ways, repeats, "images"), len(files))
    return {f"{name}_per_second": round(1e6 / value, 1) for name, value in taken.items()} | {
        "times_open_clip": round(taken["open_clip"] / taken["ours"], 2),
        "share_of_decode_alone": round(taken["decode_alone"] / taken["ours"], 3),
        "exact_times_open_clip": round(taken["open_clip"] / taken["ours_exact"], 2),
    }


def differences(files: Sequence[bytes], sides: Sequence[int] = (32, 64, 112, 224)) -> dict[str, float]:
    """The greatest mean absolute difference, of 255, that fast evaluation shows to exact evaluation on any photo."""
    found = {}
    for side in sides:
        spec = SPEC | {"size": [side, side]}
        pairs = ((evaluation(data, spec), evaluation(data, spec, "fast")) for data in files)
        found[str(side)] = round(max(float(np.abs(a.astype(int) - b).mean()) for a, b in pairs), 3)
    return found


def measure(source: str | Path, repeats: int = REPEATS) -> dict[str, Any]:
    """All of it, for a record."""
    torch.set_num_threads(1)
    files = photos(source)
    large = [enlarged(data) for data in files[:: max(len(files) // 100, 1)]]
    return {
        "own_size": {"photos": len(files)} | compare(files, repeats),
        f"{LARGE}_px": {"photos": len(large)} | compare(large, repeats),
        "fast_evaluation_difference": {"own_size": differences(files), f"{LARGE}_px": differences(large)},
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="a folder or a zip file of JPEG photos")
    parser.add_argument("--repeats", type=int, default=REPEATS)
    options = parser.parse_args()
    print(json.dumps(measure(options.source, options.repeats), indent=2))
