"""Small data and small towers for tests: nothing here is downloaded, and everything is made in milliseconds."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

VISION = {
    "vit": {"image_size": 32, "patch_size": 16, "layers": 1, "width": 32, "head_width": 16},
    "resnet": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "head_width": 64},
    "timm": {"image_size": 32, "timm_model_name": "resnet10t", "timm_pool": "avg", "timm_proj": "linear"},
    "timm_vit": {"image_size": 32, "timm_model_name": "test_vit", "timm_pool": "", "timm_proj": "linear"},
}
TEXT = {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
SIGLIP_TEXT = TEXT | {"no_causal_mask": True, "pool_type": "last", "proj_bias": True}

CONFIGS = {
    "vit": {"embed_dim": 16, "vision_cfg": VISION["vit"], "text_cfg": TEXT},
    "quick_gelu": {"embed_dim": 16, "vision_cfg": VISION["vit"], "text_cfg": TEXT, "quick_gelu": True},
    "rectangle": {"embed_dim": 16, "vision_cfg": VISION["vit"] | {"image_size": [32, 48]}, "text_cfg": TEXT},
    "resnet": {"embed_dim": 16, "vision_cfg": VISION["resnet"], "text_cfg": TEXT},
    "timm": {"embed_dim": 16, "vision_cfg": VISION["timm"], "text_cfg": TEXT, "custom_text": True},
    "timm_vit": {"embed_dim": 16, "vision_cfg": VISION["timm_vit"], "text_cfg": TEXT, "custom_text": True},
    "siglip": {
        "embed_dim": 16,
        "vision_cfg": VISION["vit"],
        "text_cfg": SIGLIP_TEXT,
        "custom_text": True,
        "init_logit_bias": -10.0,
    },
}

COLOURS = {
    "red": (220, 30, 30),
    "green": (30, 180, 60),
    "blue": (40, 60, 220),
    "yellow": (230, 210, 40),
    "black": (10, 10, 10),
    "white": (245, 245, 245),
    "purple": (140, 40, 170),
    "orange": (240, 140, 20),
}


def png(size: tuple[int, int] = (32, 32), colour: tuple[int, int, int] | None = None, seed: int = 0) -> bytes:
    """A PNG of one colour with a little noise, or of noise alone."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256 if colour is None else 8, (size[1], size[0], 3))
    if colour is not None:
        pixels = np.clip(pixels + np.array(colour), 0, 255)
    data = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(data, "PNG")
    return data.getvalue()


def write_tar(path: Path, members: list[tuple[str, bytes]], format: int = tarfile.USTAR_FORMAT) -> Path:
    """A tar of (name, bytes); a name that ends with / is a folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=format) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name.rstrip("/"))
            if name.endswith("/"):
                info.type = tarfile.DIRTYPE
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def sample(key: str, colour: str = "red", captions: list[str] | None = None, seed: int = 0, **more) -> list:
    """The members of one sample: image, captions, and whatever else (`cls=3`, `json={…}`)."""
    lines = [f"a {colour} picture"] if captions is None else captions
    members = [(f"{key}.png", png(colour=COLOURS[colour], seed=seed))]
    if lines:
        members.append((f"{key}.txt", "\n".join(lines).encode()))
    if "cls" in more:
        members.append((f"{key}.cls", str(more["cls"]).encode()))
    if "json" in more:
        members.append((f"{key}.json", json.dumps(more["json"]).encode()))
    return members


def write_shards(
    folder: Path, n: int, shards: int = 2, broken: tuple[int, ...] = (), prefix: str = "s", **more
) -> Path:
    """n samples s000, s001, … over some shards, each of a colour that its two captions name; `broken` do not decode."""
    names = list(COLOURS)
    for shard in range(shards):
        members = []
        for i in range(n * shard // shards, n * (shard + 1) // shards):
            colour, key = names[i % len(names)], f"{prefix}{i:03d}"
            extra = {name: make(i) for name, make in more.items()}
            captions = [f"a {colour} picture number {i}", f"number {i} is {colour}"]
            some = sample(key, colour, captions, seed=i, **extra)
            if i in broken:
                some[0] = (some[0][0], b"not a picture")
            members += some
        write_tar(folder / f"shard-{shard:03d}.tar", members)
    return folder


def loaded(name: str = "vit", seed: int = 0, **text):
    """Random towers with their tokenizer, as `dualenc.model.folder` hands them around."""
    import torch

    from dualenc.model.folder import Loaded, make_tokenizer
    from dualenc.model.towers import build

    cfg = CONFIGS[name] | {"text_cfg": CONFIGS[name]["text_cfg"] | text}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build(cfg, {"mean": [0.5, 0.4, 0.3], "std": [0.25, 0.2, 0.3]})
    return Loaded(model.eval(), make_tokenizer(cfg["text_cfg"]), cfg, {"steps": 0})
