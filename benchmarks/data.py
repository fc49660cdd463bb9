"""The data engine against its peers: python benchmarks/data.py --photos ZIP_OR_FOLDER --flickr8k ZIP_OR_FOLDER [--only SECTION]

Six sections, each in a process of its own with one thread: both sides of a comparison in the same run, by turns, medians
of five or more. Writes results/data.json; --only measures one section and keeps what is recorded of the others. Both data
sets hold captions.jsonl (image, and captions or caption) beside images/.
"""

from __future__ import annotations

import argparse
import datetime
import json
import multiprocessing
import os
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # before anything loads OpenMP: one core's times compare between machines

from record import RESULTS, record

NEEDS = {
    "images": "photos",
    "read": "flickr8k",
    "text": "flickr8k",
    "tower": "flickr8k",
    "loader": "photos",
    "memory": "photos",
}
COPIES = 12  # of each photo, for epochs of the loader that are long enough to time
TARGETS = (  # section, figure, at least (or below, where negative), what it is
    ("images", "own_size/times_open_clip", 1.5, "training pixels from photos, open_clip's time over ours"),
    ("images", "own_size/share_of_decode_alone", 0.6, "the same, time of decoding alone over ours"),
    ("images", "1024_px/times_open_clip", 4.0, "the same at 1,024 px, open_clip's time over ours"),
    ("read", "gain", 5.0, "reading a sample, webdataset's time over ours"),
    ("text", "gain_cold", 5.0, "tokenising, open_clip's time over ours, both new"),
    ("text", "gain_warm", 5.0, "tokenising, both for the second time"),
    ("tower", "gain_longest", 2.0, "text tower, padded to 77 over padded to the batch's longest"),
    ("tower", "gain_sorted", 4.0, "text tower, padded to 77 over sorted by length"),
    ("loader", "share", 0.85, "gain of two workers over that of two processes"),
    ("memory", "growth", -0.05, "memory over 20 epochs, growth after the second"),
)


@contextmanager
def unpacked(path: str) -> Iterator[Path]:
    """The folder of a data set, out of its zip if it is one."""
    if Path(path).is_dir():
        yield Path(path)
        return
    with tempfile.TemporaryDirectory() as folder:
        with zipfile.ZipFile(path) as archive:
            archive.extractall(folder)
        yield next(Path(folder).rglob("captions.jsonl")).parent


def rows(folder: Path) -> list[tuple[Path, list[str]]]:
    """Each image with its captions."""
    lines = (folder / "captions.jsonl").read_text(encoding="utf-8").splitlines()
    listed = [json.loads(line) for line in lines]
    return [(folder / "images" / row["image"], row.get("captions") or [row["caption"]]) for row in listed]


def measure(section: str, path: str, repeats: int) -> dict[str, Any]:
    """One section's figures."""
    import torch

    torch.set_num_threads(1)
    with unpacked(path) as folder, tempfile.TemporaryDirectory() as shards:
        images, tar = rows(folder), Path(shards) / "packed.tar"
        captions = [caption for _, some in images for caption in some]
        if section == "images":
            import data_images

            return data_images.measure(folder, repeats)
        if section == "read":
            import data_read

            data_read.pack(images, tar)
            return data_read.read(tar, repeats)
        if section in ("text", "tower"):
            import data_text

            return (data_text.text if section == "text" else data_text.tower)(captions, repeats)
        import data_loader
        import data_read

        data_read.pack(images * (COPIES if section == "loader" else 1), tar)
        return data_loader.loader(tar, repeats) if section == "loader" else data_loader.memory(tar)


def table(results: dict[str, Any]) -> str:
    """What was wanted and what was measured."""
    lines = [f"{'':<66}{'wanted':>9}{'measured':>10}"]
    for section, figure, target, text in TARGETS:
        value = results.get(section)
        for part in figure.split("/"):
            value = None if value is None else value[part]
        if value is not None:
            met = value >= target if target > 0 else value < -target
            wanted = f">= {target:g}" if target > 0 else f"< {-target:g}"
            lines.append(f"{section + ': ' + text:<66}{wanted:>9}{value:>10.3g}{'' if met else '   MISSED'}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", help="photos at their original size, about 500 x 375")
    parser.add_argument("--flickr8k", help="Flickr8k, 8,091 photos with five captions each")
    parser.add_argument("--only", choices=NEEDS, help="one section")
    parser.add_argument("--repeats", type=int, default=5, help="of every measurement (default 5)")
    options = parser.parse_args()
    sections = [options.only] if options.only else list(NEEDS)
    for section in sections:
        if getattr(options, NEEDS[section]) is None:
            parser.error(f"{section} needs --{NEEDS[section]}")
    path = RESULTS / "data.json"
    results = json.loads(path.read_text(encoding="utf-8"))["results"] if path.exists() else {}
    for section in sections:
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as alone:
            found = alone.submit(measure, section, getattr(options, NEEDS[section]), options.repeats).result()
        results[section] = found | {"date": datetime.date.today().isoformat()}
        record("data", {name: results[name] for name in NEEDS if name in results})
    sys.stdout.write(f"{table(results)}\n")


if __name__ == "__main__":
    main()
