"""Data sets that people evaluate on, and where they are had: what the error for a missing path says.

The names are those of CLIP_benchmark's webdatasets.txt; on the Hub a set wds/vtab/cifar10 is clip-benchmark/wds_vtab-cifar10.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path

HUB = "clip-benchmark"
PLAIN = (
    "mscoco_captions", "flickr8k", "flickr30k", "imagenet1k", "imagenetv2", "imagenet_sketch", "imagenet-a",
    "imagenet-r", "imagenet-o", "objectnet", "fer2013", "voc2007", "sun397", "cars", "fgvc_aircraft", "mnist", "stl10",
    "gtsrb", "country211", "renderedsst2",
)  # fmt: skip
VTAB = (
    "caltech101", "cifar10", "cifar100", "clevr_count_all", "clevr_closest_object_distance", "diabetic_retinopathy",
    "dmlab", "dsprites_label_orientation", "dsprites_label_x_position", "dsprites_label_y_position", "dtd", "eurosat",
    "kitti_closest_vehicle_distance", "flowers", "pets", "pcam", "resisc45", "smallnorb_label_azimuth",
    "smallnorb_label_elevation", "svhn",
)  # fmt: skip
OTHER_NAMES = {
    "imagenet": "imagenet1k",
    "ilsvrc2012": "imagenet1k",
    "coco": "mscoco_captions",
    "mscoco": "mscoco_captions",
    "cococaptions": "mscoco_captions",
    "voc": "voc2007",
    "stanfordcars": "cars",
    "fgvcaircraft": "fgvc_aircraft",
    "aircraft": "fgvc_aircraft",
    "oxfordpets": "pets",
    "oxfordiiitpet": "pets",
    "flowers102": "flowers",
    "oxfordflowers": "flowers",
    "imagenetsketch": "imagenet_sketch",
}
COCO_VAL2017 = "http://images.cocodataset.org/zips/val2017.zip"


def hub_name(path: str | Path) -> str | None:
    """The set on the Hub that a path is called after, by the name of its folder; None where it is called otherwise.

    >>> hub_name("data/wds_flickr8k/test"), hub_name("imagenet"), hub_name("data/CIFAR-10"), hub_name("photos/mine")
    ('wds_flickr8k', 'wds_imagenet1k', 'wds_vtab-cifar10', None)
    """
    name = _root(path).name
    plain = _plain(name).removeprefix("wds").removeprefix("vtab")
    ids = {_plain(name): f"wds_{name}" for name in PLAIN} | {_plain(name): f"wds_vtab-{name}" for name in VTAB}
    known = ids.get(_plain(OTHER_NAMES.get(plain, plain)))
    return known or (name if re.fullmatch(r"wds_[\w-]+", name, re.ASCII) else None)


def no_such_path(path: str | Path) -> FileNotFoundError:
    """The error for data that is not there: with the command that gets it, where its name is that of a known set."""
    known = hub_name(path)
    if known is None:
        return FileNotFoundError(f"{path}: no such file or folder, so there is no data to read; check the path")
    return FileNotFoundError(
        f"{path}: no such file or folder; check the path, or get CLIP_benchmark's set: `hf download "
        f"--repo-type dataset {HUB}/{known} --local-dir {shlex.quote(str(_root(path)))}`"
    )


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _root(path: str | Path) -> Path:
    """`path` less a shard's name and a split's at its end: where the set itself should lie."""
    root = Path(path)
    root = root.parent if root.suffix == ".tar" else root
    return root.parent if root.name in ("train", "test", "val", "validation") else root
